"""What `keras.ops` lacks: derivatives inside and around a solve, and buffers.

One module per framework, each with the same functions:

`vjp(f, args, cotangent)`
    Evaluates `f(*args)`, where `args` is a tuple of structures of float
    tensors, and returns it with the cotangents of `args`.

`hoist(f, args, identity, closed)`
    Makes an argument of what `f` reads besides `args`, tensors held by closures
    and attributes, and returns it as a `Hoisted`. Where `closed` is true, that
    is known to be nothing; otherwise `f(*args)` is evaluated once, to see. A
    `ValueError` names what has a gradient and cannot be an argument. `identity`
    is something hashable that stands for what `f` computes, or `None`.

`custom_vjp(forward, backward, identity)`
    Gives a function its own gradient. From
    `forward(args, constants, keeps) -> (outputs, residuals)` and
    `backward(residuals, cotangent) -> cotangents of args`, with `cotangent` of
    the structure of `outputs`, makes `function(args, constants) -> outputs`.
    No gradient flows to `constants`. Where `keeps` is false there will be no
    backward pass, and the residuals are not used. `identity` stands for both
    functions, or is `None`: what was compiled for one call serves the next.

`add_scaled(x, factor, y)`
    `x + factor * y`, for a float or a tensor `factor`.

`scatter(buffer, indices, updates)`
    As `keras.ops.scatter_update`, but may write into `buffer` itself, whose
    old value is then lost.

`new_list(like, size)`, `set_item(items, i, x)`, `get_item(items, i, like)`
    A list of `size` tensors like `like`, written and read at a scalar tensor
    `i`. An item that was never written is undefined. `set_item` may write
    into `items` itself.

`value(x)`
    The tensor `x` as a NumPy array, or `None` where it is being traced and has
    no value yet.

`full_products()`
    A context manager, and so a decorator, in which float32 products are
    computed in float32 and not in TF32, as GPUs do; where the framework has no
    such scope, or the user has chosen, it leaves them as they are.

`eps_of_products()`
    The spacing of floats at 1 in which float32 products are computed there.

`new_tape(size, params)`
    A `Tape` that keeps the graphs of the first `size` steps of a solve; `()`
    where there is none.

`while_loop(cond, body, loop_vars)`
    As `keras.ops.while_loop`, for a tuple of structures of tensors.

`recorded(f)`
    A decorator for a pure function of structures of tensors, which is called
    often and so may be recorded. What else is among its arguments must tell
    what it is: numbers, strings and functions of ours, which close over
    nothing, do; other objects have a method `identity()` that returns
    something hashable, or `None`. Where one does not tell, `f` is called.

`uncompiled(f)`
    A decorator for a function that is left out where `torch.compile` compiles
    what calls it.
"""

import importlib

import keras

from keras_node.backend.hoisted import Hoisted as Hoisted

_framework = importlib.import_module(
    f"keras_node.backend.{keras.backend.backend()}"
)

vjp = _framework.vjp
hoist = _framework.hoist
custom_vjp = _framework.custom_vjp
add_scaled = _framework.add_scaled
scatter = _framework.scatter
new_list = _framework.new_list
set_item = _framework.set_item
get_item = _framework.get_item
value = _framework.value
full_products = _framework.full_products
eps_of_products = _framework.eps_of_products
new_tape = _framework.new_tape
while_loop = _framework.while_loop
recorded = _framework.recorded
uncompiled = _framework.uncompiled

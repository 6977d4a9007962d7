"""What `keras.ops` lacks: derivatives inside and around a solve, and buffers.

One module per framework, each with the same functions:

`vjp(f, args, cotangent)`
    Evaluates `f(*args)`, where `args` is a tuple of structures of float
    tensors, and returns it with the cotangents of `args`.

`custom_vjp(forward, backward)`
    Gives a function its own gradient. From
    `forward(args, constants, keeps) -> (outputs, residuals)` and
    `backward(residuals, cotangent) -> cotangents of args`, with `cotangent` of
    the structure of `outputs`, makes `function(args, constants) -> outputs`.
    No gradient flows to `constants`. Where `keeps` is false there will be no
    backward pass, and the residuals are of no account.

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

`same_draws()`
    Makes context managers in which random draws without a seed of Keras's are
    the same each time, and leave no trace outside.

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

`identity(layer, key)`
    Something hashable that stands for the functions that a Keras layer, as it
    is now, and `key` determine; or `None`.
"""

import importlib

import keras

_framework = importlib.import_module(
    f"keras_node.backend.{keras.backend.backend()}"
)

vjp = _framework.vjp
custom_vjp = _framework.custom_vjp
add_scaled = _framework.add_scaled
scatter = _framework.scatter
new_list = _framework.new_list
set_item = _framework.set_item
get_item = _framework.get_item
value = _framework.value
same_draws = _framework.same_draws
full_products = _framework.full_products
eps_of_products = _framework.eps_of_products
new_tape = _framework.new_tape
while_loop = _framework.while_loop
recorded = _framework.recorded
uncompiled = _framework.uncompiled
identity = _framework.identity

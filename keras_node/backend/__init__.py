"""Operations that `keras.ops` lacks: derivatives in and of a solve, buffers.

Each framework has one module, with the same functions:

`vjps(f, args, cotangents)`
    Evaluates `f(*args)`, where `args` is a tuple of structures of float
    tensors. Returns the result and, for each item of the list `cotangents`,
    the cotangents of `args`. All can be differentiated again. `vjp` is the
    same for one cotangent.

`hoist(f, args, identity, closed)`
    Makes arguments of the tensors that `f` reads besides `args`, by closures
    and attributes. Returns a `Hoisted`. If `closed` is true, `f` is known to
    read none. Otherwise `f(*args)` is evaluated once, to find them. A
    `ValueError` names those with a gradient that cannot be arguments.
    `identity` is a hashable that stands for what `f` computes, or `None`.

`custom_vjp(forward, backward, key)`
    Gives a function its own gradient. Makes
    `function(args, constants) -> outputs` from
    `forward(args, constants, keeps) -> (outputs, residuals)` and
    `backward(residuals, cotangent) -> cotangents of args`. `cotangent` has the
    structure of `outputs`. No gradient flows to `constants`. If `keeps` is
    false there is no backward pass, and the residuals are not used. `key` holds
    all that the functions depend on. If it is a value in the sense of `values`,
    code that was compiled for one call serves the next.

`add_scaled(x, factor, y)`
    Computes `x + factor * y`, for a float or a tensor `factor`.

`new_list(like, size)`, `set_item(items, i, x)`, `get_item(items, i, like)`
    Make, write and read a list of `size` tensors like `like`. The index `i` is
    a scalar tensor. An item that was never written is undefined. `set_item`
    may write into `items` itself.

`stack_list(items, like)`
    Makes one tensor of a list, of which at least one item was written.

`value(x)`
    Returns the tensor `x` as a NumPy array, or `None` where it is being traced
    and has no value yet.

`is_tracked(x)`
    Tells whether a gradient may be taken by the tensor `x`.

`full_products()`
    Makes a context manager, which is also a decorator. In it, float32 products
    are computed in float32, and not in TF32 as on GPUs. It changes nothing
    where the framework has no such scope, or where the user has chosen.

`eps_of_products()`
    Returns the precision of float32 products in that scope, as the spacing of
    floats at 1.

`while_loop(cond, body, loop_vars)`
    Does the same as `keras.ops.while_loop`. Where `jit` captures, a `body`
    that is a `functools.partial` of a function is captured, too.

`scan(f, carry, xs, like)`
    Calls `carry, y = f(carry, x)` for the items `x` of the tensors `xs`, along
    their first axis, of which there is at least one. Returns the last `carry`
    and the stack of all `y`, which are like the tensor `like`. If `like` is
    `None`, no `y` is kept. `unrolled_scan` does the same in a Python loop.

The other functions are hooks. `defaults` holds the ones that do nothing:

`jit(f)`
    Decorates a function that is called often. Where operations run eagerly, the
    function is captured as a graph. Its arguments are structures of tensors and
    of values. A graph serves all calls whose values are equal, by `__eq__` and
    `__hash__`. Where the caller compiles, `f` itself is returned.

`with_pullback(f, ends, inputs)`
    Evaluates `f(*inputs)`. `ends` selects the part of the result that has a
    derivative. Returns the result and the pullback of that part, from its
    cotangent to the cotangents of `inputs`. It exists only where
    `keeps_pullbacks` is true. There a pullback may leave a loop.

`uncompiled(f)`
    Decorates a function that is left out where `torch.compile` compiles its
    caller.
"""

import importlib

import keras

from keras_node.backend import defaults
from keras_node.backend.hoisted import Hoisted as Hoisted

_framework = importlib.import_module(
    f"keras_node.backend.{keras.backend.backend()}"
)


def _hook(name):
    return getattr(_framework, name, getattr(defaults, name))


vjps = _framework.vjps
hoist = _framework.hoist
custom_vjp = _framework.custom_vjp
new_list = _framework.new_list
set_item = _framework.set_item
get_item = _framework.get_item
stack_list = _framework.stack_list
value = _framework.value
is_tracked = _framework.is_tracked
eps_of_products = _framework.eps_of_products

add_scaled = _hook("add_scaled")
while_loop = _hook("while_loop")
scan = _hook("scan")
unrolled_scan = defaults.scan
full_products = _hook("full_products")
jit = _hook("jit")
with_pullback = _hook("with_pullback")
keeps_pullbacks = _hook("keeps_pullbacks")
uncompiled = _hook("uncompiled")


def vjp(f, args, cotangent):
    out, (adj_args,) = vjps(f, args, [cotangent])
    return out, adj_args

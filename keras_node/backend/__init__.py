"""What `keras.ops` lacks: derivatives inside and around a solve, and buffers.

One module per framework, each with the same four functions:

`vjp(f, args, cotangent)`
    Evaluates `f(*args)`, where `args` is a tuple of structures of float
    tensors, and returns it with the cotangents of `args`.

`custom_vjp(forward, backward)`
    Gives a function its own gradient. From
    `forward(args, constants) -> (outputs, residuals)` and
    `backward(residuals, cotangent) -> cotangents of args`, with `cotangent` of
    the structure of `outputs`, makes `function(args, constants) -> outputs`.
    No gradient flows to `constants`.

`scatter(buffer, indices, updates)`
    As `keras.ops.scatter_update`, but may write into `buffer` itself, whose
    old value is then lost.

`is_concrete(x)`
    Whether the tensor `x` has a value now, or is being traced.
"""

import importlib

import keras

_framework = importlib.import_module(
    f"keras_node.backend.{keras.backend.backend()}"
)

vjp = _framework.vjp
custom_vjp = _framework.custom_vjp
scatter = _framework.scatter
is_concrete = _framework.is_concrete

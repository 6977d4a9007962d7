"""Convolutions in the layout for which XLA has fast code on a CPU.

Inside a loop, XLA's CPU compiler has fast code only for convolutions of images
`(batch, height, width, channels)` with kernels `(height, width, in, out)`. The
gradient of a kernel is a convolution of another layout, some 40 times as slow
there. Transposing its arguments brings it into the fast layout.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Literal
from jax.extend.core import jaxpr_as_fun

from keras_node.types import Tensor

_P = lax.conv_general_dilated_p


def laid_out(f: Callable) -> Callable:
    """Wraps `f`, a function of one structure, to lay out its convolutions."""

    def function(x):
        leaves = jax.tree.leaves(x)
        compiled = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        if not compiled or jax.default_backend() != "cpu":
            return f(x)
        closed, outputs = jax.make_jaxpr(f, return_shape=True)(x)
        if any(equation.primitive is _P for equation in closed.eqns):
            flat = _run(closed.jaxpr, closed.consts, leaves)
        else:
            flat = jaxpr_as_fun(closed)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(outputs), flat)

    return function


def _run(jaxpr: Any, consts: list, args: list) -> list:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def value(x):
        return x.val if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        inputs = [value(x) for x in equation.invars]
        primitive, params = equation.primitive, equation.params
        if primitive is _P:
            results = _convolution(*inputs, **params)
        else:
            params = primitive.get_bind_params(params)
            if isinstance(params, tuple):  # until JAX 0.9
                functions, params = params
                inputs = [*functions, *inputs]
            results = primitive.bind(*inputs, **params)
        if not primitive.multiple_results:
            results = [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(x) for x in jaxpr.outvars]


def _convolution(
    images: Tensor, kernel: Tensor, *, dimension_numbers: Any, **params: Any
) -> Tensor:
    batch, channels, *space = dimension_numbers.lhs_spec
    images = lax.transpose(images, (batch, *space, channels))
    outs, ins, *space = dimension_numbers.rhs_spec
    kernel = lax.transpose(kernel, (*space, ins, outs))
    last = len(space) + 1
    laid_out = lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *range(1, last)),
        rhs_spec=(last, last - 1, *range(last - 1)),
        out_spec=(0, last, *range(1, last)),
    )
    result = _P.bind(images, kernel, dimension_numbers=laid_out, **params)
    batch, channels, *space = dimension_numbers.out_spec
    # The present place of each axis that the result must have.
    now = dict(zip((batch, *space, channels), range(last + 1), strict=True))
    return lax.transpose(result, [now[axis] for axis in range(last + 1)])

"""The size of the first step."""

from collections.abc import Callable
from typing import Any

from keras import ops
from keras import tree


def rms_norm(y: Any) -> Any:
    """Root mean square over all entries of a structure of tensors.

    The entries are scaled by the largest one, so that no square overflows.
    """
    leaves = tree.flatten(y)
    largest = 0.0
    for leaf in leaves:
        largest = ops.maximum(largest, ops.max(ops.abs(leaf), initial=0.0))
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    squares = sum(ops.sum(ops.square(leaf / largest)) for leaf in leaves)
    size = sum(ops.size(leaf) for leaf in leaves)
    return largest * ops.sqrt(squares / ops.cast(size, squares.dtype))


def initial_step(
    f: Callable,
    y0: Any,
    f0: Any,
    span: Any,
    order: int,
    rtol: float,
    atol: float,
) -> Any:
    """Chooses the first step from the slope and the curvature at the start.

    Args:
        f: The right-hand side, `f(t, y)`, with time running from 0 to `span`.
        y0: The initial state.
        f0: Its slope, `f(0, y0)`.
        span: Scalar tensor, the length of the whole interval.
        order: Int, order of the method.
        rtol: Float, relative tolerance.
        atol: Float, absolute tolerance.

    Returns:
        A positive scalar tensor, at most `span`. Costs one evaluation of `f`.

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4, "Starting Step Size"; the names are
          theirs.
    """
    scale = tree.map_structure(lambda y: atol + rtol * ops.abs(y), y0)

    def norm(y):
        return rms_norm(tree.map_structure(ops.divide, y, scale))

    d0, d1 = norm(y0), norm(f0)
    tiny = ops.logical_or(d0 < 1e-5, d1 < 1e-5)
    h0 = ops.where(tiny, 1e-6, 0.01 * d0 / ops.where(tiny, 1.0, d1))
    h0 = ops.minimum(h0, span)
    y1 = tree.map_structure(lambda y, k: y + h0 * k, y0, f0)
    difference = tree.map_structure(ops.subtract, f(h0, y1), f0)
    d2 = norm(difference) / h0
    steepest = ops.maximum(d1, d2)
    flat = steepest <= 1e-15
    h1 = ops.where(
        flat,
        ops.maximum(1e-6, 1e-3 * h0),
        (0.01 / ops.where(flat, 1.0, steepest)) ** (1 / order),
    )
    # A trial step that overflowed says only that h0 is too long.
    h1 = ops.where(ops.isfinite(steepest), h1, 1e-3 * h0)
    return ops.minimum(ops.minimum(100 * h0, h1), span)

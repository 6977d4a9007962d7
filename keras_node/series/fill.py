"""Missing observations, filled in between the others."""

from typing import Any

import keras
from keras import ops

from keras_node import checks
from keras_node import input_checks
from keras_node.series import inputs
from keras_node.series.knots import at
from keras_node.series.knots import ratio
from keras_node.types import Tensor


def fill_missing(x: Any, t: Any = None, method: str = "linear") -> Tensor:
    """Fills the missing values of a series, which are NaN, channel by channel.

    Before the first and after the last value seen, that value holds. A channel
    that is never seen is 0. Gradients flow to the values seen, and to `t`.

    Args:
        x: Float tensor or array of shape `(batch, T, channels)`, NaN where a
            value is missing.
        t: Times of shape `(T,)` or `(batch, T)`, not decreasing, or `None` for
            steps of the same length. Defaults to `None`.
        method: `"linear"`, which fills in time between the values seen before
            and after, or `"previous"`, which holds the one before. Defaults to
            `"linear"`.

    Returns:
        A tensor of the shape and dtype of `x`, without NaN.

    Raises:
        ValueError: If an argument is not as described. In compiled code the
            order of `t` is not checked.

    Example:
    >>> x = np.array([[[1.0], [np.nan], [4.0], [np.nan]]])
    >>> y = keras_node.layers.fill_missing(x, t=[0.0, 1.0, 3.0, 4.0])
    >>> keras.ops.convert_to_numpy(y).ravel().tolist()
    [1.0, 2.0, 4.0, 4.0]
    """
    checks.one_of("method", method, ("linear", "previous"))
    input_checks.not_symbolic("x", x)
    x = _observations(x)
    shape = ops.shape(x)
    if t is None:
        rows = ops.cast(ops.arange(shape[1]), "float32")
        return fill(x, ops.broadcast_to(rows[None], shape[:2]), method)
    input_checks.not_symbolic("t", t)
    found = inputs.times("t", t, x.shape)
    inputs.check_order("t", found)
    return fill(x, inputs.as_rows(found, shape, inputs.precise(found)), method)


def _observations(x: Any) -> Tensor:
    try:
        x = ops.convert_to_tensor(x)
        good = keras.backend.is_float_dtype(x.dtype) and len(x.shape) == 3
    except Exception:  # each framework raises its own
        good = False
    if good and x.shape[1] != 0:
        return x
    raise ValueError(
        "`x` must be a tensor of floats of shape `(batch, T, channels)`, and "
        f"not empty. Received: x={input_checks.described(x)}"
    )


def fill(x: Tensor, t: Tensor, method: str = "linear") -> Tensor:
    """Fills NaN in `x`, `(batch, T, channels)`, at times `(batch, T)`."""
    seen = ops.logical_not(ops.isnan(x))
    # A NaN must not take part, or its gradient would be one.
    known = ops.where(seen, x, ops.zeros_like(x))
    before, after = neighbours(seen)
    filled = at(known, before)
    if method == "linear":
        times = ops.broadcast_to(t[..., None], ops.shape(x))
        start = at(times, before)
        share = ratio(times - start, at(times, after) - start)
        rise = at(known, after) - filled
        filled = filled + ops.cast(share, x.dtype) * rise
    return ops.where(seen, known, filled)


def neighbours(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the positions of what was seen last, and of what is seen next.

    Args:
        seen: Boolean tensor `(batch, T, channels)`.

    Returns:
        Two tensors of indices. The first is that of the last one seen so far,
        also this one. The second is that of the first one seen later. Where
        there is none, each is that of the other. Where none is ever seen, they
        are `T - 1`.
    """
    size = ops.shape(seen)[1]
    steps = ops.cast(ops.arange(size), "int32")[None, :, None]
    none = ops.cast(size, "int32")
    # The positions of all that are seen, in order, and then `size`.
    order = ops.sort(ops.where(seen, steps, none), axis=1)
    count = ops.cumsum(ops.cast(seen, "int32"), axis=1)
    before = at(order, ops.clip(count - 1, 0, size - 1))
    after = at(order, ops.clip(count, 0, size - 1))
    after = ops.where(after == none, before, after)
    return ops.clip(before, 0, size - 1), ops.clip(after, 0, size - 1)

"""The path that a series draws, as what a controlled equation is driven by.

The path `X(s)` of the series `X = [t, x]` runs through observation `k` at
`s = k`. A controlled equation depends on where a path leads, and not on how
fast: in `s`, all samples reach their observations together, whatever their
times. At an observation `dX/ds` jumps, unless the times are regular and the
path is smooth: steps have to end there.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_node import pytree
from keras_node.series import knots
from keras_node.series.fill import fill
from keras_node.series.fill import neighbours
from keras_node.series.knots import at
from keras_node.series.knots import ratio
from keras_node.types import Tensor


class Path(NamedTuple):
    """Path of a series with `T` steps; `channels` counts the time, first.

    A segment begins at each step. The last one leads nowhere.
    """

    start: Tensor  # (batch, channels), the time and the values at first
    segments: list[Tensor]  # (batch, T, channels), what `velocity` reads
    ordered: Tensor  # (batch,), false where the time goes back


def of_series(x: Tensor, t: Tensor, mask: Tensor | None, method: str) -> Path:
    """Makes the path of a series.

    Args:
        x: Float tensor `(batch, T, channels)`, NaN where a value is missing.
        t: Tensor `(batch, T)`, of the precision of `x` or a higher one.
        mask: Boolean tensor `(batch, T)`, or `None`. Where it is false, the
            path rests where it was at the last step that counts.
        method: `"linear"` or `"hermite"`.
    """
    last = None
    if mask is not None:
        last, _ = neighbours(mask[..., None])
        t = at(ops.where(mask, t, ops.zeros_like(t)), last[..., 0])
        x = ops.where(mask[..., None], x, ops.full_like(x, float("nan")))
    x = fill(x, t)
    start = ops.concatenate([ops.cast(t[:, :1], x.dtype), x[:, 0]], axis=-1)
    # Times may be far from 0: only their difference is rounded.
    dt = ops.cast(t[:, 1:] - t[:, :-1], x.dtype)[..., None]
    d = ops.concatenate([dt, x[:, 1:] - x[:, :-1]], axis=-1)
    d = ops.concatenate([d, ops.zeros_like(start)[:, None]], axis=1)
    ordered = ops.all(d[..., 0] >= 0, axis=1)
    if method == "linear":
        return Path(start, [d], ordered)
    # The difference that leads to a step, as the slope there.
    slope = ratio(d, d[..., :1])
    slope = ops.concatenate([slope[:, :1], slope[:, :-1]], axis=1)
    if last is not None:
        slope = at(slope, last)
    moved = (t > t[:, :1])[..., None]
    p = ops.where(moved, d[..., :1] * slope, d)
    return Path(start, [d, p], ordered)


def course(x: Tensor) -> tuple[Any, Any]:
    """Finds the span of a path through `(batch, T, ...)`, and all its steps."""
    size = x.shape[1]
    if size:
        return [0.0, size - 1.0], np.arange(float(size))
    steps = ops.cast(ops.arange(ops.shape(x)[1]), "float32")
    return ops.stack([steps[0], steps[-1]]), steps


def velocity(s: Tensor, segments: list[Tensor]) -> Tensor:
    """Computes `dX/ds`, `(batch, channels)`, for `s` of shape `(batch, 1)`."""
    # The path ends on the last segment that leads somewhere.
    i = ops.clip(ops.cast(s, "int32"), 0, ops.shape(segments[0])[1] - 2)
    i = pytree.larger(i, ops.zeros_like(i))
    theta = s - ops.cast(i, s.dtype)
    d, *others = (at(x, i[..., None])[:, 0] for x in segments)
    return knots.derivative(theta, d, *others) if others else d

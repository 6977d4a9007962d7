"""Paths through knots: the segment that a time lies in, and the path there.

A segment leads from one knot to the next. On it a path is a polynomial of
`theta`, which runs from 0 to 1. With the difference `d` of the two values, and
the slope `p` at the first knot, per segment, it is

    u0 + p theta + (d - p) theta^2 (2 - theta).

Its slope at the second knot is `d`, the difference that leads to it: the cubic
Hermite path with backward differences (Morrill et al., 2021,
https://arxiv.org/abs/2106.11028). With `p = d` it is a straight line.
"""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import pytree
from keras_node.types import Tensor


class Segment(NamedTuple):
    """The segment that each time lies in. Outside the knots its ends meet."""

    count: Tensor  # (batch, 1), the number of knots up to the time
    start: Tensor  # (batch, 1), the time of the first knot
    length: Tensor  # (batch, 1), 0 outside
    theta: Tensor  # (batch, 1), the share that lies behind
    rate: Tensor  # (batch, 1), d theta / dt

    @classmethod
    def of(cls, t: Tensor, ts: Tensor) -> "Segment":
        """Finds the segments of times `(batch, 1)` among `(batch, L)` knots.

        A knot belongs to the segment that begins there. Of knots at one time
        the last one counts.
        """
        count = _count(ts <= t)
        start, end = (at(ts, i) for i in _ends(count, ts))
        length = end - start
        # The difference comes first: times may be far from 0.
        rate = ratio(ops.ones_like(length), length)
        theta = rate * (t - start)
        # Knots that do not increase have no path. They are no segment of `t`.
        found = ops.logical_or(
            ops.logical_and(start <= t, t < end), ops.equal(length, 0)
        )
        theta = theta + pytree.zero_or_nan(found, theta.dtype)
        return cls(count, start, length, theta, rate)

    def values(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the values `(batch, channels)` at both ends of the segments."""
        start, end = (at(u, i[..., None])[:, 0] for i in _ends(self.count, u))
        return start, end

    def slope(self, ts: Tensor, u: Tensor, default: Tensor) -> Tensor:
        """Computes the slope at the first knot, per segment.

        Returns the slope that leads there from the last knot before, or
        `default` where there is none.
        """
        before = _count(ts < self.start)
        i = pytree.larger(before - 1, ops.zeros_like(before))
        length = self.start - at(ts, i)
        share = ops.cast(ratio(self.length, length), u.dtype)
        here, _ = self.values(u)
        slope = share * (here - at(u, i[..., None])[:, 0])
        return ops.where(length > 0, slope, default)


def value(theta: Tensor, u0: Tensor, d: Tensor, p: Tensor) -> Tensor:
    """Computes the value of a path at `theta`."""
    return u0 + theta * p + (d - p) * theta**2 * (2 - theta)


def derivative(theta: Tensor, d: Tensor, p: Tensor) -> Tensor:
    """Computes the derivative of a path by `theta`."""
    return p + (d - p) * theta * (4 - 3 * theta)


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """Divides by `y` where it is positive, and returns 0 elsewhere."""
    positive = y > 0
    quotient = x / ops.where(positive, y, ops.ones_like(y))
    return ops.where(positive, quotient, ops.zeros_like(quotient))


def at(x: Tensor, i: Tensor) -> Tensor:
    """Takes the items `i`, `(batch, n, ...)`, along axis 1."""
    return ops.take_along_axis(x, i, axis=1)


def _count(condition: Any) -> Tensor:
    return ops.sum(ops.cast(condition, "int32"), axis=1, keepdims=True)


def _ends(count: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the indices of the knots at both ends of a segment."""
    size = ops.cast(ops.shape(x)[1], count.dtype)
    first = pytree.larger(count - 1, ops.zeros_like(count))
    return first, pytree.smaller(count, ops.zeros_like(count) + (size - 1))

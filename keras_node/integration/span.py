"""The interval of integration as data: its ends, and jumps inside it."""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_node import pytree
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Span(NamedTuple):
    """Interval of integration whose ends are tensors, as `t0` and `t1`.

    Samples may have intervals of their own. A solve counts `s` from 0 to an
    `extent`, and `t` runs from `t0` to `t1` meanwhile: see `Course`. The ends
    of the interval are arguments of the right-hand side, like its weights. So
    are the times at which it may jump.
    """

    t0: Tensor  # () or (batch,)
    t1: Tensor
    length: Tensor  # t1 - t0, which may be more exact than the ends
    jumps: Any = ()  # (L,) or (L, batch), in the order of the way; or none


class Course(NamedTuple):
    """What the time `s` of a solve runs through, whatever `t` does.

    The extent is the length of the interval, or of the longest one if the
    samples share their steps. It is a unit. No gradient flows to it, nor to
    the `s` at which the right-hand side jumps.
    """

    extent: Tensor  # () or (batch,)
    jumps: Any = ()  # the `s` of `Span.jumps`, ascending


class OverSpan(NamedTuple):
    """Slope `dy/ds` over a `Span`, as a function of `(s, y, args, frozen)`.

    The span is in `args` if a gradient flows to it, else in `frozen`. The
    course is in `frozen`.
    """

    f: Any  # dy/dt, of (t, y, args, frozen)
    differentiable: bool

    def arguments(
        self, span: Span, course: Course, args: Tree, frozen: Tree
    ) -> tuple[Tree, Tree]:
        """Adds the span and the course to the arguments of `f`."""
        if self.differentiable:
            return (args, span), (frozen, course)
        return args, ((frozen, span), course)

    def __call__(self, s: Scalar, y: State, args: Tree, frozen: Tree) -> State:
        frozen, course = frozen
        if self.differentiable:
            args, span = args
        else:
            frozen, span = frozen
        leaf = pytree.leaves(y)[0]
        if pytree.leaves(span.jumps):
            t, rate = _between_jumps(span, course, s, leaf)
        else:
            t, rate = _between_ends(span, course, s, leaf)
        return pytree.scale(rate, self.f(t, y, args, frozen))


def _between_ends(
    span: Span, course: Course, s: Scalar, y: Tensor
) -> tuple[Scalar, Scalar]:
    """Maps `s` to `t`, of the rank of `y`, and finds `dt/ds`."""
    rate = span.length / course.extent
    t0, t1, slope = (pytree.expand(x, y) for x in (span.t0, span.t1, rate))
    low, high = pytree.smaller(t0, t1), pytree.larger(t0, t1)
    return ops.clip(t0 + slope * s, low, high), rate


def _between_jumps(
    span: Span, course: Course, s: Scalar, y: Tensor
) -> tuple[Scalar, Scalar]:
    """Does the same where the slope jumps.

    Each jump is a node that `t` passes at its `s`, as it passes the ends. The
    rate is the same between all of them, but if a jump moves, it changes on
    both sides. So the gradient reaches the jump. At a node, `t` stays on the
    side that it is on: what the right-hand side is at its jump has no say.
    """
    if len(s.shape):
        s = ops.reshape(s, (-1,))
    piece = _Piece.around(span, course, s[None])
    t0, t1, s0, s1, is_first, is_last = (x[0] for x in piece)
    way = s1 - s0
    moving = (t1 - t0) / ops.where(way > 0, way, 1.0)
    rate = ops.stop_gradient(span.length / course.extent - moving) + moving
    t = _inside(t0, t1, is_first, is_last, t0 + rate * (s - s0))
    return pytree.expand(t, y), rate


def unmoved(span: Span, course: Course, s: Tensor) -> Tensor:
    """Gives times `s` the gradient that keeps `t` where it is.

    If an end or a jump moves, the `s` of the same `t` is another.

    Args:
        span: The interval, with jumps.
        course: The course of `s`.
        s: Times `(T,)`, or `(T, batch)` if samples have their own.

    Returns:
        The times, with a column for each sample if samples have own jumps.
    """
    piece = _Piece.around(span, course, s)
    way = piece.t1 - piece.t0
    rate = (piece.s1 - piece.s0) / ops.where(way == 0, 1.0, way)
    since = ops.stop_gradient(s - piece.s0)
    t = ops.stop_gradient(piece.t0 + since / ops.where(rate == 0, 1.0, rate))
    moving = piece.s0 + (t - piece.t0) * rate
    return s + (moving - ops.stop_gradient(moving))


class _Piece(NamedTuple):
    """Pieces of an interval between jumps: the ends, as `t` and as `s`."""

    t0: Tensor
    t1: Tensor
    s0: Tensor
    s1: Tensor
    is_first: Tensor  # whether the piece starts at the start of the interval
    is_last: Tensor

    @classmethod
    def around(cls, span: Span, course: Course, s: Tensor) -> "_Piece":
        """Finds the pieces around times `(T,)` or `(T, batch)`."""
        jumps = course.jumps
        samples = ops.zeros_like(jumps[0])
        nodes = _with_ends(span.t0 + samples, span.jumps, span.t1 + samples)
        marks = _with_ends(samples, jumps, course.extent + samples)
        marks = ops.stop_gradient(marks)
        if len(jumps.shape) > len(s.shape):
            s = s[:, None]
        stops = jumps if len(jumps.shape) == len(s.shape) else jumps[:, None]
        passed = ops.cast(stops[:, None] <= s, "int32")
        k = ops.cast(ops.sum(passed, axis=0), "int32")
        return cls(
            t0=_rows(nodes, k),
            t1=_rows(nodes, k + 1),
            s0=_rows(marks, k),
            s1=_rows(marks, k + 1),
            is_first=ops.equal(k, 0),
            is_last=k >= ops.shape(jumps)[0],
        )


def _rows(x: Tensor, k: Tensor) -> Tensor:
    """Takes rows `(T,)` or `(T, batch)` of all samples, or of each."""
    if len(x.shape) == 1:
        return ops.take(x, k, axis=0)
    return ops.take_along_axis(x, k, axis=0)


def _with_ends(first: Tensor, inner: Tensor, last: Tensor) -> Tensor:
    return ops.concatenate([first[None], inner, last[None]], axis=0)


def _inside(t0, t1, is_first, is_last, t):
    """Clips `t` to the inside of a piece, and to the ends of the interval."""
    eps = float(np.finfo(keras.backend.standardize_dtype(t.dtype)).eps)
    sign = ops.cast(ops.where(t1 < t0, -1.0, 1.0), t.dtype)

    def gap(end, closed):
        return ops.where(closed, 0.0, sign * (eps * ops.abs(end) + 1e-37))

    first, last = t0 + gap(t0, is_first), t1 - gap(t1, is_last)
    return ops.clip(t, pytree.smaller(first, last), pytree.larger(first, last))

"""The spans of time over which the state of a recurrent layer evolves.

A hidden step, one that a mask hides, is no observation. Its time passes.
"""

from typing import NamedTuple

from keras import ops

from keras_node.types import Tensor


class Clock(NamedTuple):
    """Times of the steps of a series, in the order of their processing.

    `start` is the time of the initial state and `end` that of the last one, if
    they are times of their own.
    """

    times: Tensor  # (batch, T)
    start: Tensor | None  # (batch,), NaN where there is none
    end: Tensor | None  # (batch,)
    sign: int  # 1 forwards in time, -1 backwards
    rounded: bool = False  # whether the order is right but for rounding


class Spans(NamedTuple):
    """Spans `(start, end)` of each step, and what lies before and after."""

    start: Tensor  # (batch, T)
    end: Tensor
    lead: tuple | None  # the span of the initial state before all steps
    last: Tensor  # (batch,), the time of the last visible step


def of_times(t: Tensor, go_backwards: bool, start: Tensor | None) -> Clock:
    """Makes the clock of steps at times `t`, `(batch, T)`."""
    if go_backwards:
        return Clock(ops.flip(t, axis=1), start, None, -1)
    return Clock(t, start, None, 1)


def of_durations(
    d: Tensor, go_backwards: bool, start: Tensor | None, before: bool
) -> Clock:
    """Makes the clock of steps with durations `d`, `(batch, T)`.

    A duration lies before its step or after it. The clock starts at 0.
    """
    d = ops.where(d >= 0, d, ops.full_like(d, float("nan")))
    # Without a dtype it would be float32 on PyTorch.
    total = ops.cumsum(d, axis=1, dtype=d.dtype)
    zero = ops.zeros_like(total[:, :1])
    times = total
    if not before:
        times = ops.concatenate([zero, total[:, :-1]], axis=1)
    if go_backwards:
        return Clock(ops.flip(times, axis=1), None, None, -1, rounded=True)
    start = _or_else(start, zero[:, 0])
    return Clock(times, start, total[:, -1], 1, rounded=True)


def before_steps(clock: Clock, visible: Tensor | None) -> Spans:
    """Spans from each visible step before to each visible step."""
    steps = _Visible(clock.times, visible)
    start = steps.before(_or_else(clock.start, steps.first))
    return _spans(clock, visible, start, clock.times, steps.last)


def after_steps(clock: Clock, visible: Tensor | None) -> Spans:
    """Spans from each visible step to the next visible one."""
    steps = _Visible(clock.times, visible)
    end = steps.after(steps.last if clock.end is None else clock.end)
    spans = _spans(clock, visible, clock.times, end, steps.last)
    if clock.start is None:
        return spans
    # All of the time passes, or none, where no step is visible.
    first = _or_else(steps.first, clock.start)
    if clock.end is not None:
        first = _or_else(steps.first, clock.end)
    start = _or_else(_or_else(clock.start, first), ops.zeros_like(first))
    lead = start, _sorted(clock, start, _or_else(first, start))
    return spans._replace(lead=lead)


def _spans(
    clock: Clock,
    visible: Tensor | None,
    start: Tensor,
    end: Tensor,
    last: Tensor,
) -> Spans:
    if visible is not None:
        zero = ops.zeros_like(start)
        start = ops.where(visible, start, zero)
        end = ops.where(visible, end, zero)
    if clock.start is not None:
        last = _or_else(last, clock.start)
    return Spans(start, _sorted(clock, start, end), None, last)


class _Visible:
    """The visible steps of a clock, and their neighbours.

    `first` and `last` are the times of the first and last visible step,
    `(batch,)`, and NaN where no step is visible.
    """

    def __init__(self, t: Tensor, visible: Tensor | None):
        self._t, self._visible = t, visible
        if visible is None:
            self.first, self.last = t[:, 0], t[:, -1]
            return
        size = ops.shape(t)[1]
        hidden = ops.cast(ops.logical_not(visible), "int32")
        # The visible steps come first, in their order.
        order = ops.argsort(ops.arange(size, dtype="int32") + size * hidden)
        self._in_order = ops.take_along_axis(t, order, axis=1)
        self._rank = ops.cumsum(1 - hidden, axis=1)
        self._count = self._rank[:, -1:]
        none = ops.full_like(t[:, :1], float("nan"))
        self.first = self._at(self._count * 0, none)[:, 0]
        self.last = self._at(self._count - 1, none)[:, 0]

    def before(self, first: Tensor) -> Tensor:
        """Times of the visible steps before each one; `first` for the first."""
        first = first[:, None]
        if self._visible is None:
            return ops.concatenate([first, self._t[:, :-1]], axis=1)
        return self._at(self._rank - 2, first)

    def after(self, last: Tensor) -> Tensor:
        """Times of the visible steps after each one; `last` for the last."""
        last = last[:, None]
        if self._visible is None:
            return ops.concatenate([self._t[:, 1:], last], axis=1)
        return self._at(self._rank, last)

    def _at(self, index: Tensor, otherwise: Tensor) -> Tensor:
        inside = ops.logical_and(index >= 0, index < self._count)
        index = ops.clip(index, 0, ops.shape(self._t)[1] - 1)
        found = ops.take_along_axis(self._in_order, index, axis=1)
        return ops.where(inside, found, otherwise)


def _or_else(x: Tensor | None, otherwise: Tensor) -> Tensor:
    """Puts something in place of NaN, or of nothing."""
    return otherwise if x is None else ops.where(ops.isnan(x), otherwise, x)


def _sorted(clock: Clock, start: Tensor, end: Tensor) -> Tensor:
    """Makes NaN of ends that lie on the wrong side of the start."""
    instead = ops.full_like(end, float("nan"))
    if clock.rounded:
        instead = start
    return ops.where(clock.sign * (end - start) < 0, instead, end)

"""A cell and an ODE in turns, over the steps of a series."""

import functools
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_node import backend
from keras_node.adjoints.base import Adjoint
from keras_node.dynamics import precision
from keras_node.dynamics.layer import LayerDynamics
from keras_node.integration.pages import outer
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.series import spans
from keras_node.series.cells import Cell
from keras_node.series.evolution import Evolution
from keras_node.series.evolution import Totals
from keras_node.series.recurrent_step import Carry
from keras_node.series.recurrent_step import RecurrentStep
from keras_node.types import Tensor


class Result(NamedTuple):
    """What is left after the last step."""

    states: list[Tensor]
    time: Tensor  # (batch,), where the next series would go on
    output: Tensor
    outputs: Tensor | None  # of all steps, (batch, T, ...)
    solution: Solution  # with the counters of all solves


class Recurrence(NamedTuple):
    """Recurrence over a series, with the options of `ODERNN`."""

    cell: Cell
    dynamics: LayerDynamics
    solver: Solver
    adjoint: Adjoint
    evolve: str
    elapsed: bool
    go_backwards: bool
    unroll: bool
    zero_output_for_mask: bool
    training: bool | None

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        visible: Tensor | None,
        states: list[Tensor],
        time: Tensor | None,
        keeps_outputs: bool,
    ) -> Result:
        """Goes over the steps.

        Args:
            x: The observations, `(batch, T, features...)`.
            t: The times, or times elapsed, `(batch, T)`.
            visible: Booleans, false at hidden steps, `(batch, T)`; or `None`.
            states: The initial states of the cell.
            time: The time of these states, NaN where there is none; or `None`.
            keeps_outputs: Boolean, whether to return the outputs of all steps.
        """
        if visible is not None:
            # The gradient of a hidden NaN would be NaN.
            shown = outer(visible, len(x.shape))
            x = ops.where(shown, x, ops.zeros_like(x))
        if self.go_backwards:
            x = ops.flip(x, axis=1)
            visible = None if visible is None else ops.flip(visible, axis=1)
        clock = self._clock(t, time)
        before = self.evolve == "before"
        walk = spans.before_steps if before else spans.after_steps
        span = walk(clock, visible)

        h = states[0]
        evolve = self._evolution(h)
        totals = evolve.nothing()
        if span.lead is not None and (visible is not None or time is not None):
            start, end = span.lead
            h, totals = evolve(h, start, end, totals)
        carry, outputs = self._over_steps(
            RecurrentStep(
                functools.partial(self.cell, training=self.training),
                evolve,
                before,
                self.zero_output_for_mask,
            ),
            [h, *states[1:]],
            totals,
            [x, span.start, span.end, *([] if visible is None else [visible])],
            keeps_outputs,
        )
        evolve.advance(span.start[:, 0])
        if outputs is not None:
            outputs = ops.swapaxes(outputs, 0, 1)
        return Result(
            carry.states,
            self._time_at_end(clock, span.last),
            carry.output,
            outputs,
            carry.totals.as_solution(carry.states[0]),
        )

    def _evolution(self, h: Tensor) -> Evolution:
        dtype = keras.backend.standardize_dtype(h.dtype)
        h = ops.cast(h, precision.of_state(dtype))
        return Evolution(self.dynamics, h, self.solver, self.adjoint)

    def _clock(self, t: Tensor, time: Tensor | None) -> spans.Clock:
        if not self.elapsed:
            return spans.of_times(t, self.go_backwards, time)
        before = self.evolve == "before"
        return spans.of_durations(t, self.go_backwards, time, before)

    def _time_at_end(self, clock: spans.Clock, last: Tensor) -> Tensor:
        """Returns the time of the states, on the clock of the next series."""
        if not self.elapsed:
            return last
        if self.evolve == "after" or clock.end is None:
            return ops.zeros_like(last)
        return last - clock.end  # what passed since the last visible step

    def _over_steps(
        self,
        step: Any,
        states: list[Tensor],
        totals: Totals,
        inputs: list[Tensor],
        keeps_outputs: bool,
    ) -> tuple[Carry, Tensor | None]:
        xs = tuple(ops.swapaxes(x, 0, 1) for x in inputs)
        cell, x = self.cell, xs[0]
        zeros = (ops.shape(x)[1], cell.output_size)
        output = ops.zeros(zeros, dtype=cell.dtype)
        carry = Carry(states, output, totals)
        scan = backend.unrolled_scan if self.unroll else backend.scan
        cell.draw_masks(x[0], states[0])
        try:
            return scan(step, carry, xs, output if keeps_outputs else None)
        finally:
            cell.drop_masks()

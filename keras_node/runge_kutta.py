"""Explicit Runge-Kutta methods: one step, and the one loop over steps."""

import functools
from collections.abc import Callable
from typing import Any
from typing import ClassVar
from typing import NamedTuple

import keras
from keras import ops
from keras import tree

from keras_node import dense_output
from keras_node import structure
from keras_node.interfaces import Solver
from keras_node.interval import Interval
from keras_node.solution import Solution
from keras_node.solution import Status
from keras_node.tableau import Tableau
from keras_node.trajectory import Trajectory
from keras_node.trajectory import rows_like


class Step(NamedTuple):
    """One step, tried."""

    y1: Any  # the state at its end
    slopes: list  # the stages, and last the slope at the end if asked for


class _State(NamedTuple):
    """What the loop carries. `(batch,)` where samples step for themselves."""

    t: Any  # the time elapsed since t0
    dt: Any  # the step to try next
    rejected: Any  # whether the step before was rejected
    y: Any
    slope: Any  # of y at t, where it is carried from step to step
    num_evals: Any
    num_steps: Any
    num_accepted: Any
    status: Any  # a `Status`; SUCCESS while the solve goes on
    ys: Any  # (T + 1, batch, ...): the states reported; the last row is waste
    num_reported: Any
    trajectory: Any


class RungeKutta(Solver):
    """An explicit Runge-Kutta method.

    A subclass says how long the steps are and which are good enough.
    """

    tableau: ClassVar[Tableau]
    records = True
    per_sample = False
    max_steps: int

    def solve(
        self,
        f: Callable,
        t0: Any,
        t1: Any,
        y0: Any,
        t_eval: Any = None,
        checkpoints: int = 0,
        norm: Callable | None = None,
    ) -> Solution:
        dtype = keras.backend.standardize_dtype(tree.flatten(y0)[0].dtype)
        interval = Interval(t0, t1, dtype)
        f = interval.field(f)
        span = interval.span
        s_eval = None if t_eval is None else interval.elapsed(t_eval)
        if norm is None:
            norm = functools.partial(
                structure.rms_norm, per_sample=self.per_sample
            )
        state = self._start(f, y0, span, s_eval, checkpoints, norm)

        def body(state):
            return (self._advance(f, state, span, s_eval, norm),)

        (state,) = ops.while_loop(
            lambda state: ops.any(_going(state, span)), body, (state,)
        )
        finite = structure.all_finite(state.y, self.per_sample)
        status = ops.where(
            ops.logical_or(finite, state.status != Status.SUCCESS),
            state.status,
            int(Status.NON_FINITE),
        )
        success = ops.equal(status, int(Status.SUCCESS))
        end = ops.convert_to_tensor(t1, dtype)
        trajectory, ys = state.trajectory, state.ys
        if trajectory:
            trajectory = trajectory._replace(num_reported=state.num_reported)
        if s_eval is not None:
            ys = dense_output.reported(ys, success)
        return Solution(
            y1=structure.nan_unless(success, state.y),
            ys=ys,
            t=ops.where(success, end, interval.time(state.t)),
            num_evals=state.num_evals,
            num_steps=state.num_steps,
            num_accepted=state.num_accepted,
            status=status,
            trajectory=trajectory,
        )

    def step(
        self,
        f: Callable,
        t: Any,
        dt: Any,
        y: Any,
        slope: Any = None,
        end_slope: bool = False,
    ) -> Step:
        """Takes one step of size `dt` from `(t, y)`.

        Args:
            f: The right-hand side, `f(t, y)`.
            t: The time.
            dt: The step.
            y: The state.
            slope: `f(t, y)`, if it is known.
            end_slope: Whether to evaluate the slope at the end of the step.
        """
        c, a, b = self.tableau.c, self.tableau.a, self.tableau.b
        if self.tableau.fsal:
            c, a, b = c[:-1], a[:-1], b[:-1]
        slopes = [f(t, y) if slope is None else slope]
        for node, row in zip(c[1:], a[1:], strict=True):
            stage = structure.add(y, structure.combine(dt, row, slopes))
            slopes.append(f(t + float(node) * dt, stage))
        y1 = structure.add(y, structure.combine(dt, b, slopes))
        if end_slope:
            slopes.append(f(t + dt, y1))
        return Step(y1, slopes)

    def dense(self, dt: Any, slopes: list) -> list:
        """The `q` in `y(theta) = y + sum_m q_m theta^(m + 1)` of a step."""
        columns = zip(*self.tableau.b_dense, strict=True)
        return [structure.combine(dt, column, slopes) for column in columns]

    def _first_step(self, f, y, slope, span, norm):
        """The first step, and how many evaluations it took to choose it."""
        raise NotImplementedError

    def _lands(self, state, span):
        """Whether the next step is the last if it is accepted."""
        raise NotImplementedError

    def _judge(self, state, dt, step, norm):
        """Whether a step is good enough, finite, and the next step's size."""
        raise NotImplementedError

    def _start(self, f, y0, span, s_eval, checkpoints, norm):
        batch = ops.shape(tree.flatten(y0)[0])[:1] if self.per_sample else ()
        count = ops.zeros(batch, dtype="int32")
        t = ops.zeros(batch, dtype=span.dtype)
        slope, num_evals = y0, 0
        finite = structure.all_finite(y0, self.per_sample)
        if self.tableau.fsal or s_eval is not None:
            slope, num_evals = f(t, y0), 1
            finite = ops.logical_and(
                finite, structure.all_finite(slope, self.per_sample)
            )
        dt, more = self._first_step(f, y0, slope, span, norm)
        # No step can be short enough to step off a pole.
        broken = ops.logical_not(finite)
        ys = ()
        if s_eval is not None:
            size = ops.shape(s_eval)[0] + 1
            ys = structure.full_like(rows_like(y0, size), float("nan"))
        trajectory = ()
        if checkpoints:
            trajectory = Trajectory.empty(t, y0, self.max_steps, checkpoints)
        return _State(
            t=t,
            dt=ops.cast(dt, span.dtype) + t,
            rejected=count > 0,
            y=y0,
            slope=slope,
            num_evals=count + num_evals + more,
            num_steps=count,
            num_accepted=count,
            status=count + ops.where(broken, int(Status.NON_FINITE), 0),
            ys=ys,
            num_reported=count,
            trajectory=trajectory,
        )

    def _status(self, going, t, next_dt, num_steps, finite):
        """Whether a solve that goes on has reason to end here."""
        spent = ops.where(
            num_steps >= self.max_steps, int(Status.STEP_LIMIT), 0
        )
        cause = ops.where(
            finite, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE)
        )
        status = ops.where(t + next_dt <= t, cause, spent)
        return ops.cast(ops.where(going, status, 0), "int32")

    def _advance(self, f, state, span, s_eval, norm):
        # Propose: samples that have arrived take a step of no length.
        going = _going(state, span)
        carries = self.tableau.fsal or s_eval is not None
        lands = self._lands(state, span)
        dt = ops.where(lands, span - state.t, state.dt)
        dt = ops.where(going, dt, ops.zeros_like(dt))
        step = self.step(
            f,
            state.t,
            dt,
            state.y,
            state.slope if carries else None,
            end_slope=carries,
        )
        # Judge.
        good, finite, next_dt = self._judge(state, dt, step, norm)
        accept = ops.logical_and(going, good)
        # Commit. The last step ends at the end, not near it.
        t = ops.where(accept, ops.where(lands, span, state.t + dt), state.t)
        num_steps = state.num_steps + ops.cast(going, "int32")
        status = self._status(
            ops.logical_and(going, t < span), t, next_dt, num_steps, finite
        )
        slope = step.slopes[-1] if carries else state.slope
        ys, num_reported = state.ys, state.num_reported
        if s_eval is not None:
            ys, num_reported = dense_output.report(
                ys,
                num_reported,
                s_eval,
                accept,
                state.t,
                dt,
                state.y,
                step.y1,
                self.dense(dt, step.slopes),
            )
        trajectory = state.trajectory
        if trajectory:
            trajectory = trajectory.write(
                ops.any(accept),
                state.t,
                ops.where(accept, dt, ops.zeros_like(dt)),
                state.y,
            )
        evals = len(step.slopes) - (1 if carries else 0)
        return _State(
            t=t,
            dt=next_dt,
            rejected=ops.logical_not(accept),
            y=structure.where(accept, step.y1, state.y),
            slope=structure.where(accept, slope, state.slope),
            num_evals=state.num_evals + evals * ops.cast(going, "int32"),
            num_steps=num_steps,
            num_accepted=state.num_accepted + ops.cast(accept, "int32"),
            status=ops.where(going, status, state.status),
            ys=ys,
            num_reported=num_reported,
            trajectory=trajectory,
        )


def _going(state: _State, span: Any) -> Any:
    return ops.logical_and(state.t < span, ops.equal(state.status, 0))

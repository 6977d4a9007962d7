"""The one loop over steps."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_node import backend
from keras_node import dense_output
from keras_node import precision
from keras_node import quadrature
from keras_node import structure
from keras_node.interval import Field
from keras_node.interval import Interval
from keras_node.loop_state import Accepted
from keras_node.loop_state import State
from keras_node.loop_state import Task
from keras_node.loop_state import goes_on
from keras_node.loop_state import reason_to_end
from keras_node.loop_state import status_if
from keras_node.method import Method
from keras_node.solution import Solution
from keras_node.solution import Status
from keras_node.trajectory import Trajectory
from keras_node.trajectory import rows_like


class RungeKutta(Method):
    """A method that steps from one end of an interval to the other.

    A subclass says how long the steps are and which are good enough.
    """

    records = True
    per_sample = False
    max_steps: int

    def solve(
        self,
        f: Callable,
        t0: Any,
        t1: Any,
        y0: Any,
        s_eval: Any = None,
        checkpoints: int = 0,
        norm: Callable | None = None,
        integrand: Callable | None = None,
        integral: Any = (),
        tape: Any = (),
    ) -> Solution:
        dtype = keras.backend.standardize_dtype(structure.leaves(y0)[0].dtype)
        interval = Interval.between(t0, t1, dtype)
        task = Task(
            f=Field(f, interval),
            span=interval.span,
            norm=structure.RmsNorm(self.per_sample) if norm is None else norm,
            eps=precision.of_function(f, dtype),
            s_eval=s_eval,
            integrand=integrand and Field(integrand, interval),
        )
        if self.per_sample:
            tape = ()  # an accepted step may be none for some samples
        state = self._start(task, y0, integral, checkpoints)
        (state,) = backend.while_loop(
            lambda state: ops.any(state.going),
            lambda state: (self._advance(task, state, tape),),
            (state,),
        )
        solution = state.solution(interval, self.per_sample)._replace(tape=tape)
        if task.s_eval is not None:
            ys = dense_output.reported(
                state.ys, state.num_reported, solution.success
            )
            solution = solution._replace(ys=ys)
        return solution

    def _first_step(self, task, y, slope):
        """The first step, and how many evaluations it took to choose it."""
        raise NotImplementedError

    def _lands(self, state, span):
        """Whether the next step is the last if it is accepted."""
        raise NotImplementedError

    def _judge(self, state, dt, step, norm, eps):
        """Whether a step is good enough, finite, and the next step's size."""
        raise NotImplementedError

    @backend.recorded
    def _start(self, task, y0, integral, checkpoints):
        batch = (
            ops.shape(structure.leaves(y0)[0])[:1] if self.per_sample else ()
        )
        count = ops.zeros(batch, dtype="int32")
        t = ops.zeros(batch, dtype=task.span.dtype)
        slope, num_evals = y0, 0
        finite = structure.all_finite(y0, self.per_sample)
        if self._carries(task):
            slope, num_evals = task.f(t, y0), 1
            finite = ops.logical_and(
                finite, structure.all_finite(slope, self.per_sample)
            )
        dt, more = self._first_step(task, y0, slope)
        # No step can be short enough to step off a pole.
        status = count + status_if(ops.logical_not(finite), Status.NON_FINITE)
        ys = ()
        if task.s_eval is not None:
            size = ops.shape(task.s_eval)[0] + 1
            ys = rows_like(y0, size)
        trajectory = ()
        if checkpoints:
            trajectory = Trajectory.empty(t, y0, self.max_steps, checkpoints)
        return State(
            t=t,
            dt=ops.cast(dt, t.dtype) + t,
            rejected=count > 0,
            y=y0,
            slope=slope,
            num_evals=count + num_evals + more,
            # Tensors of their own: what is recorded tells which are the same.
            num_steps=count + 0,
            num_accepted=count + 0,
            status=status,
            going=goes_on(t, task.span, status),
            ys=ys,
            num_reported=count + 0,
            integral=integral,
            trajectory=trajectory,
        )

    def _carries(self, task):
        """Whether the slope at the end of a step starts the next one."""
        return self.tableau.fsal or task.dense

    def _advance(self, task, state, tape):
        if tape and tape.runs:
            state, accepted = self._step_on(tape, task, state)
        else:
            state, accepted = self._step(task, state)
        return self._report(task, state, *accepted) if accepted else state

    @backend.recorded
    def _step(self, task, state):
        slope = state.slope if self._carries(task) else None
        return self._settle(task, state, *self._try(task, state, slope))

    def _step_on(self, tape, task, state):
        """A step that is kept for its derivative."""
        (next_state, accepted), pullback = tape.run(
            _differentiable, RungeKutta._settle, (self, task, state), state.y
        )
        tape.keep(next_state.num_accepted > state.num_accepted, pullback)
        return next_state, accepted

    def _try(self, task, state, slope):
        """A step to where it should end, and the state inside of it."""
        lands = self._lands(state, task.span)
        dt = ops.where(lands, task.span - state.t, state.dt)
        if self.per_sample:
            # Samples that have arrived take a step of no length.
            dt = ops.where(state.going, dt, ops.zeros_like(dt))
        carries = self._carries(task)
        step = self.step(task.f, state.t, dt, state.y, slope, end_slope=carries)
        # What is wanted of its inside, if anything is.
        dense = ()
        if task.dense:
            dense = self.dense(state.t, dt, state.y, step.slopes)
        return lands, dt, step, dense

    def _settle(self, task, state, *tried):
        """The state after a step, and what the reports need of it."""
        # Without the right-hand side: that may be one that is not recorded.
        carries = self._carries(task)
        return self._commit(
            task.span, task.norm, task.eps, carries, state, *tried
        )

    @backend.recorded
    def _commit(self, span, norm, eps, carries, state, *tried):
        lands, dt, step, dense = tried
        going = state.going
        num_evals = len(step.slopes) - (1 if carries else 0)
        # Judge.
        good, finite, next_dt = self._judge(state, dt, step, norm, eps)
        # Keras makes numbers, and PyTorch then the result, of type `floatx`.
        next_dt = ops.cast(next_dt, dt.dtype)
        accept = ops.logical_and(going, good)
        accepted = Accepted(accept, dense, step.y1) if dense else ()
        trajectory = state.trajectory
        if trajectory:
            keep, size = accept, dt
            if self.per_sample:
                keep = ops.any(accept)
                size = ops.where(accept, dt, ops.zeros_like(dt))
            trajectory = trajectory.write(keep, state.t, size, state.y)
        # The last step ends at the end, not near it.
        end = ops.where(lands, span, state.t + dt)
        t = ops.where(accept, end, state.t)
        num_steps = state.num_steps + ops.cast(going, "int32")
        status = ops.where(
            t < span,
            reason_to_end(t, next_dt, num_steps, self.max_steps, finite),
            int(Status.SUCCESS),
        )
        status = ops.where(going, status, state.status)
        slope = step.slopes[-1] if carries else state.slope
        next_state = state._replace(
            t=t,
            dt=next_dt,
            rejected=ops.logical_not(accept),
            y=structure.where(accept, step.y1, state.y),
            slope=structure.where(accept, slope, state.slope),
            num_evals=state.num_evals + num_evals * ops.cast(going, "int32"),
            num_steps=num_steps,
            num_accepted=state.num_accepted + ops.cast(accept, "int32"),
            status=status,
            going=goes_on(t, span, status),
            trajectory=trajectory,
        )
        return next_state, accepted

    def _report(self, task, state, accept, dense, y1):
        """What is wanted of the inside of a step, if it is accepted."""
        if task.s_eval is not None:
            ys, num_reported = dense_output.report(
                state.ys,
                state.num_reported,
                task.s_eval,
                accept,
                dense,
                y1,
            )
            state = state._replace(ys=ys, num_reported=num_reported)
        if task.integrand is not None:
            integral, num_evals = quadrature.add_step(
                state.integral,
                task.integrand,
                self.tableau.order,
                accept,
                dense,
            )
            state = state._replace(
                integral=integral, num_evals=state.num_evals + num_evals
            )
        return state


def _differentiable(solver, task, state):
    """A step on a tape: what has a derivative, and all of it."""
    # The slope is evaluated again: that of the step before is not of this one.
    tried = solver._try(task, state, None)
    *_, step, dense = tried
    return (step.y1, tuple(dense[2:])), tried

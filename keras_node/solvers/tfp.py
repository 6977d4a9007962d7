"""The Dormand-Prince solver of TensorFlow Probability, kept from hanging.

By itself, `tfp.math.ode.DormandPrince` retries a NaN step for ever, drops its
step limit under XLA, starts every solve with a step of 1e-3, and steps past
the end of the interval. The subclass here prevents that from the outside. TFP
still takes every step, judges it and chooses the next.

It is imported when the solver is first used.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import tree

from keras_node import pytree
from keras_node.integration import precision
from keras_node.integration import step_size
from keras_node.integration.interval import ElapsedField
from keras_node.integration.interval import Interval
from keras_node.integration.outputs import ReportAt
from keras_node.integration.outputs import Reports
from keras_node.integration.solution import Solution
from keras_node.integration.solution import Status
from keras_node.integration.state import reason_to_end
from keras_node.integration.state import status_at_end
from keras_node.solvers import tfp_module
from keras_node.solvers.runge_kutta import AdaptiveRungeKutta
from keras_node.types import Norm
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree

_STEP_EVALS = tfp_module.DormandPrince.ODE_FN_EVALS_PER_STEP
_TfpState = tfp_module.State


class _State(NamedTuple):
    """TFP's solver state, under TFP's names, and two more fields."""

    current_state: State
    current_derivative: State
    last_step_start: Tensor  # after a failure: the time reached
    current_time: Tensor  # past `span` when the solve is over: ends TFP's loops
    step_size: Tensor
    interpolating_coefficients: Tree
    num_accepted: Tensor
    status: Tensor  # a `Status`; SUCCESS while the solve goes on

    def tfp(self) -> tuple:
        return _TfpState(*self[: len(_TfpState._fields)])


class _GuardedDormandPrince(tfp_module.DormandPrince):  # type: ignore
    """`tfp.math.ode.DormandPrince` from time 0 to `span`, in bounded time."""

    def __init__(self, span, max_steps, first_step, rtol, atol, norm, eps):
        super().__init__(rtol=np.float64(rtol), atol=np.float64(atol))
        self._span = span
        self._max_steps = max_steps
        self._first_step = first_step
        self._norm = norm
        self._eps = eps

    def _initialize_solver_internal_state(
        self, ode_fn, initial_time, initial_state
    ):
        state = super()._initialize_solver_internal_state(
            ode_fn, initial_time, initial_state
        )
        y0, f0 = state.current_state, state.current_derivative
        dt = self._first_step
        if dt is None:
            dt = step_size.initial_step(
                ode_fn,
                y0,
                f0,
                self._span,
                self.ORDER,
                self._rtol,
                self._atol,
                self._norm,
                self._eps,
            )
        dt = tf.minimum(tf.cast(dt, self._span.dtype), self._span)
        # No step is short enough to leave a pole.
        broken = tf.logical_not(pytree.all_finite((y0, f0)))
        status = tf.where(broken, Status.NON_FINITE, Status.SUCCESS)
        # An interval of length 0 ends where it starts. So does an empty batch:
        # the norm of its error would be 0 / 0.
        size = tf.size(tree.flatten(y0)[0])
        moves = tf.logical_and(self._span > 0, size > 0)
        start = tf.where(moves, state.current_time, _past(self._span))
        state = state._replace(current_time=start, step_size=dt)
        return _end_if(broken, _State(*state, 0, status))

    def _step(self, solver_state, diagnostics, **kwargs):
        state = solver_state
        t = state.current_time
        lands = t + state.step_size >= self._span
        dt = tf.where(lands, self._span - t, state.step_size)
        kwargs["atol"] = self._tolerance(state, dt, kwargs["atol"])
        tried, diagnostics = super()._step(
            state.tfp()._replace(step_size=dt), diagnostics, **kwargs
        )
        accepted = tried.current_time > t
        # TFP's next step is NaN after a NaN error.
        non_finite = tf.logical_not(tf.math.is_finite(tried.step_size))
        dt = tf.where(non_finite, self._min_step_size_factor * dt, dt)
        dt = tf.where(non_finite, dt, tried.step_size)

        finished = tf.logical_and(accepted, lands)
        num_steps = diagnostics.num_ode_fn_evaluations // _STEP_EVALS
        status = tf.where(
            finished,
            Status.SUCCESS,
            reason_to_end(
                tried.current_time,
                dt,
                num_steps,
                self._max_steps,
                tf.logical_not(non_finite),
            ),
        )
        end = tf.where(finished, _past(self._span), tried.current_time)
        tried = tried._replace(current_time=end, step_size=dt)
        num_accepted = state.num_accepted + tf.cast(accepted, tf.int32)
        state = _State(*tried, num_accepted, status)
        return _end_if(status != Status.SUCCESS, state), diagnostics

    def _tolerance(self, state, dt, atol):
        """Returns the tolerance of a step, no finer than the dynamics allow."""
        if not self._eps:
            return atol
        noise = step_size.rounding(
            self._eps * dt, tfp_module.ERROR_WEIGHTS, state.current_derivative
        )
        # An entry is rounded like the entries that it is computed from. Twice
        # that, so that a step whose error is only rounding can grow.
        return tfp_module.PerEntry(
            pytree.map_leaves(lambda x: atol + 2 * pytree.rms_norm(x), noise)
        )


def _past(span: Tensor) -> Tensor:
    """Finds the next time after the end: TFP's loops run while `t <= span`."""
    one = tf.ones_like(span)
    return tf.where(span > 0, tf.math.nextafter(span, 2 * span), one)


def _end_if(failed: Tensor, state: _State) -> _State:
    """Moves to the largest time where `failed`, so that TFP's loops end."""
    t = state.current_time
    return state._replace(
        last_step_start=tf.where(failed, t, state.last_step_start),
        current_time=tf.where(failed, tf.cast(t.dtype.max, t.dtype), t),
    )


def solve(
    config: AdaptiveRungeKutta,
    f: RightHandSide,
    t0: Scalar,
    t1: Scalar,
    y0: State,
    args: Tree = (),
    outputs: tuple[ReportAt, ...] = (),
    norm: Norm | None = None,
) -> Solution:
    """Integrates `f` from `t0` to `t1`, as `Solver.solve` says."""
    dtype = tree.flatten(y0)[0].dtype
    interval = Interval.between(t0, t1, dtype)
    span = interval.span
    solver = _GuardedDormandPrince(
        span,
        config.max_steps,
        config.first_step,
        config.rtol,
        config.atol,
        norm or pytree.rms_norm,
        precision.of_function(f, args, dtype.name),
    )
    slope = ElapsedField(f, interval)
    times = [output.s_eval for output in outputs]
    results = solver.solve(
        lambda s, y: slope(s, y, args),
        initial_time=0.0,
        initial_state=y0,
        solution_times=tf.concat(
            [*(_within(s_eval, span) for s_eval in times), span[None]], axis=0
        ),
    )
    state = results.solver_internal_state
    y1 = state.current_state
    status = status_at_end(y1, state.status, per_sample=False)
    success = status == Status.SUCCESS
    num_evals = results.diagnostics.num_ode_fn_evaluations
    elapsed = tf.where(success, span, state.last_step_start)
    return Solution(
        y1=pytree.nan_unless(success, y1),
        t=tf.where(success, interval.t1, interval.time(elapsed)),
        elapsed=elapsed,
        num_evals=num_evals + (2 if config.first_step is None else 1),
        num_steps=num_evals // _STEP_EVALS,
        num_accepted=state.num_accepted,
        status=status,
        outputs=_reports(times, span, results.states, y1, success),
    )


def _within(s_eval: Tensor, span: Tensor) -> Tensor:
    """Replaces times outside the interval by its end."""
    return tf.where(_is_inside(s_eval, span), s_eval, span)


def _is_inside(s_eval: Tensor, span: Tensor) -> Tensor:
    return tf.logical_and(s_eval >= 0, s_eval <= span)


def _reports(
    times: list, span: Tensor, states: State, y1: State, success: Tensor
) -> tuple[Reports, ...]:
    """Makes the results of the reports from their concatenated states."""
    results, start = [], 0
    for s_eval in times:
        end = start + tf.size(s_eval)

        def leaf(rows, last, start=start, end=end, s_eval=s_eval):
            rows = rows[start:end]
            # At the end, the state itself: the polynomial rounds.
            return tf.where(pytree.expand(s_eval >= span, rows), last, rows)

        good = tf.logical_and(success, _is_inside(s_eval, span))
        ys = pytree.nan_unless(good, pytree.map_leaves(leaf, states, y1))
        results.append(Reports(ys, end - start))
        start = end
    return tuple(results)

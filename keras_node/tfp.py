"""The Dormand-Prince solver of TensorFlow Probability, kept from hanging.

Left alone, `tfp.math.ode.DormandPrince` retries a NaN step for ever, drops its
step limit under XLA, starts every solve with a step of 1e-3, and steps past
the end of the interval. The subclass here cures that from the outside: TFP
still takes every step, judges it and chooses the next.

This is the only module that imports TensorFlow Probability. It is imported
when the solver is first used.
"""

import importlib.util
import logging
import types
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import tree

from keras_node import precision
from keras_node import step_size
from keras_node import structure
from keras_node.interfaces import Solver
from keras_node.interval import Field
from keras_node.interval import Interval
from keras_node.solution import Solution
from keras_node.solution import Status

# On import, tf_keras tells of its own deprecated names.
_logger = logging.getLogger("tensorflow")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    _spec = importlib.util.find_spec(
        "tensorflow_probability.python.math.ode.dormand_prince"
    )
    # A copy of TFP's module, to set globals of: who uses TFP's own, in this
    # thread or in another one, must see nothing of it.
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
finally:
    _logger.setLevel(_level)

_STEP_EVALS = _module.DormandPrince.ODE_FN_EVALS_PER_STEP
_TfpState = _module._RungeKuttaSolverInternalState
# `tf.cast` reads a Python float as float32 and a NumPy one as it is.
_module._TABLEAU = tree.map_structure(np.float64, _module._TABLEAU)


def _next_step_size(
    dt: Any, order: int, error_ratio: Any, *factors: Any
) -> Any:
    """TFP's next step; without an error its power of 0 is infinite."""
    error_ratio = tf.maximum(error_ratio, tf.cast(1e-30, error_ratio.dtype))
    return _util.next_step_size(dt, order, error_ratio, *factors)


class _PerEntry:
    """An absolute tolerance for each entry of the state."""

    def __init__(self, values: Any):
        self.values = values


def _weighted_sum(weights: list, states: list) -> Any:
    """TFP's, also for the error allowed by a tolerance for each entry."""
    first, *others = weights
    if not isinstance(first, _PerEntry):
        return _rk_util.weighted_sum(weights, states)
    allowed = _rk_util.weighted_sum(others, states[1:])
    return structure.map_leaves(tf.add, first.values, allowed)


_util, _rk_util = _module.util, _module.rk_util
_module.util = types.SimpleNamespace(
    **{**vars(_util), "next_step_size": _next_step_size}
)
_module.rk_util = types.SimpleNamespace(
    **{**vars(_rk_util), "weighted_sum": _weighted_sum}
)


class _State(NamedTuple):
    """TFP's solver state, by its own names, and two counters."""

    current_state: Any
    current_derivative: Any
    last_step_start: Any  # once the solve has failed: the time reached
    current_time: Any  # past `span` once the solve is over: TFP's loops end
    step_size: Any
    interpolating_coefficients: Any
    num_accepted: Any
    status: Any  # a `Status`; while the solve goes on, SUCCESS

    def tfp(self) -> tuple:
        return _TfpState(*self[: len(_TfpState._fields)])


class _GuardedDormandPrince(_module.DormandPrince):
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
        # No step can be short enough to step off a pole.
        broken = tf.logical_not(structure.all_finite((y0, f0)))
        status = tf.where(broken, Status.NON_FINITE, Status.SUCCESS)
        # An interval of no length ends where it starts, and so does an empty
        # batch: the norm of its error would be 0 / 0.
        batch = tf.shape(tree.flatten(y0)[0])[0]
        moves = tf.logical_and(self._span > 0, batch > 0)
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
        # TFP's next step is NaN after an error that is NaN.
        non_finite = tf.logical_not(tf.math.is_finite(tried.step_size))
        dt = tf.where(non_finite, self._min_step_size_factor * dt, dt)
        dt = tf.where(non_finite, dt, tried.step_size)

        finished = tf.logical_and(accepted, lands)
        stuck = tried.current_time + dt <= tried.current_time
        num_steps = diagnostics.num_ode_fn_evaluations // _STEP_EVALS
        status = tf.where(
            finished,
            Status.SUCCESS,
            tf.where(
                stuck,
                tf.where(non_finite, Status.NON_FINITE, Status.STEP_UNDERFLOW),
                tf.where(
                    num_steps >= self._max_steps,
                    Status.STEP_LIMIT,
                    Status.SUCCESS,
                ),
            ),
        )
        end = tf.where(finished, _past(self._span), tried.current_time)
        tried = tried._replace(current_time=end, step_size=dt)
        num_accepted = state.num_accepted + tf.cast(accepted, tf.int32)
        state = _State(*tried, num_accepted, status)
        return _end_if(status != Status.SUCCESS, state), diagnostics

    def _tolerance(self, state, dt, atol):
        """What TFP judges a step by: no finer than the dynamics can meet."""
        if not self._eps:
            return atol
        noise = step_size.rounding(
            self._eps * dt, _module._TABLEAU.c_error, state.current_derivative
        )
        # An entry is rounded as the others are that it is computed from. And
        # twice that, so that a step whose error is rounding is let grow.
        return _PerEntry(
            structure.map_leaves(
                lambda x: atol + 2 * structure.rms_norm(x), noise
            )
        )


def _past(span: Any) -> Any:
    """The next time after the end: TFP's loops run while `t <= span`."""
    one = tf.ones_like(span)
    return tf.where(span > 0, tf.math.nextafter(span, 2 * span), one)


def _end_if(failed: Any, state: _State) -> _State:
    """Where `failed`: at the last of all times, so that TFP's loops end."""
    t = state.current_time
    return state._replace(
        last_step_start=tf.where(failed, t, state.last_step_start),
        current_time=tf.where(failed, tf.cast(t.dtype.max, t.dtype), t),
    )


def solve(
    config: Solver,
    f: Callable,
    t0: Any,
    t1: Any,
    y0: Any,
    s_eval: Any = None,
    norm: Callable | None = None,
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
        norm or structure.rms_norm,
        precision.of_function(f, dtype.name),
    )
    times = span[None]
    if s_eval is not None:
        inside = tf.logical_and(s_eval >= 0, s_eval <= span)
        s_eval = tf.where(inside, s_eval, span)
        times = tf.concat([s_eval, times], axis=0)
    results = solver.solve(
        Field(f, interval),
        initial_time=0.0,
        initial_state=y0,
        solution_times=times,
    )
    state = results.solver_internal_state
    y1, status = state.current_state, state.status
    # An overflow in the very last step is not seen by TFP's error estimate.
    finite = structure.all_finite(y1)
    overflow = tf.logical_and(status == Status.SUCCESS, tf.logical_not(finite))
    status = tf.where(overflow, Status.NON_FINITE, status)
    success = status == Status.SUCCESS
    ys = ()
    if s_eval is not None:
        good = tf.logical_and(success, inside)

        def reported(rows, end):
            rows = rows[:-1]
            # Not the polynomial there, which rounds.
            return tf.where(structure.expand(s_eval >= span, rows), end, rows)

        ys = structure.map_leaves(reported, results.states, y1)
        ys = structure.nan_unless(good, ys)
    num_evals = results.diagnostics.num_ode_fn_evaluations
    elapsed = tf.where(success, span, state.last_step_start)
    return Solution(
        y1=structure.nan_unless(success, y1),
        ys=ys,
        t=tf.where(success, interval.t1, interval.time(elapsed)),
        elapsed=elapsed,
        num_evals=num_evals + (2 if config.first_step is None else 1),
        num_steps=num_evals // _STEP_EVALS,
        num_accepted=state.num_accepted,
        status=status,
    )

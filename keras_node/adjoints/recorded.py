"""Gradients by solving backwards along the recorded trajectory."""

import abc
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import dense_output
from keras_node import structure
from keras_node.adjoints import replay
from keras_node.dense_output import DenseStep
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.interval import Interval
from keras_node.solution import Solution

_REMEDIES = (
    'What helps, in this order: `adjoint="discrete"`; smaller `rtol` and '
    "`atol`; smoother `dynamics`."
)


class _AdjointEquation(NamedTuple):
    """The slopes of the gradients inside one forward step, back in time.

    Their time `tau` has elapsed since the backward solve left `s`. Where
    samples have times of their own, theirs run at a `rate`.
    """

    g: Callable  # the slope dy/ds as a function of (s, y, params)
    params: Any
    step: DenseStep
    s: Any
    rate: Any  # (batch,), or None

    def _at(self, tau: Any, adj_y: Any) -> tuple[Any, Any, Any]:
        if self.rate is not None:
            tau = self.rate * tau
            adj_y = structure.scale(self.rate, adj_y)
        s = structure.larger(self.s - tau, self.step.t)
        return s, self.step.at(self.step.fraction(s)), adj_y

    def slope(self, tau: Any, adj_y: Any) -> Any:
        """That of `a`."""
        s, y, adj_y = self._at(tau, adj_y)
        _, (vjp_y,) = backend.vjp(
            lambda y: self.g(s, y, self.params), (y,), adj_y
        )
        return vjp_y

    def slope_of_params(self, tau: Any, adj_y: Any) -> Any:
        """That of the parameters' gradient."""
        s, y, adj_y = self._at(tau, adj_y)
        _, (vjp_params,) = backend.vjp(
            lambda params: self.g(s, y, params), (self.params,), adj_y
        )
        return vjp_params

    def slopes(self, tau: Any, adj_y: Any) -> tuple[Any, Any]:
        """Both."""
        s, y, adj_y = self._at(tau, adj_y)
        _, vjps = backend.vjp(
            lambda y, params: self.g(s, y, params), (y, self.params), adj_y
        )
        return vjps


class RecordedAdjoint(Adjoint):
    """Solves the adjoint equation along the trajectory of the forward solve.

    With `a` the gradient with respect to `y(t)`, and `g` that of the
    parameters, from `t1` back to `t0`:

        da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    The forward steps are solved back over one by one, with the state between
    their ends by their dense output. A longer step would cross their seams,
    and where `a` hardly changes it would miss what `f` does in between: the
    error of `g` has no say in the steps.

    A subclass says how `g` is found along with `a`.
    """

    _config_keys = ("solver", "checkpoints")

    def __init__(self, solver: Solver | None = None, checkpoints: int = 100):
        self.solver = solver
        if solver is not None:
            self.solver = checks.lookup("solver", solver, {}, Solver)
            if not self._allows(self.solver):
                raise ValueError(
                    f"`solver` of `{type(self).__name__}` must be "
                    f"{self._allowed}. Received: solver={solver}"
                )
        self.checkpoints = checks.positive_int("checkpoints", checkpoints)

    @abc.abstractmethod
    def _solve(
        self,
        solver: Solver,
        equation: _AdjointEquation,
        duration: Any,
        adj_y: Any,
        adj_params: Any,
    ) -> tuple[Solution, Any, Any]:
        """Solves the equation for a `duration`.

        Returns:
            The `Solution`, and the gradients at its end.
        """

    def pullback(
        self,
        solver: Solver,
        f: Callable,
        t0: float,
        t1: float,
        y0: Any,
        t_eval: Any,
        solution: Solution,
        params: Any,
        adjoint: Solution,
    ) -> tuple[Any, Any]:
        path = solution.trajectory
        interval = Interval(t0, t1, solution.t.dtype)
        g = interval.field(f)
        s_eval = None if t_eval is None else interval.elapsed(t_eval)
        backward = (self.solver or solver).over_step(abs(t1 - t0))
        # The equation is linear: its error is judged relative to its size,
        # and the scale of the loss is of no account.
        scale, (adj_y1, adj_ys) = structure.unit((adjoint.y1, adjoint.ys))

        def take(i, y, end_slope=False):
            t, dt = path.step(i)
            return solver.step(
                lambda s, y: g(s, y, params), t, dt, y, end_slope=end_slope
            )

        def descend(step, s, stop, adj_y, adj_params):
            """From the time `s` inside the step back to `stop`."""
            duration, rate = s - stop, None
            if len(duration.shape):
                # The longest way is gone at full speed, the others slower.
                way, duration = duration, ops.max(duration)
                rate = way / ops.where(duration > 0, duration, 1.0)
            result, *gradients = self._solve(
                backward,
                _AdjointEquation(g, params, step, s, rate),
                duration,
                adj_y,
                adj_params,
            )
            reached = interval.time(ops.max(s) - result.t)
            result._replace(t=reached).check_backward(solution, _REMEDIES)
            return gradients

        def undo(i, y, pointer, adj_y, adj_params):
            t, dt = path.step(i)
            step = solver.dense(t, dt, y, take(i, y, end_slope=True).slopes)
            if s_eval is None:
                return pointer, *descend(step, t + dt, t, adj_y, adj_params)
            first = ops.equal(i, 0)

            def more(s, pointer, *_):
                # Reports from before the start are there to be passed over.
                left = ops.logical_and(first, ops.any(pointer >= 0))
                return ops.logical_or(ops.any(s > t), left)

            def to_report(s, pointer, adj_y, adj_params):
                """Back to the last report before `s`, or the step's start."""
                time = ops.take(s_eval, ops.maximum(pointer, 0))
                inside = ops.logical_or(first, time > t)
                due = ops.logical_and(pointer >= 0, inside)
                between = structure.smaller(structure.larger(time, t), s)
                stop = ops.where(due, between, t)
                gradients = descend(step, s, stop, adj_y, adj_params)
                adj = dense_output.cotangent(
                    adj_ys, pointer, ops.logical_and(due, time >= 0)
                )
                pointer = pointer - ops.cast(due, "int32")
                adj_y, adj_params = gradients
                return stop, pointer, structure.add(adj_y, adj), adj_params

            _, *carry = ops.while_loop(
                more, to_report, (t + dt, pointer, adj_y, adj_params)
            )
            return tuple(carry)

        zeros = structure.full_like(params, 0.0)
        carry = (
            path.num_reported - 1,
            structure.nan_unless(solution.success, adj_y1),
            structure.nan_unless(ops.all(solution.success), zeros),
        )
        _, *gradients = replay.backwards(
            path, lambda i, y: take(i, y).y1, undo, carry
        )
        return tuple(structure.scale(scale, x) for x in gradients)


@keras.saving.register_keras_serializable(package="keras_node")
class InterpolatingAdjoint(RecordedAdjoint):
    """Gradients by solving the adjoint equation along the recorded solution.

    With `a` the gradient with respect to `y(t)`, the state
    `(a, gradient of the parameters)` is integrated from `t1` back to `t0`:

        da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    The state `y(t)` is that of the forward solve, by the dense output of its
    steps: it is not integrated again, and where `BacksolveAdjoint` cannot
    trace it back this adjoint is sound. Gradients are as accurate as the
    tolerances, relative to their own size: the scale of the loss does not
    matter. The error of the parameters' gradient has no say in the steps. The
    backward pass takes one step size for the whole batch, even where the
    forward solver is `per_sample`.

    The forward pass keeps `checkpoints` states at most. The backward pass
    takes its steps once more, a segment at a time, to know the state inside
    them.

    Needs a solver that keeps a record: every native one.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, or
            `None` for the one of the forward pass. Defaults to `None`.
        checkpoints: Int, how many states are kept. Compiled code reserves
            its memory beforehand, for a dense output up to five states for
            each step of a segment: `checkpoints + 10 max_steps / checkpoints`
            states, whatever the number of steps taken. Defaults to `100`.

    Raises:
        ValueError: If `solver` is neither, or `checkpoints` is not a positive
            integer.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", adjoint="interpolating"
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), appendix B
        - [Kidger, Chen, Lyons, 2021](https://arxiv.org/abs/2009.09457) (the
          error norm)
        - [Ma et al., 2021](https://arxiv.org/abs/1812.01892) (the
          interpolated solution)
    """

    _allowed = "adaptive"

    def _allows(self, solver):
        return solver.adaptive

    def _solve(self, solver, equation, duration, adj_y, adj_params):
        result = solver.solve(
            lambda tau, state: equation.slopes(tau, state[0]),
            0.0,
            duration,
            (adj_y, adj_params),
            norm=lambda state: structure.rms_norm(state[0]),
        )
        return result, *result.y1


@keras.saving.register_keras_serializable(package="keras_node")
class GaussAdjoint(RecordedAdjoint):
    """Gradients by the adjoint equation, and quadrature for the parameters.

    With `a` the gradient with respect to `y(t)`, only `a` is integrated from
    `t1` back to `t0`, along the recorded solution, as `InterpolatingAdjoint`
    does it. The gradient of the parameters is an integral,

        da/dt = -a (df/dy),    g = integral of a (df/dparams) dt

    taken by Gauss-Legendre quadrature inside each step as it is accepted: 3
    nodes for a method of order 5, instead of 6 stages. Stages and rejected
    steps do not touch the parameters, which pays off where there are many.

    Needs a solver that keeps a record: every native one.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, a native
            one, or `None` for the one of the forward pass. Defaults to
            `None`.
        checkpoints: Int, how many states are kept. Compiled code reserves
            its memory beforehand, for a dense output up to five states for
            each step of a segment: `checkpoints + 10 max_steps / checkpoints`
            states, whatever the number of steps taken. Defaults to `100`.

    Raises:
        ValueError: If `solver` is neither, or `checkpoints` is not a positive
            integer.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", adjoint="gauss"
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Norcliffe and Deisenroth, 2023](https://arxiv.org/abs/2308.10644)
          (quadrature for the parameters)
        - Davis and Rabinowitz, "Methods of Numerical Integration", 2nd
          edition, section 2.7
    """

    _allowed = "adaptive and native"

    def _allows(self, solver):
        return solver.adaptive and solver.records

    def _solve(self, solver, equation, duration, adj_y, adj_params):
        result = solver.solve(
            equation.slope,
            0.0,
            duration,
            adj_y,
            integrand=equation.slope_of_params,
            integral=adj_params,
        )
        return result, result.y1, result.integral

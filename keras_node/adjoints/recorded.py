"""Gradients by solving backwards along the recorded trajectory."""

import abc
import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import dense_output
from keras_node import structure
from keras_node.adjoints import replay
from keras_node.dense_output import DenseStep
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.interval import Field
from keras_node.interval import Interval
from keras_node.solution import Solution

_REMEDIES = (
    'What helps, in this order: `adjoint="discrete"`; smaller `rtol` and '
    "`atol`; smoother `dynamics`."
)


class AdjointEquation(NamedTuple):
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


class _WayBack(NamedTuple):
    """What it takes to bring the gradients back over a forward step."""

    solve: Callable  # `RecordedAdjoint._solve`, with a solver
    t_span: tuple  # the ends of the forward solve
    g: Callable
    params: Any
    s_eval: Any  # the times reported, or None
    adj_ys: Any  # the cotangents of the states reported
    forward: Solution

    def descend(
        self, step: DenseStep, s: Any, stop: Any, adj_y: Any, adj_params: Any
    ) -> tuple[Any, Any]:
        """From the time `s` inside the step back to `stop`."""
        duration, rate = s - stop, None
        if len(duration.shape):
            # The longest way is gone at full speed, the others slower.
            way, duration = duration, ops.max(duration, initial=0.0)
            rate = way / ops.where(duration > 0, duration, 1.0)
        equation = AdjointEquation(self.g, self.params, step, s, rate)
        result, *gradients = self.solve(equation, duration, adj_y, adj_params)
        reached = ops.max(s, initial=0.0) - result.elapsed
        result._replace(elapsed=reached).check_backward(
            self.forward, _REMEDIES, self.t_span
        )
        return tuple(gradients)

    def undo(
        self, step: DenseStep, first: Any, pointer: Any, *gradients: Any
    ) -> tuple[Any, Any, Any]:
        """From the end of the step to its start, halting at each report."""
        end = step.t + step.dt
        if self.s_eval is None:
            return pointer, *self.descend(step, end, step.t, *gradients)

        def more(s, pointer, *_):
            # Reports from before the start are there to be passed over.
            left = ops.logical_and(first, ops.any(pointer >= 0))
            return ops.logical_or(ops.any(s > step.t), left)

        def to_report(s, pointer, *gradients):
            """Back to the last report before `s`, or the step's start."""
            time = ops.take(self.s_eval, ops.maximum(pointer, 0))
            inside = ops.logical_or(first, time > step.t)
            due = ops.logical_and(pointer >= 0, inside)
            halt = structure.smaller(structure.larger(time, step.t), s)
            stop = ops.where(due, halt, step.t)
            adj_y, adj_params = self.descend(step, s, stop, *gradients)
            adj = dense_output.cotangent(
                self.adj_ys, pointer, ops.logical_and(due, time >= 0)
            )
            pointer = pointer - ops.cast(due, "int32")
            return stop, pointer, structure.add(adj_y, adj), adj_params

        _, *carry = backend.while_loop(
            more, to_report, (end, pointer, *gradients)
        )
        return tuple(carry)


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
        equation: AdjointEquation,
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
        s_eval: Any,
        solution: Solution,
        params: Any,
        adjoint: Solution,
    ) -> tuple[Any, Any]:
        path = solution.trajectory
        g = Field(f, Interval.between(t0, t1, solution.t.dtype))
        backward = (self.solver or solver).over_step(abs(t1 - t0))
        way_back = _WayBack(
            functools.partial(self._solve, backward),
            (t0, t1),
            g,
            params,
            s_eval,
            adjoint.ys,
            solution,
        )

        def take(i, y, end_slope=False):
            return solver.step(
                lambda s, y: g(s, y, params),
                *path.step(i),
                y,
                end_slope=end_slope,
            )

        def undo(i, y, *carry):
            slopes = take(i, y, end_slope=True).slopes
            step = solver.dense(*path.step(i), y, slopes)
            return way_back.undo(step, ops.equal(i, 0), *carry)

        return replay.backwards(
            solution, y0, params, adjoint.y1, lambda i, y: take(i, y).y1, undo
        )

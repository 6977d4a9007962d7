"""Gradients by the adjoint equation along the forward solution."""

import abc
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import pytree
from keras_node import registry
from keras_node.adjoints import replay
from keras_node.adjoints.base import Adjoint
from keras_node.adjoints.solve import Cotangent
from keras_node.adjoints.solve import Solve
from keras_node.integration import report_cotangents
from keras_node.integration.dense import Dense
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import Record
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.types import Bool
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree

_REMEDIES = (
    'What helps, in this order: `adjoint="discrete"`; smaller `rtol` and '
    "`atol`; smoother `dynamics`."
)


class AdjointEquation(NamedTuple):
    """Slopes of the gradients inside one forward step, backwards in time.

    `tau` is the time elapsed since the backward solve left `s`. Where each
    sample has its own time, that time runs at its own `rate`.
    """

    f: RightHandSide  # the slope dy/ds of the forward solve
    args: Tree
    dense: Dense  # the forward step
    s: Scalar
    rate: Scalar | None  # (batch,), or None

    def _at(self, tau: Scalar, adj_y: State) -> tuple[Scalar, State, State]:
        if self.rate is not None:
            tau = self.rate * tau
            adj_y = pytree.scale(self.rate, adj_y)
        s = pytree.larger(self.s - tau, self.dense.t)
        return s, self.dense.at(self.dense.fraction(s)), adj_y

    def slope(self, tau: Scalar, adj_y: State) -> State:
        """Evaluates the slope of the adjoint state `a`."""
        s, y, adj_y = self._at(tau, adj_y)
        _, (vjp_y,) = backend.vjp(
            lambda y: self.f(s, y, self.args), (y,), adj_y
        )
        return vjp_y

    def slope_of_args(self, tau: Scalar, adj_y: State) -> Tree:
        """Evaluates the slope of the gradient of the arguments."""
        s, y, adj_y = self._at(tau, adj_y)
        _, (vjp_args,) = backend.vjp(
            lambda args: self.f(s, y, args), (self.args,), adj_y
        )
        return vjp_args

    def slopes(self, tau: Scalar, adj_y: State) -> tuple[State, Tree]:
        """Evaluates both slopes, with one evaluation of `f`."""
        s, y, adj_y = self._at(tau, adj_y)
        _, vjps = backend.vjp(
            lambda y, args: self.f(s, y, args), (y, self.args), adj_y
        )
        return vjps


class AlongTrajectoryAdjoint(Adjoint):
    """Base class of the adjoints along the trajectory of the forward solve.

    Let `a` be the gradient with respect to `y(t)`, and `g` the gradient of the
    arguments. The adjoint equation is solved from `t1` back to `t0`:

        da/dt = -a (df/dy),    dg/dt = -a (df/dargs)

    The backward solve covers one forward step at a time. The dense output of
    that step gives the state inside it. A longer backward step would cross the
    seams between forward steps. Where `a` hardly changes, it would also miss
    what `f` does in between, since the error of `g` does not affect the steps.

    A subclass defines how `g` is found along with `a`.
    """

    _config_keys = ("solver", "checkpoints")
    _allowed: str

    def __init__(self, solver: Solver | None = None, checkpoints: int = 100):
        self.solver = solver
        if solver is not None:
            self.solver = registry.get("solver", solver, {}, Solver)
            if not self._allows(self.solver):
                raise ValueError(
                    f"`solver` of `{type(self).__name__}` must be "
                    f"{self._allowed}. Received: solver={solver}"
                )
        self.checkpoints = checks.positive_int("checkpoints", checkpoints)

    @abc.abstractmethod
    def _allows(self, solver: Solver) -> bool:
        """Tells whether a solver can take the backward pass."""

    @abc.abstractmethod
    def _solve(
        self,
        solver: Solver,
        equation: AdjointEquation,
        duration: Scalar,
        adj_y: State,
        adj_args: Tree,
    ) -> tuple[Solution, State, Tree]:
        """Solves the equation for a `duration`.

        Returns:
            The `Solution`, and the gradients at its end.
        """

    def outputs(
        self, solver: Solver, jumps: Tensor | None
    ) -> tuple[Output, ...]:
        return (Record(solver.max_steps, self.checkpoints),)

    def pullback(
        self, solve: Solve, cotangent: Cotangent
    ) -> tuple[State, Tree]:
        (trajectory,) = solve.kept
        solver = self.solver or solve.solver
        backward = solver.over_step()
        plain = solve.solver.stepper(dense=False, chained=False)
        dense = solve.solver.stepper(dense=True, chained=False)

        def take(stepper, i, y):
            t, dt = trajectory.step(i)
            return stepper.step(solve.f.after(t), t, dt, y, (), solve.args)

        def redo(i, y):
            return take(plain, i, y).y1

        def undo(i, y, left, *gradients):
            step = take(dense, i, y).dense
            if solve.s_eval is not None:
                return self._undo(
                    backward,
                    solve,
                    cotangent,
                    step,
                    ops.equal(i, 0),
                    left,
                    *gradients,
                )
            end = step.t + step.dt
            return left, *self._descend(
                backward, solve, step, end, step.t, *gradients
            )

        return replay.backwards(solve, trajectory, cotangent.adj_y1, redo, undo)

    def _undo(
        self,
        backward: Solver,
        solve: Solve,
        cotangent: Cotangent,
        dense: Dense,
        first: Bool,
        left: Tensor,
        adj_y: State,
        adj_args: Tree,
    ) -> tuple[Any, ...]:
        """Goes from the end of a step to its start, halting at each report."""

        def more(s, left, *_):
            # Reports at the very start are due, too.
            ahead = ops.logical_and(first, ops.any(left > 0))
            return ops.logical_or(ops.any(s > dense.t), ahead)

        def to_report(s, left, adj_y, adj_args):
            """Goes back to the last report before `s`, or the step's start."""
            report = ops.maximum(left - 1, 0)
            time = report_cotangents.time_of(solve.s_eval, report)
            inside = ops.logical_or(first, time > dense.t)
            due = ops.logical_and(left > 0, inside)
            halt = pytree.smaller(pytree.larger(time, dense.t), s)
            stop = ops.where(due, halt, dense.t)
            adj_y, adj_args = self._descend(
                backward, solve, dense, s, stop, adj_y, adj_args
            )
            adj = report_cotangents.cotangent(cotangent.adj_ys, report, due)
            left = left - ops.cast(due, "int32")
            return stop, left, pytree.add(adj_y, adj), adj_args

        # Where samples have reports of their own, each halts at its own.
        end = dense.t + dense.dt + ops.zeros_like(left, dtype=dense.t.dtype)
        _, *carry = backend.while_loop(
            more, to_report, (end, left, adj_y, adj_args)
        )
        return tuple(carry)

    def _descend(
        self,
        backward: Solver,
        solve: Solve,
        dense: Dense,
        s: Scalar,
        stop: Scalar,
        adj_y: State,
        adj_args: Tree,
    ) -> tuple[State, Tree]:
        """Solves from the time `s` inside a step back to `stop`."""
        duration, rate = s - stop, None
        if len(duration.shape):
            # The sample with the longest way runs at full speed, others slower.
            way, duration = duration, ops.max(duration, initial=0.0)
            rate = way / ops.where(duration > 0, duration, 1.0)
        f = solve.f.after(dense.t)
        equation = AdjointEquation(f, solve.args, dense, s, rate)
        result, *gradients = self._solve(
            backward, equation, duration, adj_y, adj_args
        )
        reached = ops.max(s, initial=0.0) - result.elapsed
        result._replace(elapsed=reached).check_backward(
            solve.solution, _REMEDIES, solve.t_span
        )
        return tuple(gradients)

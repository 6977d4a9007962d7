"""A solve as an adjoint sees it: what it was given, and what came out."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras_node.integration.interval import ElapsedField
from keras_node.integration.interval import Interval
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Solve(NamedTuple):
    """Forward solve, as its backward pass sees it."""

    solver: Solver
    f: ElapsedField  # dy/ds, of (s, y, args)
    t_span: tuple  # the ends of the interval, as `Adjoint.integrate` has them
    y0: State
    args: Tree  # what the solve is differentiated by, beside `y0`
    s_eval: Tensor | None  # the times to report, as `ReportAt` takes them
    num_reported: Tensor  # how many of them were reached
    solution: Solution
    kept: tuple  # the results of `Adjoint.outputs`

    @property
    def span(self) -> Scalar:
        """Length of the interval."""
        return abs(self.t_span[1] - self.t_span[0])


class Cotangent(NamedTuple):
    """Cotangents of the results of a solve."""

    adj_y1: State
    adj_ys: State  # (T, batch, ...), or () without reports


class Frozen(NamedTuple):
    """Right-hand side `f(t, y, args)`, with `frozen` filled in."""

    f: Callable  # of (t, y, args, frozen)
    frozen: Tree

    def __call__(self, t: Scalar, y: State, args: Tree) -> State:
        return self.f(t, y, args, self.frozen)


class Given(NamedTuple):
    """What a solve is given, of the arguments of `custom_vjp`."""

    f: RightHandSide  # dy/dt, of (t, y, args)
    t_span: tuple
    y0: State
    args: Tree
    s_eval: Tensor | None
    jumps: Tensor | None

    def solve(self, solver: Solver, outputs: tuple, norm: Any) -> Solution:
        t0, t1 = self.t_span
        # A solver that knows of no jumps may have no argument for them.
        jumps = {} if self.jumps is None else {"jumps": self.jumps}
        return solver.solve(
            self.f, t0, t1, self.y0, self.args, outputs, norm, **jumps
        )

    def solved(
        self, solver: Solver, solution: Solution, num_reported: Any, kept: tuple
    ) -> Solve:
        """Joins what was given and what `split` found."""
        t0, t1 = self.t_span
        interval = Interval.between(t0, t1, solution.t.dtype)
        return Solve(
            solver=solver,
            f=ElapsedField(self.f, interval, self.jumps),
            t_span=self.t_span,
            y0=self.y0,
            args=self.args,
            s_eval=self.s_eval,
            num_reported=num_reported,
            solution=solution,
            kept=kept,
        )


def split(solution: Solution, reports: bool) -> tuple[Solution, Tree, Tree]:
    """Splits a solution from the results of its outputs.

    Returns:
        The solution, with the reports if there are any, the number of reports,
        and the results of the outputs that the adjoint asked for.
    """
    kept, solution = solution.outputs, solution._replace(outputs=())
    if not reports:
        return solution, (), kept
    (ys, num_reported), *others = kept
    return solution._replace(ys=ys), num_reported, tuple(others)

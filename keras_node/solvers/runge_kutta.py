"""Explicit Runge-Kutta methods, and the solvers built from them."""

import dataclasses
from typing import ClassVar

from keras_node import backend
from keras_node import pytree
from keras_node.integration.dense import Dense
from keras_node.integration.solver import Solver
from keras_node.integration.stepper import Step
from keras_node.integration.stepper import Stepper
from keras_node.integration.stepper import is_nothing
from keras_node.solvers.steps import AdaptiveSteps
from keras_node.solvers.steps import FixedSteps
from keras_node.solvers.tableau import Tableau
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tree


@dataclasses.dataclass(frozen=True)
class ExplicitRungeKutta(Stepper):
    """Stepper of an explicit Runge-Kutta method.

    Args:
        tableau: The `Tableau` of the method.
        dense: Boolean, whether to compute the state inside the steps.
        chained: Boolean, whether each step follows the one before. Otherwise
            a step leaves neither a carry nor an error.
    """

    tableau: Tableau
    dense: bool = False
    chained: bool = True

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def degree(self) -> int:
        return len(self.tableau.b_dense[0])

    @property
    def error_weights(self) -> tuple:
        return self.tableau.b_error or ()

    @property
    def _carries(self) -> bool:
        """Flag: the slope at the end of a step starts the next one."""
        return self.chained and (self.tableau.fsal or self.dense)

    def init(
        self, f: RightHandSide, t: Scalar, y: State, args: Tree
    ) -> tuple[State, int]:
        return (f(t, y, args), 1) if self._carries else ((), 0)

    def step(
        self,
        f: RightHandSide,
        t: Scalar,
        dt: Scalar,
        y: State,
        carry: State,
        args: Tree,
    ) -> Step:
        c, a, b = self.tableau.c, self.tableau.a, self.tableau.b
        if self.tableau.fsal:
            c, a, b = c[:-1], a[:-1], b[:-1]
        slopes = [f(t, y, args) if is_nothing(carry) else carry]
        for node, row in zip(c[1:], a[1:], strict=True):
            stage = pytree.advance(y, dt, row, slopes)
            slopes.append(f(t + float(node) * dt, stage, args))
        y1 = pytree.advance(y, dt, b, slopes)
        num_evals = len(slopes)
        if self._carries or self.dense:
            slopes.append(f(t + dt, y1, args))
        return Step(
            y1=y1,
            error=self._error(dt, slopes),
            slope=slopes[0],
            dense=self._interpolant(t, dt, y, slopes) if self.dense else None,
            carry=slopes[-1] if self._carries else (),
            num_evals=num_evals,
        )

    @backend.jit  # where the right-hand side is not
    def _error(self, dt: Scalar, slopes: list) -> State | None:
        weights = self.error_weights
        if not (weights and self.chained):
            return None
        return pytree.combine(dt, weights, slopes[: len(weights)])

    def _interpolant(
        self, t: Scalar, dt: Scalar, y: State, slopes: list
    ) -> Dense:
        columns = zip(*self.tableau.b_dense, strict=True)
        return Dense(
            t, dt, y, [pytree.combine(dt, column, slopes) for column in columns]
        )


class RungeKuttaSolver(Solver):
    """Base class of the explicit Runge-Kutta solvers."""

    tableau: ClassVar[Tableau]

    def stepper(self, dense: bool, chained: bool = True) -> Stepper:
        return ExplicitRungeKutta(self.tableau, dense, chained)


class AdaptiveRungeKutta(RungeKuttaSolver, AdaptiveSteps):
    """Runge-Kutta solver that keeps the error of each step in bounds."""


class FixedRungeKutta(RungeKuttaSolver, FixedSteps):
    """Runge-Kutta solver with steps of equal length."""

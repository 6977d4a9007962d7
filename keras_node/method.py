"""One step of an explicit Runge-Kutta method."""

from collections.abc import Callable
from typing import Any
from typing import ClassVar
from typing import NamedTuple

from keras_node import structure
from keras_node.dense_output import DenseStep
from keras_node.interfaces import Solver
from keras_node.tableau import Tableau


class Step(NamedTuple):
    """One step, tried."""

    y1: Any  # the state at its end
    slopes: list  # the stages, and last the slope at the end if asked for


class Method(Solver):
    """An explicit Runge-Kutta method."""

    tableau: ClassVar[Tableau]

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
            stage = structure.advance(y, dt, row, slopes)
            slopes.append(f(t + float(node) * dt, stage))
        y1 = structure.advance(y, dt, b, slopes)
        if end_slope:
            slopes.append(f(t + dt, y1))
        return Step(y1, slopes)

    def dense(self, t: Any, dt: Any, y: Any, slopes: list) -> DenseStep:
        """The state inside the step of size `dt` from `(t, y)`."""
        columns = zip(*self.tableau.b_dense, strict=True)
        q = [structure.combine(dt, column, slopes) for column in columns]
        return DenseStep(t, dt, y, q)

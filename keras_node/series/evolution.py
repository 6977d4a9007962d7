"""The ODE that takes the state of a recurrent layer from step to step."""

from typing import NamedTuple

import keras
from keras import ops

from keras_node.adjoints.base import Adjoint
from keras_node.dynamics.layer import LayerDynamics
from keras_node.dynamics.vector_field import VectorField
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.problem import Problem
from keras_node.problem import solve
from keras_node.times.given import Times
from keras_node.types import Tensor


class Totals(NamedTuple):
    """What many solves took; `t` and `status` are those of the first failure.

    A structure of tensors, for a loop to carry.
    """

    t: Tensor  # (batch,)
    num_evals: Tensor
    num_steps: Tensor
    num_accepted: Tensor
    status: Tensor

    @classmethod
    def zero(cls, solver: Solver, h: Tensor) -> "Totals":
        t = ops.zeros_like(h[:, 0])
        none = ops.zeros(ops.shape(t) if solver.per_sample else (), "int32")
        return cls(t, none, none, none, none)

    def add(self, solution: Solution) -> "Totals":
        """Adds a solve, unless one failed before."""
        good = self.status == 0
        return Totals(
            ops.where(good, ops.cast(solution.t, self.t.dtype), self.t),
            *(
                ops.where(good, before + ops.cast(more, "int32"), before)
                for before, more in (
                    (self.num_evals, solution.num_evals),
                    (self.num_steps, solution.num_steps),
                    (self.num_accepted, solution.num_accepted),
                    (self.status, solution.status),
                )
            ),
        )

    def as_solution(self, h: Tensor) -> Solution:
        counters = self._asdict()
        return Solution(y1=h, elapsed=self.t, **counters)


class Evolution:
    """Solves `dh/dt = dynamics(h)` over a span of each sample.

    Args:
        dynamics: The dynamics.
        h: A state, in the dtype of the solves.
        solver: The solver.
        adjoint: The adjoint.
    """

    def __init__(
        self,
        dynamics: LayerDynamics,
        h: Tensor,
        solver: Solver,
        adjoint: Adjoint,
    ):
        # All solves share what it reads: weights, and masks of dropout.
        self._field = VectorField(dynamics, (), h)
        self._h = h
        self._solver = solver
        self._adjoint = adjoint

    def __call__(
        self, h: Tensor, start: Tensor, end: Tensor, totals: Totals
    ) -> tuple[Tensor, Totals]:
        """Integrates from `start` to `end`, tensors of shape `(batch,)`."""
        dtype = keras.backend.standardize_dtype(self._h.dtype)
        # A difference of times is rounded, and not the times.
        span = Times(None, ops.stack([start, end], axis=-1), 0.0)
        problem = Problem(self._field, ops.cast(h, dtype), span, fixed=False)
        solution = solve(problem, self._solver, self._adjoint)
        return ops.cast(solution.y1, h.dtype), totals.add(solution)

    def nothing(self) -> Totals:
        """Returns the totals before all solves."""
        return Totals.zero(self._solver, self._h)

    def advance(self, t: Tensor) -> None:
        """Evaluates the dynamics once, for their side effects, if any."""
        self._field.advance(ops.cast(t, self._h.dtype), self._h)

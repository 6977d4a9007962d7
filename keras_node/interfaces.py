"""The contracts between the parts: what a solver and an adjoint owe.

A right-hand side is a pure function. Solvers see `f(t, y)`, adjoints see
`f(t, y, params)`: `t` is a scalar tensor, `y` and `params` are any
`keras.tree` structure of tensors.
"""

import abc
import enum
from collections.abc import Callable
from typing import Any
from typing import ClassVar
from typing import NamedTuple

import keras
from keras import ops

from keras_node import backend


class Status(enum.IntEnum):
    """How a solve ended."""

    SUCCESS = 0
    STEP_LIMIT = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3


_REASONS = {
    Status.STEP_LIMIT: "the step limit `max_steps` was reached",
    Status.STEP_UNDERFLOW: (
        "the error tolerance asks for a step too small to advance time"
    ),
    Status.NON_FINITE: (
        "the state or its slope is NaN or infinite however small the step"
    ),
}

_REMEDIES = (
    "What helps, in this order: check the inputs for NaN and infinite values; "
    "loosen `rtol` and `atol`; raise `max_steps`; make `dynamics` smoother or "
    "smaller (bounded activations, smaller weights); choose another solver."
)


class SolverError(RuntimeError):
    """A solve did not reach the end of `t_span`.

    Raised outside compiled code only. Compiled code cannot raise: there the
    result of a failed solve is NaN.
    """


class Solution(NamedTuple):
    """What a solve returns.

    The fields after `y1` are integers and one time: scalar tensors, or of
    shape `(batch,)` when each sample steps for itself.
    """

    y1: Any  # the state at t1, the structure of y0; NaN where the solve failed
    t: Any  # the time reached: t1, unless the solve failed
    num_evals: Any  # calls of f
    num_steps: Any  # steps tried: accepted and rejected
    num_accepted: Any  # steps accepted
    status: Any  # a `Status`

    @property
    def success(self) -> Any:
        """Boolean tensor: whether the solve reached `t1`."""
        return ops.equal(self.status, int(Status.SUCCESS))

    def check(self) -> None:
        """Raises `SolverError` if the solve failed, outside compiled code."""
        if not backend.is_concrete(self.status):
            return
        status = Status(int(self.status))
        if status is not Status.SUCCESS:
            raise SolverError(
                f"The solve stopped at t = {float(self.t):.6g} after "
                f"{int(self.num_steps)} steps ({int(self.num_accepted)} "
                f"accepted): {_REASONS[status]}. {_REMEDIES}"
            )


class Config:
    """A configuration object: what `__init__` takes is what is saved."""

    _config_keys: ClassVar[tuple[str, ...]] = ()

    def get_config(self) -> dict[str, Any]:
        return {
            key: keras.saving.serialize_keras_object(getattr(self, key))
            for key in self._config_keys
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Config":
        return cls(**config)

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({args})"


class Solver(Config, abc.ABC):
    """Integrates `dy/dt = f(t, y)` from `t0` to `t1`."""

    @abc.abstractmethod
    def solve(self, f: Callable, t0: float, t1: float, y0: Any) -> Solution:
        """Solves the initial value problem `y(t0) = y0`.

        Args:
            f: The right-hand side, `f(t, y) -> dy/dt`, of the structure of
                `y`. It is evaluated between `t0` and `t1` only.
            t0: Float, the initial time.
            t1: Float, the final time. `t1 < t0` integrates backwards.
            y0: A structure of float tensors of one dtype.

        Returns:
            A `Solution`. A failed solve returns NaN as `y1`; it never raises.
        """


class Adjoint(Config, abc.ABC):
    """Integrates with gradients to the initial state and the parameters."""

    @abc.abstractmethod
    def pullback(
        self,
        solver: Solver,
        f: Callable,
        t0: float,
        t1: float,
        solution: Solution,
        params: Any,
        adj_y1: Any,
    ) -> tuple[Any, Any]:
        """Carries the cotangent of `y1` back to `y0` and `params`.

        Args:
            solver: The `Solver` that made `solution`.
            f: The right-hand side, `f(t, y, params)`.
            t0: Float, the initial time of the forward solve.
            t1: Float, its final time.
            solution: Its `Solution`.
            params: What `f` took as its third argument.
            adj_y1: Cotangent of `solution.y1`.

        Returns:
            The cotangents `(adj_y0, adj_params)`.
        """

    def integrate(
        self,
        solver: Solver,
        f: Callable,
        t0: float,
        t1: float,
        y0: Any,
        params: Any,
        frozen: Any = (),
    ) -> Solution:
        """Solves `y(t0) = y0`, with gradients to `y0` and `params`.

        Args:
            solver: The `Solver` of the forward pass.
            f: The right-hand side, `f(t, y, params, frozen)`.
            t0: Float, the initial time.
            t1: Float, the final time.
            y0: A structure of float tensors of one dtype.
            params: Structure of tensors that gradients flow to.
            frozen: Structure of tensors that no gradient flows to. Everything
                that `f` reads is an argument: a framework may run the backward
                pass where values closed over are gone.

        Returns:
            A `Solution`, differentiable in `y1`.
        """

        def forward(args, frozen):
            y0, params = args
            solution = solver.solve(
                lambda t, y: f(t, y, params, frozen), t0, t1, y0
            )
            return solution, (solution, params, frozen)

        def backward(residuals, cotangent):
            solution, params, frozen = residuals
            return self.pullback(
                solver,
                lambda t, y, params: f(t, y, params, frozen),
                t0,
                t1,
                solution,
                params,
                cotangent.y1,
            )

        return backend.custom_vjp(forward, backward)((y0, params), frozen)

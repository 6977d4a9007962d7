"""The contracts between the parts: what a solver and an adjoint owe.

A right-hand side is a pure function. Solvers see `f(t, y)`, adjoints see
`f(t, y, params)`: `t` is a scalar tensor, `y` and `params` are any
`keras.tree` structure of tensors.
"""

import abc
from collections.abc import Callable
from typing import Any
from typing import ClassVar

import keras

from keras_node import backend
from keras_node import structure
from keras_node.solution import Solution
from keras_node.solution import known_false


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

    def identity(self) -> tuple:
        """What tells this object from others; see `backend.recorded`."""
        return type(self), *(getattr(self, key) for key in self._config_keys)

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={getattr(self, k)!r}" for k in self._config_keys)
        return f"{type(self).__name__}({args})"


class Solver(Config, abc.ABC):
    """Integrates `dy/dt = f(t, y)` from `t0` to `t1`.

    A solver that `records` can return a `Trajectory`. One that is `adaptive`
    keeps its error in bounds, by `rtol` and `atol`. One that is `per_sample`
    lets each sample step for itself.
    """

    records: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    per_sample: bool = False

    @abc.abstractmethod
    def solve(
        self,
        f: Callable,
        t0: Any,
        t1: Any,
        y0: Any,
        s_eval: Any = None,
        checkpoints: int = 0,
        norm: Callable | None = None,
        integrand: Callable | None = None,
        integral: Any = (),
        tape: Any = (),
    ) -> Solution:
        """Solves the initial value problem `y(t0) = y0`.

        Args:
            f: The right-hand side, `f(t, y) -> dy/dt`, of the structure of
                `y`. It is evaluated between `t0` and `t1` only.
            t0: Float or scalar tensor, the initial time.
            t1: The final time. `t1 < t0` integrates backwards.
            y0: A structure of float tensors of one dtype.
            s_eval: Tensor of shape `(T,)`, the times elapsed since `t0` to
                report the state at, in ascending order: `|t - t0|`. For one
                outside of the interval, NaN is reported.
            checkpoints: Int, how many states a solver that `records` keeps in
                the `Trajectory`. With `0` there is none.
            norm: The norm of a state by which errors are judged, if not
                the root mean square over all entries. TensorFlow
                Probability's solver chooses its first step by it, and judges
                errors by one of its own.
            integrand: A function of `(t, y)`, integrated along the solution
                by Gauss-Legendre quadrature in every accepted step. It has
                no say in the steps. For a solver that `records`, and is not
                `per_sample`.
            integral: The structure of tensors that the integral is added to.
            tape: A `backend.torch_tape.Tape`, to keep the graphs of the steps
                of a solver that `records`, and is not `per_sample`.

        Returns:
            A `Solution`. A failed solve returns NaN as `y1`; it never raises.
        """

    def together(self) -> "Solver":
        """This solver, with one step size for the whole batch."""
        if not self.per_sample:
            return self
        return self.from_config({**self.get_config(), "per_sample": False})

    def over_step(self, span: float) -> "Solver":
        """This solver, for intervals that were one step of a solve.

        Args:
            span: Float, as long as such a step can be.

        Returns:
            A solver that tries the whole interval first.
        """
        raise NotImplementedError(f"{self} cannot go over single steps.")


class Adjoint(Config, abc.ABC):
    """Integrates with gradients to the initial state and the parameters.

    An adjoint with `checkpoints` needs a solver that `records`.
    """

    checkpoints: int = 0
    keep_graphs: int = 0

    @abc.abstractmethod
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
        """Carries the cotangents of the states back to `y0` and `params`.

        Args:
            solver: The `Solver` that made `solution`.
            f: The right-hand side, `f(t, y, params)`.
            t0: Float, the initial time of the forward solve.
            t1: Float, its final time.
            y0: The initial state.
            s_eval: The times reported, elapsed since `t0`, or `None`.
            solution: The `Solution` of the forward solve.
            params: What `f` took as its third argument.
            adjoint: A `Solution` with the cotangents of `y1` and `ys`; the
                rms of the two together is 1.

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
        s_eval: Any = None,
        norm: Callable | None = None,
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
            s_eval: Times to report, as in `Solver.solve`.
            norm: The norm of a state in the forward solve, likewise.

        Returns:
            A `Solution`, differentiable in `y1` and `ys`.
        """
        reports = s_eval is not None

        @backend.full_products()
        def forward(args, constants, keeps):
            y0, params = args
            frozen, times = constants
            tape = ()
            if keeps and self.keep_graphs:
                tape = backend.new_tape(self.keep_graphs, params)
            solution = solver.solve(
                structure.Bound(f, (params, frozen)),
                t0,
                t1,
                y0,
                s_eval=times if reports else None,
                checkpoints=self.checkpoints if keeps else 0,
                norm=norm,
                tape=tape,
            )
            residuals = (y0, solution, params, constants)
            return solution._replace(trajectory=(), tape=()), residuals

        @backend.full_products()
        def backward(residuals, adjoint):
            y0, solution, params, (frozen, times) = residuals
            # The adjoint equation is linear: its error is judged relative to
            # its size, and the scale of the loss is of no account. Dynamics
            # in half precision would overflow with that scale.
            finite, scale, (y1, ys) = _unit((adjoint.y1, adjoint.ys))
            if known_false(finite):
                # The loss is to blame, and not the backward solve.
                return structure.full_like((y0, params), float("nan"))
            gradients = self.pullback(
                solver,
                structure.Bound(f, (frozen,)),
                t0,
                t1,
                y0,
                times if reports else None,
                solution,
                params,
                adjoint._replace(y1=y1, ys=ys),
            )
            finite, gradients = _scaled(scale, gradients)
            solution.check_gradients(finite)
            return gradients

        identity = None
        if getattr(f, "identity", None) and f.identity():
            made = (self.identity(), solver.identity(), f.identity())
            identity = (*made, t0, t1, reports, norm)
        constants = (frozen, s_eval if reports else ())
        function = backend.custom_vjp(forward, backward, identity)
        return function((y0, params), constants)


@backend.recorded
def _unit(adjoint: Any) -> tuple[Any, Any, Any]:
    """Whether cotangents are finite, their size, and divided by it."""
    return structure.all_finite(adjoint), *structure.unit(adjoint)


@backend.recorded
def _scaled(scale: Any, gradients: Any) -> tuple[Any, Any]:
    """Whether gradients are finite, and times their size."""
    finite = structure.all_finite(gradients)
    return finite, tuple(structure.scale(scale, x) for x in gradients)

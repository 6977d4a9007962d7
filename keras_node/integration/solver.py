"""The contract of a solver: a public object, saved with a layer."""

import abc
from typing import ClassVar

import keras

from keras_node import pytree
from keras_node.config import Config
from keras_node.integration import precision
from keras_node.integration.controller import Controller
from keras_node.integration.loop import integrate
from keras_node.integration.outputs import Output
from keras_node.integration.solution import Solution
from keras_node.integration.stepper import Stepper
from keras_node.types import Norm
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Solver(Config, abc.ABC):
    """Solver of `dy/dt = f(t, y, args)` from `t0` to `t1`.

    An `adaptive` solver keeps its error in bounds, by `rtol` and `atol`. A
    `per_sample` solver lets each sample have its own steps. A solver that
    `keeps_steps` has a stepper of its own, and serves every `Output`. One of
    `any_state` does not ask what the entries of the state are.
    """

    adaptive: ClassVar[bool] = False
    keeps_steps: ClassVar[bool] = False
    reports_own_times: ClassVar[bool] = True  # of each sample
    stops_at_jumps: ClassVar[bool] = False
    any_state: ClassVar[bool] = True
    per_sample: bool = False
    max_steps: int

    @abc.abstractmethod
    def stepper(self, dense: bool, chained: bool = True) -> Stepper:
        """Makes the stepper: see `Stepper`.

        Args:
            dense: Boolean, whether to compute the state inside the steps.
            chained: Boolean, whether each step follows the one before.
                Otherwise a step leaves neither a carry nor an error.
        """

    @abc.abstractmethod
    def controller(
        self, stepper: Stepper, norm: Norm, eps: float
    ) -> Controller:
        """Makes the controller: see `Controller`.

        Args:
            stepper: The stepper whose steps it chooses.
            norm: The norm of a state by which errors are judged.
            eps: The precision of the right-hand side, if it is coarser than
                the precision of the state; else `0.0`.
        """

    @abc.abstractmethod
    def over_step(self) -> "Solver":
        """Copies the solver, with a first step over the whole interval.

        The copy takes one step size for the whole batch.
        """

    def shared(self) -> "Solver":
        """Returns a solver that takes one step size for the whole batch."""
        return self.replace(per_sample=False) if self.per_sample else self

    def solve(
        self,
        f: RightHandSide,
        t0: Scalar,
        t1: Scalar,
        y0: State,
        args: Tree = (),
        outputs: tuple[Output, ...] = (),
        norm: Norm | None = None,
        jumps: Tensor | None = None,
    ) -> Solution:
        """Solves the initial value problem `y(t0) = y0`.

        Args:
            f: The right-hand side, `f(t, y, args)`.
            t0: Float or tensor, the initial time. A `per_sample` solver takes
                a tensor of shape `(batch,)`, too.
            t1: The final time. `t1 < t0` integrates backwards.
            y0: A structure of float tensors of one dtype.
            args: A structure of tensors, handed to `f`.
            outputs: The outputs wanted of the solve, beside its final state.
            norm: The norm of a state by which errors are judged. Defaults to
                the root mean square of all entries, or of each sample's.
            jumps: Times elapsed since `t0` at which `f` may jump, of shape
                `(L,)`, or `(L, batch)` if samples have their own. Steps end
                there. A solver that `stops_at_jumps` takes them.

        Returns:
            A `Solution`.

        Raises:
            ValueError: If the solver cannot serve one of the `outputs`.
        """
        dtype = keras.backend.standardize_dtype(pytree.leaves(y0)[0].dtype)
        stepper = self.stepper(any(x.needs_dense for x in outputs))
        controller = self.controller(
            stepper,
            norm or pytree.RmsNorm(self.per_sample),
            precision.of_function(f, args, dtype),
        )
        for output in outputs:
            stepper = output.wrap(stepper)
        return integrate(
            stepper, controller, f, t0, t1, y0, args, outputs, jumps
        )

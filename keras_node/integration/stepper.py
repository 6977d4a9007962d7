"""The contract of a stepper, which takes one step of a method."""

import abc
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras_node import backend
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tree


class Step(NamedTuple):
    """Result of one step that was tried.

    Where the step went wrong, `y1` or `error` is NaN or infinite. It is then
    rejected, and a shorter step is tried.
    """

    y1: State  # the state at its end
    error: State | None  # the local error; None if there is no estimate
    slope: State  # the slope at its start; its size scales rounding errors
    dense: Any  # `Dense`, the state inside the step; None unless asked for
    carry: Tree  # what the next step reuses; () for nothing
    num_evals: int  # calls of f
    pullback: Callable | None = None  # the pullback of `ends`, if it is kept


class Stepper(abc.ABC):
    """Method that takes single steps.

    A stepper is a value: equal steppers do the same. Time is the time elapsed
    since the start of the solve.
    """

    @property
    @abc.abstractmethod
    def order(self) -> int:
        """Order of the method."""

    @property
    @abc.abstractmethod
    def degree(self) -> int:
        """Degree of the polynomial in `Dense`."""

    @property
    @abc.abstractmethod
    def error_weights(self) -> tuple:
        """Weights of the slopes in `Step.error`.

        The rounding of the slopes reaches the estimate through them.
        """

    @abc.abstractmethod
    def init(
        self, f: RightHandSide, t: Scalar, y: State, args: Tree
    ) -> tuple[Tree, int]:
        """Prepares the first step.

        Returns:
            The `carry` of the first step, and the number of calls of `f`. A
            carry that is not `()` holds the slope at the start.
        """

    @abc.abstractmethod
    def step(
        self,
        f: RightHandSide,
        t: Scalar,
        dt: Scalar,
        y: State,
        carry: Tree,
        args: Tree,
    ) -> Step:
        """Takes one step of size `dt` from `(t, y)`.

        Args:
            f: The right-hand side, `f(t, y, args)`.
            t: The time.
            dt: The step size.
            y: The state.
            carry: The carry of the step before, or of `init`; `()` if it is
                not at hand.
            args: A structure of tensors, handed to `f`.
        """

    def pull(
        self,
        f: RightHandSide,
        t: Scalar,
        dt: Scalar,
        y: State,
        args: Tree,
        cotangent: tuple[State, tuple],
    ) -> tuple[State, Tree]:
        """Pulls the cotangent of `ends` back to `y` and `args`."""
        return backend.vjp(
            lambda y, args: ends(self.step(f, t, dt, y, (), args)),
            (y, args),
            cotangent,
        )[1]


def ends(step: Step) -> tuple[State, tuple]:
    """Selects what has a cotangent: `y1`, and the `y` and `q` of `Dense`."""
    if step.dense is None:
        return step.y1, ()
    return step.y1, (step.dense.y, step.dense.q)


def is_nothing(carry: Tree) -> bool:
    """Tells whether a carry is `()`, which stands for no carry."""
    return isinstance(carry, tuple) and not carry

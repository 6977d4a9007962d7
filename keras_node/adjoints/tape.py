"""The pullbacks of the first steps of a solve, kept where that helps."""

import dataclasses

from keras_node import backend
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import Taken
from keras_node.integration.stepper import Step
from keras_node.integration.stepper import Stepper
from keras_node.integration.stepper import ends
from keras_node.types import Bool
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tree


class Tape(Output):
    """Output that keeps the pullbacks of the first accepted steps.

    The pullback of a step holds all that the step has computed, so that none
    of it is computed again. Only PyTorch has pullbacks: a compiled loop would
    have to reserve the memory for every step.

    Args:
        size: Int, the number of steps kept.
    """

    def __init__(self, size: int):
        self.size = size if backend.keeps_pullbacks else 0
        self.pullbacks: list = []

    def wrap(self, stepper: Stepper) -> Stepper:
        return _Taping(stepper, self) if self.size else stepper

    def init(self, t: Scalar, y0: State) -> Tree:
        self.pullbacks = []
        return ()

    def step(self, carry: Tree, taken: Taken) -> Tree:
        pullback = taken.step.pullback
        if pullback is not None and taken.accept:
            self.pullbacks.append(pullback)
        return ()

    def result(self, carry: Tree, success: Bool) -> list:
        return self.pullbacks

    @property
    def has_room(self) -> bool:
        return len(self.pullbacks) < self.size


@dataclasses.dataclass(frozen=True, eq=False)
class _Taping(Stepper):
    """Stepper that adds pullbacks to the steps of another, if there is room."""

    stepper: Stepper
    tape: Tape

    @property
    def order(self) -> int:
        return self.stepper.order

    @property
    def degree(self) -> int:
        return self.stepper.degree

    @property
    def error_weights(self) -> tuple:
        return self.stepper.error_weights

    @property
    def value_key(self) -> tuple:
        """Value that stands for what a step does now: see `backend.values`."""
        return _Taping, self.stepper, self.tape.has_room

    def init(
        self, f: RightHandSide, t: Scalar, y: State, args: Tree
    ) -> tuple[Tree, int]:
        return self.stepper.init(f, t, y, args)

    def step(
        self,
        f: RightHandSide,
        t: Scalar,
        dt: Scalar,
        y: State,
        carry: Tree,
        args: Tree,
    ) -> Step:
        if not self.tape.has_room:
            return self.stepper.step(f, t, dt, y, carry, args)
        # The slope at the start is evaluated again: the slope in `carry` does
        # not depend on this `y`.
        step, pullback = backend.with_pullback(
            lambda y, args: self.stepper.step(f, t, dt, y, (), args),
            ends,
            (y, args),
        )
        return step._replace(pullback=pullback)

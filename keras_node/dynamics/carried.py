"""Quantities that are integrated beside the state."""

import dataclasses
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node.integration.solution import Solution
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class _WithEnergy(NamedTuple):
    """Slopes of the state and of the energy."""

    f: Any  # of (t, y, args, frozen)

    def __call__(
        self, t: Scalar, state: State, args: Tree, frozen: Tree
    ) -> State:
        y, _ = state
        dy = self.f(t, y, args, frozen)
        squares = ops.square(dy)[..., None]  # over no axes PyTorch sums all
        axes = tuple(range(1, len(squares.shape)))
        return dy, ops.sum(squares, axis=axes)


@dataclasses.dataclass(frozen=True)
class KineticEnergy:
    """Kinetic energy of a solve: `|f|^2`, integrated along with the state.

    The energy of each sample is one more entry of the state: `de/dt = |f|^2`
    with `e(t0) = 0`. Every solver and every adjoint therefore supports it.
    Where time runs backwards, `e` falls: the energy is its size. Errors are
    judged by the state alone. The state and the evaluations of `f` are the same
    as without the energy.

    Args:
        factor: Float, the factor of the energy in the loss.

    Reference:
        - [Finlay et al., 2020](https://arxiv.org/abs/2002.02798), section 4
    """

    factor: float

    def start(self, y0: State) -> State:
        """Makes the state at `t0`, with the energy."""
        return y0, ops.zeros(ops.shape(y0)[:1], dtype=y0.dtype)

    def field(self, f: Any) -> _WithEnergy:
        """Makes the right-hand side of both."""
        return _WithEnergy(f)

    def split(self, solution: Solution) -> Solution:
        """Splits the energy off the state, and returns it as `integral`."""
        y1, energy = solution.y1
        ys = solution.ys[0] if solution.ys else ()
        return solution._replace(y1=y1, ys=ys, integral=ops.abs(energy))

    def loss(self, solution: Solution) -> Tensor:
        """Computes the penalty: `factor` times the mean energy of the batch."""
        energy = solution.integral
        size = ops.cast(ops.maximum(ops.shape(energy)[0], 1), energy.dtype)
        return self.factor * ops.sum(energy) / size

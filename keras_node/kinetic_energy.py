"""The kinetic energy of a solve: `|f|^2`, integrated along with the state.

The energy of each sample is one more entry of the state, `de/dt = |f|^2` with
`e(t0) = 0`, and so every solver and every adjoint has it (Finlay et al., 2020,
https://arxiv.org/abs/2002.02798, section 4). Where time runs backwards it is
`-|f|^2`: energy is positive. It has no say in the steps: the state comes out as
it would without, for the same evaluations of `f`.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node.solution import Solution


def start(y0: Any) -> tuple[Any, Any]:
    """The state at `t0`, with the energy."""
    return y0, ops.zeros(ops.shape(y0)[:1], dtype=y0.dtype)


class Along(NamedTuple):
    """The right-hand side of both."""

    f: Callable
    sign: float  # of the direction of time

    def identity(self) -> Any:
        """What tells this function from others; `None` if nothing does."""
        identity = self.f.identity()
        return identity and (Along, identity, self.sign)

    def __call__(self, t: Any, state: Any, params: Any, frozen: Any) -> Any:
        y, _ = state
        dy = self.f(t, y, params, frozen)
        squares = ops.square(dy)[..., None]  # PyTorch sums all over no axes
        axes = tuple(range(1, len(squares.shape)))
        return dy, self.sign * ops.sum(squares, axis=axes)


def split(solution: Solution) -> Solution:
    """The solution of the state alone, with the energy as its `integral`."""
    y1, energy = solution.y1
    ys = solution.ys[0] if solution.ys else ()
    return solution._replace(y1=y1, ys=ys, integral=energy)

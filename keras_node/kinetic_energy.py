"""The kinetic energy of a solve: `|f|^2`, integrated along with the state.

The energy of each sample is one more entry of the state, `de/dt = |f|^2` with
`e(t0) = 0`, and so every solver and every adjoint has it (Finlay et al., 2020,
https://arxiv.org/abs/2002.02798, section 4). Where time runs backwards it is
`-|f|^2`: energy is positive. It has no say in the steps: the state comes out as
it would without, for the same evaluations of `f`.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_node import structure
from keras_node.interfaces import Solver
from keras_node.solution import Solution


def start(y0: Any) -> tuple[Any, Any]:
    """The state at `t0`, with the energy."""
    return y0, ops.zeros(ops.shape(y0)[:1], dtype=y0.dtype)


def along(f: Callable, forwards: bool) -> Callable:
    """The right-hand side of both."""
    sign = 1.0 if forwards else -1.0

    def augmented(t, state, params, frozen):
        y, _ = state
        dy = f(t, y, params, frozen)
        squares = ops.square(dy)[..., None]  # PyTorch sums all over no axes
        axes = tuple(range(1, len(squares.shape)))
        return dy, sign * ops.sum(squares, axis=axes)

    return augmented


def norm_without(solver: Solver) -> Callable:
    """The norm of the state alone."""

    def norm(state):
        y, _ = state
        return structure.rms_norm(y, per_sample=solver.per_sample)

    return norm


def split(solution: Solution) -> Solution:
    """The solution of the state alone, with the energy as its `integral`."""
    y1, energy = solution.y1
    ys = solution.ys[0] if solution.ys else ()
    return solution._replace(y1=y1, ys=ys, integral=energy)

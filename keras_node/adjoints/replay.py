"""The way back over the steps of a solve, one by one."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.adjoints.solve import Solve
from keras_node.integration.record import Trajectory
from keras_node.integration.record import get_item
from keras_node.integration.record import list_like
from keras_node.integration.record import set_item
from keras_node.types import State
from keras_node.types import Tree


def backwards(
    solve: Solve,
    trajectory: Trajectory,
    adj_y1: State,
    redo: Callable,
    undo: Callable,
    num_kept: int = 0,
) -> tuple[State, Tree]:
    """Carries the cotangents back over the steps of a solve, last to first.

    States that were not kept are computed again, from the checkpoint before
    them: a step between two checkpoints is taken once more.

    Args:
        solve: The forward solve.
        trajectory: The steps of the solve.
        adj_y1: The cotangent of its final state.
        redo: `redo(i, y)` takes step `i` from the state `y`, and returns the
            state at its end.
        undo: `undo(i, y, left, adj_y, adj_args)` goes back over step `i`,
            which started from `y`. It returns the last three arguments as
            they are at the start of the step. `left` is the number of reports
            not yet passed.
        num_kept: Int, the number of leading steps that `undo` needs no state
            for.

    Returns:
        The cotangents `(adj_y0, adj_args)`; NaN where the solve failed.
    """
    y0 = solve.y0
    left: Any = trajectory.num_steps * 0
    if solve.s_eval is not None:
        left = solve.num_reported
    carry = (
        # One list for all segments: XLA fills what it reserves.
        list_like(y0, trajectory.longest_stride),
        left,
        *_start(solve.solution.success, adj_y1, solve.args),
    )
    end, _, *carry = backend.while_loop(
        lambda end, *_: end > num_kept,
        lambda *carry: _undo_segment(trajectory, redo, undo, y0, *carry),
        (trajectory.num_steps, *carry),
    )
    if num_kept:
        _, *carry = backend.while_loop(
            lambda end, *_: end > 0,
            lambda end, *carry: (end - 1, *undo(end - 1, y0, *carry)),
            (end, *carry),
        )
    _, *gradients = carry
    return tuple(gradients)


def _undo_segment(trajectory, redo, undo, like, end, states, *carry):
    """Goes back to the checkpoint before step `end`."""
    start, y = trajectory.start(end, like)
    states = set_item(states, start * 0, y)

    def forth(i, states, y):
        y = redo(i, y)
        return i + 1, set_item(states, i + 1 - start, y), y

    def back(i, *carry):
        return i - 1, *undo(i, get_item(states, i - start, like), *carry)

    _, states, _ = backend.while_loop(
        lambda i, *_: i < end - 1, forth, (start, states, y)
    )
    _, *carry = backend.while_loop(
        lambda i, *_: i >= start, back, (end - 1, *carry)
    )
    return start, states, *carry


@backend.jit
def _start(success, adj_y1, args):
    """Makes the cotangents at the end of the solve."""
    zeros = pytree.full_like(args, 0.0)
    return (
        pytree.nan_unless(success, adj_y1),
        pytree.nan_unless(ops.all(success), zeros),
    )

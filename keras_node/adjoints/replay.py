"""Back over the steps of a recorded solve, one by one."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_node.trajectory import Trajectory
from keras_node.trajectory import get_item
from keras_node.trajectory import list_like
from keras_node.trajectory import set_item


def backwards(
    path: Trajectory, y0: Any, step: Callable, undo: Callable, carry: tuple
) -> tuple:
    """Visits the steps of a solve, last to first.

    States that were not kept are computed again, from the checkpoint before
    them: a step between two checkpoints is taken once more.

    Args:
        path: The record of the solve.
        y0: Its initial state.
        step: `step(i, y)` takes step `i` from the state `y`, and returns the
            state at its end.
        undo: `undo(i, y, *carry)` visits step `i`, which started from `y`,
            and returns a new `carry`.
        carry: A tuple.

    Returns:
        The last `carry`.
    """

    def undo_segment(end, *carry):
        """Back to the checkpoint before step `end`."""
        start = (end - 1) // path.stride * path.stride
        y = path.state(start, like=y0)
        states = set_item(list_like(y, path.longest_stride), start * 0, y)

        def redo(i, states, y):
            y = step(i, y)
            return i + 1, set_item(states, i + 1 - start, y), y

        def back(i, *carry):
            return i - 1, *undo(i, get_item(states, i - start, like=y0), *carry)

        _, states, _ = ops.while_loop(
            lambda i, *_: i < end - 1, redo, (start, states, y)
        )
        _, *carry = ops.while_loop(
            lambda i, *_: i >= start, back, (end - 1, *carry)
        )
        return start, *carry

    _, *carry = ops.while_loop(
        lambda end, *_: end > 0, undo_segment, (path.num_steps, *carry)
    )
    return tuple(carry)

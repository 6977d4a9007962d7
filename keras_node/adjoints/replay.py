"""Back over the steps of a recorded solve, one by one."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_node import backend
from keras_node import structure
from keras_node.solution import Solution
from keras_node.trajectory import get_item
from keras_node.trajectory import list_like
from keras_node.trajectory import set_item


def backwards(
    solution: Solution,
    y0: Any,
    params: Any,
    adj_y1: Any,
    step: Callable,
    undo: Callable,
    num_kept: int = 0,
) -> tuple[Any, Any]:
    """Carries the cotangents back over the steps of a solve, last to first.

    States that were not kept are computed again, from the checkpoint before
    them: a step between two checkpoints is taken once more.

    Args:
        solution: The solve, with its record.
        y0: Its initial state.
        params: What the gradient of the parameters is shaped like.
        adj_y1: The cotangent of the state at its end.
        step: `step(i, y)` takes step `i` from the state `y`, and returns the
            state at its end.
        undo: `undo(i, y, pointer, adj_y, adj_params)` goes back over step `i`,
            which started from `y`, and returns the last three as they are at
            its start. `pointer` is the index of the last report before.
        num_kept: Of how many steps, the first ones, `undo` needs no state.

    Returns:
        The cotangents `(adj_y0, adj_params)`; NaN where the solve had failed.
    """
    path = solution.trajectory

    def undo_segment(end, states, *carry):
        """Back to the checkpoint before step `end`."""
        start, y = path.start(end, like=y0)
        states = set_item(states, start * 0, y)

        def redo(i, states, y):
            y = step(i, y)
            return i + 1, set_item(states, i + 1 - start, y), y

        def back(i, *carry):
            return i - 1, *undo(i, get_item(states, i - start, like=y0), *carry)

        _, states, _ = backend.while_loop(
            lambda i, *_: i < end - 1, redo, (start, states, y)
        )
        _, *carry = backend.while_loop(
            lambda i, *_: i >= start, back, (end - 1, *carry)
        )
        return start, states, *carry

    carry = (
        # One list for all segments: XLA fills what it reserves.
        list_like(y0, path.longest_stride),
        path.num_reported - 1,
        *_start(solution.success, adj_y1, params),
    )
    end, _, *carry = backend.while_loop(
        lambda end, *_: end > num_kept, undo_segment, (path.num_steps, *carry)
    )
    if num_kept:
        _, *carry = backend.while_loop(
            lambda end, *_: end > 0,
            lambda end, *carry: (end - 1, *undo(end - 1, y0, *carry)),
            (end, *carry),
        )
    _, *gradients = carry
    return tuple(gradients)


@backend.recorded
def _start(success: Any, adj_y1: Any, params: Any) -> tuple[Any, Any]:
    """The cotangents at the end."""
    zeros = structure.full_like(params, 0.0)
    return (
        structure.nan_unless(success, adj_y1),
        structure.nan_unless(ops.all(success), zeros),
    )

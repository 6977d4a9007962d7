"""What a solve remembers of its way, in bounded memory."""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import structure


class Trajectory(NamedTuple):
    """The accepted steps of a solve: all times, and some of the states.

    Times and step sizes are two scalars a step, and all are kept. Of the
    states, every `stride`-th is kept, in a fixed number of slots: when they
    are full, every second one is given up and the stride doubles. `N` states
    in `C` slots are so never further apart than `2 N / C` steps.

    The last row of each buffer takes what is not to be kept.
    """

    t: Any  # (max_steps + 1,): where the steps start
    dt: Any  # (max_steps + 1,): their sizes
    y: Any  # slots + 1 states, at the start of every stride-th step
    slots: Any  # (slots,): the row of `y` that holds the i-th state kept
    stride: Any
    num_steps: Any  # steps written
    num_reported: Any  # states reported on the way, at `t_eval`

    @classmethod
    def empty(cls, t: Any, y: Any, max_steps: int, slots: int) -> "Trajectory":
        """Buffers for times like `t` and states like `y`."""
        slots = min(slots, max_steps)
        slots += slots % 2  # halves must be whole
        return cls(
            t=rows_like(t, max_steps + 1),
            dt=rows_like(t, max_steps + 1),
            y=list_like(y, slots + 1),
            slots=ops.arange(0, slots, dtype="int32"),
            stride=ops.ones((), "int32"),
            num_steps=ops.zeros((), "int32"),
            num_reported=ops.zeros((), "int32"),
        )

    @property
    def longest_stride(self) -> int:
        """The stride after `max_steps` steps."""
        stride, max_steps = 1, self.t.shape[0] - 1
        while stride * self.slots.shape[0] < max_steps:
            stride *= 2
        return stride

    def write(self, keep: Any, t: Any, dt: Any, y: Any) -> "Trajectory":
        """Adds the step of size `dt` from `(t, y)`, if `keep` is true."""
        n, size = self.num_steps, self.slots.shape[0]
        full = ops.logical_and(keep, ops.equal(n, size * self.stride))
        # The rows of the states given up are the next to be written.
        kept_first = ops.concatenate([self.slots[0::2], self.slots[1::2]])
        slots = ops.where(full, kept_first, self.slots)
        stride = ops.where(full, 2 * self.stride, self.stride)
        store = ops.logical_and(keep, ops.equal(n % stride, 0))
        # A step that is not kept may find all slots taken.
        slot = ops.take(slots, ops.minimum(n // stride, size - 1))
        row = ops.where(store, slot, size)
        index = ops.where(keep, n, self.t.shape[0] - 1)
        return self._replace(
            t=write_row(self.t, index, t),
            dt=write_row(self.dt, index, dt),
            y=set_item(self.y, row, y),
            slots=slots,
            stride=stride,
            num_steps=n + ops.cast(keep, "int32"),
        )

    def step(self, i: Any) -> tuple[Any, Any]:
        """The start and the size of step `i`."""
        return read_row(self.t, i), read_row(self.dt, i)

    def state(self, i: Any, like: Any) -> Any:
        """The state at the start of step `i`, a multiple of the stride.

        `like` is any state.
        """
        return get_item(self.y, ops.take(self.slots, i // self.stride), like)


def list_like(y: Any, size: int) -> Any:
    """A list of `size` states like `y`."""
    return structure.map_leaves(lambda leaf: backend.new_list(leaf, size), y)


def set_item(states: Any, i: Any, y: Any) -> Any:
    return structure.map_leaves(
        lambda items, leaf: backend.set_item(items, i, leaf), states, y
    )


def get_item(states: Any, i: Any, like: Any) -> Any:
    return structure.map_leaves(
        lambda items, leaf: backend.get_item(items, i, leaf), states, like
    )


def rows_like(y: Any, size: int) -> Any:
    """A buffer of `size` states like `y`; what it holds is undefined."""
    return structure.map_leaves(
        lambda leaf: ops.zeros((size, *ops.shape(leaf)), dtype=leaf.dtype), y
    )


def write_row(buffer: Any, row: Any, y: Any) -> Any:
    """Writes a state into a row, or each sample into a row of its own."""
    if len(row.shape) == 0:
        indices = ops.reshape(row, (1, 1))
        y = structure.map_leaves(lambda leaf: leaf[None], y)
    else:
        samples = ops.arange(0, ops.shape(row)[0], dtype="int32")
        indices = ops.stack([row, samples], axis=-1)
    return structure.map_leaves(
        lambda rows, leaf: backend.scatter(rows, indices, leaf), buffer, y
    )


def read_row(buffer: Any, row: Any) -> Any:
    """Reads a row, or for each sample a row of its own."""
    if len(row.shape) == 0:
        return structure.map_leaves(
            lambda rows: ops.take(rows, row, axis=0), buffer
        )

    def leaf(rows):
        index = ops.reshape(row, (1, -1) + (1,) * (len(rows.shape) - 2))
        index = ops.broadcast_to(index, (1, *ops.shape(rows)[1:]))
        return ops.take_along_axis(rows, index, axis=0)[0]

    return structure.map_leaves(leaf, buffer)

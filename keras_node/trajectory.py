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
    """

    t: Any  # max_steps times: where the steps start
    dt: Any  # max_steps times: their sizes
    y: Any  # states at the start of every stride-th step; the last is waste
    time: Any  # any time
    capacity: Any  # (C, max_steps, 0): empty, for its shape alone
    stride: Any  # a power of 2
    num_steps: Any  # steps written
    num_reported: Any  # states reported on the way, at `t_eval`

    @classmethod
    def empty(cls, t: Any, y: Any, max_steps: int, slots: int) -> "Trajectory":
        """Lists for times like `t` and states like `y`."""
        slots = min(slots, max_steps)
        slots += slots % 2  # halves must be whole
        return cls(
            t=list_like(t, max_steps),
            dt=list_like(t, max_steps),
            y=list_like(y, slots + 1),
            time=ops.zeros_like(t),
            capacity=ops.zeros((slots, max_steps, 0)),
            stride=ops.ones((), "int32"),
            num_steps=ops.zeros((), "int32"),
            num_reported=ops.zeros((), "int32"),
        )

    @property
    def longest_stride(self) -> int:
        """The stride after `max_steps` steps."""
        slots, max_steps, _ = self.capacity.shape
        stride = 1
        while stride * slots < max_steps:
            stride *= 2
        return stride

    def write(self, keep: Any, t: Any, dt: Any, y: Any) -> "Trajectory":
        """Adds the step of size `dt` from `(t, y)`, if `keep` is true.

        If not, the next one will take its place.
        """
        n, slots = self.num_steps, self.capacity.shape[0]
        full = ops.equal(n, slots * self.stride)
        stride = ops.where(full, 2 * self.stride, self.stride)
        store = ops.equal(ops.bitwise_and(n, stride - 1), 0)
        slot = ops.where(store, self._slot(n, stride), slots)
        return self._replace(
            t=set_item(self.t, n, t),
            dt=set_item(self.dt, n, dt),
            y=set_item(self.y, slot, y),
            stride=stride,
            num_steps=n + ops.cast(keep, "int32"),
        )

    def _slot(self, n: Any, stride: Any) -> Any:
        """Where the state of step `n` is, a multiple of the stride.

        `C` states may be kept, `C` even: the multiples of `stride` from `0`
        to `(C - 1) stride`. Modulo `C - 1`, which is odd, they differ, but
        for the last, which has a slot of its own. When the stride doubles,
        the last is given up, and the others stay where they are.
        """
        last = self.capacity.shape[0] - 1
        return ops.where(ops.equal(n, last * stride), last, n % last)

    def step(self, i: Any) -> tuple[Any, Any]:
        """The start and the size of step `i`."""
        return get_item(self.t, i, self.time), get_item(self.dt, i, self.time)

    def start(self, end: Any, like: Any) -> tuple[Any, Any]:
        """The last step before step `end` whose state was kept, and that state.

        `like` is any state.
        """
        # Rounded down to a multiple of the stride.
        i = ops.bitwise_and(end - 1, -self.stride)
        return i, get_item(self.y, self._slot(i, self.stride), like)


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

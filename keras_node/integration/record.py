"""The steps of a solve, kept in bounded memory."""

from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Trajectory(NamedTuple):
    """Accepted steps of a solve: all times, and some of the states.

    All times and step sizes are kept: two scalars per step. Every `stride`-th
    state is kept, in a fixed number of slots. When the slots are full, every
    second state is dropped and the stride doubles. The states kept of `N`
    steps in `C` slots are therefore at most `2 N / C` steps apart.
    """

    t: Tree  # list of max_steps: the times at which the steps start
    dt: Tree  # list of max_steps: the sizes of the steps
    y: Tree  # states at the start of every stride-th step; last slot: waste
    time: Scalar  # any time, for its shape and dtype
    capacity: Tensor  # (C, max_steps, 0): empty, only its shape is used
    stride: Tensor  # a power of 2
    num_steps: Tensor  # steps written

    @classmethod
    def empty(
        cls, t: Scalar, y: State, max_steps: int, slots: int
    ) -> "Trajectory":
        """Makes a trajectory for times like `t` and states like `y`."""
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
        )

    @property
    def longest_stride(self) -> int:
        """Largest possible stride: the one after `max_steps` steps."""
        slots, max_steps, _ = self.capacity.shape
        stride = 1
        while stride * slots < max_steps:
            stride *= 2
        return stride

    @backend.jit
    def write(
        self, keep: Bool, t: Scalar, dt: Scalar, y: State
    ) -> "Trajectory":
        """Adds the step of size `dt` from `(t, y)`, if `keep` is true.

        If not, the next step takes its place.
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

    def _slot(self, n: Tensor, stride: Tensor) -> Tensor:
        """Finds the slot for the state of step `n`, a multiple of the stride.

        At most `C` states are kept, with `C` even. Their steps are the
        multiples of `stride` from `0` to `(C - 1) stride`. Modulo `C - 1`,
        which is odd, they differ, except the last. The last has its own slot.
        When the stride doubles, it is dropped. The others keep their slots.
        """
        last = self.capacity.shape[0] - 1
        return ops.where(ops.equal(n, last * stride), last, n % last)

    def step(self, i: Tensor) -> tuple[Scalar, Scalar]:
        """Reads the start time and the size of step `i`."""
        return get_item(self.t, i, self.time), get_item(self.dt, i, self.time)

    def start(self, end: Tensor, like: State) -> tuple[Tensor, State]:
        """Finds the last step before `end` with a state kept, and that state.

        `like` is any state, for its shape and dtype.
        """
        # Rounded down to a multiple of the stride.
        i = ops.bitwise_and(end - 1, -self.stride)
        return i, get_item(self.y, self._slot(i, self.stride), like)


def list_like(y: State, size: int) -> Tree:
    """Makes a list of `size` states like `y`."""
    return pytree.map_leaves(lambda leaf: backend.new_list(leaf, size), y)


def set_item(states: Tree, i: Tensor, y: State) -> Tree:
    return pytree.map_leaves(
        lambda items, leaf: backend.set_item(items, i, leaf), states, y
    )


def get_item(states: Tree, i: Tensor, like: State) -> State:
    return pytree.map_leaves(
        lambda items, leaf: backend.get_item(items, i, leaf), states, like
    )


def read_row(buffer: State, row: Tensor) -> State:
    """Reads a row, or for each sample its own row."""
    if len(row.shape) == 0:
        return pytree.map_leaves(
            lambda rows: ops.take(rows, row, axis=0), buffer
        )

    def leaf(rows):
        index = pytree.align(row, len(rows.shape), axis=1)
        index = ops.broadcast_to(index, (1, *ops.shape(rows)[1:]))
        return ops.take_along_axis(rows, index, axis=0)[0]

    return pytree.map_leaves(leaf, buffer)

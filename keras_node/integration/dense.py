"""The state between the ends of a step."""

from typing import NamedTuple

from keras import ops

from keras_node import pytree
from keras_node.types import Scalar
from keras_node.types import State


class Dense(NamedTuple):
    """State inside a step, as the polynomial

    y(theta) = y + sum_m q_m theta^(m + 1),    theta = (s - t) / dt
    """

    t: Scalar  # the time at which the step starts
    dt: Scalar  # its size
    y: State  # the state at its start
    q: list[State]

    def fraction(self, s: Scalar) -> Scalar:
        """Maps the time `s` to `theta`: 0 at the start, 1 at the end."""
        moves = self.dt > 0
        theta = (s - self.t) / ops.where(moves, self.dt, 1.0)
        return ops.where(moves, theta, ops.zeros_like(theta))

    def at(self, theta: Scalar) -> State:
        """Evaluates the state at the fraction `theta` of the step."""
        total = self.q[-1]
        for term in reversed(self.q[:-1]):
            total = pytree.add(term, pytree.scale(theta, total))
        return pytree.add(self.y, pytree.scale(theta, total))

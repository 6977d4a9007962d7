"""One step of a recurrent layer whose state evolves between its steps."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node.series.evolution import Totals
from keras_node.types import Tensor


class Carry(NamedTuple):
    """What one step leaves to the next."""

    states: list[Tensor]
    output: Tensor
    totals: Totals


class RecurrentStep(NamedTuple):
    """Step `(carry, inputs) -> (carry, output)`, as `backend.scan` takes it."""

    cell: Callable  # of (x, states), the output and the new states
    evolve: Callable  # of (h, start, end, totals), the new `h` and totals
    before: bool  # whether the state evolves before the cell's step, or after
    zero_output_for_mask: bool

    def __call__(self, carry: Carry, inputs: tuple) -> tuple[Carry, Tensor]:
        x, start, end, *visible = inputs
        states, output, totals = carry
        h, *others = states
        if self.before:
            h, totals = self.evolve(h, start, end, totals)
        new_output, (new_h, *others) = self.cell(x, [h, *others])
        if not self.before:
            later, totals = self.evolve(new_h, start, end, totals)
            if new_output is new_h:  # not so if the cell has an output layer
                new_output = later
            new_h = later
        new = [new_h, *others]
        if visible:
            (seen,) = visible
            hidden = output
            if self.zero_output_for_mask:
                hidden = ops.zeros_like(output)
            new_output = _choose(seen, new_output, hidden)
            new = [
                _choose(seen, *pair) for pair in zip(new, states, strict=True)
            ]
        new = list(map(_like, new, states))
        carry = Carry(new, _like(new_output, output), totals)
        return carry, carry.output


def _choose(seen: Tensor, x: Any, otherwise: Tensor) -> Tensor:
    return ops.where(seen[:, None], x, ops.cast(otherwise, x.dtype))


def _like(x: Tensor, other: Tensor) -> Tensor:
    return ops.cast(x, other.dtype)

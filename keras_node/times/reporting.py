"""The order in which states are reported, and that of the times given."""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_node import pytree
from keras_node.integration.pages import outer
from keras_node.integration.pages import take_rows
from keras_node.times.elapsed import Elapsed
from keras_node.types import State
from keras_node.types import Tensor


class Reporting(NamedTuple):
    """Times to report in ascending order, and the way back to their own.

    Where samples have times of their own, `s_eval` and all others are of shape
    `(T, batch)`, else `(T,)`.
    """

    s_eval: Tensor
    back: Tensor | None  # the place of each time in `s_eval`; None: the same
    inside: Tensor | None  # false where the report is NaN; None: nowhere
    mask: Tensor | None  # (T, batch), false where it is 0; None: nowhere

    @classmethod
    def of(cls, elapsed: Elapsed, mask: Any, dtype: str) -> "Reporting":
        """Sorts the times `(T,)` or `(batch, T)` of `elapsed`."""
        s, inside = elapsed
        if mask is not None:
            mask = _time_first(ops.convert_to_tensor(mask))
        if isinstance(s, np.ndarray):
            order = np.argsort(s, axis=-1, kind="stable").astype("int32")
            back: Any = np.argsort(order, axis=-1).astype("int32")
            s = ops.convert_to_tensor(np.take_along_axis(s, order, -1).T, dtype)
            back = ops.convert_to_tensor(back.T)
            return cls(s, back, None, mask)
        order = ops.argsort(ops.stop_gradient(s), axis=-1)
        back = ops.argsort(order, axis=-1)
        s = ops.take_along_axis(s, order, axis=-1)
        s, back, inside = map(_time_first, (s, back, inside))
        return cls(s, back, inside, mask)

    def returned(self, ys: State) -> State:
        """Brings reports `(T, batch, ...)` into the order of their times."""
        return pytree.map_leaves(self._leaf, ys)

    def _leaf(self, ys: Tensor) -> Tensor:
        rank = len(ys.shape)
        ys = take_rows(ys, self.back)
        if self.inside is not None:
            outside = pytree.zero_or_nan(self.inside, ys.dtype)
            ys = ys + outer(outside, rank)
        if self.mask is not None:
            ys = ops.where(outer(self.mask, rank), ys, ops.zeros_like(ys))
        return ys


def _time_first(x: Tensor) -> Tensor:
    return ops.transpose(x) if len(x.shape) > 1 else x

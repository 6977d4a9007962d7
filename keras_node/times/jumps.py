"""The times at which a right-hand side may jump, in the order of the way."""

from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_node.times.elapsed import aligned
from keras_node.times.elapsed import as_tensor
from keras_node.times.elapsed import elapsed
from keras_node.times.given import Times
from keras_node.types import Tensor


class Jumps(NamedTuple):
    """Times of jumps, `(L,)`, or `(L, batch)` if samples have their own.

    A time that is not inside the interval counts as its end: a step ends there
    anyway.
    """

    t: Tensor
    s: Tensor  # the time elapsed there, ascending; no gradient flows to it

    @classmethod
    def of(cls, times: Times, span: Times, extent: Any, dtype: str) -> "Jumps":
        """Sorts the times `(L,)` or `(batch, L)`."""
        s, inside = elapsed(times, span, extent, dtype)
        t, t1 = aligned(times, span, dtype)
        if isinstance(s, np.ndarray):
            t = np.where(inside, t, t1)
            order = np.argsort(s, axis=-1, kind="stable")
            t, s = (np.take_along_axis(x, order, -1).T for x in (t, s))
            return cls(as_tensor(t, dtype), as_tensor(s, dtype))
        s = ops.stop_gradient(s)
        t = ops.cast(ops.where(inside, t, t1), dtype)
        order = ops.argsort(s, axis=-1)
        t, s = (ops.take_along_axis(x, order, axis=-1) for x in (t, s))
        if len(s.shape) > 1:
            t, s = ops.transpose(t), ops.transpose(s)
        return cls(t, s)

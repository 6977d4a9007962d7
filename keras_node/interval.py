"""The interval of integration, seen as time elapsed since `t0`."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import structure


class Interval:
    """Maps `s`, running from 0 to `span = |t1 - t0|`, to `t` and back.

    Solvers integrate over `s`: they know one direction only, and what they
    compute does not depend on where `t0` lies.

    Args:
        t0: Float or scalar tensor, where `s` is 0.
        t1: Float or scalar tensor, where `s` is `span`.
        dtype: The dtype of time.
    """

    def __init__(self, t0: Any, t1: Any, dtype: str):
        self._dtype = dtype = keras.backend.standardize_dtype(dtype)
        self.span = ops.convert_to_tensor(abs(t1 - t0), dtype)
        self._sign = ops.sign(ops.convert_to_tensor(t1 - t0, dtype))
        self._t0 = ops.convert_to_tensor(t0, dtype)
        self._t1 = ops.convert_to_tensor(t1, dtype)

    def time(self, s: Any) -> Any:
        """The time `t` at `s`; rounding never leaves the interval."""
        low = structure.smaller(self._t0, self._t1)
        high = structure.larger(self._t0, self._t1)
        return ops.clip(self._t0 + self._sign * s, low, high)

    def field(self, f: Callable) -> Callable:
        """The slope `dy/ds` as a function of `(s, y)`, where `dy/dt = f`.

        Where `s` has shape `(batch,)`, `t` has the rank of the state.
        """

        def g(s, y, *args):
            t = self.time(s)
            if len(t.shape) == 1:
                rank = len(structure.leaves(y)[0].shape)
                t = ops.reshape(t, (-1,) + (1,) * (rank - 1))
            return structure.map_leaves(
                lambda slope: self._sign * slope, f(t, y, *args)
            )

        return g

    def elapsed(self, times: Any) -> Any:
        """The `s` of `times`; those at an end, but for rounding, exactly."""
        s = self._sign * (ops.convert_to_tensor(times, self._dtype) - self._t0)
        largest = structure.larger(ops.abs(self._t0), ops.abs(self._t1))
        slack = 4 * float(np.finfo(self._dtype).eps) * largest
        s = ops.where(ops.abs(s) <= slack, ops.zeros_like(s), s)
        return ops.where(ops.abs(s - self.span) <= slack, self.span, s)

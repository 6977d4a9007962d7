"""The interval of integration, seen as time elapsed since `t0`."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_node import structure


class Interval(NamedTuple):
    """Maps `s`, running from 0 to `span = |t1 - t0|`, to `t` and back.

    Solvers integrate over `s`: they know one direction only, and what they
    compute does not depend on where `t0` lies.
    """

    t0: Any
    t1: Any
    low: Any  # the smaller of them
    high: Any
    span: Any
    sign: Any  # of `t1 - t0`; a float if that is known

    @classmethod
    def between(cls, t0: Any, t1: Any, dtype: str) -> "Interval":
        """The interval from `t0` to `t1`, floats or scalar tensors."""
        dtype = keras.backend.standardize_dtype(dtype)

        def tensor(x):
            return ops.convert_to_tensor(x, dtype)

        known = isinstance(t1 - t0, (int, float))
        sign = float(np.sign(t1 - t0)) if known else ops.sign(t1 - t0)
        t0, t1, span = tensor(t0), tensor(t1), tensor(abs(t1 - t0))
        low, high = structure.smaller(t0, t1), structure.larger(t0, t1)
        return cls(t0, t1, low, high, span, sign)

    def time(self, s: Any) -> Any:
        """The time `t` at `s`; rounding never leaves the interval."""
        return ops.clip(self.t0 + self.sign * s, self.low, self.high)


class Field(NamedTuple):
    """The slope `dy/ds` as a function of `(s, y, ...)`, where `dy/dt = f`."""

    f: Callable
    interval: Interval

    def __call__(self, s: Any, y: Any, *args: Any) -> Any:
        t = self.interval.time(s)
        if len(t.shape) == 1:
            # Samples with times of their own: `t` has the rank of the state.
            rank = len(structure.leaves(y)[0].shape)
            t = ops.reshape(t, (-1,) + (1,) * (rank - 1))
        slope, sign = self.f(t, y, *args), self.interval.sign
        if isinstance(sign, float) and sign == 1:
            return slope
        return structure.map_leaves(lambda leaf: sign * leaf, slope)

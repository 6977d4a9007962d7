"""The interval of integration, in time elapsed since `t0`."""

import math
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_node import pytree
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Interval(NamedTuple):
    """Interval of integration, which maps the elapsed time `s` to `t`.

    `s` runs from 0 to `span = |t1 - t0|`. Solvers integrate over `s`. They know
    one direction only, and their results do not depend on where `t0` lies.
    """

    t0: Tensor
    t1: Tensor
    low: Tensor  # the smaller of `t0` and `t1`
    high: Tensor  # the larger
    span: Tensor
    sign: Scalar  # the sign of `t1 - t0`; a float if it is known

    @classmethod
    def between(cls, t0: Scalar, t1: Scalar, dtype: str) -> "Interval":
        """Makes the interval from `t0` to `t1`, floats or scalar tensors."""
        dtype = keras.backend.standardize_dtype(dtype)

        def tensor(x):
            return ops.convert_to_tensor(x, dtype)

        known = isinstance(t1 - t0, (int, float))
        sign = float(np.sign(t1 - t0)) if known else ops.sign(t1 - t0)
        t0, t1, span = tensor(t0), tensor(t1), tensor(abs(t1 - t0))
        low, high = pytree.smaller(t0, t1), pytree.larger(t0, t1)
        return cls(t0, t1, low, high, span, sign)

    def time(self, s: Scalar) -> Scalar:
        """Maps `s` to `t`, clipped to the interval against rounding."""
        return ops.clip(self.t0 + self.sign * s, self.low, self.high)


class ElapsedField(NamedTuple):
    """Slope `dy/ds` in elapsed time, as a function of `(s, y, args)`.

    The slope may jump at some times. No step crosses them, and in a step that
    ends at one the slopes are those before it.
    """

    f: RightHandSide  # dy/dt, of (t, y, args)
    interval: Interval
    jumps: Tensor | None = None  # where it jumps, (L,) or (L, batch)
    end: Scalar | None = None  # the time that all slopes are taken before

    def after(self, s: Scalar) -> "ElapsedField":
        """Restricts the field to the time from `s` to the next jump."""
        if self.jumps is None:
            return self
        return self._replace(end=_just_before(self._next_jump(s)))

    def next_stop(self, s: Scalar) -> Scalar:
        """Finds where a step from `s` must end: at a jump, or at the end."""
        if self.jumps is None:
            return self.interval.span
        jump = self._next_jump(s)
        if len(jump.shape) > len(s.shape):
            jump = ops.min(jump, initial=math.inf)  # of any sample
        return pytree.smaller(jump, self.interval.span)

    def _next_jump(self, s: Scalar) -> Scalar:
        """Finds the first jump after `s`, infinite if there is none."""
        jumps: Any = self.jumps
        if len(s.shape) and len(jumps.shape) == 1:
            jumps = jumps[:, None]
        return ops.min(ops.where(jumps > s, jumps, math.inf), axis=0)

    def __call__(self, s: Scalar, y: State, args: Tree = ()) -> State:
        if self.end is not None:
            s = pytree.smaller(s, self.end)
        # Where samples have times of their own, `t` has the rank of the state.
        t = pytree.expand(self.interval.time(s), pytree.leaves(y)[0])
        slope, sign = self.f(t, y, args), self.interval.sign
        if not isinstance(sign, float):
            return pytree.scale(sign, slope)
        if sign == 1:
            return slope
        return pytree.map_leaves(lambda leaf: sign * leaf, slope)


def _just_before(s: Scalar) -> Scalar:
    """Returns a number just below `s`, which is not negative."""
    dtype = keras.backend.standardize_dtype(s.dtype)
    return s * (1 - float(np.finfo(dtype).eps)) - 1e-37

"""The interval of integration, in time elapsed since `t0`."""

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
    """Slope `dy/ds` in elapsed time, as a function of `(s, y, args)`."""

    f: RightHandSide  # dy/dt, of (t, y, args)
    interval: Interval

    def __call__(self, s: Scalar, y: State, args: Tree = ()) -> State:
        # Where samples have times of their own, `t` has the rank of the state.
        t = pytree.expand(self.interval.time(s), pytree.leaves(y)[0])
        slope, sign = self.f(t, y, args), self.interval.sign
        if not isinstance(sign, float):
            return pytree.scale(sign, slope)
        if sign == 1:
            return slope
        return pytree.map_leaves(lambda leaf: sign * leaf, slope)


class Span(NamedTuple):
    """Interval of integration whose ends are tensors, as `t0` and `t1`.

    Samples may have intervals of their own. A solve counts `s` from 0 to an
    `extent`, and `t` runs from `t0` to `t1` meanwhile. The extent is the length
    of the interval, or of the longest one if the samples share their steps. It
    is a unit and no gradient flows to it: the ends of the interval are
    arguments of the right-hand side, like its weights.
    """

    t0: Tensor  # () or (batch,)
    t1: Tensor
    length: Tensor  # t1 - t0, which may be more exact than the ends

    def time(self, s: Scalar, extent: Tensor, y: Tensor) -> Scalar:
        """Maps `s` to `t`, for a state `y` of the rank that `s` goes with."""
        t0, t1, rate = (
            pytree.expand(x, y)
            for x in (self.t0, self.t1, self.length / extent)
        )
        low, high = pytree.smaller(t0, t1), pytree.larger(t0, t1)
        return ops.clip(t0 + rate * s, low, high)


class OverSpan(NamedTuple):
    """Slope `dy/ds` over a `Span`, as a function of `(s, y, args, frozen)`.

    The span is in `args` if a gradient flows to it, else in `frozen`. The
    extent is in `frozen`.
    """

    f: Any  # dy/dt, of (t, y, args, frozen)
    differentiable: bool

    def arguments(
        self, span: Span, extent: Tensor, args: Tree, frozen: Tree
    ) -> tuple[Tree, Tree]:
        """Adds the span and the extent to the arguments of `f`."""
        if self.differentiable:
            return (args, span), (frozen, extent)
        return args, ((frozen, span), extent)

    def __call__(self, s: Scalar, y: State, args: Tree, frozen: Tree) -> State:
        frozen, extent = frozen
        if self.differentiable:
            args, span = args
        else:
            frozen, span = frozen
        t = span.time(s, extent, pytree.leaves(y)[0])
        return pytree.scale(span.length / extent, self.f(t, y, args, frozen))

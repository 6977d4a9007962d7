"""Times as they are given, and the time elapsed by then since `t0`.

float32 has a number for every 128 s of 2023, and for every 6 h of Julian days.
A solve counts from 0, and so `t0` is subtracted first, in float64, and rounded
is the difference.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

# Keras has no public way to read a variable as it is stored.
from keras.src.backend import AutocastScope

from keras_node import backend

_HALF = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_EXACT = float(np.finfo("float64").eps)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Times:
    """Times, as exact as they are known.

    No tuple: a layer of Keras hands over what is no structure as it is.
    """

    values: Any  # an array of float64 if they are known; else a tensor
    eps: float  # of the dtype that they came in, which rounded them

    def __repr__(self) -> str:
        return repr(self.values)

    @property
    def known(self) -> bool:
        return isinstance(self.values, np.ndarray)

    def tell_apart(self, span: tuple) -> bool:
        """Whether their dtype can hold times within `span`.

        They are off by half their spacing: by no more than this, as a share of
        the span, the default `rtol` lets a state be off.
        """
        return self.spacing(span) <= 1e-3 * abs(span[1] - span[0])

    def spacing(self, span: tuple) -> float:
        """How far apart the numbers of their dtype are within `span`."""
        return self.eps * max(map(abs, span))

    def _slack(self, span: tuple, dtype: str) -> float:
        """What rounding does: to them, and to the time elapsed."""
        elapsed = float(np.finfo(dtype).eps) * abs(span[1] - span[0])
        return 4 * max(self.spacing(span), elapsed)

    def snapped(self, span: tuple, dtype: str) -> "Times":
        """Known times; those at an end of `span` but for rounding, exactly."""
        values, slack = self.values, self._slack(span, dtype)
        for end in span:
            values = np.where(np.abs(values - end) <= slack, end, values)
        return dataclasses.replace(self, values=values)

    def elapsed(self, span: tuple, dtype: str) -> Any:
        """The time from `t0` to them on the way to `t1`.

        An array of float64 if they are known, else a tensor of that `dtype`,
        with those at an end but for rounding exactly there.
        """
        t0, t1 = span
        sign, length = float(np.sign(t1 - t0)), abs(t1 - t0)
        if self.known:
            return sign * (self.snapped(span, dtype).values - t0)
        s, slack = self.values, self._slack(span, dtype)
        if keras.backend.standardize_dtype(s.dtype) != "float64":
            s = ops.cast(s, dtype)
        s = sign * (s - t0)
        s = ops.where(ops.abs(s) <= slack, ops.zeros_like(s), s)
        end = ops.full_like(s, length)
        return ops.cast(ops.where(ops.abs(s - end) <= slack, end, s), dtype)


@backend.uncompiled
def given(value: Any) -> Times | None:
    """The times in a sequence, an array, a tensor or a variable.

    `None` for all that is not real numbers.
    """
    if isinstance(value, Times):
        return value
    if isinstance(value, keras.Variable):
        # A policy of half precision is not for times.
        with AutocastScope(None):
            value = value.value
    if isinstance(value, keras.KerasTensor) or ops.is_tensor(value):
        return _of_tensor(value)
    try:
        array = np.asarray(value)
    except Exception:  # of whatever kind tensors in a list may raise
        array = np.asarray(None)
    if array.dtype.kind in "mM":
        return None  # dates; some frameworks take them for numbers
    if array.dtype.kind in "iuf":
        return Times(array.astype("float64"), _eps(array.dtype))
    try:
        return _of_tensor(ops.convert_to_tensor(value))
    except Exception:  # each framework raises its own
        return None


def _of_tensor(x: Any) -> Times | None:
    dtype = keras.backend.standardize_dtype(x.dtype)
    whole = keras.backend.is_int_dtype(dtype)
    if not whole and not keras.backend.is_float_dtype(dtype):
        return None
    if isinstance(x, keras.KerasTensor):
        return Times(x, _eps(_widest() if whole else dtype))
    # PyTorch and NumPy have no `bfloat16` in common.
    values = backend.value(ops.cast(x, "float32") if dtype in _HALF else x)
    if values is not None:
        return Times(values.astype("float64"), _eps(dtype))
    if whole:
        dtype = _widest()
        x = ops.cast(x, dtype)
    return Times(ops.convert_to_tensor(x), _eps(dtype))


def _eps(dtype: Any) -> float:
    """The spacing of the numbers at 1; whole ones count as float64."""
    name = str(dtype)
    if name in _HALF:
        return _HALF[name]
    return float(np.finfo(name).eps) if name.startswith("float") else _EXACT


def _widest() -> str:
    """float64, but on JAX where it is not enabled."""
    return keras.backend.standardize_dtype(
        ops.convert_to_tensor(np.zeros((), "float64")).dtype
    )

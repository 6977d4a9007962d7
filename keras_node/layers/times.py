"""Times as they are given, and the time elapsed since `t0`.

The float32 numbers are 128 s apart in Unix seconds of 2023, and 6 h apart in
Julian days. A solve counts from 0. `t0` is therefore subtracted in float64, and
only the difference is rounded.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import backend
from keras_node.backend import _private
from keras_node.backend.precisions import EPS_HALF

_EXACT = float(np.finfo("float64").eps)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Times:
    """Times, as exact as they are known.

    This is not a tuple: before a call, Keras would convert the items of one.
    """

    values: Any  # a float64 array if they are known, else a tensor
    eps: float  # spacing at 1 of the dtype that they were given in

    def __repr__(self) -> str:
        return repr(self.values)

    @property
    def known(self) -> bool:
        return isinstance(self.values, np.ndarray)

    def tell_apart(self, span: tuple) -> bool:
        """Tells whether the dtype is fine enough for times within `span`.

        Times are off by up to half their spacing. The spacing may be `1e-3` of
        the span at most: the default `rtol` allows a state the same error.
        """
        return self.spacing(span) <= 1e-3 * abs(span[1] - span[0])

    def spacing(self, span: tuple) -> float:
        """Computes the spacing of the numbers of the dtype within `span`."""
        return self.eps * max(map(abs, span))

    def _slack(self, span: tuple, dtype: str) -> float:
        """Bounds the rounding error of the times and of the time elapsed."""
        elapsed = float(np.finfo(dtype).eps) * abs(span[1] - span[0])
        return 4 * max(self.spacing(span), elapsed)

    def snapped(self, span: tuple, dtype: str) -> "Times":
        """Moves known times that miss an end of `span` by rounding onto it."""
        values, slack = self.values, self._slack(span, dtype)
        for end in span:
            values = np.where(np.abs(values - end) <= slack, end, values)
        return dataclasses.replace(self, values=values)

    def elapsed(self, span: tuple, dtype: str) -> Any:
        """Computes the time elapsed from `t0` to each time, towards `t1`.

        Returns a float64 array if the times are known, else a tensor of
        `dtype`. Times that miss an end of `span` by rounding are moved onto it.
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
    """Reads the times in a sequence, an array, a tensor or a variable.

    Returns `None` for anything but real numbers.
    """
    if isinstance(value, Times):
        return value
    if isinstance(value, keras.Variable):
        # A policy of half precision must not round times.
        with _private.AutocastScope(None):
            value = value.value
    if isinstance(value, keras.KerasTensor) or ops.is_tensor(value):
        return _of_tensor(value)
    try:
        array = np.asarray(value)
    except Exception:  # tensors in a list may raise any kind
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
    # PyTorch cannot convert `bfloat16` to NumPy.
    values = backend.value(ops.cast(x, "float32") if dtype in EPS_HALF else x)
    if values is not None:
        return Times(values.astype("float64"), _eps(dtype))
    if whole:
        dtype = _widest()
        x = ops.cast(x, dtype)
    return Times(ops.convert_to_tensor(x), _eps(dtype))


def _eps(dtype: Any) -> float:
    """Finds the spacing of a dtype at 1; integers count as float64."""
    name = str(dtype)
    if name in EPS_HALF:
        return EPS_HALF[name]
    return float(np.finfo(name).eps) if name.startswith("float") else _EXACT


def _widest() -> str:
    """Returns float64, or float32 on JAX where float64 is not enabled."""
    return keras.backend.standardize_dtype(
        ops.convert_to_tensor(np.zeros((), "float64")).dtype
    )


def within(
    name: str, value: Any, span: tuple, dtype: str, known: bool = False
) -> Times:
    """Checks that times lie within `span`, in any order, as far as known.

    Args:
        name: The name of the argument.
        value: The value received.
        span: The pair `(t0, t1)`.
        dtype: The dtype in which the time elapsed will be counted.
        known: Whether the times must be known.

    Returns:
        The `Times`. Known times that miss an end of `span` by rounding are
        moved onto it.
    """
    times = given(value)
    if times is None or len(times.values.shape) != 1 or 0 in times.values.shape:
        raise ValueError(
            f"`{name}` must be a non-empty vector of times. "
            f"Received: {name}={value!r}"
        )
    if not times.tell_apart(span):
        raise ValueError(
            f"`{name}` must be of a precision that tells times within `t_span`,"
            f" here {span}, apart; theirs are {times.spacing(span):.2g} apart "
            "or the same. Give Python floats or float64, or shift time so that "
            f"`t_span` starts at 0. Received: {name}={value!r}"
        )
    if not times.known and not known:
        return times
    if times.known:
        times = times.snapped(span, dtype)
        inside = (times.values >= min(span)) & (times.values <= max(span))
        if np.all(inside):
            return times
        value = f"{value!r}, in it {float(times.values[~inside][0])}"
    raise ValueError(
        f"`{name}` must be known times within `t_span`, here {span}. "
        f"Received: {name}={value}"
    )

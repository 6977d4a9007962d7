"""Times, spans and masks as they are given, and what is allowed."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node.backend import _private
from keras_node.backend.precisions import EPS_HALF
from keras_node.types import Tensor

_EXACT = float(np.finfo("float64").eps)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Times:
    """Times, as exact as they are known.

    This is not a tuple: before a call, Keras would convert the items of one.
    """

    values: Any  # a float64 array if they are known, else None
    tensor: Tensor  # if they are not known, or a gradient may flow to them
    eps: float  # spacing at 1 of the dtype that they were given in

    def __repr__(self) -> str:
        return repr(self.values if self.tensor is None else self.tensor)

    @property
    def shape(self) -> tuple:
        some: Any = self.values if self.tensor is None else self.tensor
        return tuple(some.shape)

    def still(self) -> "Times":
        """Returns the same times, but no gradient flows to them."""
        if not self.moves:
            return self
        return Times(self.values, ops.stop_gradient(self.tensor), self.eps)

    def as_given(self) -> Tensor:
        """Returns the tensor, or makes one of what is known."""
        if self.tensor is not None:
            return self.tensor
        return ops.convert_to_tensor(self.values, widest())

    @property
    def moves(self) -> bool:
        """Flag: a gradient may flow to the times."""
        return self.tensor is not None


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
            value = ops.convert_to_tensor(value.value)
    if isinstance(value, keras.KerasTensor) or ops.is_tensor(value):
        return _of_tensor(value)
    try:
        array = np.asarray(value)
    except Exception:  # tensors in a list may raise any kind
        array = np.asarray(None)
    if array.dtype.kind in "mM":
        return None  # dates; some frameworks take them for numbers
    if array.dtype.kind in "iuf":
        return Times(array.astype("float64"), None, _eps(array.dtype))
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
        return Times(None, x, _eps(widest() if whole else dtype))
    # PyTorch cannot convert `bfloat16` to NumPy.
    values = backend.value(ops.cast(x, "float32") if dtype in EPS_HALF else x)
    if values is not None:
        values = values.astype("float64")
        if whole or not backend.is_tracked(x):
            return Times(values, None, _eps(dtype))
    if whole:
        dtype = widest()
        x = ops.cast(x, dtype)
    return Times(values, ops.convert_to_tensor(x), _eps(dtype))


def _eps(dtype: Any) -> float:
    """Finds the spacing of a dtype at 1; integers count as float64."""
    name = str(dtype)
    if name in EPS_HALF:
        return EPS_HALF[name]
    return float(np.finfo(name).eps) if name.startswith("float") else _EXACT


def widest() -> str:
    """Returns float64, or float32 on JAX where float64 is not enabled."""
    return keras.backend.standardize_dtype(
        ops.convert_to_tensor(np.zeros((), "float64")).dtype
    )


def of_call(name: str, value: Any, batch: int | None) -> Times:
    """Checks times of shape `(T,)`, or `(batch, T)` with a row per sample."""
    times = given(value)
    shape = () if times is None else times.shape
    if len(shape) not in (1, 2) or 0 in shape[-1:]:
        raise ValueError(
            f"`{name}` must be times of shape `(T,)`, or `(batch, T)` for "
            f"times of each sample, and not empty. Received: {name}={value!r}"
        )
    _check_batch(name, shape, 1, batch, value)
    return times


def jumps_of_call(name: str, value: Any, batch: int | None) -> Times | None:
    """Checks times of jumps, `(J,)`, or `(batch, J)`; `None` for no times."""
    times = given(value)
    shape: Any = None if times is None else times.shape
    if isinstance(value, (list, tuple)) and not value:
        return None
    if shape is None or len(shape) not in (1, 2):
        raise ValueError(
            f"`{name}` must be times of shape `(J,)`, or `(batch, J)` for "
            f"times of each sample. Received: {name}={value!r}"
        )
    _check_batch(name, shape, 1, batch, value)
    return times if shape[-1] != 0 else None


def span_of_call(name: str, value: Any, batch: int | None) -> Times:
    """Checks the ends of an interval, `(2,)`, or `(batch, 2)` per sample."""
    span = given(value)
    shape: tuple = () if span is None else span.shape
    if len(shape) not in (1, 2) or shape[-1:] not in ((2,), (None,)):
        raise ValueError(
            f"`{name}` must be the ends `(t0, t1)`, of shape `(2,)`, or of "
            f"shape `(batch, 2)` for an interval of each sample. "
            f"Received: {name}={value!r}"
        )
    _check_batch(name, shape, 1, batch, value)
    if span.values is not None and not np.all(
        np.abs(span.values) <= checks.LARGEST
    ):
        raise ValueError(
            f"`{name}` must be finite, and at most {checks.LARGEST} in size. "
            f"Received: {name}={value!r}"
        )
    return span


def mask_of_call(name: str, value: Any, times: Times, batch: int | None) -> Any:
    """Checks a mask of times; returns an array if it is known, or a tensor."""
    if isinstance(value, keras.KerasTensor):
        mask = value
    else:
        mask = value if ops.is_tensor(value) else np.asarray(value)
        known = backend.value(mask) if ops.is_tensor(mask) else mask
        mask = mask if known is None else known
    shape = tuple(mask.shape)
    if not _is_boolean(mask) or len(shape) != 2:
        raise ValueError(
            f"`{name}` must be booleans of shape `(batch, T)`. Received: "
            f"{name}={value!r}, of shape {shape} and dtype {mask.dtype}"
        )
    _check_batch(name, shape, 1, batch, value)
    size = times.shape[-1]
    if None not in (size, shape[-1]) and size != shape[-1]:
        raise ValueError(
            f"`{name}` must have a column for each of the {size} times. "
            f"Received: {name}={value!r}"
        )
    return mask


def _is_boolean(mask: Any) -> bool:
    try:
        return keras.backend.standardize_dtype(mask.dtype) == "bool"
    except ValueError:  # such as an array of text
        return False


def _check_batch(name: str, shape: tuple, rank: int, batch: Any, value: Any):
    found = shape[0] if len(shape) > rank else None
    if None not in (found, batch) and found != batch:
        raise ValueError(
            f"`{name}` must have a row for each of the {batch} samples. "
            f"Received: {name}={value!r}"
        )

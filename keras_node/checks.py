"""Checks of the arguments that an object is made with.

Each `ValueError` says what is allowed and what was received.
"""

import math
import numbers
from typing import Any

import keras
import numpy as np

# float32 holds numbers from 1e-38 to 3e38. A solve squares the tolerances, and
# multiplies times by slopes and coefficients.
_SMALLEST, LARGEST = 1e-18, 1e30


def _real(value: Any) -> float:
    """Converts a real number to a float; too large or not real gives NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # a large integer
        return math.nan
    return number if abs(number) <= LARGEST else math.nan


def positive_float(name: str, value: Any) -> float:
    number = _real(value)
    if number >= _SMALLEST:
        return number
    raise ValueError(
        f"`{name}` must be a number between {_SMALLEST} and {LARGEST}. "
        f"Received: {name}={value!r}"
    )


def non_negative(name: str, value: Any) -> float:
    if _real(value) == 0 == value:
        return 0.0
    return positive_float(name, value)


def positive_int(name: str, value: Any, or_zero: bool = False) -> int:
    """Checks for a positive integer that fits int32, or 0 if `or_zero`."""
    integer = isinstance(value, numbers.Integral)
    least = 0 if or_zero else 1
    if integer and not isinstance(value, bool) and least <= value < 2**31:
        return int(value)
    zero = ", or 0" if or_zero else ""
    raise ValueError(
        f"`{name}` must be a positive integer below 2**31{zero}. "
        f"Received: {name}={value!r}"
    )


def channel_axis(name: str, value: Any, shape: tuple = ()) -> int:
    """Checks for an axis other than the batch's; an unknown shape is `()`."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        axis = int(value)
        if axis and (not shape or -len(shape) < axis < len(shape)):
            return axis
    of = f" of an input of shape {tuple(shape)}" if shape else ""
    raise ValueError(
        f"`{name}` must be an axis{of}, and not 0, the batch's. "
        f"Received: {name}={value!r}"
    )


def boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(
        f"`{name}` must be `True` or `False`. Received: {name}={value!r}"
    )


def one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(
        f"`{name}` must be one of {', '.join(map(repr, known))}. "
        f"Received: {name}={value!r}"
    )


def layer_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Checks the base layer arguments that older versions of Keras do not."""
    boolean("trainable", given.get("trainable", True))
    return given


def float_dtype(name: str, value: str) -> None:
    if not keras.backend.is_float_dtype(value):
        raise ValueError(
            f"`{name}` must be one of floats. Received: {name}={value!r}"
        )


def time_span(name: str, value: Any) -> tuple[float, float]:
    pair = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        t0, t1 = map(_real, pair)
        if abs(t1 - t0) > 0:  # neither is NaN
            return t0, t1
    raise ValueError(
        f"`{name}` must be a pair of two different numbers `(t0, t1)`, at most "
        f"{LARGEST} in size. Received: {name}={value!r}"
    )


def as_layer(name: str, value: Any) -> keras.layers.Layer:
    """Returns a layer, or makes a `Sequential` of a non-empty list of them."""
    layers = value if isinstance(value, (list, tuple)) else [value]
    if layers and all(isinstance(x, keras.layers.Layer) for x in layers):
        return value if layers[0] is value else keras.Sequential(layers)
    raise ValueError(
        f"`{name}` must be a Keras layer, a model or a list of layers. "
        f"Received: {name}={value!r}"
    )

"""Checks of what an object is made of.

Each `ValueError` says what is allowed, and what was received.
"""

import inspect
import math
import numbers
from typing import Any

import keras
import numpy as np

from keras_node.times import Times
from keras_node.times import given

# float32 holds numbers from 1e-38 to 3e38. A solve squares the tolerances, and
# multiplies times by slopes and coefficients.
_SMALLEST, _LARGEST = 1e-18, 1e30


def _real(value: Any) -> float:
    """A real number that is not too large as a float; NaN for all else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    return float(value) if abs(value) <= _LARGEST else math.nan


def positive_float(name: str, value: Any) -> float:
    number = _real(value)
    if number >= _SMALLEST:
        return number
    raise ValueError(
        f"`{name}` must be a number between {_SMALLEST} and {_LARGEST}. "
        f"Received: {name}={value!r}"
    )


def factor(name: str, value: Any) -> float:
    if _real(value) == 0 == value:
        return 0.0
    return positive_float(name, value)


def positive_int(name: str, value: Any, or_zero: bool = False) -> int:
    """What an int32 tensor holds."""
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
    """An axis of a tensor, if its shape is known, but not that of the batch."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if value and (not shape or -len(shape) < value < len(shape)):
            return int(value)
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


def layer_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Those of every Keras layer, as far as older Keras checks them not."""
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
        f"{_LARGEST} in size. Received: {name}={value!r}"
    )


def times_within(
    name: str, value: Any, span: tuple, dtype: str, known: bool = False
) -> Times:
    """Times between the ends of `span`, in any order, as far as known.

    Args:
        name: The name of the argument.
        value: What was received.
        span: The pair `(t0, t1)`.
        dtype: That in which the time elapsed will be counted.
        known: Whether they must be known.

    Returns:
        The `Times`; those at an end of `span` but for rounding, exactly.
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


def network(name: str, value: Any) -> keras.layers.Layer:
    """A layer as it is, or a non-empty list of layers as a `Sequential`."""
    layers = value if isinstance(value, (list, tuple)) else [value]
    if layers and all(isinstance(x, keras.layers.Layer) for x in layers):
        return value if layers[0] is value else keras.Sequential(layers)
    raise ValueError(
        f"`{name}` must be a Keras layer, a model or a list of layers. "
        f"Received: {name}={value!r}"
    )


def lookup(
    name: str, identifier: Any, known: dict, base: type, **kwargs: Any
) -> Any:
    """Finds the object that an argument means: by name, config or itself.

    Args:
        name: The name of the argument.
        identifier: What was received: a key of `known`, the config of a
            registered class, or an instance of `base`.
        known: The classes by their names.
        base: The class that the result must be of.
        **kwargs: Arguments for a class given by its name.

    Returns:
        An instance of `base`.
    """
    if isinstance(identifier, str) and identifier in known:
        found = known[identifier]
        allowed = inspect.signature(found).parameters
        for key in kwargs:
            if key not in allowed:
                raise ValueError(
                    f"`{key}` does not go with `{name}` {identifier!r}, which "
                    f"takes {', '.join(allowed)}. Received: {kwargs}"
                )
        return found(**kwargs)
    found = identifier
    if isinstance(identifier, dict):
        try:
            found = keras.saving.deserialize_keras_object(identifier)
        except Exception as error:  # its kind depends on what is wrong
            raise ValueError(
                f"The config of `{name}` cannot be loaded: {error}\n"
                f"Received: {name}={identifier!r}"
            ) from error
    if not isinstance(found, base):
        names = f"one of {list(known)} or " if known else ""
        raise ValueError(
            f"`{name}` must be {names}an object of `{base.__name__}`. "
            f"Received: {name}={identifier!r}"
        )
    if kwargs:
        raise ValueError(
            f"{', '.join(f'`{key}`' for key in kwargs)} can be given only with "
            f"a `{name}` given by its name; set them on the object. "
            f"Received: {name}={identifier!r}, {kwargs}"
        )
    return found

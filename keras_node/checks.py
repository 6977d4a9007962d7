"""Checks of arguments. Each `ValueError` says what is allowed and received."""

import inspect
import math
import numbers
from typing import Any

import keras
import numpy as np

from keras_node import backend


def _is_finite(value: Any) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value)


def positive_float(name: str, value: Any) -> float:
    if _is_finite(value) and value > 0:
        return float(value)
    raise ValueError(
        f"`{name}` must be a positive, finite number. "
        f"Received: {name}={value!r}"
    )


def positive_int(name: str, value: Any) -> int:
    if (
        isinstance(value, numbers.Integral)
        and not isinstance(value, bool)
        and value > 0
    ):
        return int(value)
    raise ValueError(
        f"`{name}` must be a positive integer. Received: {name}={value!r}"
    )


def boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(
        f"`{name}` must be `True` or `False`. Received: {name}={value!r}"
    )


def time_span(name: str, value: Any) -> tuple[float, float]:
    try:
        t0, t1 = value
    except (TypeError, ValueError):
        t0 = t1 = None
    if _is_finite(t0) and _is_finite(t1) and t0 != t1:
        return float(t0), float(t1)
    raise ValueError(
        f"`{name}` must be a pair of two different, finite numbers "
        f"`(t0, t1)`. Received: {name}={value!r}"
    )


def times_within(name: str, value: Any, span: tuple) -> list[float] | None:
    """Times between the ends of `span`, in any order."""
    if value is None:
        return None
    try:
        times = np.asarray(value, "float64")
    except (TypeError, ValueError):
        times = np.asarray([])
    inside = (times >= min(span)) & (times <= max(span))
    if times.ndim == 1 and times.size and inside.all():
        return times.tolist()
    raise ValueError(
        f"`{name}` must be a non-empty sequence of times within `t_span`, here "
        f"{span}. Received: {name}={value!r}"
    )


def times_to_report(name: str, times: Any, span: tuple) -> None:
    """Refuses a tensor of times, as far as it is known."""
    shape = tuple(times.shape)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"`{name}` must be a non-empty vector of times. "
            f"Received: a tensor of shape {shape}"
        )
    if backend.is_concrete(times):
        values = keras.ops.convert_to_numpy(times)
        low, high = (np.asarray(x, values.dtype) for x in sorted(span))
        slack = 4 * np.finfo(values.dtype).eps * max(abs(low), abs(high))
        if not np.all((values >= low - slack) & (values <= high + slack)):
            raise ValueError(
                f"`{name}` must lie within `t_span`, here {span}. "
                f"Received: {values}"
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
        found = keras.saving.deserialize_keras_object(identifier)
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

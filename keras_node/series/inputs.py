"""Checks of a series `[x, t]`: observations and their times."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node.times import elapsed
from keras_node.times import given
from keras_node.times.given import Times
from keras_node.types import Tensor


def precise(found: Times) -> str:
    """Returns the dtype in which times lose nothing, if the backend has it."""
    if found.tensor is None:
        return given.widest()
    exact = keras.backend.standardize_dtype(found.tensor.dtype) == "float64"
    return "float64" if exact else "float32"


def split(name: str, value: Any) -> tuple[Any, Any]:
    """Splits `[x, t]`, and checks that `x` is `(batch, T, features...)`."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(
            f"`{name}` must be a list `[x, t]` of observations and their "
            f"times. Received: {name}={_described(value)}"
        )
    x, t = value
    shape = _shape(x) or ()
    is_float = shape and keras.backend.is_float_dtype(x.dtype)
    if not is_float or len(shape) < 3 or shape[1] == 0:
        raise ValueError(
            f"`{name}` must be a list `[x, t]` with observations `x` of floats "
            "of shape `(batch, T, features...)`, and not empty. "
            f"Received: x={_described(x)}"
        )
    return x, t


def shapes(name: str, value: Any) -> tuple[tuple, tuple]:
    """Splits the shapes of `[x, t]`."""
    found = input_checks.shapes(name, value)
    if len(found) != 2 or len(found[0]) < 3 or len(found[1]) not in (1, 2):
        raise ValueError(
            f"`{name}` must be a list `[x, t]` of observations `(batch, T, "
            "features...)` and times `(batch, T)` or `(T,)`. "
            f"Received: shapes {value!r}"
        )
    return found[0], found[1]


def times(name: str, value: Any, shape: Sequence) -> Times:
    """Checks times of shape `(T,)`, or `(batch, T)` with a row per sample.

    Args:
        name: The name of the argument.
        value: The times received.
        shape: The shape of the observations, `(batch, T, ...)`.
    """
    batch, size = tuple(shape)[:2]
    found = given.of_call(name, value, batch)
    if None not in (size, found.shape[-1]) and size != found.shape[-1]:
        raise ValueError(
            f"`{name}` must have a time for each of the {size} observations. "
            f"Received: {name}={_described(value)}"
        )
    return found


def check_order(
    name: str,
    found: Times,
    mask: Any = None,
    strictly: bool = False,
    start: np.ndarray | None = None,
) -> None:
    """Checks that times are finite and sorted, as far as they are known.

    Args:
        name: The name of the argument.
        found: The times.
        mask: Array or tensor `(batch, T)`, false where a time does not count;
            or `None`.
        strictly: Boolean, whether no time may come twice.
        start: Array `(batch,)`, the time that each series goes on from, NaN
            where it starts anew; or `None`.
    """
    if found.values is None:
        return
    visible: Any = np.ones((1, 1), bool)
    if mask is not None:
        visible = backend.value(mask) if ops.is_tensor(mask) else mask
        if visible is None:
            return
    t = np.atleast_2d(found.values)
    shape = np.broadcast_shapes(t.shape, visible.shape)
    t, visible = np.broadcast_to(t, shape), np.broadcast_to(visible, shape)
    if not np.all((np.abs(t) <= checks.LARGEST) | ~visible):
        raise ValueError(
            f"`{name}` must be finite, and at most {checks.LARGEST} in size. "
            f"Received: {name}={found!r}"
        )
    if start is not None:
        goes_on = ~np.isnan(start)[:, None]
        t = np.concatenate([start[:, None], t], axis=1)
        visible = np.concatenate([goes_on, visible], axis=1)
    latest = np.maximum.accumulate(np.where(visible, t, -np.inf), axis=1)
    earlier, later = latest[:, :-1], t[:, 1:]
    wrong = (later <= earlier) if strictly else (later < earlier)
    wrong = wrong & visible[:, 1:]
    if np.any(wrong):
        row, column = np.argwhere(wrong)[0]
        order = "increase" if strictly else "not decrease"
        raise ValueError(
            f"`{name}` must {order} along a series. Received: {name}, in it "
            f"{later[row, column]} after {earlier[row, column]}, in row {row}"
        )


def check_durations(name: str, found: Times) -> None:
    """Checks that times elapsed are at least 0, as far as they are known."""
    d = found.values
    if d is not None and not np.all((d >= 0) & (d <= checks.LARGEST)):
        raise ValueError(
            f"`{name}` must hold times elapsed between 0 and "
            f"{checks.LARGEST}. Received: {name}={found!r}"
        )


def mask(name: str, value: Any, shape: Sequence) -> Any:
    """Checks a mask `(batch, T)`, or one for `x` and one for `t`.

    Returns:
        An array if it is known, or a tensor; `None` if there is none.
    """
    value = mask_of_observations(value)
    if value is None:
        return None
    batch, size = tuple(shape)[:2]
    columns = Times(None, keras.KerasTensor((size,)), 0.0)
    return given.mask_of_call(name, value, columns, batch)


def check_padding(name: str, value: Any) -> None:
    """Refuses a mask that is known to be false before the end of a series."""
    known = backend.value(value) if ops.is_tensor(value) else value
    if known is not None and np.any(known[:, 1:] & ~known[:, :-1]):
        raise ValueError(
            f"`{name}` must be `False` after the end of a series only; a "
            f"missing value in between is NaN. Received: {name}={known}"
        )


def mask_of_observations(value: Any) -> Any:
    """Finds the mask in what Keras hands over: one for `x`, one for `t`."""
    if not isinstance(value, (list, tuple)):
        return value
    if not all(x is None or hasattr(x, "shape") for x in value):
        return value  # rows of booleans
    return next((x for x in value if x is not None), None)


def as_rows(found: Times, shape: Sequence, dtype: str) -> Tensor:
    """Makes a tensor `(batch, T)` of times, for observations of that shape."""
    t = elapsed.as_tensor(found.as_given(), dtype)
    if len(t.shape) > 1:
        return t
    return ops.broadcast_to(t[None], tuple(shape)[:2])


def _shape(x: Any) -> tuple | None:
    """Returns the shape of a tensor, and `None` for all else."""
    try:
        keras.backend.standardize_dtype(x.dtype)
        return tuple(x.shape)
    except (AttributeError, ValueError):
        return None


def _described(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return repr([_described(x) for x in value])
    return input_checks.described(value)

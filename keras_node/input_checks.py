"""Checks of the tensors and shapes that an object is called with.

Each `ValueError` says what is allowed and what was received.
"""

import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_node.backend import _private


def not_symbolic(name: str, value: Any) -> None:
    # To build a model on PyTorch, Keras first tries tensors without values.
    no_values = getattr(value, "is_meta", False)
    if no_values or isinstance(value, keras.KerasTensor):
        raise ValueError(
            f"`{name}` must have values: only a layer as a whole can be called "
            f"on a symbolic tensor. Received: {name}={value!r}"
        )


def as_training(name: str, value: Any) -> bool | None:
    """Checks a value for `training`; `None` leaves it to the layer."""
    whole = isinstance(value, (numbers.Integral, np.bool_))
    if value is None:
        return None
    if whole and value in (0, 1):
        return bool(value)
    raise ValueError(
        f"`{name}` must be `True`, `False` or `None`. "
        f"Received: {name}={value!r}"
    )


def shapes(name: str, value: Any) -> list[tuple]:
    """Lists the shapes of the inputs, from one shape or a list of shapes."""
    several = [value] if value and _is_shape(value) else value
    if isinstance(several, (list, tuple)) and all(map(_is_shape, several)):
        if several and several[0]:
            return [tuple(one) for one in several]
    raise ValueError(
        f"`{name}` must be a tensor of shape `(batch, ...)` or a list of "
        f"tensors. Received: shape {value!r}"
    )


def shape(name: str, value: Any) -> tuple:
    """Returns the shape of an input that is one tensor."""
    if value and _is_shape(value):
        return tuple(value)
    raise ValueError(
        f"`{name}` must be one tensor of shape `(batch, ...)`. "
        f"Received: shape {value!r}"
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        n is None or isinstance(n, numbers.Integral) for n in value
    )


def time_and_tensor(name: str, value: Any) -> tuple[tuple, tuple]:
    """Returns the shapes of a pair `[t, y]`, with one `t` for each sample."""
    t, y = pair(name, shapes(name, value))
    if len(t) > 1 and t[-1] not in (1, None):
        raise ValueError(
            f"`{name}` must be a list `[t, y]` with `t` of shape "
            f"`(batch, ..., 1)`. Received: shapes {t} and {y}"
        )
    return t, y


def pair(name: str, value: Any) -> tuple[Any, Any]:
    """Returns the two items of `[t, y]`: tensors, or their shapes."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(value)
    raise ValueError(
        f"`{name}` must be a list `[t, y]`. Received: {name}={value!r}"
    )


def inputs_to(
    name: str, value: Any, number: int | None = None
) -> tuple[Any, list]:
    """Splits the inputs into the state and the context.

    Args:
        name: The name of the argument.
        value: The value received: a tensor, or a list of them.
        number: The number of tensors required, if it is known.

    Returns:
        The tensor of the state, and a list of the other tensors.
    """
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given or (number is not None and len(given) != number):
        many = "at least one tensor" if number is None else f"{number} tensors"
        raise ValueError(
            f"`{name}` must be the state, or a list of the state and the "
            f"context that `dynamics` is called with, here {many}. "
            f"Received: {name}={[described(x) for x in given]}"
        )
    initial, *context = given
    require_state(name, initial)
    for x in context:
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise ValueError(
                f"`{name}` must hold tensors. Received: {described(x)}"
            )
    return initial, context


def require_state(name: str, value: Any) -> None:
    """Refuses a value unless it is a float tensor with a batch axis."""
    if not _shape_of_floats(value):
        raise ValueError(
            f"`{name}` must be a tensor of floats of shape `(batch, ...)`, "
            "alone or first in a list: cast integers before the block. "
            f"Received: {name}={described(value)}"
        )


def _shape_of_floats(value: Any) -> tuple | None:
    """Returns the shape of a float tensor, and `None` for all else."""
    try:
        is_float = keras.backend.is_float_dtype(value.dtype)
        return tuple(value.shape) if is_float else None
    except (AttributeError, ValueError):
        return None


def unmasked(name: str, value: Any) -> None:
    """Refuses a tensor that Keras has attached a mask to."""
    if _private.mask_of(value) is not None:
        raise ValueError(
            f"`{name}` must have no mask where times are reported that the "
            "block was not made with: the mask has no place for them. "
            f"Received: {described(value)} with a mask"
        )


def call_dynamics(name: str, network: Callable, inputs: Any) -> Any:
    """Calls a network, and turns what it raises into a `ValueError`."""
    try:
        return network(inputs)
    except Exception as error:  # a network may raise any kind
        given = inputs if isinstance(inputs, list) else [inputs]
        raise ValueError(
            f"`{name}` cannot be called with what the block has for it: "
            f"{error}\nReceived: {[described(x) for x in given]}"
        ) from error


def require_slope(name: str, value: Any, shape: tuple) -> None:
    """Refuses the output of a network if it is no slope of the state.

    A slope is a float tensor of the shape of the state. A size that is not
    known yet matches every size.
    """
    found = _shape_of_floats(value)
    if (
        found is None
        or len(found) != len(shape)
        or any(m != n for m, n in zip(found, shape, strict=True) if m and n)
    ):
        raise ValueError(
            f"`{name}` must return one tensor of floats of the shape of the "
            f"state, here {shape}. Received: {described(value)}"
        )


def described(value: Any) -> str:
    """Describes a value; the values of a tensor are left out.

    They may be many, and on another device.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a tensor of shape {value.shape} and dtype {value.dtype}"
    return repr(value)

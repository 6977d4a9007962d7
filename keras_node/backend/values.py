"""Values: hashables that stand for what an object does."""

import types
from collections.abc import Hashable
from typing import Any

_PLAIN = {bool, int, float, str, bytes, type(None)}


def value_of(x: Any) -> Hashable:
    """Finds a hashable that stands for what an object does.

    Objects of equal value do the same, now and later. Numbers, tuples of values
    and objects whose class defines its own `__hash__` are values. A `value_key`
    stands for its object, which is then not kept alive.

    Returns:
        The value, or `None` if the object has none. A function has none, unless
        it belongs to this package and closes over nothing: a user's function
        may read values that change.
    """
    kind = type(x)
    if kind in _PLAIN:
        return kind, x
    if isinstance(x, types.FunctionType):
        own = x.__module__.startswith("keras_node.")
        return x if own and x.__closure__ is None else None
    if isinstance(x, tuple):
        values = tuple(map(value_of, x))
        return None if None in values else (kind, values)
    if hasattr(x, "value_key"):
        return x.value_key
    if kind.__hash__ in (None, object.__hash__):
        return None
    try:
        hash(x)
    except TypeError:  # something inside it is not hashable
        return None
    return x

"""Solvers, adjoints and layers, found by name or config."""

import inspect
from typing import Any

import keras


def get(
    name: str, identifier: Any, known: dict, base: type, **kwargs: Any
) -> Any:
    """Finds the object for an argument: a name, a config or an instance.

    Args:
        name: The name of the argument.
        identifier: The value received: a key of `known`, the config of a
            registered class, or an instance of `base`.
        known: The classes, by name.
        base: The class that the result must belong to.
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

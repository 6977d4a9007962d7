"""What a Keras layer is made of, as far as its calls depend on it."""

import weakref
from typing import Any

import keras
import numpy as np
from keras import tree

# Layers that do the same in each call, if their attributes are the same. Not
# those that wrap code of another framework.
_OWN = ("keras.src.layers.", "keras.src.models.", "keras_node.layers.")
_OPERATIONS = (*_OWN, "keras.src.ops.")
_ACTIVATIONS = ("keras.src.activations.", "keras.src.ops.", "keras.src.layers.")
_PLAIN = {bool, int, float, str, bytes, type(None)}
# What Keras itself notes down in every layer; nothing that a call depends on.
_NOTES = {*vars(keras.layers.Layer(name="any")), "_build_shapes_dict"}

_identities = weakref.WeakKeyDictionary()


def identity(layer: keras.layers.Layer, *key: Any) -> object | None:
    """Finds the object that stands for what `layer` computes as it is now.

    Args:
        layer: A Keras layer.
        *key: Hashable, what else the computation depends on.

    Returns:
        The same object as long as the layer and `key` are the same. `None` for
        a layer that is not made of Keras's own alone: one of a user's may read
        what changes between two calls.
    """
    makeup = _makeup(layer)
    if makeup is None:
        return None
    known = _identities.setdefault(layer, {})
    return known.setdefault((key, makeup), object())


def _makeup(layer: keras.layers.Layer) -> tuple | None:
    """Lists what determines the calls of a layer, beside its variables."""
    makeup = []
    for inner in layer._flatten_layers():
        # Objects and not their `id`, which another may have later. The layer
        # itself would keep itself alive.
        makeup.append(None if inner is layer else inner)
        if not _is_own(inner):
            return None
        policy = inner.dtype_policy.name
        makeup.append((policy, inner.autocast, inner.trainable))
        for name, value in vars(inner).items():
            if name in _NOTES:
                continue
            if name.endswith("activation") and value is not None:
                module = getattr(value, "__module__", type(value).__module__)
                if not f"{module}.".startswith(_ACTIVATIONS):
                    return None
                makeup.append(value)
            else:
                makeup.append((name, _plain(value)))
    return tuple(makeup)


def _is_own(layer: keras.layers.Layer) -> bool:
    return (
        type(layer).__module__.startswith(_OWN)
        and not isinstance(layer, keras.layers.Lambda)
        and "call" not in vars(layer)
        # A loss that is added in a call is noticed in a call.
        and layer.activity_regularizer is None
        and all(map(_is_plain_operation, getattr(layer, "operations", ())))
    )


def _is_plain_operation(operation: Any) -> bool:
    """Whether a functional model calls it on its own tensors and on numbers."""
    if not type(operation).__module__.startswith(_OPERATIONS):
        return isinstance(operation, keras.layers.Layer)  # seen for itself
    for node in operation._inbound_nodes:
        if node.arguments.kwargs.get("training"):
            return False  # may draw, whatever the block is called with
        for x in tree.flatten((node.arguments.args, node.arguments.kwargs)):
            if type(x) not in _PLAIN and not isinstance(x, keras.KerasTensor):
                return False
    return True


def _plain(value: Any) -> Any:
    """A hashable copy of numbers, strings and what holds them, or `None`."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, (tuple, list)):
        parts = tuple(map(_plain, value))
        return None if None in parts else parts
    if isinstance(value, dict):
        return _plain(tuple(value.items()))
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return value.shape, value.dtype.str, value.tobytes()
    return None

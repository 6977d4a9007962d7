"""The makeup of a Keras layer: the parts that its calls depend on."""

import functools
import weakref
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_node.backend import _private

# Layers that do the same in each call if their attributes are the same. Layers
# that wrap code of another framework are left out.
_OWN = (
    "keras.src.layers.",
    "keras.src.models.",
    "keras_node.layers.augment",
    "keras_node.layers.controlled",
    "keras_node.layers.gru_ode",
    "keras_node.layers.hamiltonian",
    "keras_node.layers.interpolate",
    "keras_node.layers.time",
)
_OPERATIONS = (*_OWN, "keras.src.ops.")
_ACTIVATIONS = ("keras.src.activations.", "keras.src.ops.", "keras.src.layers.")
_PLAIN = {bool, int, float, str, bytes, type(None)}
_identities: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@functools.cache
def _notes() -> set[str]:
    """Lists the attributes that Keras sets in every layer.

    No call depends on them. A layer made on import would fix Keras's policy.
    """
    return {*vars(keras.layers.Layer(name="any")), "_build_shapes_dict"}


def identity(layer: keras.layers.Layer, *key: Any) -> object | None:
    """Finds the object that stands for what `layer` computes now.

    Args:
        layer: A Keras layer.
        *key: Hashables that the computation depends on, too.

    Returns:
        The same object as long as the layer and `key` are the same. `None`
        unless the layer is made of Keras's own layers alone: a user's layer
        may read values that change between two calls.
    """
    makeup = _makeup(layer)
    if makeup is None:
        return None
    known = _identities.setdefault(layer, {})
    return known.setdefault((key, makeup), object())


def _makeup(layer: keras.layers.Layer) -> tuple | None:
    """Lists all that determines the calls of a layer, beside its variables."""
    makeup = []
    for inner in _private.layers_of(layer):
        # Objects and not their `id`, which another object may get later. But
        # not the layer, which would keep itself alive.
        makeup.append(None if inner is layer else inner)
        if not _is_own(inner):
            return None
        policy = inner.dtype_policy.name
        makeup.append((policy, inner.autocast, inner.trainable))
        for name, value in vars(inner).items():
            if name in _notes():
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
        # Only a call shows that the layer adds a loss.
        and layer.activity_regularizer is None
        and all(map(_is_plain_operation, getattr(layer, "operations", ())))
    )


def _is_plain_operation(operation: Any) -> bool:
    """Tells whether a model calls it only on its own tensors and on numbers."""
    if not type(operation).__module__.startswith(_OPERATIONS):
        return isinstance(operation, keras.layers.Layer)  # checked by itself
    for node in operation._inbound_nodes:
        if node.arguments.kwargs.get("training"):
            return False  # it may draw even if the block is not training
        for x in tree.flatten((node.arguments.args, node.arguments.kwargs)):
            if type(x) not in _PLAIN and not isinstance(x, keras.KerasTensor):
                return False
    return True


def _plain(value: Any) -> Any:
    """Makes a hashable copy of plain values and containers, or `None`."""
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

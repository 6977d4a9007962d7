"""Checks of a network whose derivative is part of the dynamics."""

import warnings

import keras

from keras_node.backend import _private

# By the names of functions, layers and operations: piecewise linear.
_KINKED = {
    "hardshrink",
    "hardsigmoid",
    "hardtanh",
    "leakyrelu",
    "prelu",
    "relu",
    "relu6",
    "softshrink",
    "threshold",
}


def warn_of_kinks(name: str, network: keras.layers.Layer) -> None:
    """Warns if the network has activations without a second derivative."""
    for layer in _private.layers_of(network):
        operations = getattr(layer, "operations", ())
        parts = [layer, getattr(layer, "activation", None), *operations]
        for part in parts:
            found = getattr(part, "__name__", type(part).__name__)
            if found.lower().replace("_", "") in _KINKED:
                warnings.warn(
                    f"`{name}` has a piecewise linear activation, {found!r}. "
                    "Its second derivative is 0, where it has one, and that is "
                    "part of the gradient here: training will be poor. Use a "
                    'smooth activation, such as "softplus" or "tanh".',
                    stacklevel=2,
                )
                return


def check_samples_apart(name: str, network: keras.layers.Layer) -> None:
    """Refuses layers that are known to mix the samples of a batch."""
    for layer in _private.layers_of(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer.trainable:
                raise ValueError(
                    f"`{name}` must treat each sample by itself, as its "
                    "derivative is taken sample by sample. In training, "
                    "`BatchNormalization` does not: use `LayerNormalization` "
                    f"or `trainable=False`. Received: {layer}"
                )

"""Layers that take the time as an input."""

from typing import Any

import keras
from keras import ops

from keras_node import checks
from keras_node import input_checks
from keras_node.config import register
from keras_node.layers.augment import widened
from keras_node.types import Tensor


@register
class ConcatTime(keras.layers.Layer):
    """Layer that appends the time to a tensor, as one more channel.

    Use it before a convolution or a `Dense` layer, anywhere in dynamics that
    depend on time. Unlike `keras.layers.Concatenate`, it takes the time in any
    shape that has one value for each sample. It therefore also works where the
    image is no longer as large as the state.

    Args:
        axis: Int, the axis of the channels, not 0. Defaults to `-1`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[t, y]`: a tensor with one time for each sample, such as
            the one that dynamics are called with, and a tensor.

    Input shape:
        `[(batch, ..., 1), (batch, ..., channels)]`.

    Output shape:
        `(batch, ..., channels + 1)`.

    Raises:
        ValueError: If `axis` is not an axis of `y` or is the batch axis, or
            if `inputs` is not a pair.

    Example:
    >>> t = keras.Input((7, 7, 1))
    >>> y = keras.Input((7, 7, 8))
    >>> x = keras_node.layers.ConcatTime()([t, y])
    >>> x = keras.layers.Conv2D(8, 3, padding="same")(x)
    >>> block = keras_node.ODEBlock(keras.Model([t, y], x), time_dependent=True)
    >>> tuple(block(np.ones((2, 7, 7, 8))).shape)
    (2, 7, 7, 8)

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), whose networks
          for images have the time as a channel of every convolution
    """

    def __init__(self, axis: int = -1, **kwargs: Any):
        super().__init__(**checks.layer_arguments(kwargs))
        self.axis = checks.channel_axis("axis", axis)

    def build(self, inputs_shape: list) -> None:
        _, shape = input_checks.time_and_tensor("inputs", inputs_shape)
        checks.channel_axis("axis", self.axis, shape)

    def call(self, inputs: list) -> Tensor:
        t, y = input_checks.pair("inputs", inputs)
        channel = ops.zeros_like(ops.take(y, [0], axis=self.axis))
        return ops.concatenate([y, channel + of_rank(t, y)], axis=self.axis)

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        _, shape = input_checks.time_and_tensor("inputs", inputs_shape)
        return widened(shape, 1, self.axis)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


@register
class ConcatSquash(keras.layers.Wrapper):
    """Wrapper that scales and shifts a layer's output, depending on time.

    Returns `layer(y) * sigmoid(a t + b) + c t`. Every channel of the last axis
    has its own weights `a`, `b` and `c`.

    Args:
        layer: A Keras layer, such as a `Dense` layer or a convolution, or a
            list of layers, which becomes a `keras.Sequential`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[t, y]`: a tensor with one time for each sample, such as
            the one that dynamics are called with, and the input of `layer`.

    Input shape:
        `[(batch, ..., 1), input shape of layer]`.

    Output shape:
        The output shape of `layer`.

    Raises:
        ValueError: If `layer` is not a layer, or `inputs` is not a pair.

    Example:
    >>> t, y = keras.Input((1,)), keras.Input((4,))
    >>> x = keras_node.layers.ConcatSquash(keras.layers.Dense(16))([t, y])
    >>> x = keras.layers.Activation("tanh")(x)
    >>> x = keras_node.layers.ConcatSquash(keras.layers.Dense(4))([t, x])
    >>> block = keras_node.ODEBlock(keras.Model([t, y], x), time_dependent=True)
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Grathwohl et al., 2019](https://arxiv.org/abs/1810.01367), FFJORD
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        kwargs = checks.layer_arguments(kwargs)
        super().__init__(checks.as_layer("layer", layer), **kwargs)

    def build(self, inputs_shape: list) -> None:
        _, shape = input_checks.time_and_tensor("inputs", inputs_shape)
        super().build(shape)
        channels = self.layer.compute_output_shape(shape)[-1]
        self.scale = self.add_weight(shape=(channels,), name="scale")
        self.gate = self.add_weight(
            shape=(channels,), initializer="zeros", name="gate"
        )
        self.shift = self.add_weight(shape=(channels,), name="shift")

    def call(self, inputs: list) -> Tensor:
        t, y = input_checks.pair("inputs", inputs)
        x = self.layer(y)
        t = of_rank(t, x)
        return x * ops.sigmoid(self.scale * t + self.gate) + self.shift * t

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        _, shape = input_checks.time_and_tensor("inputs", inputs_shape)
        return self.layer.compute_output_shape(shape)


def of_rank(t: Tensor, y: Tensor) -> Tensor:
    """Takes one time for each sample, and reshapes it to the rank of `y`."""
    index = slice(None), *(slice(1) for _ in t.shape[1:])
    first = t[index]
    return ops.reshape(first, (-1,) + (1,) * (len(y.shape) - 1))

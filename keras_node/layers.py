"""Layers that neural ODEs are made of and Keras has not."""

from typing import Any

import keras
from keras import ops

from keras_node import call_checks
from keras_node import checks

__all__ = ["Augment", "ConcatSquash", "ConcatTime"]


@keras.saving.register_keras_serializable(package="keras_node")
class ConcatTime(keras.layers.Layer):
    """Appends the time to a tensor, as one more channel.

    It goes before a convolution or a `Dense` layer anywhere in dynamics that
    depend on time. Unlike `keras.layers.Concatenate`, it takes the time in any
    shape that has one value for each sample, and so where the image is no
    longer as large as the state.

    Args:
        axis: Int, the axis of the channels, not 0. Defaults to `-1`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[t, y]` of a tensor with one time for each sample, such
            as dynamics are called with, and a tensor.

    Input shape:
        `[(batch, ..., 1), (batch, ..., channels)]`.

    Output shape:
        `(batch, ..., channels + 1)`.

    Raises:
        ValueError: If `axis` is not an axis of `y`, or the batch's, or
            `inputs` are no pair.

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
        _, shape = call_checks.time_and_tensor("inputs", inputs_shape)
        checks.channel_axis("axis", self.axis, shape)

    def call(self, inputs: Any) -> Any:
        t, y = call_checks.pair("inputs", inputs)
        channel = ops.zeros_like(ops.take(y, [0], axis=self.axis))
        return ops.concatenate([y, channel + _of_rank(t, y)], axis=self.axis)

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        _, shape = call_checks.time_and_tensor("inputs", inputs_shape)
        return _widened(shape, 1, self.axis)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


@keras.saving.register_keras_serializable(package="keras_node")
class ConcatSquash(keras.layers.Wrapper):
    """Scales and shifts what a layer returns, as the time has it.

    Returns `layer(y) * sigmoid(a t + b) + c t`, with a weight of each kind for
    every channel of the last axis.

    Args:
        layer: A Keras layer, such as a `Dense` layer or a convolution, or a
            list of layers, which becomes a `keras.Sequential`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[t, y]` of a tensor with one time for each sample, such
            as dynamics are called with, and the input of `layer`.

    Input shape:
        `[(batch, ..., 1), input shape of layer]`.

    Output shape:
        That of `layer`.

    Raises:
        ValueError: If `layer` is no layer, or `inputs` are no pair.

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
        super().__init__(checks.network("layer", layer), **kwargs)

    def build(self, inputs_shape: list) -> None:
        _, shape = call_checks.time_and_tensor("inputs", inputs_shape)
        super().build(shape)
        channels = self.layer.compute_output_shape(shape)[-1]
        self.scale = self.add_weight(shape=(channels,), name="scale")
        self.gate = self.add_weight(
            shape=(channels,), initializer="zeros", name="gate"
        )
        self.shift = self.add_weight(shape=(channels,), name="shift")

    def call(self, inputs: Any) -> Any:
        t, y = call_checks.pair("inputs", inputs)
        x = self.layer(y)
        t = _of_rank(t, x)
        return x * ops.sigmoid(self.scale * t + self.gate) + self.shift * t

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        _, shape = call_checks.time_and_tensor("inputs", inputs_shape)
        return self.layer.compute_output_shape(shape)


@keras.saving.register_keras_serializable(package="keras_node")
class Augment(keras.layers.Layer):
    """Appends channels of zeros, room for the state of a neural ODE to move.

    The paths of an ODE do not cross. In more dimensions they need not: what no
    neural ODE of the width of its inputs can tell apart, one with room beside
    them can, and for fewer evaluations.

    Args:
        dims: Int, how many zeros are appended along the axis.
        axis: Int, the axis of the channels, not 0. Defaults to `-1`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., channels)`.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        `(batch, ..., channels + dims)`.

    Raises:
        ValueError: If `dims` is not positive, or `axis` is not an axis of
            `inputs`, or the batch's.

    Example:
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((2,)),
    ...         keras_node.layers.Augment(3),
    ...         keras_node.ODEBlock(keras.layers.Dense(5, "tanh")),
    ...     ]
    ... )
    >>> model.output_shape
    (None, 5)

    Reference:
        - [Dupont, Doucet, Teh, 2019](https://arxiv.org/abs/1904.01681)
    """

    def __init__(self, dims: int, axis: int = -1, **kwargs: Any):
        super().__init__(**checks.layer_arguments(kwargs))
        self.supports_masking = True
        self.dims = checks.positive_int("dims", dims)
        self.axis = checks.channel_axis("axis", axis)

    def build(self, inputs_shape: tuple) -> None:
        checks.channel_axis(
            "axis", self.axis, call_checks.shape("inputs", inputs_shape)
        )

    def call(self, inputs: Any) -> Any:
        shape = list(ops.shape(inputs))
        shape[self.axis] = self.dims
        zeros = ops.zeros(shape, dtype=inputs.dtype)
        return ops.concatenate([inputs, zeros], axis=self.axis)

    def compute_output_shape(self, inputs_shape: tuple) -> tuple:
        return _widened(
            call_checks.shape("inputs", inputs_shape), self.dims, self.axis
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dims": self.dims, "axis": self.axis}


def _of_rank(t: Any, y: Any) -> Any:
    """One time for each sample, to meet tensors of the rank of `y`."""
    first = t[(slice(None), *(slice(1) for _ in t.shape[1:]))]
    return ops.reshape(first, (-1,) + (1,) * (len(y.shape) - 1))


def _widened(shape: tuple, by: int, axis: int) -> tuple:
    shape = list(shape)
    if shape[axis] is not None:
        shape[axis] += by
    return tuple(shape)

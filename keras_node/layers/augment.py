"""Layer that widens the state."""

from typing import Any

import keras
from keras import ops

from keras_node import checks
from keras_node import input_checks
from keras_node.config import register
from keras_node.types import Tensor


@register
class Augment(keras.layers.Layer):
    """Layer that appends channels of zeros, to give a neural ODE more room.

    The paths of an ODE cannot cross. A neural ODE as wide as its inputs is
    therefore unable to tell some classes apart. With more channels it can,
    and it needs fewer evaluations.

    Args:
        dims: Int, the number of zeros appended along the axis.
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
            `inputs` or is the batch axis.

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
            "axis", self.axis, input_checks.shape("inputs", inputs_shape)
        )

    def call(self, inputs: Tensor) -> Tensor:
        shape = list(ops.shape(inputs))
        shape[self.axis] = self.dims
        zeros = ops.zeros(shape, dtype=inputs.dtype)
        return ops.concatenate([inputs, zeros], axis=self.axis)

    def compute_output_shape(self, inputs_shape: tuple) -> tuple:
        return widened(
            input_checks.shape("inputs", inputs_shape), self.dims, self.axis
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dims": self.dims, "axis": self.axis}


def widened(shape: tuple, by: int, axis: int) -> tuple:
    """Computes the shape of a tensor with `by` more channels."""
    sizes = list(shape)
    if sizes[axis] is not None:
        sizes[axis] += by
    return tuple(sizes)

"""The right-hand side of a controlled differential equation."""

from typing import Any

import keras
from keras import ops

from keras_node import input_checks
from keras_node.dynamics.layer import symbolic_call
from keras_node.series import path
from keras_node.types import Tensor


class Controlled(keras.layers.Layer):
    """Slope `dh/ds = F(h) dX/ds`, of `[s, h]` and the segments of a path."""

    def __init__(self, dynamics: keras.layers.Layer, **kwargs: Any):
        super().__init__(**kwargs)
        self.dynamics = dynamics

    def build(self, inputs_shape: list) -> None:
        _, (batch, width), (*_, channels), *_ = inputs_shape
        h = keras.KerasTensor((batch, width), self.compute_dtype)
        matrix = input_checks.call_dynamics(
            "dynamics", lambda h: symbolic_call(self.dynamics, h), h
        )
        _check_matrix(matrix, width, channels)

    def call(self, inputs: list) -> Tensor:
        s, h, *segments = inputs
        matrix = ops.cast(self.dynamics(h), h.dtype)
        width, channels = h.shape[1], segments[0].shape[2]
        _check_matrix(matrix, width, channels)
        matrix = ops.reshape(matrix, (-1, width, channels))
        dx = path.velocity(s, segments)
        # `ops.matmul` rounds float64 to float32 on PyTorch.
        return (matrix @ dx[..., None])[..., 0]

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        return inputs_shape[1]


def _check_matrix(matrix: Any, width: int, channels: int) -> None:
    if tuple(matrix.shape)[1:] != (width * channels,):
        raise ValueError(
            "`dynamics` must return a tensor of shape `(batch, h * (channels + "
            f"1))`, here `(batch, {width} * {channels})`. "
            f"Received: {input_checks.described(matrix)}"
        )


def state_width(dynamics: keras.layers.Layer, channels: int) -> int:
    """Finds the width of the state by that of the output of `dynamics`."""
    try:
        shape = dynamics.output_shape
    except AttributeError:  # not called yet
        try:
            shape = dynamics.compute_output_shape((None, None))
        except Exception:  # a layer may raise any kind
            shape = (None, None)
    width = shape[-1] if isinstance(shape, tuple) and len(shape) == 2 else None
    if width and width % channels == 0:
        return width // channels
    raise ValueError(
        "`dynamics` must return a tensor of shape `(batch, h * (channels + 1))`"
        f", here with {channels} for `channels + 1`. Give `initial` if the "
        f"width cannot be told. Received: shape {shape}"
    )

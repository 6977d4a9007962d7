"""The states that a stateful layer keeps from call to call."""

import keras
import numpy as np
from keras import ops

from keras_node import backend
from keras_node.times import given
from keras_node.types import Tensor


class KeptStates:
    """States of a recurrent layer and their time, as weights of that layer.

    Args:
        layer: The layer.
        first: The states that it starts with, `(batch, size)`.
    """

    def __init__(self, layer: keras.layers.Layer, first: list[Tensor]):
        arrays = [ops.convert_to_numpy(x) for x in first]
        self.states = [
            layer.add_weight(
                shape=x.shape,
                initializer=lambda shape, dtype, x=x: ops.cast(x, dtype),
                trainable=False,
                name=f"state_{i}",
            )
            for i, x in enumerate(arrays)
        ]
        self.batch = len(arrays[0])
        self._time = layer.add_weight(
            shape=(self.batch,),
            initializer=_unknown,
            dtype=given.widest(),
            trainable=False,
            name="time_of_states",
        )

    def reset(self, first: list[Tensor]) -> None:
        """Forgets the states, and their time."""
        for variable, x in zip(self.states, first, strict=True):
            variable.assign(ops.cast(x, variable.dtype))
        self._time.assign(np.full((self.batch,), np.nan))

    def read(self) -> tuple[list[Tensor], Tensor]:
        """Returns the states and their time, NaN where there is none."""
        # Copies: on PyTorch the variables change in place.
        states = [ops.copy(variable.value) for variable in self.states]
        return states, ops.copy(self._time.value)

    def known_time(self) -> np.ndarray | None:
        """Returns the time of the states, `None` where it is traced."""
        return backend.value(self._time.value)

    def keep(self, states: list[Tensor], time: Tensor) -> None:
        """Keeps the states and their time for the next call."""
        for variable, x in zip(self.states, states, strict=True):
            variable.assign(ops.stop_gradient(ops.cast(x, variable.dtype)))
        self._time.assign(ops.stop_gradient(time))


def _unknown(shape: tuple, dtype: str) -> Tensor:
    """Initializer of times that are not known."""
    return ops.full(shape, float("nan"), dtype=dtype)

"""The contract of Keras's recurrent cells."""

import inspect
import numbers
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_node import input_checks
from keras_node.types import Tensor


class Cell:
    """A cell as a function of a list of states, the first of which is `h`.

    Args:
        layer: The layer, which `check` has found to be a cell.
    """

    def __init__(self, layer: keras.layers.Layer):
        self._layer = layer
        self.sizes = _sizes(layer.state_size)
        self.output_size = getattr(layer, "output_size", None) or self.sizes[0]
        self.dtype = layer.compute_dtype

    def build(self, shape: tuple) -> None:
        """Builds the cell for the shape of one observation, and tries it."""
        if not self._layer.built:
            self._layer.build(shape)
            self._layer.built = True
        x = keras.KerasTensor(shape, dtype=self.dtype)
        states = [
            keras.KerasTensor((shape[0], size), dtype=self.dtype)
            for size in self.sizes
        ]

        def call(inputs):
            try:
                return self(*inputs)
            except NotImplementedError:  # Keras cannot infer the shapes
                return None

        found = input_checks.call_dynamics("cell", call, [x, states])
        if found is None:
            return
        output, new = found
        widths = [tuple(x.shape)[1:] for x in [output, *new]]
        if widths != [(n,) for n in (self.output_size, *self.sizes)]:
            raise ValueError(
                "`cell` must return an output `(batch, output_size)` and "
                f"states of its `state_size`, here {self.output_size} and "
                f"{self.sizes}. Received: outputs of shapes {widths}"
            )

    def __call__(
        self, x: Tensor, states: list, training: bool | None = None
    ) -> tuple[Tensor, list]:
        kwargs = {}
        if "training" in inspect.signature(self._layer.call).parameters:
            kwargs["training"] = training
        output, new = self._layer(x, states, **kwargs)
        return output, list(new) if tree.is_nested(new) else [new]

    def initial_state(self, batch: Any) -> list[Tensor]:
        make = getattr(self._layer, "get_initial_state", None)
        if make is None:
            return [ops.zeros((batch, n), dtype=self.dtype) for n in self.sizes]
        states = make(batch_size=batch)
        return list(states) if tree.is_nested(states) else [states]

    def states(self, name: str, value: Any, batch: Any) -> list[Tensor]:
        """Checks the states that a layer is called with."""
        states = list(value) if isinstance(value, (list, tuple)) else [value]
        shapes = [tuple(getattr(x, "shape", ())) for x in states]
        wanted = [(batch, size) for size in self.sizes]
        if len(shapes) != len(wanted) or not all(map(_fits, shapes, wanted)):
            raise ValueError(
                f"`{name}` must hold a tensor for each state of the cell, here "
                f"of shapes {wanted}. Received: shapes {shapes}"
            )
        return states

    def draw_masks(self, x: Tensor, h: Tensor) -> None:
        """Draws the dropout masks of a call, which all steps share."""
        # Of `keras.layers.DropoutRNNCell`, which is not public.
        if hasattr(self._layer, "get_dropout_mask"):
            self._layer.get_dropout_mask(x)
            self._layer.get_recurrent_dropout_mask(h)

    def drop_masks(self) -> None:
        if hasattr(self._layer, "reset_dropout_mask"):
            self._layer.reset_dropout_mask()
            self._layer.reset_recurrent_dropout_mask()


def check(name: str, value: Any) -> keras.layers.Layer:
    """Checks that a value is a layer with the contract of a cell."""
    stacked = isinstance(value, (list, tuple, keras.layers.StackedRNNCells))
    if stacked and value:
        raise ValueError(
            f"`{name}` must be one cell: in place of a stack of cells, use a "
            "stack of `ODERNN` layers with `return_sequences=True`. "
            f"Received: {name}={value!r}"
        )
    is_layer = isinstance(value, keras.layers.Layer)
    is_layer = is_layer and not isinstance(value, keras.layers.RNN)
    size = getattr(value, "state_size", None) if is_layer else None
    if size is None or not _sizes(size):
        raise ValueError(
            f"`{name}` must be a Keras cell such as `keras.layers.GRUCell(8)`: "
            "a layer with `call(inputs, states)` and a `state_size`, an "
            "integer or a list of integers, and not a layer over series. "
            f"Received: {name}={value!r}"
        )
    return value


def _sizes(size: Any) -> list[int]:
    """Lists the sizes of the states; empty if they are not integers."""
    sizes = list(size) if isinstance(size, (list, tuple)) else [size]
    if not all(isinstance(n, numbers.Integral) for n in sizes):
        return []
    return [int(n) for n in sizes] if min(sizes, default=0) > 0 else []


def _fits(shape: tuple, wanted: tuple) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(
        m == n or None in (m, n) for m, n in pairs
    )

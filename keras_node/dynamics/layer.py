"""A Keras layer as dynamics."""

import threading
from collections.abc import Hashable
from collections.abc import Sequence

import keras
from keras import ops

from keras_node import input_checks
from keras_node import pytree
from keras_node.dynamics import makeup
from keras_node.dynamics import precision
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree

# Several threads may call a new layer. Only one at a time builds it.
_building = threading.RLock()


def arguments(
    t: Tensor, y: State, context: Sequence, time_dependent: bool
) -> Tree:
    """Makes the input of `dynamics`: `y`, or a list of `t`, `y` and context."""
    times = [t] if time_dependent else []
    return [*times, y, *context] if times or context else y


def symbolic_call(layer: keras.layers.Layer, inputs: Tree) -> Tree:
    """Calls a layer on symbolic tensors, which builds it."""
    if not (isinstance(layer, keras.Sequential) and isinstance(inputs, list)):
        return layer(inputs)
    # Keras 3.15 neither builds nor calls a `Sequential` on a list of inputs.
    # Its layers cast what they compute with; it would round float64, too.
    layer.autocast = False
    outputs = inputs
    for inner in layer.layers:
        outputs = symbolic_call(inner, outputs)
    layer.build([x.shape for x in inputs])
    return outputs


def build(
    layer: keras.layers.Layer,
    y: keras.KerasTensor,
    context: Sequence = (),
    time_dependent: bool = False,
) -> None:
    """Builds a layer, and checks that it returns the slope of states like `y`.

    A symbolic call builds every kind of layer; `layer.build` would miss
    subclasses without a `build` of their own.
    """
    t = keras.KerasTensor((*y.shape[:-1], 1), dtype=y.dtype)
    inputs = arguments(t, y, context, time_dependent)

    def call(inputs):
        try:
            return symbolic_call(layer, inputs)
        except NotImplementedError:
            # Keras cannot infer the shape, as for a PyTorch module. Each
            # evaluation checks the slope anyway.
            return y

    with _building:
        dy = input_checks.call_dynamics("dynamics", call, inputs)
    input_checks.require_slope("dynamics", dy, y.shape)


class LayerDynamics:
    """Dynamics that a layer computes.

    Args:
        layer: A built Keras layer whose output has the shape of the state.
        time_dependent: Boolean, whether the layer takes the time.
        training: Boolean or `None`, passed on to the layer.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        time_dependent: bool = False,
        training: bool | None = None,
    ):
        self._layer = layer
        self._time_dependent = time_dependent
        self._training = training
        self.trainable = list(layer.trainable_variables)
        self.frozen = list(layer.non_trainable_variables)
        self.draws = training is not False and bool(self.frozen)
        self.eps = precision.of_layer(layer)
        self.time = _time_like if time_dependent else _no_time

    def identity(self, *key: Hashable) -> object | None:
        """Finds the object that stands for what the layer computes now."""
        key = (self._training, self._time_dependent, *key)
        return makeup.identity(self._layer, *key)

    def __call__(self, t: Tensor, y: State, context: Sequence) -> State:
        inputs = arguments(t, y, context, self._time_dependent)
        dy = self._layer(inputs, training=self._training)
        # A layer built for another shape may return a slope that broadcasts.
        input_checks.require_slope("dynamics", dy, tuple(y.shape))
        return ops.cast(dy, y.dtype)


def _time_like(t: Scalar, y: State) -> Tensor:
    """Makes the time `(batch, ..., 1)` for a state `(batch, ..., n)`."""
    t = pytree.expand(ops.convert_to_tensor(t, y.dtype), y)
    return t + ops.zeros((*ops.shape(y)[:-1], 1), dtype=y.dtype)


def _no_time(t: Scalar, y: State) -> tuple:
    return ()

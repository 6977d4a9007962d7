"""A Keras layer as a pure function."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

# Keras has no public way to read a variable as it is stored.
from keras.src.backend import AutocastScope

from keras_node import backend
from keras_node import call_checks
from keras_node import precision
from keras_node import structure


def arguments(t: Any, y: Any, context: Sequence, time_dependent: bool) -> Any:
    """What `dynamics` is called with: `y`, or a list of what there is."""
    times = [t] if time_dependent else []
    return [*times, y, *context] if times or context else y


def symbolic_call(layer: keras.layers.Layer, inputs: Any) -> Any:
    """Calls a layer on symbolic tensors, and so builds it."""
    if not (isinstance(layer, keras.Sequential) and isinstance(inputs, list)):
        return layer(inputs)
    # Keras 3.15 builds no `Sequential` from a list of inputs, nor calls it.
    outputs = inputs
    for inner in layer.layers:
        outputs = symbolic_call(inner, outputs)
    layer.build([x.shape for x in inputs])
    return outputs


class VectorField:
    """The right-hand side `f(t, y, params, frozen)` that a layer defines.

    The function reads no variable: the values of all variables of the layer
    are its arguments. Non-trainable ones (moving statistics, the seeds of
    random draws) keep their value during a solve: every evaluation sees the
    same dropout mask, or the right-hand side would be noise that no error
    control could follow. Context is constant too: floats are parameters, with
    a gradient, all else is frozen.

    Args:
        dynamics: A built Keras layer whose output has the shape of the state.
        context: Tensors that are handed to every evaluation.
        dtype: That of the state, and so of the gradients.
        time_dependent: Boolean, whether the layer takes the time.
        training: Boolean, passed on to the layer.
    """

    def __init__(
        self,
        dynamics: keras.layers.Layer,
        context: Sequence,
        dtype: str,
        time_dependent: bool = False,
        training: bool = False,
    ):
        self._dynamics = dynamics
        self._dtype = dtype
        self._time_dependent = time_dependent
        self._training = training
        self._trainable = dynamics.trainable_variables
        self._frozen = dynamics.non_trainable_variables
        # What the solver asks for: in which precision this is computed.
        self.eps = precision.of_layer(dynamics)
        self._adds_losses = False
        random = training and self._frozen
        self._draws = backend.same_draws() if random else contextlib.nullcontext
        with AutocastScope(None):
            self._dtypes = [v.dtype for v in self._trainable]
        self._context = context
        self._differentiable = [
            keras.backend.is_float_dtype(u.dtype) for u in context
        ]
        self._identity = None
        if not random:
            key = (training, time_dependent, dtype, *self._differentiable)
            self._identity = backend.identity(dynamics, key)

    def identity(self) -> Any:
        """What tells this function from others; `None` if nothing does."""
        return self._identity

    @property
    def params(self) -> tuple[list, list]:
        """The values that gradients flow to: of weights, and of context."""
        values = (_values(self._trainable), self._part_of_context(True))
        return tuple([ops.cast(x, self._dtype) for x in xs] for xs in values)

    @property
    def frozen(self) -> tuple[list, list]:
        """The values that stay as they are: of variables, and of context."""
        return _values(self._frozen), self._part_of_context(False)

    def _part_of_context(self, differentiable: bool) -> list:
        pairs = zip(self._context, self._differentiable, strict=True)
        return [u for u, is_float in pairs if is_float == differentiable]

    def __call__(self, t: Any, y: Any, params: tuple, frozen: tuple) -> Any:
        weights, floats = params
        state, others = frozen
        mapping = [
            *zip(
                self._trainable,
                map(ops.cast, weights, self._dtypes),
                strict=True,
            ),
            *zip(self._frozen, state, strict=True),
        ]
        floats, others = iter(floats), iter(others)
        context = [
            next(floats if is_float else others)
            for is_float in self._differentiable
        ]
        # What the layer writes stays in the scope, and is dropped with it.
        scope = keras.StatelessScope(mapping, collect_losses=True)
        with self._draws(), scope:
            dy = self._evaluate(t, y, context)
        self._adds_losses |= bool(scope.losses)
        # Built for another shape, it may be another now: it would broadcast.
        call_checks.slope("dynamics", dy, tuple(y.shape))
        return ops.cast(dy, y.dtype)

    def _evaluate(self, t: Any, y: Any, context: Sequence) -> Any:
        if self._time_dependent:
            shape = (*ops.shape(y)[:-1], 1)
            t = structure.expand(t, y) + ops.zeros(shape, dtype=y.dtype)
        inputs = arguments(t, y, context, self._time_dependent)
        return self._dynamics(inputs, training=self._training)

    def advance(self, t: Any, y: Any) -> None:
        """Lets the layer do once, from the start `y`, what it does in a call.

        This is where seeds move on, moving statistics are updated, and losses
        added: after the solve, which tells whether there are any.
        """
        if (self._training and self._frozen) or self._adds_losses:
            t = ops.convert_to_tensor(t, y.dtype)
            self._evaluate(t, y, self._context)


def _values(variables: list) -> list:
    # Under a mixed policy Keras hands out half-precision copies; the gradients
    # are integrated in the precision of the weights.
    with AutocastScope(None):
        return [v.value for v in variables]

"""A Keras layer as a pure function."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

# Keras has no public way to read a variable as it is stored.
from keras.src.backend import AutocastScope

from keras_node import backend
from keras_node import call_checks
from keras_node import makeup
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
    """The right-hand side that a layer defines, and the values that it reads.

    As `function` it is `f(t, y, params, frozen)`, which reads its arguments
    alone. Among them are the values of all variables that the layer reads, its
    own and others, and the tensors that it holds by an attribute or a closure.
    In `params` are those with a gradient: trainable variables, context of
    floats, tensors that may depend on what a gradient is taken by. All else is
    `frozen`: every evaluation sees the same dropout mask, or the right-hand
    side would be noise that no error control could follow.

    Args:
        dynamics: A built Keras layer whose output has the shape of the state.
        context: Tensors that are handed to every evaluation.
        y: A state. The layer is evaluated there once, to see what it reads.
        time_dependent: Boolean, whether the layer takes the time.
        training: Boolean or `None`, passed on to the layer.

    Raises:
        ValueError: If the layer reads what cannot be made an argument, makes
            variables in a call, or returns no slope of the state.
    """

    def __init__(
        self,
        dynamics: keras.layers.Layer,
        context: Sequence,
        y: Any,
        time_dependent: bool = False,
        training: bool | None = None,
    ):
        self._dynamics = dynamics
        self._context = context
        self._time_dependent = time_dependent
        self._training = training
        self._trainable = list(dynamics.trainable_variables)
        self._frozen = list(dynamics.non_trainable_variables)
        self._differentiable = [
            keras.backend.is_float_dtype(u.dtype) for u in context
        ]
        self._moves = False
        self._strangers = {}
        dtype = keras.backend.standardize_dtype(y.dtype)
        for _ in range(3):  # one may be read because of another
            try:
                hoisted = self._look(y, dtype)
            except ValueError:
                # A variable that is no argument yet may be to blame.
                if not self._strangers:
                    raise
            if not self._strangers:
                break
            self._adopt_strangers()
        else:
            raise ValueError(
                "`dynamics` must make its variables when it is built, and not "
                f"in a call. Received: {self._strangers.values()}"
            )
        self.params = (*self._params(dtype), _cast(hoisted.floats, dtype))
        self.frozen = (*self._frozen_values(), hoisted.others)
        dtypes = [x.dtype for x in hoisted.floats]
        eps = precision.of_layer(dynamics)
        self.function = _Function(hoisted, dtypes, time_dependent, eps)

    def _look(self, y: Any, dtype: str) -> backend.Hoisted:
        """Makes all that an evaluation reads an argument."""
        key = (self._training, self._time_dependent, *self._differentiable)
        identity = makeup.identity(self._dynamics, dtype, *key)
        # Layers of Keras's own that neither draw nor move read nothing else
        # than their own variables.
        calm = self._training is False or not self._frozen
        t = _time_like(0.0, y) if self._time_dependent else ()
        args = (t, y, self._params(dtype), self._frozen_values())
        closed = calm and identity is not None
        # A variable itself says `floatx` where nothing is cast.
        values = _values(self._trainable)
        self._dtypes = [
            keras.backend.standardize_dtype(x.dtype) for x in values
        ]
        with backend.full_products():  # as in the solve
            return backend.hoist(self._slope, args, identity, closed)

    def _adopt_strangers(self) -> None:
        """Makes variables that are not of the layer, but read, arguments."""
        for variable in self._strangers.values():
            known = self._trainable if variable.trainable else self._frozen
            known.append(variable)
        self._strangers = {}

    def _params(self, dtype: str) -> tuple[list, list]:
        """The values of weights, and of context."""
        weights, floats = _values(self._trainable), self._part_of_context(True)
        return _cast(weights, dtype), _cast(floats, dtype)

    def _frozen_values(self) -> tuple[list, list]:
        """The values of variables, and of context."""
        return _values(self._frozen), self._part_of_context(False)

    def _part_of_context(self, differentiable: bool) -> list:
        pairs = zip(self._context, self._differentiable, strict=True)
        return [u for u, is_float in pairs if is_float == differentiable]

    def _slope(self, t: Any, y: Any, params: tuple, frozen: tuple) -> Any:
        """Calls the layer with these values, and drops what it writes."""
        (weights, floats), (state, others) = params, frozen
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
        with _Scope(mapping, self._strangers) as scope:
            dy = self._evaluate(t, y, context)
        self._moves |= scope.moves
        # Built for another shape, it may be another now: it would broadcast.
        call_checks.slope("dynamics", dy, tuple(y.shape))
        return ops.cast(dy, y.dtype)

    def _evaluate(self, t: Any, y: Any, context: Sequence) -> Any:
        inputs = arguments(t, y, context, self._time_dependent)
        return self._dynamics(inputs, training=self._training)

    def advance(self, t: Any, y: Any) -> None:
        """Lets the layer do once, from the start `y`, what it does in a call.

        This is where seeds move on, moving statistics are updated, and losses
        added, if there are any.
        """
        if self._moves:
            t = _time_like(t, y) if self._time_dependent else ()
            self._evaluate(t, y, self._context)


class _Function:
    """`f(t, y, params, frozen)`. It does not keep the layer alive."""

    def __init__(
        self,
        hoisted: backend.Hoisted,
        dtypes: list,
        time_dependent: bool,
        eps: float,
    ):
        # What the solver asks for: in which precision this is computed.
        self.eps = eps
        self._f = hoisted.f
        self._identity = hoisted.identity and (hoisted.identity, eps)
        self._dtypes = dtypes
        self._time_dependent = time_dependent

    def identity(self) -> Any:
        """What tells this function from others; `None` if nothing does."""
        return self._identity

    def __call__(self, t: Any, y: Any, params: tuple, frozen: tuple) -> Any:
        *params, floats = params
        *frozen, others = frozen
        floats = list(map(ops.cast, floats, self._dtypes))
        t = _time_like(t, y) if self._time_dependent else ()
        return self._f((t, y, tuple(params), tuple(frozen)), floats, others)


class _Scope(keras.StatelessScope):
    """Notes which variables are read that have no value here.

    What a layer writes stays in the scope, and is dropped with it.
    """

    def __init__(self, mapping: list, strangers: dict):
        super().__init__(mapping, collect_losses=True)
        # As they are: Keras may have cast them.
        self.state_mapping.update({id(k): v for k, v in mapping})
        self._start = dict(self.state_mapping)
        self._strangers = strangers

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        if value is None:
            self._strangers[id(variable)] = variable
            if self.original_scope:  # Keras's own, around the block
                value = self.original_scope.get_current_value(variable)
        return value

    @property
    def moves(self) -> bool:
        """Whether a variable was written, or a loss added."""
        return bool(self.losses) or any(
            value is not self._start.get(key)
            for key, value in self.state_mapping.items()
        )


def _time_like(t: Any, y: Any) -> Any:
    """The time for a state `(batch, ..., n)`: `(batch, ..., 1)`."""
    t = structure.expand(ops.convert_to_tensor(t, y.dtype), y)
    return t + ops.zeros((*ops.shape(y)[:-1], 1), dtype=y.dtype)


def _cast(xs: list, dtype: str) -> list:
    return [ops.cast(x, dtype) for x in xs]


def _values(variables: list) -> list:
    # Under a mixed policy Keras hands out half-precision copies; the gradients
    # are integrated in the precision of the weights.
    with AutocastScope(None):
        return [v.value for v in variables]

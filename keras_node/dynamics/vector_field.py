"""A Keras layer as a pure function."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_node import backend
from keras_node import input_checks
from keras_node import pytree
from keras_node.backend import _private
from keras_node.dynamics import makeup
from keras_node.dynamics import precision
from keras_node.dynamics.scope import RecordingScope
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


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
    outputs = inputs
    for inner in layer.layers:
        outputs = symbolic_call(inner, outputs)
    layer.build([x.shape for x in inputs])
    return outputs


class VectorField:
    """Right-hand side that a layer defines, and the values that it reads.

    Its `function` is `f(t, y, params, frozen)`, which reads its arguments
    alone. They hold the values of all variables that the layer reads, its own
    and others, and the tensors that it holds by an attribute or a closure.
    `params` are those with a gradient: trainable variables, float context, and
    tensors that may depend on the inputs of a gradient. `frozen` are all
    others. Every evaluation sees the same dropout mask: otherwise the
    right-hand side would be noise that no error control could follow.

    Args:
        dynamics: A built Keras layer whose output has the shape of the state.
        context: Tensors that are handed to every evaluation.
        y: A state. The layer is evaluated there once, to see what it reads.
        time_dependent: Boolean, whether the layer takes the time.
        training: Boolean or `None`, passed on to the layer.

    Raises:
        ValueError: If the layer reads a tensor that cannot be an argument,
            makes variables in a call, or returns no slope of the state.
    """

    def __init__(
        self,
        dynamics: keras.layers.Layer,
        context: Sequence,
        y: State,
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
        self._strangers: dict[int, keras.Variable] = {}
        dtype = keras.backend.standardize_dtype(y.dtype)
        for _ in range(3):  # a variable may be read because of another
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

    def _look(self, y: State, dtype: str) -> backend.Hoisted:
        """Makes arguments of all that an evaluation reads."""
        key = (self._training, self._time_dependent, *self._differentiable)
        identity = makeup.identity(self._dynamics, dtype, *key)
        # Keras's own layers read only their own variables, if they neither
        # draw nor move.
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
        """Makes arguments of variables that are read but not the layer's."""
        for variable in self._strangers.values():
            known = self._trainable if variable.trainable else self._frozen
            known.append(variable)
        self._strangers = {}

    def _params(self, dtype: str) -> tuple[list, list]:
        """Reads the values of the weights and of float context."""
        weights, floats = _values(self._trainable), self._part_of_context(True)
        return _cast(weights, dtype), _cast(floats, dtype)

    def _frozen_values(self) -> tuple[list, list]:
        """Reads the values of the other variables and of other context."""
        return _values(self._frozen), self._part_of_context(False)

    def _part_of_context(self, differentiable: bool) -> list:
        pairs = zip(self._context, self._differentiable, strict=True)
        return [u for u, is_float in pairs if is_float == differentiable]

    def _slope(
        self, t: Tensor, y: State, params: tuple, frozen: tuple
    ) -> State:
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
        with RecordingScope(mapping, self._strangers) as scope:
            dy = self._evaluate(t, y, context)
        self._moves |= scope.moves
        # A layer built for another shape may return a slope that broadcasts.
        input_checks.require_slope("dynamics", dy, tuple(y.shape))
        return ops.cast(dy, y.dtype)

    def _evaluate(self, t: Tensor, y: State, context: Sequence) -> State:
        inputs = arguments(t, y, context, self._time_dependent)
        return self._dynamics(inputs, training=self._training)

    def advance(self, t: Scalar, y: State) -> None:
        """Calls the layer once at the start `y`, for its side effects, if any.

        Here seeds move on, moving statistics are updated and losses are
        added.
        """
        if self._moves:
            t = _time_like(t, y) if self._time_dependent else ()
            self._evaluate(t, y, self._context)


class _Function:
    """Function `f(t, y, params, frozen)`. It does not keep the layer alive."""

    def __init__(
        self,
        hoisted: backend.Hoisted,
        dtypes: list,
        time_dependent: bool,
        eps: float,
    ):
        # The precision of the function, which solvers ask for.
        self.eps = eps
        self._f = hoisted.f
        # A hashable, equal if the functions are; or None: see `backend.values`.
        self.value_key = hoisted.identity and (hoisted.identity, eps)
        self._dtypes = dtypes
        self._time_dependent = time_dependent

    def __call__(
        self, t: Scalar, y: State, params: tuple, frozen: tuple
    ) -> State:
        *weights, floats = params
        *states, others = frozen
        floats = list(map(ops.cast, floats, self._dtypes))
        t = _time_like(t, y) if self._time_dependent else ()
        return self._f((t, y, tuple(weights), tuple(states)), floats, others)


def _time_like(t: Scalar, y: State) -> Tensor:
    """Makes the time `(batch, ..., 1)` for a state `(batch, ..., n)`."""
    t = pytree.expand(ops.convert_to_tensor(t, y.dtype), y)
    return t + ops.zeros((*ops.shape(y)[:-1], 1), dtype=y.dtype)


def _cast(xs: list, dtype: str) -> list:
    return [ops.cast(x, dtype) for x in xs]


def _values(variables: list) -> list:
    # Under a mixed policy Keras hands out half-precision copies; the gradients
    # are integrated in the precision of the weights.
    with _private.AutocastScope(None):
        return [v.value for v in variables]

"""Dynamics as a pure function."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from typing import Protocol

import keras
from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.backend import _private
from keras_node.dynamics.scope import RecordingScope
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor


class Dynamics(Protocol):
    """What a right-hand side is made of: a layer, or a function.

    `trainable` and `frozen` are the variables that are known to be read, `eps`
    is the precision if it is coarser than the state's. `time` maps the time
    and the state to the time that the dynamics are called with.
    """

    trainable: list[keras.Variable]
    frozen: list[keras.Variable]
    eps: float
    draws: bool  # whether random numbers may be drawn, or variables written
    time: Callable

    def identity(self, *key: Hashable) -> object | None:
        """Finds the object that stands for what is computed now, or `None`."""

    def __call__(self, t: Tensor, y: State, context: Sequence) -> State:
        """Computes the slope."""


class VectorField:
    """Right-hand side of some dynamics, and the values that they read.

    Its `function` is `f(t, y, params, frozen)`, which reads its arguments
    alone. They hold the values of all variables that the dynamics read, and
    the tensors that they hold by an attribute or a closure.
    `params` are those with a gradient: trainable variables, float context, and
    tensors that may depend on the inputs of a gradient. `frozen` are all
    others. Every evaluation sees the same dropout mask: otherwise the
    right-hand side would be noise that no error control could follow.

    Args:
        dynamics: The `Dynamics`.
        context: Tensors that are handed to every evaluation.
        y: A state. The dynamics are evaluated there once, to see what they
            read.

    Raises:
        ValueError: If the dynamics read a tensor that cannot be an argument,
            make variables in a call, or return no slope of the state.
    """

    def __init__(self, dynamics: Dynamics, context: Sequence, y: State):
        self._dynamics = dynamics
        self._context = context
        self._trainable = list(dynamics.trainable)
        self._frozen = list(dynamics.frozen)
        self._differentiable = [
            keras.backend.is_float_dtype(u.dtype) for u in context
        ]
        self._moves = False
        self._strangers: dict[int, keras.Variable] = {}
        dtype = keras.backend.standardize_dtype(pytree.leaves(y)[0].dtype)
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
        self.function = _Function(hoisted, dtypes, dynamics.time, dynamics.eps)

    def _look(self, y: State, dtype: str) -> backend.Hoisted:
        """Makes arguments of all that an evaluation reads."""
        identity = self._dynamics.identity(dtype, *self._differentiable)
        t = self._dynamics.time(0.0, y)
        args = (t, y, self._params(dtype), self._frozen_values())
        # Keras's own layers read only their own variables, if they neither
        # draw nor move.
        closed = not self._dynamics.draws and identity is not None
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
        """Evaluates the dynamics at these values, and drops what they write."""
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
            dy = self._dynamics(t, y, context)
        self._moves |= scope.moves
        return dy

    def advance(self, t: Scalar, y: State) -> None:
        """Evaluates the dynamics once, for their side effects, if any.

        Here seeds move on, moving statistics are updated and losses are
        added.
        """
        if self._moves:
            self._dynamics(self._dynamics.time(t, y), y, self._context)


class _Function:
    """Function `f(t, y, params, frozen)`. It keeps no layer alive."""

    def __init__(
        self,
        hoisted: backend.Hoisted,
        dtypes: list,
        time: Callable,
        eps: float,
    ):
        # The precision of the function, which solvers ask for.
        self.eps = eps
        self._f = hoisted.f
        # A hashable, equal if the functions are; or None: see `backend.values`.
        self.value_key = hoisted.identity and (hoisted.identity, eps)
        self._dtypes = dtypes
        self._time = time

    def __call__(
        self, t: Scalar, y: State, params: tuple, frozen: tuple
    ) -> State:
        *weights, floats = params
        *states, others = frozen
        floats = list(map(ops.cast, floats, self._dtypes))
        args = (self._time(t, y), y, tuple(weights), tuple(states))
        return self._f(args, floats, others)


def _cast(xs: list, dtype: str) -> list:
    return [ops.cast(x, dtype) for x in xs]


def _values(variables: list) -> list:
    # Under a mixed policy Keras hands out half-precision copies; the gradients
    # are integrated in the precision of the weights.
    with _private.AutocastScope(None):
        return [v.value for v in variables]

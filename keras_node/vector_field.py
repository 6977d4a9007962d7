"""A Keras layer as a pure function."""

from typing import Any

import keras
from keras import ops

# Keras has no public way to read a variable as it is stored.
from keras.src.backend import AutocastScope

from keras_node import checks


class VectorField:
    """The right-hand side `f(t, y, params, frozen)` that a layer defines.

    The function reads no variable: the values of all variables of the layer
    are its arguments. Non-trainable ones (moving statistics, the seeds of
    random draws) keep their value during a solve: every evaluation sees the
    same dropout mask, or the right-hand side would be noise that no error
    control could follow.

    Args:
        dynamics: A built Keras layer whose output has the shape of its input.
        dtype: That of the state, and so of the gradients.
        training: Boolean, passed on to the layer.
    """

    def __init__(
        self, dynamics: keras.layers.Layer, dtype: str, training: bool = False
    ):
        self._dynamics = dynamics
        self._dtype = dtype
        self._training = training
        self._trainable = dynamics.trainable_variables
        self._frozen = dynamics.non_trainable_variables
        with AutocastScope(None):
            self._dtypes = [v.dtype for v in self._trainable]

    @property
    def params(self) -> list:
        """The values that gradients flow to."""
        return [ops.cast(x, self._dtype) for x in _values(self._trainable)]

    @property
    def frozen(self) -> list:
        """The values that stay as they are."""
        return _values(self._frozen)

    def __call__(self, t: Any, y: Any, params: list, frozen: list) -> Any:
        params = map(ops.cast, params, self._dtypes)
        mapping = [
            *zip(self._trainable, params, strict=True),
            *zip(self._frozen, frozen, strict=True),
        ]
        # What the layer writes stays in the scope, and is dropped with it.
        with keras.StatelessScope(state_mapping=mapping):
            dy = self._dynamics(y, training=self._training)
        # Built for another shape, it may be another now: it would broadcast.
        checks.slope("dynamics", dy, tuple(y.shape))
        return ops.cast(dy, y.dtype)

    def advance(self, y: Any) -> None:
        """Lets the layer update its own state, once, from the start `y`.

        This is where seeds move on and moving statistics are updated, as in a
        plain call of the layer.
        """
        if self._training and self._frozen:
            self._dynamics(y, training=True)


def _values(variables: list) -> list:
    # Under a mixed policy Keras hands out half-precision copies; the gradients
    # are integrated in the precision of the weights.
    with AutocastScope(None):
        return [v.value for v in variables]

"""Dynamics of a mechanical system, by its energy."""

from typing import Any

import keras
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node.config import register
from keras_node.dynamics.layer import arguments
from keras_node.dynamics.layer import symbolic_call
from keras_node.dynamics.smoothness import check_samples_apart
from keras_node.dynamics.smoothness import warn_of_kinks
from keras_node.types import Tensor


@register
class Hamiltonian(keras.layers.Layer):
    """Layer that turns a network's energy into the slope of a state.

    The first half of the last axis of the state are the positions `q`, the
    second half the momenta `p`. The network computes the energy `H(q, p)`. The
    layer returns `[dH/dp, -dH/dq]`, by automatic differentiation. As dynamics
    of an `ODEBlock` it keeps the energy constant, to the tolerance of the
    solver: use `"tsit5"`, or `"leapfrog"` if `H` is a sum `T(p) + V(q)`.

    Args:
        potential: A Keras layer or model that maps the state to the energy of
            each sample, of shape `(batch, 1)` or `(batch,)`, or a list of
            layers, which becomes a `keras.Sequential`. It must treat each
            sample by itself, and have second derivatives: `"tanh"` or
            `"softplus"`, but not `"relu"`.
        time_dependent: Boolean, whether the layer and `potential` are called
            with the time. Defaults to `False`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: The state, or a list: `[t, y]`, `[y, u, ...]` or
            `[t, y, u, ...]`, as dynamics are called. `potential` gets the
            same.
        training: Boolean or `None`, passed on to `potential`.

    Input shape:
        `(batch, ..., 2 n)`, or a list of it and others.

    Output shape:
        The shape of the state.

    Raises:
        ValueError: If `potential` is not as described, or the last axis of the
            state is odd.

    Example:
    >>> energy = [keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
    >>> block = keras_node.ODEBlock(
    ...     keras_node.layers.Hamiltonian(energy), solver="tsit5"
    ... )
    >>> tuple(block(np.ones((8, 2))).shape)
    (8, 2)

    Reference:
        - [Greydanus, Dzamba, Yosinski, 2019](
          https://arxiv.org/abs/1906.01563)
    """

    def __init__(
        self,
        potential: keras.layers.Layer | list,
        time_dependent: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        # `potential` casts for itself: the gradient keeps the state's dtype.
        self.autocast = False
        self.potential = checks.as_layer("potential", potential)
        self.time_dependent = checks.boolean("time_dependent", time_dependent)

    def build(self, inputs_shape: tuple | list) -> None:
        shapes = input_checks.shapes("inputs", inputs_shape)
        shape = shapes[self._place(shapes)]
        if len(shape) < 2 or shape[-1] is None or shape[-1] % 2:
            raise ValueError(
                "`inputs` must have a state of shape `(batch, ..., 2 n)`, `n` "
                f"positions and their `n` momenta. Received: shape {shape}"
            )
        given = [keras.KerasTensor(x, dtype=self.compute_dtype) for x in shapes]
        energy = input_checks.call_dynamics(
            "potential",
            lambda inputs: symbolic_call(self.potential, inputs),
            given if len(given) > 1 else given[0],
        )
        _check_energy(energy)
        check_samples_apart("potential", self.potential)
        warn_of_kinks("potential", self.potential)

    def _place(self, inputs: list) -> int:
        """Finds the place of the state in a list of inputs."""
        place = int(self.time_dependent)
        if len(inputs) > place:
            return place
        raise ValueError(
            "`inputs` must be a list `[t, y, ...]` for a `time_dependent` "
            f"energy. Received: {len(inputs)} tensors"
        )

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        several = isinstance(inputs, (list, tuple))
        given = list(inputs) if several else [inputs]
        place = self._place(given)
        t = given[0] if place else None
        y, *context = given[place:]

        def energy(y):
            inputs = arguments(t, y, context, self.time_dependent)
            found = self.potential(inputs, training=training)
            _check_energy(found)
            return ops.sum(ops.reshape(ops.cast(found, y.dtype), (-1,)))

        one = ops.ones((), dtype=y.dtype)
        _, (gradient,) = backend.vjp(energy, (y,), one)
        dq, dp = ops.split(gradient, 2, axis=-1)
        return ops.concatenate([dp, -dq], axis=-1)

    def compute_output_shape(self, inputs_shape: tuple | list) -> tuple:
        shapes = input_checks.shapes("inputs", inputs_shape)
        return tuple(shapes[self._place(shapes)])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "potential": keras.saving.serialize_keras_object(self.potential),
            "time_dependent": self.time_dependent,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Hamiltonian":
        config = dict(config)
        config["potential"] = keras.saving.deserialize_keras_object(
            config["potential"]
        )
        return cls(**config)


def _check_energy(energy: Any) -> None:
    shape = tuple(energy.shape)
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        raise ValueError(
            "`potential` must return the energy of each sample, of shape "
            f"`(batch, 1)`. Received: {input_checks.described(energy)}"
        )

"""The layer inside a flow, which moves samples and their log-density."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import input_checks
from keras_node.dynamics.carried import LogDensity
from keras_node.dynamics.carried import Penalties
from keras_node.dynamics.smoothness import check_samples_apart
from keras_node.dynamics.smoothness import warn_of_kinks
from keras_node.layers.base import ODELayer
from keras_node.times.given import Times
from keras_node.types import Tensor


class Transport(ODELayer):
    """Layer that moves samples along a flow, with their log-determinant.

    The arguments are documented in `ContinuousFlow`.

    Call arguments:
        inputs: The samples, or a list of the samples and the condition.
        training: Boolean or `None`, passed on to `dynamics`. If it is `True`,
            the penalties are added to the losses.
        inverse: Boolean, whether to go from `t1` to `t0`.
        divergence: `"exact"`, `"hutchinson"`, or `None` to leave it out.

    Output shape:
        A pair: the shape of the samples, and `(batch,)`; or the first alone
        if `divergence` is `None`.
    """

    def __init__(
        self,
        dynamics: keras.layers.Layer | list,
        num_probes: int,
        noise: str,
        seed: int | None,
        penalties: Penalties,
        **kwargs: Any,
    ):
        super().__init__(dynamics, **kwargs)
        self._num_probes = num_probes
        self._noise = noise
        self._penalties = penalties
        self._back = Times(np.array(self.t_span[::-1]), None, 0.0)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, inputs_shape: tuple | list) -> None:  # type: ignore[override]
        shape, *_ = input_checks.shapes("inputs", inputs_shape)
        if None in shape[1:]:
            raise ValueError(
                "`inputs` must have a shape that is known beside the batch. "
                f"Received: shape {shape}"
            )
        check_samples_apart("dynamics", self.dynamics)
        super().build(inputs_shape)
        warn_of_kinks("dynamics", self.dynamics)

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        inverse: bool = False,
        divergence: str | None = "exact",
    ) -> Tensor | tuple[Tensor, Tensor]:
        given, context = input_checks.inputs_to(
            "inputs", inputs, self._num_inputs
        )
        y0, context = self._prepared(given, context)
        carried = None
        if divergence is not None:
            probes = () if divergence == "exact" else self._probes(y0)
            penalties = self._penalties if training else Penalties()
            # Training can do without; a density that is told cannot.
            carried = LogDensity(penalties, probes, 1 if training else 2)
        span = self._back if inverse else self._span
        solution = self._solve(y0, context, training, carried, span, True)
        if self.stats is not None:
            self.stats.update(solution)
        solution.check(t_span=tuple(span.values.tolist()))
        if carried is None:
            return solution.y1
        if any(carried.penalties):
            loss = carried.loss(solution)
            self.add_loss(ops.cast(loss, keras.config.floatx()))
        return solution.y1, solution.integral[0]

    def _probes(self, y: Tensor) -> Tensor:
        """Draws the probes of one solve."""
        shape, seed = (self._num_probes, *ops.shape(y)), self.seed_generator
        if self._noise == "gaussian":
            return keras.random.normal(shape, dtype=y.dtype, seed=seed)
        bits = keras.random.randint(shape, 0, 2, seed=seed)
        return ops.cast(2 * bits - 1, y.dtype)

    def compute_output_spec(
        self,
        inputs: Any,
        training: bool | None = None,
        inverse: bool = False,
        divergence: str | None = "exact",
    ) -> Any:
        y, _ = input_checks.inputs_to("inputs", inputs, self._num_inputs)
        y1 = keras.KerasTensor(y.shape, dtype=self._state_dtype)
        if divergence is None:
            return y1
        return y1, keras.KerasTensor(y.shape[:1], dtype=self._state_dtype)

"""Base of the layers that solve an ODE: arguments, build, times, config."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node import registry
from keras_node.adjoints.base import Adjoint
from keras_node.backend import _private
from keras_node.dynamics import precision
from keras_node.dynamics.layer import LayerDynamics
from keras_node.dynamics.layer import build
from keras_node.dynamics.vector_field import VectorField
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.layers.counted import Counted
from keras_node.problem import Problem
from keras_node.problem import check_jumps
from keras_node.problem import check_solver
from keras_node.problem import finest_rtol
from keras_node.problem import methods
from keras_node.problem import solve
from keras_node.times import given
from keras_node.times.elapsed import at_ends
from keras_node.times.elapsed import check
from keras_node.times.elapsed import start_of
from keras_node.times.given import Times
from keras_node.types import Tensor


class ODELayer(Counted):
    """Base class of the layers that solve `dy/dt = dynamics(y)`.

    A subclass defines `call`, which turns the solution into an output. The
    arguments are documented in `ODEBlock`.
    """

    autocast: bool
    # The quantity integrated beside the state: see `dynamics.carried`.
    carried: Any = None

    def __init__(
        self,
        dynamics: keras.layers.Layer | list,
        t_span: tuple[float, float] = (0.0, 1.0),
        t_eval: Sequence[float] | None = None,
        solver: str | Solver = "dormand_prince",
        adjoint: str | Adjoint = "backsolve",
        rtol: float | None = None,
        atol: float | None = None,
        time_dependent: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        # `solve` casts in place of Keras, which would round times too.
        self._casts_inputs = bool(self.autocast)
        self.autocast = False
        checks.float_dtype("dtype", self.compute_dtype)
        self.supports_masking = True
        self._num_inputs: int | None = None  # known when it is built
        self.dynamics = checks.as_layer("dynamics", dynamics)
        self.t_span = checks.time_span("t_span", t_span)
        self._span = Times(np.array(self.t_span), None, 0.0)
        self.t_eval = None
        if t_eval is not None:
            self.t_eval = self._constant_times(t_eval)
        self.solver, self.adjoint = methods(solver, adjoint, rtol, atol)
        self.time_dependent = checks.boolean("time_dependent", time_dependent)

    def build(
        self,
        inputs_shape: tuple | list = (),
        t_eval_shape: tuple | None = None,
        t_span_shape: tuple | None = None,
        t_eval_mask_shape: tuple | None = None,
        jump_times_shape: tuple | None = None,
    ) -> None:
        shapes = input_checks.shapes("inputs", inputs_shape)
        y, *context = [
            keras.KerasTensor(shape, dtype=self.compute_dtype)
            for shape in shapes
        ]
        build(self.dynamics, y, context, self.time_dependent)
        self._num_inputs = len(shapes)
        precision.warn_below(
            finest_rtol(self.solver, self.adjoint), self.dynamics
        )

    @backend.uncompiled
    def solve(
        self,
        inputs: Any,
        t_eval: Any = None,
        training: bool | None = None,
        t_span: Any = None,
        t_eval_mask: Any = None,
        jump_times: Any = None,
    ) -> Solution:
        """Integrates `inputs` and returns the whole `Solution`.

        Args:
            inputs: Float tensor of shape `(batch, ...)`, the state at `t0`, or
                a list of this tensor and the context.
            t_eval: Times to report, as in a call, or `None` for the times of
                the layer.
            training: Boolean, passed on to `dynamics`.
            t_span: The interval, as in a call, or `None` for that of the layer.
            t_eval_mask: The mask of the times, as in a call.
            jump_times: The times of jumps, as in a call.

        Returns:
            A `keras_node.Solution`. It holds the final state `y1`, the counters
            `num_evals`, `num_steps` and `num_accepted`, and `success`. With
            `t_eval` it holds the states `ys` of shape `(T, batch, ...)`, also
            for times of each sample. With
            `kinetic_regularizer` it holds the energy of each sample as
            `integral`. A failed solve does not raise.
        """
        y0, context = input_checks.inputs_to("inputs", inputs, self._num_inputs)
        if t_eval is not None:
            input_checks.unmasked("inputs", y0)
        for name, value in (
            ("t_eval", t_eval),
            ("t_span", t_span),
            ("t_eval_mask", t_eval_mask),
            ("jump_times", jump_times),
        ):
            input_checks.not_symbolic(name, value)
        span, *times = self._times(
            y0.shape, t_eval, t_span, t_eval_mask, jump_times
        )
        fixed = span is self._span
        y0, context = self._prepared(y0, context)
        return self._solve(
            y0, context, training, self.carried, span, fixed, *times
        )

    def _prepared(self, y0: Tensor, context: list) -> tuple[Tensor, list]:
        """Checks and casts the inputs, and builds the layer if need be."""
        for tensor in (y0, *context):
            input_checks.not_symbolic("inputs", tensor)
        if not self.built:
            self.build([tuple(x.shape) for x in (y0, *context)])
        y0, *context = map(_without_mask, (y0, *context))
        y0 = ops.cast(y0, self._state_dtype)
        if self._casts_inputs:
            context = [_cast_floats(u, self.compute_dtype) for u in context]
        return y0, context

    @backend.uncompiled
    def _solve(
        self,
        y0: Tensor,
        context: list,
        training: bool | None,
        carried: Any,
        span: Times,
        fixed: bool,
        times: Times | None = None,
        mask: Any = None,
        jumps: Times | None = None,
    ) -> Solution:
        """Solves a problem of the dynamics: see `Problem`."""
        training = input_checks.as_training("training", training)
        dynamics = LayerDynamics(self.dynamics, self.time_dependent, training)
        field = VectorField(dynamics, context, y0)
        problem = Problem(field, y0, span, fixed, times, mask, jumps)
        solution = solve(problem, self.solver, self.adjoint, carried)
        field.advance(start_of(span, self._state_dtype), y0)
        return solution

    @property
    def _state_dtype(self) -> str:
        return precision.of_state(self.compute_dtype)

    def _times(
        self,
        shape: tuple,
        t_eval: Any,
        t_span: Any,
        t_eval_mask: Any,
        jump_times: Any = None,
    ) -> tuple[Times, Times | None, Any, Times | None]:
        """Checks the interval, the times, their mask and the jumps, as far as
        known.
        """
        batch, span, mask, jumps = shape[0], self._span, None, None
        if t_span is not None:
            span = given.span_of_call("t_span", t_span, batch)
        if jump_times is not None:
            jumps = given.jumps_of_call("jump_times", jump_times, batch)
            check_jumps(self.solver)
        t_eval = self.t_eval if t_eval is None else t_eval
        if t_eval is None:
            if t_eval_mask is not None:
                raise ValueError(
                    "`t_eval_mask` goes with `t_eval`, and there is none. "
                    f"Received: t_eval_mask={t_eval_mask!r}"
                )
            return span, None, None, jumps
        times = given.of_call("t_eval", t_eval, batch)
        if t_eval_mask is not None:
            mask = given.mask_of_call("t_eval_mask", t_eval_mask, times, batch)
        check("t_eval", t_eval, times, span, self._state_dtype, mask)
        check_solver(self.solver, times, span)
        return span, times, mask, jumps

    def _constant_times(self, t_eval: Any) -> list:
        """Checks the times that the layer is made with."""
        times = given.of_call("t_eval", t_eval, None)
        if len(times.shape) > 1 or times.values is None:
            raise ValueError(
                "`t_eval` of a layer must be a vector of known times; times of "
                f"each sample belong in the call. Received: t_eval={t_eval!r}"
            )
        dtype = self._state_dtype
        check("t_eval", t_eval, times, self._span, dtype, None)
        return at_ends(times, self._span, dtype).tolist()

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "dynamics": serialize(self.dynamics),
            "t_span": list(self.t_span),
            "t_eval": self.t_eval,
            "solver": serialize(self.solver),
            "adjoint": serialize(self.adjoint),
            "time_dependent": self.time_dependent,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ODELayer":
        config = dict(config)
        config["dynamics"] = registry.get(
            "dynamics", config.get("dynamics"), {}, keras.layers.Layer
        )
        return cls(**config)


def _cast_floats(x: Any, dtype: str) -> Tensor:
    x = ops.convert_to_tensor(x)
    return ops.cast(x, dtype) if keras.backend.is_float_dtype(x.dtype) else x


def _without_mask(x: Any) -> Tensor:
    # The first evaluation gets the very tensor that the layer was called with,
    # and would see a mask that the others do not.
    x = ops.convert_to_tensor(x)
    return x if _private.mask_of(x) is None else ops.copy(x)

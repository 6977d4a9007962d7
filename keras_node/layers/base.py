"""Base of the layers that solve an ODE: arguments, build, times, config."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import adjoints
from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node import pytree
from keras_node import registry
from keras_node import solvers
from keras_node.adjoints.base import Adjoint
from keras_node.backend import _private
from keras_node.dynamics import precision
from keras_node.dynamics.vector_field import VectorField
from keras_node.dynamics.vector_field import arguments
from keras_node.dynamics.vector_field import symbolic_call
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.layers import times
from keras_node.types import State
from keras_node.types import Tensor

# Several threads may call a new layer. Only one at a time builds it.
_building = threading.RLock()


class ODELayer(keras.layers.Layer):
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
        # `callbacks.SolverStats` counts here while it is in use.
        self.stats: Any = None
        self.dynamics = checks.as_layer("dynamics", dynamics)
        self.t_span = checks.time_span("t_span", t_span)
        self.t_eval = None
        if t_eval is not None:
            known = self._checked(t_eval, known=True)
            self.t_eval = known.values.tolist()
        tolerances = {"rtol": rtol, "atol": atol}
        given = {k: v for k, v in tolerances.items() if v is not None}
        self.solver = solvers.get(solver, **given)
        self.adjoint = adjoints.get(adjoint)
        self.time_dependent = checks.boolean("time_dependent", time_dependent)
        if self.adjoint.needs_steps and not self.solver.keeps_steps:
            names = [
                name for name, cls in solvers.ALL.items() if cls.keeps_steps
            ]
            raise ValueError(
                f"`adjoint` {self.adjoint} needs a `solver` that keeps a "
                f"record of its steps: one of {names}. "
                f"Received: solver={self.solver}"
            )

    def build(
        self, inputs_shape: tuple | list = (), t_eval_shape: tuple | None = None
    ) -> None:
        shapes = input_checks.shapes("inputs", inputs_shape)
        y, *context = [
            keras.KerasTensor(shape, dtype=self.compute_dtype)
            for shape in shapes
        ]
        t = keras.KerasTensor((*y.shape[:-1], 1), dtype=self.compute_dtype)
        inputs = arguments(t, y, context, self.time_dependent)

        # A symbolic call builds every kind of layer; `dynamics.build` would
        # miss subclasses without a `build` of their own.
        def call(inputs):
            try:
                return symbolic_call(self.dynamics, inputs)
            except NotImplementedError:
                # Keras cannot infer the shape, as for a PyTorch module. Each
                # evaluation checks the slope anyway.
                return y

        with _building:
            dy = input_checks.call_dynamics("dynamics", call, inputs)
        input_checks.require_slope("dynamics", dy, y.shape)
        self._num_inputs = len(shapes)
        precision.warn_below(self._finest_rtol, self.dynamics)

    @property
    def _finest_rtol(self) -> float:
        """Smallest `rtol` of the forward and backward solves, or infinity."""
        solves = (self.solver, getattr(self.adjoint, "solver", None))
        return min(getattr(solver, "rtol", math.inf) for solver in solves)

    @property
    def variables(self) -> list:
        # Variables and not metrics: on JAX a layer cannot update a metric.
        counters = [] if self.stats is None else self.stats.variables
        return [*super().variables, *counters]

    @backend.uncompiled
    def solve(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Solution:
        """Integrates `inputs` and returns the whole `Solution`.

        Args:
            inputs: Float tensor of shape `(batch, ...)`, the state at `t0`, or
                a list of this tensor and the context.
            t_eval: Times to report, as in a call, or `None` for the times of
                the layer.
            training: Boolean, passed on to `dynamics`.

        Returns:
            A `keras_node.Solution`. It holds the final state `y1`, the counters
            `num_evals`, `num_steps` and `num_accepted`, and `success`. With
            `t_eval` it holds the states `ys` of shape `(T, batch, ...)`. With
            `kinetic_regularizer` it holds the energy of each sample as
            `integral`. A failed solve does not raise.
        """
        y0, context = input_checks.inputs_to("inputs", inputs, self._num_inputs)
        if t_eval is not None:
            input_checks.unmasked("inputs", y0)
        for tensor in (y0, *context):
            input_checks.not_symbolic("inputs", tensor)
        input_checks.not_symbolic("t_eval", t_eval)
        training = input_checks.as_training("training", training)
        if not self.built:
            self.build([tuple(x.shape) for x in (y0, *context)])
        y0, *context = map(_without_mask, (y0, *context))
        y0 = ops.cast(y0, self._state_dtype)
        if self._casts_inputs:
            context = [_cast_floats(u, self.compute_dtype) for u in context]
        s_eval, order = self._times_in_order(t_eval)
        field = VectorField(
            self.dynamics, context, y0, self.time_dependent, training
        )
        solution = self._integrate(field, y0, s_eval)
        field.advance(self.t_span[0], y0)
        if s_eval is None:
            return solution
        back = ops.argsort(order)
        return solution._replace(ys=ops.take(solution.ys, back, axis=0))

    def _integrate(
        self, field: VectorField, y0: State, s_eval: Tensor | None
    ) -> Solution:
        f, norm = field.function, None
        if self.carried is not None:
            t0, t1 = self.t_span
            f = self.carried.field(f, math.copysign(1.0, t1 - t0))
            y0 = self.carried.start(y0)
            # The carried quantity must not affect the steps.
            norm = pytree.RmsNorm(self.solver.per_sample, num_parts=1)
        solution = self.adjoint.integrate(
            self.solver,
            f,
            *self.t_span,
            y0,
            field.params,
            field.frozen,
            s_eval,
            norm,
        )
        return self.carried.split(solution) if self.carried else solution

    @property
    def _state_dtype(self) -> str:
        # Half precision cannot hold a time step.
        dtype = self.compute_dtype
        return dtype if dtype in ("float32", "float64") else "float32"

    def _times_in_order(
        self, t_eval: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns the elapsed times to report, sorted, and their order."""
        t_eval = self.t_eval if t_eval is None else t_eval
        if t_eval is None:
            return None, None
        s = self._checked(t_eval).elapsed(self.t_span, self._state_dtype)
        if isinstance(s, np.ndarray):
            order = np.argsort(s, kind="stable").astype("int32")
            s, order = s[order], ops.convert_to_tensor(order)
            return ops.convert_to_tensor(s, self._state_dtype), order
        order = ops.argsort(s)
        return ops.take(s, order), order

    def _checked(self, t_eval: Any, known: bool = False) -> times.Times:
        return times.within(
            "t_eval", t_eval, self.t_span, self._state_dtype, known
        )

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

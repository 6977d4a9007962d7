"""The layer: arguments, build, call, config."""

import functools
import math
import threading
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_node import adjoints
from keras_node import backend
from keras_node import call_checks
from keras_node import checks
from keras_node import kinetic_energy
from keras_node import precision
from keras_node import solvers
from keras_node import structure
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.solution import Solution
from keras_node.times import Times
from keras_node.times import given
from keras_node.vector_field import VectorField
from keras_node.vector_field import arguments
from keras_node.vector_field import symbolic_call

# Of threads that call a block for the first time, the first one builds it.
_building = threading.RLock()


@keras.saving.register_keras_serializable(package="keras_node")
class ODEBlock(keras.layers.Layer):
    """Integrates a network as the right-hand side of a differential equation.

    Returns `y(t1)`, where `dy/dt = dynamics(y)` and `y(t0) = inputs`, or the
    states at the times `t_eval`. The dynamics can depend on time too, and on
    context that stays the same during a solve.

    The step size is shared by the batch, unless the solver is `per_sample`: it
    is chosen so that the error of the whole batch is within the tolerances.

    A solve that does not reach `t1` (a NaN in the input, dynamics that blow
    up, too many steps) never returns a partial result: in compiled code
    (`fit`, `evaluate`, `predict`) the output is NaN, in an eager call
    `keras_node.SolverError` says what happened.

    Args:
        dynamics: A Keras layer or model whose output has the shape of the
            state, or a list of layers, which becomes a `keras.Sequential`. It
            is called with the state, or with a list of all there is of
            `[t, y, u, ...]`. Gradients flow to what it reads besides, by an
            attribute or a closure, too. To share its weights between two
            places of a model, call one `ODEBlock` twice; Keras cannot load a
            model in which two blocks hold one network.
        t_span: Pair of floats `(t0, t1)`, at most `1e30` in size; `t1 < t0`
            integrates backwards. It may lie far from 0, as Unix seconds do:
            what counts is the time since `t0`. Dynamics that are called with
            the time, however, get it in the dtype of the state, and float32
            tells no seconds apart there: shift time so that it starts at 0.
            Defaults to `(0.0, 1.0)`.
        t_eval: Sequence of floats within `t_span`, in any order, the times to
            report the state at instead of `y(t1)` alone, or `None`. A time
            that is an end of `t_span` but for rounding is that end. Defaults
            to `None`.
        solver: A `keras_node.solvers.Solver` or its name. Defaults to
            `"dormand_prince"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name; how gradients are
            computed. Defaults to `"backsolve"`.
        rtol: Float, relative tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        atol: Float, absolute tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        time_dependent: Boolean, whether `dynamics` is called with the time,
            as a tensor of shape `(batch, ..., 1)`: that of the state, but for
            its last axis. Defaults to `False`.
        kinetic_regularizer: Float, or `None` for 0. The factor of a penalty
            on the kinetic energy of the solve, the integral of
            `|dynamics(y)|^2` between `t0` and `t1`, summed over a sample and
            averaged over the batch, which `add_loss` adds to the loss in each
            call. It makes the dynamics simpler to solve. Defaults to `None`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor of shape `(batch, ...)`, the state at `t0`, or a
            list `[y0, u, ...]` with context `u, ...`: tensors of any shape
            and dtype that every evaluation of `dynamics` gets. Gradients flow
            to those of floats; others `dynamics` must cast.
        t_eval: Times to report in place of the layer's own: a sequence, an
            array, a variable or a tensor of shape `(T,)`. `t0` is subtracted
            from floats of Python and NumPy, from whole numbers and from
            tensors of float64 in that precision; JAX makes float32 of them in
            compiled code, as long as float64 is not enabled. In compiled code,
            the state at a time outside `t_span` is NaN.
        training: Boolean or `None`, passed on to `dynamics`. Whatever it is,
            what is random in them (dropout) is drawn once per call, and their
            non-trainable state (moving statistics) is updated once per call,
            from `inputs`, where their losses (`add_loss`,
            `activity_regularizer`) are taken too.

    Input shape:
        `(batch, ...)`, or a list of it and the shapes of the context.

    Output shape:
        The shape of the state; with `t_eval`, `(batch, T, ...)`. A mask of the
        state is passed on, except with `t_eval`; `dynamics` does not see it.

    Raises:
        ValueError: If an argument is not as described, the dtype of `t_eval`
            does not tell times within `t_span` apart, `dynamics` changes the
            shape of the state or returns no floats, the state has integers,
            or `adjoint` needs a record of the steps and `solver` keeps none.
        keras_node.SolverError: If a solve fails in an eager call.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     [keras.layers.Dense(16, "tanh"), keras.layers.Dense(4)]
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), t_eval=[0.0, 0.5, 1.0], solver="tsit5"
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 3, 4)

    Dynamics that depend on time and on context:

    >>> block = keras_node.ODEBlock(
    ...     [keras.layers.Concatenate(), keras.layers.Dense(4)],
    ...     time_dependent=True,
    ... )
    >>> tuple(block([np.ones((8, 4)), np.ones((8, 3))]).shape)
    (8, 4)

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366)
        - [Finlay et al., 2020](https://arxiv.org/abs/2002.02798), for
          `kinetic_regularizer`
    """

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
        kinetic_regularizer: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        # Keras would round times, too: what else there is, `solve` casts.
        self._casts_inputs, self.autocast = self.autocast, False
        checks.float_dtype("dtype", self.compute_dtype)
        self.supports_masking = True
        self._num_inputs = None  # known when it is built
        # `callbacks.SolverStats` sees the solutions here, while it is in use.
        self.observer = None
        self.dynamics = checks.network("dynamics", dynamics)
        self.t_span = checks.time_span("t_span", t_span)
        self.t_eval = None
        if t_eval is not None:
            times = self._checked(t_eval, known=True)
            self.t_eval = times.values.tolist()
        tolerances = {"rtol": rtol, "atol": atol}
        given = {k: v for k, v in tolerances.items() if v is not None}
        self.solver = solvers.get(solver, **given)
        self.adjoint = adjoints.get(adjoint)
        self.time_dependent = checks.boolean("time_dependent", time_dependent)
        self.kinetic_regularizer = kinetic_regularizer
        if kinetic_regularizer is not None:
            self.kinetic_regularizer = checks.factor(
                "kinetic_regularizer", kinetic_regularizer
            )
        if self.adjoint.checkpoints and not self.solver.records:
            names = [name for name, cls in solvers.ALL.items() if cls.records]
            raise ValueError(
                f"`adjoint` {self.adjoint} needs a `solver` that keeps a "
                f"record of its steps: one of {names}. "
                f"Received: solver={self.solver}"
            )

    def build(
        self, inputs_shape: tuple | list = (), t_eval_shape: tuple | None = None
    ) -> None:
        shapes = call_checks.shapes("inputs", inputs_shape)
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
                # Keras cannot tell the shape, as of a module of PyTorch's.
                # Each evaluation is looked at, too.
                return y

        with _building:
            dy = call_checks.answer("dynamics", call, inputs)
        call_checks.slope("dynamics", dy, y.shape)
        self._num_inputs = len(shapes)
        precision.warn_below(self._finest_rtol, self.dynamics)

    @property
    def _finest_rtol(self) -> float:
        """That of the solves forward and backward; infinite without any."""
        solves = (self.solver, getattr(self.adjoint, "solver", None))
        return min(getattr(solver, "rtol", math.inf) for solver in solves)

    def __call__(self, inputs: Any, t_eval: Any = None, **kwargs: Any) -> Any:
        if t_eval is not None:
            if given(t_eval) is None:
                self._checked(t_eval)  # before Keras stumbles over it
            kwargs["t_eval"] = _unrounded(t_eval, inputs)
        return super().__call__(inputs, **kwargs)

    def call(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Any:
        solution = self.solve(inputs, t_eval=t_eval, training=training)
        if self.observer is not None:
            self.observer.update(solution)
        solution.check(t_span=self.t_span)
        if self.kinetic_regularizer:
            energy = solution.integral
            size = ops.cast(ops.maximum(ops.shape(energy)[0], 1), energy.dtype)
            loss = self.kinetic_regularizer * ops.sum(energy) / size
            self.add_loss(ops.cast(loss, keras.config.floatx()))
        if t_eval is None and self.t_eval is None:
            output = solution.y1
        else:
            output = ops.moveaxis(solution.ys, 0, 1)
        return ops.cast(output, self.compute_dtype)

    @property
    def variables(self) -> list:
        # Variables and not metrics: on JAX a layer cannot update a metric.
        observed = [] if self.observer is None else self.observer.variables
        return [*super().variables, *observed]

    @backend.uncompiled
    def solve(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Solution:
        """Integrates `inputs` and returns all that is known of the solve.

        Args:
            inputs: Float tensor of shape `(batch, ...)`, the state at `t0`, or
                a list of it and the context.
            t_eval: Times to report, as at a call, or `None` for those of the
                layer.
            training: Boolean, passed on to `dynamics`.

        Returns:
            A `keras_node.solution.Solution`: the final state `y1`, with
            `t_eval` the states `ys` of shape `(T, batch, ...)`, the counters
            `num_evals`, `num_steps`, `num_accepted`, and `success`; with
            `kinetic_regularizer`, the energy of each sample as `integral`. It
            does not raise when the solve has failed.
        """
        y0, context = call_checks.inputs_to("inputs", inputs, self._num_inputs)
        if t_eval is not None:
            call_checks.unmasked("inputs", y0)
        for tensor in (y0, *context):
            call_checks.not_symbolic("inputs", tensor)
        call_checks.not_symbolic("t_eval", t_eval)
        training = call_checks.flag("training", training)
        if not self.built:
            self.build([tuple(x.shape) for x in (y0, *context)])
        y0, *context = map(_without_mask, (y0, *context))
        y0 = ops.cast(y0, self._state_dtype)
        if self._casts_inputs:
            context = [_cast_floats(u, self.compute_dtype) for u in context]
        times, order = self._times(t_eval)
        field = VectorField(
            self.dynamics, context, y0, self.time_dependent, training
        )
        solution = self._integrate(field, y0, times)
        field.advance(self.t_span[0], y0)
        if times is None:
            return solution
        back = ops.argsort(order)
        return solution._replace(ys=ops.take(solution.ys, back, axis=0))

    def _integrate(self, field: VectorField, y0: Any, times: Any) -> Solution:
        t0, t1 = self.t_span
        solve = functools.partial(
            self.adjoint.integrate,
            self.solver,
            t0=t0,
            t1=t1,
            params=field.params,
            frozen=field.frozen,
            s_eval=times,
        )
        if not self.kinetic_regularizer:
            return solve(f=field.function, y0=y0)
        solution = solve(
            f=kinetic_energy.Along(field.function, math.copysign(1.0, t1 - t0)),
            y0=kinetic_energy.start(y0),
            # The energy has no say.
            norm=structure.RmsNorm(self.solver.per_sample, num_parts=1),
        )
        return kinetic_energy.split(solution)

    @property
    def _state_dtype(self) -> str:
        # Half precision cannot hold a time step.
        dtype = self.compute_dtype
        return dtype if dtype in ("float32", "float64") else "float32"

    def _times(self, t_eval: Any) -> tuple[Any, Any]:
        """The times to report, elapsed and in order, and that order."""
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

    def _checked(self, t_eval: Any, known: bool = False) -> Times:
        return checks.times_within(
            "t_eval", t_eval, self.t_span, self._state_dtype, known
        )

    def compute_output_shape(
        self, inputs_shape: tuple | list, t_eval_shape: tuple | None = None
    ) -> tuple:
        shape, *_ = call_checks.shapes("inputs", inputs_shape)
        if t_eval_shape is None and self.t_eval is not None:
            t_eval_shape = (len(self.t_eval),)
        return (*shape[:1], *(t_eval_shape or ()), *shape[1:])

    def compute_output_spec(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Any:
        y0, _ = call_checks.inputs_to("inputs", inputs, self._num_inputs)
        if t_eval is not None:
            call_checks.unmasked("inputs", y0)
        call_checks.flag("training", training)
        t_eval_shape = None
        if t_eval is not None:
            t_eval_shape = tuple(self._checked(t_eval).values.shape)
        shape = self.compute_output_shape(y0.shape, t_eval_shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        # Neither the times to report nor `dynamics` have a place in a mask.
        if self.t_eval is not None:
            return None
        if isinstance(previous_mask, (list, tuple)):
            return previous_mask[0]
        return previous_mask

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
            "kinetic_regularizer": self.kinetic_regularizer,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ODEBlock":
        config = dict(config)
        config["dynamics"] = checks.lookup(
            "dynamics", config.get("dynamics"), {}, keras.layers.Layer
        )
        return cls(**config)


def _unrounded(t_eval: Any, inputs: Any) -> Any:
    """Times in a form that Keras does not touch before a call.

    From arrays it makes tensors, on JAX of float32 and int32.
    """
    if ops.is_tensor(t_eval) or isinstance(t_eval, keras.KerasTensor):
        return t_eval
    times = given(t_eval)
    if any(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs)):
        # A functional model keeps, and saves, what it is made with; of a
        # variable it reads the value in each call.
        fixed = times and times.known and not isinstance(t_eval, keras.Variable)
        return times.values.tolist() if fixed else t_eval
    return times or t_eval


def _cast_floats(x: Any, dtype: str) -> Any:
    x = ops.convert_to_tensor(x)
    return ops.cast(x, dtype) if keras.backend.is_float_dtype(x.dtype) else x


def _without_mask(x: Any) -> Any:
    """The tensor; a copy if a mask is attached to it.

    The first evaluation gets the very tensor that the block was called with,
    and would see a mask that the others do not.
    """
    x = ops.convert_to_tensor(x)
    return x if getattr(x, "_keras_mask", None) is None else ops.copy(x)

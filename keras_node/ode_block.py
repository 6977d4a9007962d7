"""The layer: arguments, build, call, config."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_node import adjoints
from keras_node import checks
from keras_node import solvers
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.solution import Solution
from keras_node.vector_field import VectorField


@keras.saving.register_keras_serializable(package="keras_node")
class ODEBlock(keras.layers.Layer):
    """Integrates a network as the right-hand side of a differential equation.

    Returns `y(t1)`, where `dy/dt = dynamics(y)` and `y(t0) = inputs`, or the
    states at the times `t_eval`.

    The step size is shared by the batch, unless the solver is `per_sample`: it
    is chosen so that the error of the whole batch is within the tolerances.

    A solve that does not reach `t1` (a NaN in the input, dynamics that blow
    up, too many steps) never returns a partial result: in compiled code
    (`fit`, `evaluate`, `predict`) the output is NaN, in an eager call
    `keras_node.SolverError` says what happened.

    Args:
        dynamics: A Keras layer or model whose output has the shape of its
            input, or a list of layers, which becomes a `keras.Sequential`. To
            share its weights between two places of a model, call one
            `ODEBlock` twice; Keras cannot load a model in which two blocks
            hold one network.
        t_span: Pair of floats `(t0, t1)`; `t1 < t0` integrates backwards.
            Defaults to `(0.0, 1.0)`.
        t_eval: Sequence of floats within `t_span`, in any order, the times to
            report the state at instead of `y(t1)` alone, or `None`. Defaults
            to `None`.
        solver: A `keras_node.solvers.Solver` or its name. Defaults to
            `"dormand_prince"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name; how gradients are
            computed. Defaults to `"backsolve"`.
        rtol: Float, relative tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        atol: Float, absolute tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor of shape `(batch, ...)`, the state at `t0`.
        t_eval: Tensor of shape `(T,)`, times to report in place of the
            layer's own. In compiled code, the state at a time outside `t_span`
            is NaN.
        training: Boolean, passed on to `dynamics`. What is random in it
            (dropout) is drawn once per call, and its non-trainable state
            (moving statistics) is updated once per call, from `inputs`.

    Input shape:
        `(batch, ...)`.

    Output shape:
        The input shape; with `t_eval`, `(batch, T, ...)`.

    Raises:
        ValueError: If an argument is not as described, `dynamics` changes the
            shape of its input, `inputs` are integers, or `adjoint` needs a
            record of the steps and `solver` keeps none.
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

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366)
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
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # `callbacks.SolverStats` sees the solutions here, while it is in use.
        self.observer = None
        self.dynamics = checks.network("dynamics", dynamics)
        self.t_span = checks.time_span("t_span", t_span)
        self.t_eval = checks.times_within("t_eval", t_eval, self.t_span)
        tolerances = {"rtol": rtol, "atol": atol}
        given = {k: v for k, v in tolerances.items() if v is not None}
        self.solver = solvers.get(solver, **given)
        self.adjoint = adjoints.get(adjoint)
        if self.adjoint.checkpoints and not self.solver.records:
            names = [name for name, cls in solvers.ALL.items() if cls.records]
            raise ValueError(
                f"`adjoint` {self.adjoint} needs a `solver` that keeps a "
                f"record of its steps: one of {names}. "
                f"Received: solver={self.solver}"
            )

    def build(
        self, inputs_shape: tuple, t_eval_shape: tuple | None = None
    ) -> None:
        state = keras.KerasTensor(inputs_shape, dtype=self.compute_dtype)
        # A symbolic call builds every kind of layer; `dynamics.build` would
        # miss subclasses without a `build` of their own.
        slope = self.dynamics(state)
        shape = getattr(slope, "shape", None)
        if shape is None or tuple(shape) != tuple(inputs_shape):
            raise ValueError(
                "`dynamics` must return one tensor of the shape of its input. "
                f"Received: input shape {tuple(inputs_shape)}, output shape "
                f"{shape if shape is None else tuple(shape)}"
            )

    def call(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Any:
        solution = self.solve(inputs, t_eval=t_eval, training=training)
        if self.observer is not None:
            self.observer.update(solution)
        solution.check()
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

    def solve(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Solution:
        """Integrates `inputs` and returns all that is known of the solve.

        Args:
            inputs: Float tensor of shape `(batch, ...)`, the state at `t0`.
            t_eval: Tensor of shape `(T,)`, times to report, or `None` for
                those of the layer.
            training: Boolean, passed on to `dynamics`.

        Returns:
            A `keras_node.solution.Solution`: the final state `y1`, with
            `t_eval` the states `ys` of shape `(T, batch, ...)`, the counters
            `num_evals`, `num_steps`, `num_accepted`, and `success`. It does
            not raise when the solve has failed.
        """
        y0 = ops.convert_to_tensor(inputs)
        _check_float(y0)
        if not self.built:
            self.build(y0.shape)
        # Half precision cannot hold a time step.
        half = keras.backend.standardize_dtype(self.compute_dtype) in (
            "float16",
            "bfloat16",
        )
        dtype = "float32" if half else self.compute_dtype
        y0 = ops.cast(y0, dtype)
        times, order = self._times(t_eval, dtype)
        field = VectorField(self.dynamics, bool(training))
        params, frozen = field.params, field.frozen
        field.advance(y0)
        solution = self.adjoint.integrate(
            self.solver, field, *self.t_span, y0, params, frozen, times
        )
        if times is None:
            return solution
        back = ops.argsort(order)
        return solution._replace(ys=ops.take(solution.ys, back, axis=0))

    def _times(self, t_eval: Any, dtype: str) -> tuple[Any, Any]:
        """The times to report in the order of integration, and that order."""
        times = self.t_eval if t_eval is None else t_eval
        if times is None:
            return None, None
        times = ops.convert_to_tensor(times, dtype)
        if t_eval is not None:  # the layer's own are checked already
            checks.times_to_report("t_eval", times, self.t_span)
        t0, t1 = self.t_span
        order = ops.argsort(times if t1 > t0 else -times)
        return ops.take(times, order), order

    def compute_output_shape(
        self, inputs_shape: tuple, t_eval_shape: tuple | None = None
    ) -> tuple:
        if t_eval_shape is None and self.t_eval is not None:
            t_eval_shape = (len(self.t_eval),)
        return (*inputs_shape[:1], *(t_eval_shape or ()), *inputs_shape[1:])

    def compute_output_spec(
        self, inputs: Any, t_eval: Any = None, training: bool | None = None
    ) -> Any:
        _check_float(inputs)
        shape = self.compute_output_shape(
            inputs.shape, None if t_eval is None else tuple(t_eval.shape)
        )
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "dynamics": serialize(self.dynamics),
            "t_span": list(self.t_span),
            "t_eval": self.t_eval,
            "solver": serialize(self.solver),
            "adjoint": serialize(self.adjoint),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ODEBlock":
        config = dict(config)
        config["dynamics"] = keras.saving.deserialize_keras_object(
            config["dynamics"]
        )
        return cls(**config)


def _check_float(inputs: Any) -> None:
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "`inputs` must be a tensor of floats: cast it before the block. "
            f"Received: dtype {dtype}"
        )

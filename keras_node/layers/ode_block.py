"""The public layer: call, masks and shapes."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_node import checks
from keras_node import input_checks
from keras_node.adjoints.base import Adjoint
from keras_node.backend import _private
from keras_node.config import register
from keras_node.dynamics.carried import KineticEnergy
from keras_node.integration.solver import Solver
from keras_node.layers.base import ODELayer
from keras_node.times import given
from keras_node.types import Tensor


@register
class ODEBlock(ODELayer):
    """Layer that integrates a network as the right-hand side of an ODE.

    Returns `y(t1)`, where `dy/dt = dynamics(y)` and `y(t0) = inputs`, or the
    states at the times `t_eval`. The dynamics can also depend on time, and on
    context that stays the same during a solve.

    The batch shares one step size, unless the solver is `per_sample`. The step
    size keeps the error of the whole batch within the tolerances.

    A solve that does not reach `t1` (a NaN in the input, dynamics that blow
    up, too many steps) never returns a partial result. In compiled code
    (`fit`, `evaluate`, `predict`) the output is NaN. An eager call raises
    `keras_node.SolverError`, which says what happened.

    Args:
        dynamics: A Keras layer or model whose output has the shape of the
            state, or a list of layers, which becomes a `keras.Sequential`. It
            is called with the state `y`. With the time or context it is called
            with a list: `[t, y]`, `[y, u, ...]` or `[t, y, u, ...]`. Gradients
            also flow to tensors that it reads by an attribute or a closure. To
            share its weights between two places of a model, call one
            `ODEBlock` twice: Keras cannot load a model in which two blocks
            hold one network.
        t_span: Pair of floats `(t0, t1)`, at most `1e30` in size. `t1 < t0`
            integrates backwards. The times may be far from 0, as Unix seconds
            are: the solver counts the time since `t0`. Dynamics that are
            called with the time, however, get it in the dtype of the state.
            float32 cannot tell Unix seconds apart: shift time so that it
            starts at 0. Defaults to `(0.0, 1.0)`.
        t_eval: Sequence of floats within `t_span`, in any order, or `None`.
            The layer reports the state at these times instead of `y(t1)`
            alone. A time that misses an end of `t_span` by rounding counts as
            that end. Defaults to `None`.
        solver: A `keras_node.solvers.Solver` or its name. Defaults to
            `"dormand_prince"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name. It computes the
            gradients. Defaults to `"backsolve"`.
        rtol: Float, relative tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        atol: Float, absolute tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        time_dependent: Boolean, whether `dynamics` is called with the time,
            as a tensor of shape `(batch, ..., 1)`: the shape of the state, but
            with a last axis of size 1. Defaults to `False`.
        kinetic_regularizer: Float, or `None` for 0. The factor of a penalty
            on the kinetic energy of the solve. The energy is the integral of
            `|dynamics(y)|^2` between `t0` and `t1`, summed over a sample and
            averaged over the batch. Each call adds the penalty to the loss, by
            `add_loss`. It makes the dynamics simpler to solve. Defaults to
            `None`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor of shape `(batch, ...)`, the state at `t0`, or a
            list `[y0, u, ...]` with context `u, ...`: tensors of any shape
            and dtype that every evaluation of `dynamics` gets. Gradients flow
            to float context. `dynamics` must cast context of other dtypes.
        t_eval: Times to report in place of the layer's own, in any order: a
            sequence, an array, a variable, a tensor or a `keras.Input`, of
            shape `(T,)`, or of shape `(batch, T)` for times of each sample.
            `t0` is subtracted in float64 from Python and NumPy floats, from
            integers and from float64 tensors. In compiled code JAX makes
            float32 of them, unless float64 is enabled. In compiled code the
            state at a time outside `t_span` is NaN. A gradient flows to float
            tensors: the cotangent of the state times its slope there,
            `dynamics(y(t))`, with every adjoint.
        training: Boolean or `None`, passed on to `dynamics`. For every value,
            random numbers in `dynamics` (dropout) are drawn once per call.
            Non-trainable state (moving statistics) is updated once per call,
            from `inputs`. Losses (`add_loss`, `activity_regularizer`) are also
            taken once per call, at `inputs`.
        t_span: The ends `(t0, t1)` in place of the layer's own, in the forms
            of `t_eval`: of shape `(2,)`, or of shape `(batch, 2)` for an
            interval of each sample. Intervals may run forwards, backwards or
            be empty: an empty one returns its input. Samples that share their
            steps cross their intervals in the same number of steps. With a
            `per_sample` solver they do not affect each other. Gradients flow
            to the ends.
        t_eval_mask: Boolean tensor of shape `(batch, T)`, or `None`. Where it
            is `False`, the time may be anything, NaN too. The output is 0
            there, and no gradient flows. The output carries the mask. A mask
            that Keras has attached to `t_eval` counts.
        jump_times: Times at which the dynamics may jump, in the forms of
            `t_eval`: of shape `(J,)`, or of shape `(batch, J)` for times of
            each sample. Adaptive steps end there, and the slope is taken anew.
            Without it, a jump inside a step goes unseen by the error
            estimate. A step that ends at a jump sees the dynamics before it,
            the next one those after it. Samples that share their steps stop at
            the jumps of all of them. A time outside the interval does nothing,
            nor does NaN. Gradients flow to the times; of several at the same
            time, to one of them. It needs `"tsit5"`, `"dopri5"` or `"bosh3"`.

    Input shape:
        `(batch, ...)`, or a list of it and the shapes of the context.

    Output shape:
        The shape of the state, or `(batch, T, ...)` with `t_eval`. A mask of
        the state is passed on, except with `t_eval`. `dynamics` does not see
        the mask.

    Raises:
        ValueError: If an argument is not as described, if the dtype of
            `t_eval` does not tell times within `t_span` apart, if `dynamics`
            changes the shape of the state or returns no floats, if the state
            has integers, if `adjoint` needs a record of the steps and `solver`
            keeps none, or if samples have times of their own and `solver` is
            TensorFlow Probability's.
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

    Times and intervals of each sample:

    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", adjoint="discrete"
    ... )
    >>> times = np.random.uniform(size=(8, 5))
    >>> tuple(block(np.ones((8, 4)), t_eval=times).shape)
    (8, 5, 4)
    >>> spans = np.random.uniform(size=(8, 2))
    >>> tuple(block(np.ones((8, 4)), t_span=spans).shape)
    (8, 4)

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
        super().__init__(
            dynamics,
            t_span,
            t_eval,
            solver,
            adjoint,
            rtol,
            atol,
            time_dependent,
            **kwargs,
        )
        self.kinetic_regularizer = kinetic_regularizer
        if kinetic_regularizer is not None:
            self.kinetic_regularizer = checks.non_negative(
                "kinetic_regularizer", kinetic_regularizer
            )
        if self.kinetic_regularizer:
            self.carried = KineticEnergy(self.kinetic_regularizer)

    def __call__(
        self,
        inputs: Any,
        t_eval: Any = None,
        t_span: Any = None,
        t_eval_mask: Any = None,
        jump_times: Any = None,
        **kwargs: Any,
    ) -> Any:
        if t_eval_mask is None:
            t_eval_mask = _private.mask_of(t_eval)
        times = {"t_eval": t_eval, "t_span": t_span, "jump_times": jump_times}
        for name, value in times.items():
            if value is not None:
                if given.given(value) is None:
                    self._times((None,), **times, t_eval_mask=None)  # raises
                kwargs[name] = _unrounded(value, inputs)
        if t_eval_mask is not None:
            kwargs["t_eval_mask"] = t_eval_mask
        return super().__call__(inputs, **kwargs)

    def call(
        self,
        inputs: Any,
        t_eval: Any = None,
        training: bool | None = None,
        t_span: Any = None,
        t_eval_mask: Any = None,
        jump_times: Any = None,
    ) -> Tensor:
        solution = self.solve(
            inputs, t_eval, training, t_span, t_eval_mask, jump_times
        )
        if self.stats is not None:
            self.stats.update(solution)
        solution.check(t_span=self.t_span if t_span is None else None)
        if self.carried is not None:
            loss = self.carried.loss(solution)
            self.add_loss(ops.cast(loss, keras.config.floatx()))
        if t_eval is None and self.t_eval is None:
            output = solution.y1
        else:
            output = ops.moveaxis(solution.ys, 0, 1)
        output = ops.cast(output, self.compute_dtype)
        if t_eval_mask is not None:
            _private.set_mask(output, t_eval_mask)
        return output

    def compute_output_shape(
        self,
        inputs_shape: tuple | list,
        t_eval_shape: tuple | None = None,
        t_span_shape: tuple | None = None,
        t_eval_mask_shape: tuple | None = None,
        jump_times_shape: tuple | None = None,
    ) -> tuple:
        shape, *_ = input_checks.shapes("inputs", inputs_shape)
        if t_eval_shape is None and self.t_eval is not None:
            t_eval_shape = (len(self.t_eval),)
        return (*shape[:1], *(t_eval_shape or ())[-1:], *shape[1:])

    def compute_output_spec(
        self,
        inputs: Any,
        t_eval: Any = None,
        training: bool | None = None,
        t_span: Any = None,
        t_eval_mask: Any = None,
        jump_times: Any = None,
    ) -> keras.KerasTensor:
        y0, _ = input_checks.inputs_to("inputs", inputs, self._num_inputs)
        if t_eval is not None:
            input_checks.unmasked("inputs", y0)
        input_checks.as_training("training", training)
        _, times, mask, _ = self._times(
            y0.shape, t_eval, t_span, t_eval_mask, jump_times
        )
        t_eval_shape = None if times is None else times.shape
        shape = self.compute_output_shape(y0.shape, t_eval_shape)
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if mask is not None:
            _private.set_mask(output, mask)
        return output

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        # A mask of the state has no axis for the times to report.
        if self.t_eval is not None:
            return None
        if isinstance(previous_mask, (list, tuple)):
            return previous_mask[0]
        return previous_mask

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kinetic_regularizer": self.kinetic_regularizer,
        }


def _unrounded(times: Any, inputs: Any) -> Any:
    """Puts times into a form that Keras leaves alone before a call.

    Keras turns arrays into tensors, on JAX of float32 and int32.
    """
    if ops.is_tensor(times) or isinstance(times, keras.KerasTensor):
        return times
    known = given.given(times)
    if any(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs)):
        # A functional model keeps and saves the times it is made with. It
        # reads the value of a variable in each call.
        if isinstance(times, keras.Variable) or known.values is None:
            return times
        return known.values.tolist()
    return known

"""A recurrent layer for observations at times of their own."""

from typing import Any

import keras
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node import registry
from keras_node.adjoints.base import Adjoint
from keras_node.backend import _private
from keras_node.config import register
from keras_node.dynamics import precision
from keras_node.dynamics.layer import LayerDynamics
from keras_node.dynamics.layer import build
from keras_node.integration.solver import Solver
from keras_node.layers.counted import Counted
from keras_node.problem import finest_rtol
from keras_node.problem import methods
from keras_node.series import cells
from keras_node.series import inputs as series
from keras_node.series.kept_states import KeptStates
from keras_node.series.recurrence import Recurrence
from keras_node.times import given
from keras_node.types import Tensor


@register
class ODERNN(Counted):
    """Recurrent layer whose state evolves by an ODE between observations.

    It is used like `keras.layers.RNN`, on a series of observations `x` and
    their times `t`. At each step the `cell` takes one observation. Between two
    steps its state `h` evolves by `dh/dt = dynamics(h)`, for each sample over
    its own interval. Of a cell with several states, such as `LSTMCell`, only
    the first evolves.

    A step that is masked is no observation: the cell does not take it, and
    states and output stay as they are. Its time passes all the same. The result
    is that of the series without this step.

    A solve that fails never returns a partial result. In compiled code the
    output is NaN. An eager call raises `keras_node.SolverError`.

    Args:
        cell: A Keras cell, such as `keras.layers.GRUCell(8)`. A stack of cells
            is not supported: stack layers with `return_sequences=True`.
        dynamics: A Keras layer or model whose output has the shape of `h`,
            `(batch, units)`, or a list of layers, which becomes a
            `keras.Sequential`. It is called with `h`, or with `[t, h]` if
            `time_dependent`. `keras_node.layers.GRUODE` is made for this.
        evolve: One of two strings. `"before"`: the state evolves up to the time
            of a step, and then the cell takes the step (ODE-RNN). Nothing
            evolves before the first step. `"after"`: the cell takes the step,
            and then the state evolves until the time of the next step
            (ODE-LSTM). Nothing evolves after the last one. The output of a
            step is then the state after it has evolved; the output of a cell
            that returns something else than its `h` stays as it is. Defaults
            to `"before"`.
        solver: A `keras_node.solvers.Solver` or its name. `"rk4"` takes 10
            steps from observation to observation, however much happens in
            between. Where `t` counts in large numbers, scale it, or take a
            solver that keeps its error in bounds, such as `"tsit5"`. Defaults
            to `"rk4"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name. It computes the
            gradients. Defaults to `"discrete"`.
        elapsed: Boolean. If `False`, `t` are times, which do not decrease
            along a series. If `True`, `t` is the time that has elapsed, at
            least 0. With `evolve="before"` it is that since the step before;
            that of the first step counts too, as the time since the initial
            state. With `evolve="after"` it is the time that follows the step,
            and that of the last step counts too. Defaults to `False`.
        return_sequences: Boolean, whether to return the outputs of all steps
            or of the last one. Defaults to `False`.
        return_state: Boolean, whether to return the last states after the
            output. Defaults to `False`.
        go_backwards: Boolean, whether to process the series from its end, and
            to return the outputs in this order. The state then evolves
            backwards in time, between the same neighbours. What has elapsed
            before the first step of the series, or after its last one, does
            not count. Defaults to `False`.
        stateful: Boolean, whether the states of a call are the initial states
            of the next call, sample by sample. The time of the states is kept
            as well: the series goes on. The batch size must be known. Call
            `reset_state` to start anew. Defaults to `False`.
        unroll: Boolean, whether to unroll the loop over the steps. The length
            of the series must then be known. Defaults to `False`.
        zero_output_for_mask: Boolean, whether the output of a masked step is
            zero. Otherwise it is the output of the step before, or zero if
            there is none. Defaults to `False`.
        rtol: Float, relative tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        atol: Float, absolute tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        time_dependent: Boolean, whether `dynamics` is called with the time, as
            a tensor of shape `(batch, 1)`. With `elapsed` it is the time since
            the series began. Defaults to `False`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[x, t]`: float tensor of observations, and times or times
            elapsed. Integers and float64 are taken as float64. On JAX they are
            float32, unless float64 is enabled, and `fit` casts arrays to
            float32 as well. float32 cannot tell Unix seconds apart: shift time
            so that it starts at 0. Gradients flow to both.
        initial_state: List of tensors, the initial states of the cell, or
            `None` for those that the cell starts with. Defaults to `None`.
        mask: Boolean tensor of shape `(batch, T)`, `False` where a step is
            masked, or `None` for the mask that Keras attached to `x`. The
            values at masked steps do not matter, but the time elapsed there
            does. Defaults to `None`.
        training: Boolean or `None`, passed on to `cell` and `dynamics`. Masks
            of dropout stay the same in all steps of a call.

    Input shape:
        `[(batch, T, features...), (batch, T)]`; or `[..., (T,)]` for the same
        times in all samples.

    Output shape:
        `(batch, units)`, or `(batch, T, units)` if `return_sequences`. If
        `return_state`, a list of the output and the states `(batch, units)`.

    Raises:
        ValueError: If an argument is not as described, if times decrease, if
            `dynamics` changes the shape of `h`, or if `cell` is not a cell.
        keras_node.SolverError: If a solve fails in an eager call.

    Example:
    >>> x, t = np.ones((8, 5, 3)), np.sort(np.random.uniform(size=(8, 5)))
    >>> layer = keras_node.layers.ODERNN(
    ...     keras.layers.GRUCell(16), keras_node.layers.GRUODE(16)
    ... )
    >>> tuple(layer([x, t]).shape)
    (8, 16)

    ODE-LSTM:

    >>> layer = keras_node.layers.ODERNN(
    ...     keras.layers.LSTMCell(16),
    ...     [keras.layers.Dense(16, "tanh"), keras.layers.Dense(16)],
    ...     evolve="after",
    ...     return_sequences=True,
    ... )
    >>> tuple(layer([x, t]).shape)
    (8, 5, 16)

    Reference:
        - [Rubanova, Chen, Duvenaud, 2019](https://arxiv.org/abs/1907.03907),
          ODE-RNN
        - [Lechner, Hasani, 2020](https://arxiv.org/abs/2006.04418), ODE-LSTM
    """

    autocast: bool

    def __init__(
        self,
        cell: keras.layers.Layer,
        dynamics: keras.layers.Layer | list,
        evolve: str = "before",
        solver: str | Solver = "rk4",
        adjoint: str | Adjoint = "discrete",
        elapsed: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        rtol: float | None = None,
        atol: float | None = None,
        time_dependent: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        # `call` casts in place of Keras, which would round times too.
        self.autocast = False
        checks.float_dtype("dtype", self.compute_dtype)
        self.supports_masking = True
        self._kept: KeptStates | None = None  # made when it is built
        self.cell = cells.check("cell", cell)
        self._cell = cells.Cell(self.cell)
        self.dynamics = checks.as_layer("dynamics", dynamics)
        self.evolve = checks.one_of("evolve", evolve, ("before", "after"))
        self.solver, self.adjoint = methods(solver, adjoint, rtol, atol)
        self.elapsed = checks.boolean("elapsed", elapsed)
        self.return_sequences = checks.boolean(
            "return_sequences", return_sequences
        )
        self.return_state = checks.boolean("return_state", return_state)
        self.go_backwards = checks.boolean("go_backwards", go_backwards)
        self.stateful = checks.boolean("stateful", stateful)
        self.unroll = checks.boolean("unroll", unroll)
        self.zero_output_for_mask = checks.boolean(
            "zero_output_for_mask", zero_output_for_mask
        )
        self.time_dependent = checks.boolean("time_dependent", time_dependent)

    @property
    def state_size(self) -> int | list[int]:
        """Size of the state of the cell, or a list of sizes."""
        return self.cell.state_size

    def build(
        self, inputs_shape: list, initial_state_shape: Any = None
    ) -> None:
        x, _ = series.shapes("inputs", inputs_shape)
        batch = x[0]
        if self.stateful and batch is None:
            raise ValueError(
                "`inputs` must have a known batch size if the layer is "
                f"`stateful`. Received: shapes {inputs_shape}"
            )
        self._cell.build((batch, *x[2:]))
        dtype, size = self.compute_dtype, self._cell.sizes[0]
        h = keras.KerasTensor((batch, size), dtype=dtype)
        build(self.dynamics, h, time_dependent=self.time_dependent)
        precision.warn_below(
            finest_rtol(self.solver, self.adjoint), self.dynamics
        )
        if self.stateful:
            self._kept = KeptStates(self, self.get_initial_state(batch))

    @property
    def states(self) -> list | None:
        """Variables that a `stateful` layer keeps its states in, or `None`."""
        return None if self._kept is None else self._kept.states

    def get_initial_state(self, batch_size: Any) -> list[Tensor]:
        """Returns the states that the cell starts with."""
        return self._cell.initial_state(batch_size)

    def reset_state(self) -> None:
        """Forgets the states of a `stateful` layer, and their time."""
        if self._kept is not None:
            self._kept.reset(self.get_initial_state(self._kept.batch))

    reset_states = reset_state  # as Keras has it

    def __call__(
        self, inputs: Any, initial_state: Any = None, mask: Any = None, **kwargs
    ) -> Any:
        x, t = series.split("inputs", inputs)
        t = series.times("t", t, x.shape).as_given()
        mask = series.mask("mask", mask, x.shape)
        if mask is None and initial_state is not None and not _is_symbolic(x):
            # Keras hands over no mask where there is another tensor.
            mask = _private.mask_of(x)
        for name, value in (("initial_state", initial_state), ("mask", mask)):
            if value is not None:
                kwargs[name] = value
        return super().__call__([x, t], **kwargs)

    @backend.uncompiled
    def call(
        self,
        inputs: list,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        training = input_checks.as_training("training", training)
        x, times, mask = self._checked(inputs, initial_state, mask)
        recurrence = Recurrence(
            self._cell,
            LayerDynamics(self.dynamics, self.time_dependent, training),
            self.solver,
            self.adjoint,
            self.evolve,
            self.elapsed,
            self.go_backwards,
            self.unroll,
            self.zero_output_for_mask,
            training,
        )
        states, time = self._initial(initial_state, ops.shape(x)[0])
        result = recurrence(
            ops.cast(x, self.compute_dtype),
            series.as_rows(times, ops.shape(x), given.widest()),
            None if mask is None else ops.convert_to_tensor(mask),
            states,
            time,
            self.return_sequences,
        )
        if self.stats is not None:
            self.stats.update(result.solution)
        result.solution.check("solve between two steps")
        if self._kept is not None:
            self._kept.keep(result.states, result.time)
        output = result.outputs if self.return_sequences else result.output
        output = ops.cast(output, self.compute_dtype)
        if not self.return_state:
            return output
        states = [ops.cast(x, self.compute_dtype) for x in result.states]
        return [output, *states]

    def _checked(self, inputs: Any, initial_state: Any, mask: Any) -> tuple:
        """Checks what the layer is called with, as far as it is known."""
        x, t = series.split("inputs", inputs)
        times = series.times("t", t, x.shape)
        if self.unroll and x.shape[1] is None:
            raise ValueError(
                "`inputs` must be of a known length if the layer is to "
                f"`unroll`. Received: x of shape {x.shape}"
            )
        kept = self._kept
        if kept is not None and x.shape[0] not in (None, kept.batch):
            raise ValueError(
                "`inputs` must have the batch size that the `stateful` layer "
                f"was built for, {kept.batch}. Received: x of shape {x.shape}"
            )
        mask = series.mask("mask", mask, x.shape)
        if initial_state is not None:
            self._cell.states("initial_state", initial_state, x.shape[0])
        if self.elapsed:
            series.check_durations("t", times)
        else:
            start = None
            if kept is not None and initial_state is None:
                if not self.go_backwards:
                    start = kept.known_time()
            series.check_order("t", times, mask, start=start)
        return x, times, mask

    def _initial(self, initial_state: Any, batch: Any) -> tuple[list, Any]:
        """Finds the initial states and their time, if they have one."""
        states, time = None, None
        if self._kept is not None:
            states, time = self._kept.read()
        if initial_state is not None:
            states = self._cell.states("initial_state", initial_state, None)
            time = None if time is None else ops.full_like(time, float("nan"))
        elif states is None:
            states = self.get_initial_state(batch)
        states = [ops.convert_to_tensor(x) for x in states]
        return [ops.cast(x, self._cell.dtype) for x in states], time

    def compute_output_shape(
        self, inputs_shape: list, initial_state_shape: Any = None
    ) -> Any:
        x, _ = series.shapes("inputs", inputs_shape)
        batch, size = x[:2]
        length = (size,) if self.return_sequences else ()
        output = (batch, *length, self._cell.output_size)
        if not self.return_state:
            return output
        return [output, *((batch, n) for n in self._cell.sizes)]

    def compute_output_spec(
        self,
        inputs: list,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        input_checks.as_training("training", training)
        x, times, _ = self._checked(inputs, initial_state, mask)
        shapes = self.compute_output_shape([x.shape, times.shape])
        if not self.return_state:
            return keras.KerasTensor(shapes, dtype=self.compute_dtype)
        return [keras.KerasTensor(s, dtype=self.compute_dtype) for s in shapes]

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        mask = series.mask_of_observations(previous_mask)
        if not self.return_sequences:
            mask = None
        elif mask is not None and self.go_backwards:
            mask = ops.flip(mask, axis=1)  # as the outputs are
        if self.return_state:
            return [mask, *(None for _ in self._cell.sizes)]
        return mask

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        objects = ("cell", "dynamics", "solver", "adjoint")
        values = (
            "evolve",
            "elapsed",
            "return_sequences",
            "return_state",
            "go_backwards",
            "stateful",
            "unroll",
            "zero_output_for_mask",
            "time_dependent",
        )
        return {
            **super().get_config(),
            **{name: serialize(getattr(self, name)) for name in objects},
            **{name: getattr(self, name) for name in values},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ODERNN":
        config = dict(config)
        for name in ("cell", "dynamics"):
            config[name] = registry.get(
                name, config.get(name), {}, keras.layers.Layer
            )
        return cls(**config)


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, keras.KerasTensor)

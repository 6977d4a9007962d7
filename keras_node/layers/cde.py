"""Neural controlled differential equations."""

from typing import Any

import keras
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node import pytree
from keras_node import registry
from keras_node.adjoints.base import Adjoint
from keras_node.config import register
from keras_node.dynamics import precision
from keras_node.dynamics.layer import symbolic_call
from keras_node.integration.solver import Solver
from keras_node.layers.controlled import Controlled
from keras_node.layers.controlled import state_width
from keras_node.layers.ode_block import ODEBlock
from keras_node.problem import solvers_that
from keras_node.series import inputs as series
from keras_node.series import path
from keras_node.types import Tensor

INTERPOLATIONS = ("linear", "hermite")


@register
class CDEBlock(keras.layers.Layer):
    """Layer that reads a time series by a controlled differential equation.

    The series `x` at times `t` draws a path `X = [t, x]`, which drives the
    state `h`:

        dh = F(h) dX,    h = initial(X) at the first time

    `F` is `dynamics`. The layer takes the part of a recurrent layer, for series
    at times of their own, with missing values (NaN) and with padding (a mask).
    A missing value is filled by `fill_missing`: linearly in time between the
    values that the same channel has before and after.

    The solve does not count time but observations, at which all samples arrive
    together: a `SolverError` says how many it has passed. The state does not
    depend on this. Every observation ends a step.

    A solve that fails raises `keras_node.SolverError` in an eager call, and
    gives NaN in compiled code, as that of an `ODEBlock` does.

    Args:
        dynamics: A Keras layer or model that maps `(batch, h)` to
            `(batch, h * (channels + 1))`, or a list of layers, which becomes a
            `keras.Sequential`. Its output is taken for matrices
            `(h, channels + 1)`, with the time as the first channel. End it with
            a bounded activation such as `"tanh"`.
        interpolation: The path between observations: `"hermite"` or
            `"linear"`, as in `keras_node.layers.Interpolate`. `"hermite"` is
            smooth. Neither looks ahead of the next observation. Defaults to
            `"hermite"`.
        initial: A Keras layer or model that maps the first time and values,
            `(batch, channels + 1)`, to the state `(batch, h)`; or `None` for a
            `Dense` layer. Defaults to `None`.
        return_sequences: Boolean, whether to return the state at each time and
            not at the last one alone. Defaults to `False`.
        solver: A `keras_node.solvers.Solver` or its name: `"tsit5"`,
            `"dopri5"` or `"bosh3"`, whose steps can end at observations. Each
            observation ends one: `max_steps` must exceed `T`. Defaults to
            `"tsit5"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name. It computes the
            gradients. Defaults to `"discrete"`.
        rtol: Float, relative tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        atol: Float, absolute tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[x, t]`: the series, NaN where a value is missing, and its
            times, which increase along a row. `initial` gets the first time as
            it is: shift times so that they start near 0. In compiled code the
            output is NaN if they decrease. Gradients flow to both.
        mask: Boolean tensor of shape `(batch, T)`, or `None`: `False` at steps
            after the end of a series. What `x` and `t` hold there does not
            matter. Of a series without any step, the state is `initial` of
            zeros. A mask that Keras has attached to `x` counts. In compiled
            code any step may be masked, and counts as absent.
        training: Boolean or `None`, passed on to `dynamics` and `initial`.

    Input shape:
        `[(batch, T, channels), (batch, T)]`, or `(T,)` for the times of all.

    Output shape:
        `(batch, h)`, the state at the last time of each sample. With
        `return_sequences` `(batch, T, h)`: after the end of a series its last
        state stays, and the mask goes on to the next layer.

    Raises:
        ValueError: If an argument or a call argument is not as described.
        keras_node.SolverError: If a solve fails in an eager call.

    Example:
    >>> dynamics = [
    ...     keras.layers.Dense(16, "tanh"),
    ...     keras.layers.Dense(8 * (3 + 1), "tanh"),
    ... ]
    >>> block = keras_node.layers.CDEBlock(dynamics)
    >>> x = np.random.normal(size=(5, 4, 3))
    >>> t = np.sort(np.random.uniform(size=(5, 4)))
    >>> tuple(block([x, t]).shape)
    (5, 8)

    Reference:
        - [Kidger et al., 2020](https://arxiv.org/abs/2005.08926)
        - [Morrill et al., 2021](https://arxiv.org/abs/2106.11028), for
          `interpolation`
    """

    autocast: bool

    def __init__(
        self,
        dynamics: keras.layers.Layer | list,
        interpolation: str = "hermite",
        initial: keras.layers.Layer | None = None,
        return_sequences: bool = False,
        solver: str | Solver = "tsit5",
        adjoint: str | Adjoint = "discrete",
        rtol: float | None = None,
        atol: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        # Half precision would merge times.
        self.autocast = False
        self.supports_masking = True
        self.interpolation = checks.one_of(
            "interpolation", interpolation, INTERPOLATIONS
        )
        self.initial = initial
        if initial is not None:
            self.initial = checks.as_layer("initial", initial)
        self.return_sequences = checks.boolean(
            "return_sequences", return_sequences
        )
        dynamics = checks.as_layer("dynamics", dynamics)
        checks.float_dtype("dtype", self.compute_dtype)
        self._dtype = precision.of_state(self.compute_dtype)
        self.block = ODEBlock(
            Controlled(dynamics, name="field", dtype=self._dtype),
            solver=solver,
            adjoint=adjoint,
            rtol=rtol,
            atol=atol,
            time_dependent=True,
            autocast=False,
            dtype=self.dtype_policy,
        )
        if not self.solver.stops_at_jumps:
            names = solvers_that("stops_at_jumps")
            raise ValueError(
                "`solver` must be one whose steps can end at the observations: "
                f"one of {names}. Received: solver={self.solver}"
            )

    @property
    def dynamics(self) -> keras.layers.Layer:
        return self.block.dynamics.dynamics

    @property
    def solver(self) -> Solver:
        return self.block.solver

    @property
    def adjoint(self) -> Adjoint:
        return self.block.adjoint

    def build(self, inputs_shape: list) -> None:
        (batch, size, channels), _ = _shapes(inputs_shape)
        point = keras.KerasTensor((batch, channels + 1), self.compute_dtype)
        self._channels = channels
        if self.initial is None:
            width = state_width(self.dynamics, channels + 1)
            self.start = keras.layers.Dense(
                width, name="start", dtype=self.dtype_policy
            )
        else:
            self.start = self.initial
        h = input_checks.call_dynamics(
            "initial", lambda x: symbolic_call(self.start, x), point
        )
        if len(h.shape) != 2:
            raise ValueError(
                "`initial` must return a state of shape `(batch, h)`. "
                f"Received: {input_checks.described(h)}"
            )
        self._width = h.shape[1]
        self._check_width(channels + 1)
        segments = [(batch, size, channels + 1)]
        if self.interpolation == "hermite":
            segments *= 2
        self.block.build([(batch, self._width), *segments])

    def _check_width(self, channels: int) -> None:
        """Checks that `initial` and `dynamics` agree on the width."""
        try:
            width = state_width(self.dynamics, channels)
        except ValueError:  # it cannot be told yet
            return
        if width != self._width:
            raise ValueError(
                "`initial` must return a state of the width that `dynamics` is "
                f"for, here `(batch, {width})`: `h * (channels + 1)` is "
                f"{width} * {channels}. Received: (batch, {self._width})"
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        x, t = series.split("inputs", inputs)
        t = series.times("t", t, x.shape).as_given()
        return super().__call__([x, t], **kwargs)

    def call(
        self, inputs: list, mask: Any = None, training: bool | None = None
    ) -> Tensor:
        return self._read(inputs, mask, training)

    @backend.uncompiled
    def _read(self, inputs: list, mask: Any, training: bool | None) -> Tensor:
        x, t, mask = self._checked(inputs, mask)
        driver = path.of_series(x, t, mask, self.interpolation)
        h = self.start(ops.cast(driver.start, self.compute_dtype))
        span, steps = path.course(x)
        states = self.block(
            [h, *driver.segments],
            t_eval=steps if self.return_sequences else None,
            t_span=span,
            jump_times=steps,
            training=training,
        )
        # Times that go back are no times.
        return pytree.nan_unless(driver.ordered, states)

    def _checked(self, inputs: Any, mask: Any) -> tuple:
        """Checks the inputs and makes tensors of them."""
        x, t = series.split("inputs", inputs)
        if len(x.shape) != 3 or x.shape[2] != self._channels:
            raise ValueError(
                "`inputs` must be a list `[x, t]` with `x` of shape `(batch, "
                f"T, channels)`, here of {self._channels} channels. "
                f"Received: x={input_checks.described(x)}"
            )
        found = series.times("t", t, x.shape)
        mask = series.mask("mask", mask, x.shape)
        if mask is not None:
            series.check_padding("mask", mask)
        series.check_order("t", found, mask, strictly=True)
        if mask is not None:
            mask = ops.convert_to_tensor(mask)
        x = ops.cast(x, self._dtype)
        dtype = series.precise(found)
        rows = series.as_rows(found, ops.shape(x), _wider(dtype, self._dtype))
        return x, rows, mask

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        (batch, size, channels), _ = _shapes(inputs_shape)
        if self.built:
            width = self._width
        elif self.initial is None:
            width = state_width(self.dynamics, channels + 1)
        else:
            width = self.initial.compute_output_shape((batch, channels + 1))[-1]
        steps = (size,) if self.return_sequences else ()
        return (batch, *steps, width)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        if not self.return_sequences:
            return None
        return series.mask_of_observations(previous_mask)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "dynamics": serialize(self.dynamics),
            "interpolation": self.interpolation,
            "initial": self.initial and serialize(self.initial),
            "return_sequences": self.return_sequences,
            "solver": serialize(self.solver),
            "adjoint": serialize(self.adjoint),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CDEBlock":
        config = dict(config)
        for name in ("dynamics", "initial"):
            if name == "dynamics" or config.get(name) is not None:
                config[name] = registry.get(
                    name, config.get(name), {}, keras.layers.Layer
                )
        return cls(**config)


def _shapes(value: Any) -> tuple[tuple, tuple]:
    x, t = series.shapes("inputs", value)
    if len(x) == 3 and x[2]:
        return x, t
    raise ValueError(
        "`inputs` must be a list `[x, t]` with `x` of shape `(batch, T, "
        f"channels)`, of a known number of channels. Received: shapes {value!r}"
    )


def _wider(*dtypes: str) -> str:
    return "float64" if "float64" in dtypes else "float32"

"""Layer for inputs that change over time."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import input_checks
from keras_node.backend import _private
from keras_node.config import register
from keras_node.layers.time import of_rank
from keras_node.series import knots
from keras_node.series.knots import Segment
from keras_node.types import Tensor

METHODS = ("previous", "linear", "hermite")


@register
class Interpolate(keras.layers.Layer):
    """Layer that interpolates values between knots, for inputs over time.

    Returns `u(t)`, or `du/dt`. Use it in dynamics that depend on time, with the
    knots and their values as context of an `ODEBlock`. Gradients flow to the
    values, and to the knots and the time where they have a say.

    Outside the knots the value at the nearest end holds, with the derivative 0.
    At a knot the layer looks forward: `"previous"` gives its value there, and a
    derivative is that of what follows. Of knots at one time the last counts.

    A called layer refuses knots that are not sorted. In a solve and in compiled
    code it does not look: where knots that are not sorted leave no segment for
    a time, it returns NaN.

    Args:
        method: `"previous"`, which holds each value until the next knot,
            `"linear"`, or `"hermite"`: piecewise cubic, with a continuous
            derivative that at each knot is the slope since the knot before.
            Neither looks beyond the next knot. Defaults to `"linear"`.
        derivative: Boolean, whether to return `du/dt` and not `u(t)`.
            Defaults to `False`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: List `[t, ts, u]`: a tensor with one time for each sample, such
            as the one that dynamics are called with, the times of the knots of
            each sample, not decreasing, and the values there. Knots may be
            padded: repeat the last one. float32 tells times apart near 0 only:
            it holds Unix seconds at intervals of 128 s.

    Input shape:
        `[(batch, ..., 1), (batch, L), (batch, L, channels)]`.

    Output shape:
        `(batch, channels)`.

    Raises:
        ValueError: If an argument or `inputs` is not as described.

    Example:
    >>> t, y, ts, u = map(keras.Input, [(1,), (4,), (None,), (None, 2)])
    >>> x = keras_node.layers.Interpolate("hermite")([t, ts, u])
    >>> dy = keras.layers.Dense(4)(keras.layers.Concatenate()([y, x]))
    >>> block = keras_node.ODEBlock(
    ...     keras.Model([t, y, ts, u], dy), time_dependent=True
    ... )
    >>> ts = np.tile(np.linspace(0, 1, 10), (8, 1))
    >>> tuple(block([np.ones((8, 4)), ts, np.ones((8, 10, 2))]).shape)
    (8, 4)

    Reference:
        - [Morrill et al., 2021](https://arxiv.org/abs/2106.11028), for
          `"hermite"`
    """

    autocast: bool

    def __init__(
        self, method: str = "linear", derivative: bool = False, **kwargs: Any
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        # Half precision would merge knots.
        self.autocast = False
        self.method = checks.one_of("method", method, METHODS)
        self.derivative = checks.boolean("derivative", derivative)

    def build(self, inputs_shape: list) -> None:
        _shapes(inputs_shape)

    def call(self, inputs: list) -> Tensor:
        t, ts, u = _three(inputs)
        _shapes([_known_shape(x) for x in (t, ts, u)])
        t, ts = (_at_least_float32(x, t, ts) for x in (t, ts))
        u = ops.cast(u, self.compute_dtype)
        if not _private.in_stateless_scope():
            _check_sorted(ts)
        return self._interpolate(of_rank(t, ts), ts, u)

    def _interpolate(self, t: Tensor, ts: Tensor, u: Tensor) -> Tensor:
        segment = Segment.of(t, ts)
        u0, u1 = segment.values(u)
        # What has no say has the gradient 0, and not none.
        u0 = u0 + 0 * ops.cast(segment.theta, u.dtype)
        d = p = u1 - u0
        if self.method == "previous":
            return u0 if not self.derivative else 0 * u0
        if self.method == "hermite":
            p = segment.slope(ts, u, default=d)
        theta = ops.cast(segment.theta, u.dtype)
        if self.derivative:
            rate = ops.cast(segment.rate, u.dtype)
            return rate * knots.derivative(theta, d, p)
        return knots.value(theta, u0, d, p)

    def compute_output_shape(self, inputs_shape: list) -> tuple:
        _, _, u = _shapes(inputs_shape)
        return u[0], u[2]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "method": self.method,
            "derivative": self.derivative,
        }


def _at_least_float32(x: Tensor, *others: Tensor) -> Tensor:
    """Casts to float64 if one of the others is, else to float32."""
    dtypes = {keras.backend.standardize_dtype(other.dtype) for other in others}
    return ops.cast(x, "float64" if "float64" in dtypes else "float32")


def _known_shape(x: Tensor) -> tuple:
    # Where Keras infers a shape, JAX has symbols for the sizes left open.
    return tuple(size if isinstance(size, int) else None for size in x.shape)


def _three(inputs: Any) -> list:
    if isinstance(inputs, (list, tuple)) and len(inputs) == 3:
        return list(inputs)
    raise ValueError(
        "`inputs` must be a list `[t, ts, u]`. "
        f"Received: inputs={input_checks.described(inputs)}"
    )


def _shapes(value: Any) -> list[tuple]:
    """Checks the shapes of `[t, ts, u]`."""
    found = t, ts, u = _three(input_checks.shapes("inputs", value))
    batches = {t[0], ts[0], u[0]} - {None}
    sizes = {*ts[1:], *u[1:2]} - {None}
    if (
        len(t) < 2
        or t[-1] not in (1, None)
        or (len(ts), len(u)) != (2, 3)
        or max(len(batches), len(sizes)) > 1
        or 0 in sizes
    ):
        raise ValueError(
            "`inputs` must be a list `[t, ts, u]` of shapes `(batch, ..., 1)`, "
            "`(batch, L)` and `(batch, L, channels)`, with one or more knots. "
            f"Received: shapes {found}"
        )
    return found


def _check_sorted(ts: Tensor) -> None:
    """Refuses knots that are known not to be sorted."""
    known = backend.value(ts)
    if known is not None and not np.all(np.diff(known, axis=1) >= 0):
        raise ValueError(
            "`inputs` must be a list `[t, ts, u]` with times `ts` that do not "
            f"decrease along a row, nor are NaN. Received: ts={known}"
        )

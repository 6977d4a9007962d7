"""The size of the steps: how long the first, how long the next."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import structure


def initial_step(
    f: Callable,
    y0: Any,
    f0: Any,
    span: Any,
    order: int,
    rtol: float,
    atol: float,
    norm: Callable = structure.rms_norm,
    eps: float = 0.0,
) -> Any:
    """Chooses the first step from the slope and the curvature at the start.

    Args:
        f: The right-hand side, `f(s, y)`, with `s` running from 0 to `span`.
        y0: The initial state.
        f0: Its slope, `f(0, y0)`.
        span: Scalar tensor, the length of the whole interval.
        order: Int, order of the method.
        rtol: Float, relative tolerance.
        atol: Float, absolute tolerance.
        norm: The norm of a state: a scalar, or one value per sample.
        eps: Float, in what precision `f` computes, if less than that of the
            state.

    Returns:
        The size of the first step, of the shape that `norm` returns; positive
        and at most `span`. Costs one evaluation of `f`.

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4, "Starting Step Size"; the names are
          theirs.
    """
    scale = structure.map_leaves(lambda y: atol + rtol * ops.abs(y), y0)

    def scaled_norm(y):
        # Clipped, or the square of a steep slope would overflow.
        return norm(
            structure.map_leaves(
                lambda x, unit: ops.clip(x / unit, -1e15, 1e15), y, scale
            )
        )

    d0, d1 = scaled_norm(y0), scaled_norm(f0)
    tiny = ops.logical_or(d0 < 1e-5, d1 < 1e-5)
    h0 = ops.where(tiny, 1e-6, 0.01 * d0 / ops.where(tiny, 1.0, d1))
    h0 = structure.smaller(h0, span)
    y1 = structure.advance(y0, h0, (1,), [f0])
    curvature = structure.map_leaves(ops.subtract, f(h0, y1), f0)
    # What rounding alone may make of the difference of two slopes.
    d2 = scaled_norm(curvature) - eps * d1
    d2 = d2 / ops.where(h0 > 0, h0, 1.0)
    steepest = structure.larger(d1, d2)
    flat = steepest <= 1e-15
    h1 = ops.where(
        flat,
        structure.larger(1e-3 * h0, 1e-6),
        (0.01 / ops.where(flat, 1.0, steepest)) ** (1 / order),
    )
    # A trial step that overflowed says only that h0 is too long.
    h1 = ops.where(ops.isfinite(steepest), h1, 1e-3 * h0)
    return structure.smaller(structure.smaller(100 * h0, h1), span)


def sizes(y0: Any, y1: Any) -> Any:
    """The sizes of the entries of a state, the larger before and after."""
    return structure.map_leaves(
        lambda a, b: structure.larger(ops.abs(a), ops.abs(b)), y0, y1
    )


def error_ratio(
    error: Any,
    size: Any,
    rtol: float,
    atol: float,
    norm: Callable = structure.rms_norm,
) -> Any:
    """The error of a step in units of the error allowed: at most 1 is good.

    Args:
        error: The error of each entry of the state.
        size: Their sizes.
        rtol: Float, relative tolerance.
        atol: Float, absolute tolerance.
        norm: The norm of a state: a scalar, or one value per sample.
    """
    return norm(
        structure.map_leaves(lambda x, s: x / (atol + rtol * s), error, size)
    )


def next_step(dt: Any, ratio: Any, order: int) -> Any:
    """The step after one of size `dt` whose error ratio was `ratio`.

    The error of a step grows with the power `order` of its size. A ratio that
    is not finite means that the step was far too long.

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4, equation (4.13)
    """
    ratio = ops.where(ratio < 1e30, ratio, 1e30)  # not for NaN
    ratio = structure.larger(ratio, 1e-30)
    return dt * ops.clip(0.9 * ratio ** (-1 / order), 0.2, 10.0)


def noise_floor(size: Any, b_error: tuple, ratio_of: Callable) -> Any:
    """The error ratio below which an estimate is the rounding of the state.

    The slopes cancel in the estimate, and what rounding leaves of them is as
    large as the weights `b_error` are. What is below the floor counts as the
    floor, or the next step would follow rounding.

    Args:
        size: The sizes of the entries of the state.
        b_error: The weights of the slopes in the estimate.
        ratio_of: The error ratio of an error.
    """
    dtype = keras.backend.standardize_dtype(structure.leaves(size)[0].dtype)
    eps = float(np.finfo(dtype).eps)
    unit = 3 * eps * float(sum(map(abs, b_error)))
    noise = ratio_of(structure.map_leaves(lambda s: unit * s, size))
    # Where all is noise, a step must be able to grow still.
    return structure.smaller(noise, 0.1)


def rounding(unit: Any, b_error: tuple, slope: Any) -> Any:
    """What the rounding of the slopes makes of an error estimate.

    Slopes that are off by up to `eps` of their size, each in its own way, put
    it off by about `eps dt |slope| sqrt(sum b_error^2)`, however short the
    step. Their size is that at the start: those of a step that is far too long
    grow as its error does, and would excuse it. `unit` is `eps dt`.
    """
    weight = 1.5 * math.hypot(*map(float, b_error))
    sizes = structure.map_leaves(lambda k: weight * ops.abs(k), slope)
    return structure.scale(unit, sizes)


def unexplained(ratio: Any, floor: Any, rounding: Any) -> tuple[Any, Any]:
    """The part of an error ratio that rounding does not explain, and a floor.

    Args:
        ratio: The error ratio of a step.
        floor: That below which it is not to be trusted.
        rounding: The error ratio that the rounding of the slopes makes.

    Returns:
        The ratio less `rounding`. And the new floor, by which a step whose
        error drowns in rounding grows, but not so far that the next one is
        thrown away.
    """
    # In this order: NaN stays NaN.
    excess = structure.larger(0.0, ratio - rounding)
    drowned = structure.smaller(0.25 * rounding, 2e-3)
    return excess, structure.larger(floor, drowned)


def on_grid(dt: Any) -> Any:
    """Rounds a step to the nearest power of the fourth root of 2, in float32.

    The last digits of an error estimate are noise, which depends on how a
    matrix product of that batch size rounds on that backend. On the grid it
    does not reach the steps, and so not the solution. In float64 it is far
    below any tolerance, and the grid would only coarsen the control.
    """
    if keras.backend.standardize_dtype(dt.dtype) == "float64":
        return dt
    moves = dt > 0  # not where a sample has arrived
    exponent = ops.round(4 * ops.log2(ops.where(moves, dt, 1.0)))
    dt = 2 ** (ops.cast(exponent, dt.dtype) / 4)
    return ops.where(moves, dt, ops.zeros_like(dt))

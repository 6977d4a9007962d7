"""The formulas for the size of the first step and of the next ones."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_node import pytree
from keras_node.types import Norm
from keras_node.types import Scalar
from keras_node.types import State


def initial_step(
    f: Callable[[Scalar, State], State],
    y0: State,
    f0: State,
    span: Scalar,
    order: int,
    rtol: float,
    atol: float,
    norm: Norm = pytree.rms_norm,
    eps: float = 0.0,
) -> Scalar:
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
        eps: Float, the precision of `f`, if it is coarser than the precision
            of the state; else `0.0`.

    Returns:
        The size of the first step, in the shape that `norm` returns. It is
        positive and at most `span`. It costs one evaluation of `f`.

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4, "Starting Step Size"; the names are
          theirs.
    """
    scale = pytree.map_leaves(lambda y: atol + rtol * ops.abs(y), y0)

    def scaled_norm(y):
        # Clipped, or the square of a steep slope would overflow.
        return norm(
            pytree.map_leaves(
                lambda x, unit: ops.clip(x / unit, -1e15, 1e15), y, scale
            )
        )

    d0, d1 = scaled_norm(y0), scaled_norm(f0)
    tiny = ops.logical_or(d0 < 1e-5, d1 < 1e-5)
    h0 = ops.where(tiny, 1e-6, 0.01 * d0 / ops.where(tiny, 1.0, d1))
    h0 = pytree.smaller(h0, span)
    y1 = pytree.advance(y0, h0, (1,), [f0])
    curvature = pytree.map_leaves(ops.subtract, f(h0, y1), f0)
    # Less what rounding alone may add to the difference of two slopes.
    d2 = scaled_norm(curvature) - eps * d1
    d2 = d2 / ops.where(h0 > 0, h0, 1.0)
    steepest = pytree.larger(d1, d2)
    flat = steepest <= 1e-15
    h1 = ops.where(
        flat,
        pytree.larger(1e-3 * h0, 1e-6),
        (0.01 / ops.where(flat, 1.0, steepest)) ** (1 / order),
    )
    # A trial step that overflowed says only that h0 is too long.
    h1 = ops.where(ops.isfinite(steepest), h1, 1e-3 * h0)
    return pytree.smaller(pytree.smaller(100 * h0, h1), span)


def sizes(y0: State, y1: State) -> State:
    """Finds the size of each entry: the larger of before and after a step."""
    return pytree.map_leaves(
        lambda a, b: pytree.larger(ops.abs(a), ops.abs(b)), y0, y1
    )


def error_ratio(
    error: State,
    size: State,
    rtol: float,
    atol: float,
    norm: Norm = pytree.rms_norm,
) -> Scalar:
    """Divides the error of a step by the error allowed: at most 1 is good.

    Args:
        error: The error of each entry of the state.
        size: The size of each entry.
        rtol: Float, relative tolerance.
        atol: Float, absolute tolerance.
        norm: The norm of a state: a scalar, or one value per sample.
    """
    return norm(
        pytree.map_leaves(lambda x, s: x / (atol + rtol * s), error, size)
    )


def next_step(dt: Scalar, ratio: Scalar, order: int) -> Scalar:
    """Computes the step after one of size `dt` and error ratio `ratio`.

    The error of a step grows with the power `order` of its size. A ratio that
    is not finite means that the step was far too long.

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4, equation (4.13)
    """
    ratio = ops.where(ratio < 1e30, ratio, 1e30)  # NaN becomes 1e30
    ratio = pytree.larger(ratio, 1e-30)
    return dt * ops.clip(0.9 * ratio ** (-1 / order), 0.2, 10.0)


def noise_floor(size: State, weights: tuple, ratio_of: Norm) -> Scalar:
    """Finds the error ratio below which an estimate is rounding of the state.

    The slopes cancel in the estimate. What rounding leaves of them is as large
    as their weights. A ratio below the floor counts as the floor. Otherwise
    the next step would follow rounding.

    Args:
        size: The sizes of the entries of the state.
        weights: The weights of the slopes in the estimate.
        ratio_of: The function from an error to its error ratio.
    """
    dtype = keras.backend.standardize_dtype(pytree.leaves(size)[0].dtype)
    eps = float(np.finfo(dtype).eps)
    unit = 3 * eps * float(sum(map(abs, weights)))
    noise = ratio_of(pytree.map_leaves(lambda s: unit * s, size))
    # Where all is noise, a step must still be able to grow.
    return pytree.smaller(noise, 0.1)


def rounding(unit: Scalar, weights: tuple, slope: State) -> State:
    """Estimates the part of an error estimate due to rounding of the slopes.

    Each slope is off by up to `eps` of its size, independently of the others.
    The estimate is then off by about `eps dt |slope| sqrt(sum weights^2)`,
    however short the step. The size of the slopes is taken at the start. In a
    step that is far too long they grow like its error, and would excuse it.
    `unit` is `eps dt`.
    """
    factor = 1.5 * math.hypot(*map(float, weights))
    sizes = pytree.map_leaves(lambda k: factor * ops.abs(k), slope)
    return pytree.scale(unit, sizes)


def unexplained(
    ratio: Scalar, floor: Scalar, rounding: Scalar
) -> tuple[Scalar, Scalar]:
    """Splits off the part of an error ratio that rounding does not explain.

    Args:
        ratio: The error ratio of a step.
        floor: The ratio below which it is not trusted.
        rounding: The error ratio that the rounding of the slopes causes.

    Returns:
        The ratio less `rounding`, and the new floor. With this floor a step
        whose error drowns in rounding grows, but not so far that the next one
        is rejected.
    """
    # In this order: NaN stays NaN.
    excess = pytree.larger(0.0, ratio - rounding)
    drowned = pytree.smaller(0.25 * rounding, 2e-3)
    return excess, pytree.larger(floor, drowned)


def on_grid(dt: Scalar) -> Scalar:
    """Rounds a float32 step to the nearest power of the fourth root of 2.

    The last digits of an error estimate are noise. The noise depends on how
    matrix products round, which differs by batch size and backend. On the grid
    it reaches neither the steps nor the solution. In float64 the noise is far
    below any tolerance, and the grid would only coarsen the control.
    """
    if keras.backend.standardize_dtype(dt.dtype) == "float64":
        return dt
    moves = dt > 0  # not where a sample has arrived
    exponent = ops.round(4 * ops.log2(ops.where(moves, dt, 1.0)))
    dt = 2 ** (ops.cast(exponent, dt.dtype) / 4)
    return ops.where(moves, dt, ops.zeros_like(dt))

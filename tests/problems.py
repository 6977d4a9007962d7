"""Initial value problems with exact solutions."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.linalg
from keras import ops


class Problem(NamedTuple):
    """`dy/dt = f(t, y, params)`, `y(t0) = y0`."""

    f: Callable
    t0: float
    t1: float
    y0: np.ndarray
    params: np.ndarray
    y1: np.ndarray  # the exact solution at t1
    adj_y0: np.ndarray  # the gradient of sum(y1) with respect to y0
    adj_params: np.ndarray  # and to the parameters


def exponential(t0: float = 0.0, t1: float = 1.0) -> Problem:
    """`y' = r y`, a rate for each entry."""
    rate = np.array([-1.0, 0.5, 1.5])
    y0 = np.array([[1.0, 2.0, -1.0], [0.5, -0.3, 0.2]])
    growth = np.exp(rate * (t1 - t0))
    return Problem(
        lambda t, y, rate: rate * y,
        t0,
        t1,
        y0,
        rate,
        y0 * growth,
        growth * np.ones_like(y0),
        np.sum(y0 * growth * (t1 - t0), axis=0),
    )


def linear(matrix: Any, t0: float = 0.0, t1: float = 1.0) -> Problem:
    """`y' = y A`: `y1 = y0 exp(A t)`, and Frechet derivatives for gradients."""
    matrix = np.asarray(matrix, "float64")
    size = len(matrix)
    y0 = np.linspace(-1.0, 1.0, 2 * size).reshape(2, size)
    flow = scipy.linalg.expm(matrix * (t1 - t0))
    adj_matrix = np.zeros_like(matrix)
    for i, j in np.ndindex(size, size):
        direction = np.zeros_like(matrix)
        direction[i, j] = t1 - t0
        derivative = scipy.linalg.expm_frechet(
            matrix * (t1 - t0), direction, compute_expm=False
        )
        adj_matrix[i, j] = np.sum(y0 @ derivative)
    return Problem(
        lambda t, y, matrix: ops.matmul(y, matrix),
        t0,
        t1,
        y0,
        matrix,
        y0 @ flow,
        np.ones_like(y0) @ flow.T,
        adj_matrix,
    )


def rotation(t0: float = 0.0, t1: float = 3.0) -> Problem:
    """The harmonic oscillator."""
    return linear([[0.0, 2.0], [-2.0, 0.0]], t0, t1)


def matrix_exponential() -> Problem:
    matrix = np.random.default_rng(0).normal(size=(4, 4))
    return linear(matrix - np.eye(4), 0.0, 1.0)


def forced(t0: float = 0.5, t1: float = 2.0) -> Problem:
    """`y' = p cos(5 t)`: the right-hand side depends on time alone."""
    y0 = np.array([[0.2], [-0.4]])
    area = (np.sin(5 * t1) - np.sin(5 * t0)) / 5
    return Problem(
        lambda t, y, p: p * ops.cos(5 * t) * ops.ones_like(y),
        t0,
        t1,
        y0,
        np.array([1.5]),
        y0 + 1.5 * area,
        np.ones_like(y0),
        np.array([2 * area]),
    )


def endpoint_singular() -> Problem:
    """`y' = p sqrt(1 - t)`: NaN for any t past the end."""
    y0 = np.zeros((2, 1))
    return Problem(
        lambda t, y, p: p * ops.sqrt(1 - t) * ops.ones_like(y),
        0.0,
        1.0,
        y0,
        np.array([1.0]),
        y0 + 2 / 3,
        np.ones_like(y0),
        np.array([2 * 2 / 3]),
    )


ALL = {
    "exponential": exponential(),
    "exponential backwards in time": exponential(2.0, 0.5),
    "rotation": rotation(),
    "rotation far from zero": rotation(1000.0, 1003.0),
    "matrix exponential": matrix_exponential(),
    "forced": forced(),
    "forced backwards in time": forced(2.0, 0.5),
    "singular at the end": endpoint_singular(),
}

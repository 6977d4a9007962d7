"""Initial value problems with exact solutions."""

import importlib
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import scipy.linalg
from keras import ops


def cos(x):
    # `keras.ops.cos` rounds float64 to float32 on JAX.
    framework = importlib.import_module(
        {"jax": "jax.numpy"}.get(keras.backend.backend())
        or keras.backend.backend()
    )
    return framework.cos(x)


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
    exact: Callable | None = None  # the solution at any time


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
        lambda t, y, matrix: y @ matrix,
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
        lambda t, y, p: p * cos(5 * t) * ops.ones_like(y),
        t0,
        t1,
        y0,
        np.array([1.5]),
        y0 + 1.5 * area,
        np.ones_like(y0),
        np.array([2 * area]),
    )


def forced_decay(t0: float = 0.0, t1: float = 2.0) -> Problem:
    """`y' = p (y - cos t)`, with a right-hand side in state and time."""
    y0 = np.array([[1.0], [-0.5]])
    p = -1.0

    def exact(t, p=p):
        def particular(t):
            return (p * p * np.cos(t) - p * np.sin(t)) / (1 + p * p)

        return particular(t) + np.exp(p * (t - t0)) * (y0 - particular(t0))

    shift = 1e-6
    return Problem(
        lambda t, y, p: p * (y - cos(t)),
        t0,
        t1,
        y0,
        np.array([p]),
        exact(t1),
        np.exp(p * (t1 - t0)) * np.ones_like(y0),
        np.sum(exact(t1, p + shift) - exact(t1, p - shift), keepdims=True)[0]
        / (2 * shift),
        exact,
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
    "rotation backwards in time": rotation(1003.0, 1000.0),
    "matrix exponential": matrix_exponential(),
    "forced": forced(),
    "forced backwards in time": forced(2.0, 0.5),
    "forced decay": forced_decay(),
    "singular at the end": endpoint_singular(),
}

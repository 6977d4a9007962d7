"""Integrals along a solution."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_node import backend
from keras_node import structure
from keras_node.dense_output import DenseStep


def add_step(
    integral: Any,
    integrand: Callable,
    order: int,
    accept: Any,
    step: DenseStep,
) -> tuple[Any, Any]:
    """Adds the integral over one step, by Gauss-Legendre quadrature.

    With `n` nodes its error falls as the power `2 n + 1` of the step: enough
    of them that it falls faster than the error of the method.

    Args:
        integral: The structure to add to.
        integrand: A function of time and state.
        order: Int, the order of the method that took the step.
        accept: Whether the step was accepted. Otherwise nothing is evaluated.
        step: The step.

    Returns:
        The new `integral`, and how often `integrand` was evaluated.

    Reference:
        - Davis and Rabinowitz, "Methods of Numerical Integration", 2nd
          edition, section 2.7
    """
    size = order // 2 + 1
    nodes, weights = np.polynomial.legendre.leggauss(size)
    nodes = ops.convert_to_tensor((1 + nodes) / 2, step.dt.dtype)
    weights = ops.convert_to_tensor(weights / 2, step.dt.dtype)
    num_evals = size * ops.cast(accept, "int32")

    def add(i, integral):
        theta = ops.take(nodes, i)
        value = integrand(step.t + theta * step.dt, step.at(theta))
        share = structure.scale(step.dt * ops.take(weights, i), value)
        return i + 1, structure.add(integral, share)

    _, integral = backend.while_loop(
        lambda i, _: i < num_evals, add, (num_evals * 0, integral)
    )
    return integral, num_evals

"""The divergence of a right-hand side, `tr(df/dy)` of each sample."""

import math
from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.types import Tensor

# Up to this size the rows of a Jacobian share one evaluation.
_SMALL = 16


class Divergence(NamedTuple):
    """Slope, its divergence and the squared Frobenius norm of its Jacobian."""

    slope: Tensor
    trace: Tensor  # (batch,)
    frobenius: Tensor  # (batch,)


def exact(f: Callable, y: Tensor) -> Divergence:
    """Computes the divergence from every row of the Jacobian.

    Args:
        f: The slope of `y`, in which no sample affects another.
        y: Tensor of shape `(batch, ...)`.

    Returns:
        The `Divergence`.
    """
    size = math.prod(y.shape[1:])
    if size > _SMALL:
        return _row_by_row(f, y, size)
    units = [_unit(y, i) for i in range(size)]
    slope, rows = backend.vjps(f, (y,), units)
    pairs = [(row, unit) for (row,), unit in zip(rows, units, strict=True)]
    trace = sum(_dot(row, unit) for row, unit in pairs)
    frobenius = sum(_dot(row, row) for row, _ in pairs)
    return Divergence(slope, trace, frobenius)


def _row_by_row(f: Callable, y: Tensor, size: int) -> Divergence:
    """Computes the divergence in the memory of one row."""

    def add(sums, i):
        trace, frobenius = sums
        unit = _unit(y, i)
        _, (row,) = backend.vjp(f, (y,), unit)
        return (trace + _dot(row, unit), frobenius + _dot(row, row)), None

    zero = _dot(y, ops.zeros_like(y))
    sums, _ = backend.scan(add, (zero, zero), ops.arange(size), None)
    return Divergence(f(y), *sums)


def hutchinson(f: Callable, y: Tensor, probes: Tensor) -> Divergence:
    """Estimates the divergence by `e^T (df/dy) e`, without bias.

    Args:
        f: The slope of `y`, in which no sample affects another.
        y: Tensor of shape `(batch, ...)`.
        probes: Tensor of shape `(num_probes, batch, ...)`, of independent
            entries of mean 0 and variance 1. The estimates are averaged.

    Returns:
        The `Divergence`.

    Reference:
        - [Hutchinson, 1990](https://doi.org/10.1080/03610919008812866)
    """
    number = probes.shape[0]
    each = [probes[i] for i in range(number)]
    slope, rows = backend.vjps(f, (y,), each)
    pairs = [(row, probe) for (row,), probe in zip(rows, each, strict=True)]
    trace = sum(_dot(row, probe) for row, probe in pairs) / number
    frobenius = sum(_dot(row, row) for row, _ in pairs) / number
    return Divergence(slope, trace, frobenius)


def _unit(y: Tensor, i: int | Tensor) -> Tensor:
    """Makes the unit vector `i` of the state of each sample."""
    size = math.prod(y.shape[1:])
    unit = ops.cast(ops.equal(ops.arange(size), i), y.dtype)
    return ops.zeros_like(y) + ops.reshape(unit, y.shape[1:])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return pytree.sample_sums(x * y)

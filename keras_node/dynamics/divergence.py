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
    frobenius: Tensor | None  # (batch,), if it is asked for


def exact(f: Callable, y: Tensor, frobenius: bool) -> Divergence:
    """Computes the divergence from every row of the Jacobian.

    Args:
        f: The slope of `y`, in which no sample affects another.
        y: Tensor of shape `(batch, ...)`.
        frobenius: Boolean, whether the norm is asked for.

    Returns:
        The `Divergence`.
    """
    size = math.prod(y.shape[1:])
    if size > _SMALL:
        return _row_by_row(f, y, size)
    units = [_unit(y, i) for i in range(size)]
    slope, rows = backend.vjps(f, (y,), units)
    return _sums(slope, rows, units, frobenius)


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


def hutchinson(
    f: Callable, y: Tensor, probes: Tensor, frobenius: bool
) -> Divergence:
    """Estimates the divergence by `e^T (df/dy) e`, without bias.

    Args:
        f: The slope of `y`, in which no sample affects another.
        y: Tensor of shape `(batch, ...)`.
        probes: Tensor of shape `(num_probes, batch, ...)`, of independent
            entries of mean 0 and variance 1. The estimates are averaged.
        frobenius: Boolean, whether the norm is asked for.

    Returns:
        The `Divergence`.

    Reference:
        - [Hutchinson, 1990](https://doi.org/10.1080/03610919008812866)
    """
    number = probes.shape[0]
    each = [probes[i] for i in range(number)]
    slope, rows = backend.vjps(f, (y,), each)
    slope, trace, norm = _sums(slope, rows, each, frobenius)
    return Divergence(
        slope, trace / number, None if norm is None else norm / number
    )


def _sums(
    slope: Tensor, rows: list, vectors: list, frobenius: bool
) -> Divergence:
    """Sums the products `e^T J e`, and `|e^T J|^2`, over the vectors `e`."""
    pairs = [(row, e) for (row,), e in zip(rows, vectors, strict=True)]
    trace = sum(_dot(row, e) for row, e in pairs)
    norm = sum(_dot(row, row) for row, _ in pairs) if frobenius else None
    return Divergence(slope, trace, norm)


def _unit(y: Tensor, i: int | Tensor) -> Tensor:
    """Makes the unit vector `i` of the state of each sample."""
    size = math.prod(y.shape[1:])
    unit = ops.cast(ops.equal(ops.arange(size), i), y.dtype)
    return ops.zeros_like(y) + ops.reshape(unit, y.shape[1:])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return pytree.sample_sums(x * y)

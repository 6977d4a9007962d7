"""Arithmetic on a state: any `keras.tree` structure of tensors.

A factor is a scalar, or a tensor of shape `(batch,)` when each sample has its
own. It is then aligned with tensors of shape `(batch, ...)`.
"""

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

from keras import ops
from keras import tree

from keras_node import backend
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor


def map_leaves(f: Callable, *ys: State) -> State:
    """Maps leaves, at less cost than `keras.tree.map_structure`."""
    y = ys[0]
    if isinstance(y, (tuple, list)):
        mapped = [map_leaves(f, *parts) for parts in zip(*ys, strict=True)]
        return type(y)(*mapped) if hasattr(y, "_fields") else type(y)(mapped)
    return tree.map_structure(f, *ys) if isinstance(y, dict) else f(*ys)


def leaves(y: State) -> list[Tensor]:
    """Lists the leaves, faster than `keras.tree.flatten`."""
    if isinstance(y, (tuple, list)):
        return [leaf for part in y for leaf in leaves(part)]
    return tree.flatten(y) if isinstance(y, dict) else [y]


def align(factor: Scalar, rank: int, axis: int = 0) -> Scalar:
    """Reshapes one value per sample to broadcast with tensors of this rank.

    The samples lie along `axis`. A scalar stays as it is.
    """
    if len(factor.shape) == 0:
        return factor
    return ops.reshape(factor, (1,) * axis + (-1,) + (1,) * (rank - axis - 1))


def expand(factor: Scalar, leaf: Tensor) -> Scalar:
    """Aligns a factor with a leaf of shape `(batch, ...)`."""
    return align(factor, len(leaf.shape))


def combine(dt: Scalar, weights: tuple, slopes: list) -> State:
    """Computes `dt * sum(weights * slopes)`, without the zero weights."""
    return scale(dt, _weighted_sum(weights, slopes))


def advance(y: State, dt: Scalar, weights: tuple, slopes: list) -> State:
    """Computes `y + dt * sum(weights * slopes)`."""
    return map_leaves(
        lambda leaf, slope: backend.add_scaled(leaf, expand(dt, leaf), slope),
        y,
        _weighted_sum(weights, slopes),
    )


def _weighted_sum(weights: tuple, slopes: list) -> State:
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    factor, *factors = (float(w) for w, _ in terms)

    def leaf(slope, *slopes):
        total = factor * slope
        for w, k in zip(factors, slopes, strict=True):
            total = backend.add_scaled(total, w, k)
        return total

    return map_leaves(leaf, *(k for _, k in terms))


def scale(factor: Scalar, y: State) -> State:
    return map_leaves(lambda leaf: expand(factor, leaf) * leaf, y)


def add(x: State, y: State) -> State:
    # On TensorFlow, `keras.ops.add` mistakes an empty tensor for a bias.
    return map_leaves(operator.add, x, y)


def smaller(x: Scalar, y: Scalar) -> Scalar:
    """Takes the minimum. `ops.minimum` rounds float64 to float32 on PyTorch."""
    return ops.where(x < y, x, y)


def larger(x: Scalar, y: Scalar) -> Scalar:
    """Takes the maximum. `ops.maximum` rounds float64 to float32 on PyTorch."""
    return ops.where(x > y, x, y)


def where(condition: Bool, x: State, y: State) -> State:
    return map_leaves(lambda a, b: ops.where(expand(condition, a), a, b), x, y)


def full_like(y: State, value: float) -> State:
    return map_leaves(lambda leaf: ops.full_like(leaf, value), y)


def nan_unless(success: Bool, y: State) -> State:
    """Returns the state, with NaN where there was no `success`."""
    if not leaves(y):
        return y
    zero = zero_or_nan(success, leaves(y)[0].dtype)
    return map_leaves(lambda leaf: leaf + expand(zero, leaf), y)


def zero_or_nan(valid: Bool, dtype: str) -> Scalar:
    """Makes a zero where `valid`, and NaN elsewhere.

    An operation computes the NaN. `tf.debugging.enable_check_numerics` would
    report a constant NaN to its user, even if nothing used it.
    """
    return ops.sqrt(ops.cast(valid, dtype) - 1)


def all_finite(y: State, per_sample: bool = False) -> Bool:
    """Tells whether all entries are finite: of the batch, or per sample."""
    finite = True
    for leaf in leaves(y):
        axes = tuple(range(1, len(leaf.shape))) if per_sample else None
        finite = ops.logical_and(finite, ops.all(ops.isfinite(leaf), axis=axes))
    return finite


def sample_sums(y: Tensor) -> Tensor:
    """Sums the entries of each sample of a tensor `(batch, ...)`."""
    y = y[..., None]  # over no axes PyTorch sums all
    return ops.sum(y, axis=tuple(range(1, len(y.shape))))


def rms_norm(y: State, per_sample: bool = False) -> Scalar:
    """Computes the root mean square of all entries, or of each sample's."""
    squares, size = 0.0, 0
    for leaf in leaves(y):
        axes = tuple(range(1, len(leaf.shape))) if per_sample else None
        squares = squares + ops.sum(ops.square(leaf), axis=axes)
        shape = ops.shape(leaf)[1:] if per_sample else ops.shape(leaf)
        size = size + math.prod(shape)
    if isinstance(size, int):
        return ops.sqrt(squares / max(size, 1))  # 0 if there are no entries
    return ops.sqrt(squares / ops.cast(ops.maximum(size, 1), squares.dtype))


class RmsNorm(NamedTuple):
    """Norm of a state: `rms_norm` and its options, as a value."""

    per_sample: bool = False
    num_parts: int | None = None  # leading parts that count; None: all

    def __call__(self, y: State) -> Scalar:
        if self.num_parts is not None:
            y = y[: self.num_parts]
        return rms_norm(y, self.per_sample)


def unit(y: State) -> tuple[Scalar, State]:
    """Divides a state by its root mean square; returns this and the result."""
    # By its peak first: the square of a small gradient would underflow.
    peak, y = _divided(_peak(y), y)
    size, y = _divided(rms_norm(y), y)
    return peak * size, y


def _peak(y: State) -> Scalar:
    tops = [ops.max(ops.abs(leaf), initial=0.0) for leaf in leaves(y)]
    peak = ops.zeros_like(tops[0])
    for top in tops:
        peak = larger(top, peak)
    return peak


def _divided(size: Scalar, y: State) -> tuple[Scalar, State]:
    size = ops.where(size > 0, size, ops.ones_like(size))
    return size, map_leaves(lambda leaf: leaf / size, y)

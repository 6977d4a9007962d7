"""Arithmetic on a state: any `keras.tree` structure of tensors.

A factor is a scalar, or of shape `(batch,)` when each sample has its own; it
then meets tensors of shape `(batch, ...)`.
"""

import math
import operator
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras import ops
from keras import tree

from keras_node import backend


def map_leaves(f: Callable, *ys: Any) -> Any:
    """`keras.tree.map_structure`, which on PyTorch takes as long as `f`."""
    y = ys[0]
    if isinstance(y, (tuple, list)):
        mapped = [map_leaves(f, *parts) for parts in zip(*ys, strict=True)]
        return type(y)(*mapped) if hasattr(y, "_fields") else type(y)(mapped)
    return tree.map_structure(f, *ys) if isinstance(y, dict) else f(*ys)


def leaves(y: Any) -> list:
    """`keras.tree.flatten`, likewise."""
    if isinstance(y, (tuple, list)):
        return [leaf for part in y for leaf in leaves(part)]
    return tree.flatten(y) if isinstance(y, dict) else [y]


def expand(factor: Any, leaf: Any) -> Any:
    """Gives a factor the rank of `leaf`, if it is not a scalar."""
    if len(factor.shape) == 0:
        return factor
    return ops.reshape(factor, (-1,) + (1,) * (len(leaf.shape) - 1))


def combine(dt: Any, weights: tuple, slopes: list) -> Any:
    """`dt * sum(weights * slopes)`, zero weights left out."""
    return scale(dt, _weighted_sum(weights, slopes))


def advance(y: Any, dt: Any, weights: tuple, slopes: list) -> Any:
    """`y + dt * sum(weights * slopes)`."""
    return map_leaves(
        lambda leaf, slope: backend.add_scaled(leaf, expand(dt, leaf), slope),
        y,
        _weighted_sum(weights, slopes),
    )


def _weighted_sum(weights: tuple, slopes: list) -> Any:
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    factor, *factors = (float(w) for w, _ in terms)

    def leaf(slope, *slopes):
        total = factor * slope
        for w, k in zip(factors, slopes, strict=True):
            total = backend.add_scaled(total, w, k)
        return total

    return map_leaves(leaf, *(k for _, k in terms))


def scale(factor: Any, y: Any) -> Any:
    return map_leaves(lambda leaf: expand(factor, leaf) * leaf, y)


def add(x: Any, y: Any) -> Any:
    # `keras.ops.add` takes two empty tensors for a bias on TensorFlow.
    return map_leaves(operator.add, x, y)


def smaller(x: Any, y: Any) -> Any:
    """`keras.ops.minimum` would round float64 to float32 on PyTorch."""
    return ops.where(x < y, x, y)


def larger(x: Any, y: Any) -> Any:
    """`keras.ops.maximum` would round float64 to float32 on PyTorch."""
    return ops.where(x > y, x, y)


def where(condition: Any, x: Any, y: Any) -> Any:
    return map_leaves(lambda a, b: ops.where(expand(condition, a), a, b), x, y)


def full_like(y: Any, value: float) -> Any:
    return map_leaves(lambda leaf: ops.full_like(leaf, value), y)


def nan_unless(success: Any, y: Any) -> Any:
    """A state, or NaN where there was no `success`."""
    if not leaves(y):
        return y
    zero = zero_or_nan(success, leaves(y)[0].dtype)
    return map_leaves(lambda leaf: leaf + expand(zero, leaf), y)


def zero_or_nan(valid: Any, dtype: Any) -> Any:
    """Zero, or NaN where it is not `valid`.

    By an operation: a constant NaN is what a user who looks for the first one
    is shown (`tf.debugging.enable_check_numerics`), used or not.
    """
    return ops.sqrt(ops.cast(valid, dtype) - 1)


def all_finite(y: Any, per_sample: bool = False) -> Any:
    """Whether every entry is finite: a scalar, or one value per sample."""
    finite = True
    for leaf in leaves(y):
        axes = tuple(range(1, len(leaf.shape))) if per_sample else None
        finite = ops.logical_and(finite, ops.all(ops.isfinite(leaf), axis=axes))
    return finite


def rms_norm(y: Any, per_sample: bool = False) -> Any:
    """Root mean square over all entries: a scalar, or one value per sample."""
    squares, size = 0.0, 0
    for leaf in leaves(y):
        axes = tuple(range(1, len(leaf.shape))) if per_sample else None
        squares = squares + ops.sum(ops.square(leaf), axis=axes)
        shape = ops.shape(leaf)[1:] if per_sample else ops.shape(leaf)
        size = size + math.prod(shape)
    if isinstance(size, int):
        return ops.sqrt(squares / max(size, 1))  # of no entries: 0
    return ops.sqrt(squares / ops.cast(ops.maximum(size, 1), squares.dtype))


class RmsNorm(NamedTuple):
    """`rms_norm` as a function of a state alone."""

    per_sample: bool = False
    num_parts: int | None = None  # the first so many parts count, or all

    def __call__(self, y: Any) -> Any:
        if self.num_parts is not None:
            y = y[: self.num_parts]
        return rms_norm(y, self.per_sample)


class Bound(NamedTuple):
    """A function whose last arguments are given.

    As a structure and not a closure: what it holds can be seen from outside.
    """

    f: Callable
    args: tuple

    def __call__(self, *args: Any) -> Any:
        return self.f(*args, *self.args)


def unit(y: Any) -> tuple[Any, Any]:
    """The size of a state, and the state divided by it: its rms is then 1."""
    # Divided by its peak first: the square of a small gradient underflows.
    peak, y = _divided(_peak(y), y)
    size, y = _divided(rms_norm(y), y)
    return peak * size, y


def _peak(y: Any) -> Any:
    peak = 0.0
    for leaf in leaves(y):
        top = ops.max(ops.abs(leaf), initial=0.0)
        peak = larger(top, ops.full_like(top, peak))
    return peak


def _divided(size: Any, y: Any) -> tuple[Any, Any]:
    size = ops.where(size > 0, size, ops.ones_like(size))
    return size, map_leaves(lambda leaf: leaf / size, y)

"""Pages of reports: which of them a step meets, and where in it.

Reports are written in the order of time, page by page: all reports of a page
are computed at once. A count tells which one is due next, so that their cost
does not depend on the number of steps. Where samples have steps or times of
their own, each has its own count.
"""

import math

from keras import ops

from keras_node import pytree
from keras_node.types import Bool
from keras_node.types import State
from keras_node.types import Tensor

# A page is computed in each step that it meets. Shorter pages waste less of
# it, longer ones need fewer operations.
_ROWS_AT_MOST = 16
_FLOATS_AT_MOST = 2**14
_LARGE_BATCH = 128  # in place of a size that is not known


def rows_of(s_eval: Tensor, y: State) -> int:
    """Chooses the number of reports on a page."""
    floats = 0
    for leaf in pytree.leaves(y):
        batch, *shape = tuple(leaf.shape) or (1,)
        floats += (batch or _LARGE_BATCH) * math.prod(n or 1 for n in shape)
    rows = min(_ROWS_AT_MOST, _FLOATS_AT_MOST // max(floats, 1))
    return max(1, min(rows, s_eval.shape[0] or rows))


def paged(x: Tensor, rows: int, filling: float) -> Tensor:
    """Splits the first axis into pages of so many rows."""
    size, *shape = ops.shape(x)
    left = -size % rows
    if not isinstance(size, int) or left:
        space = ops.full((left, *shape), filling, dtype=x.dtype)
        x = ops.concatenate([x, space], axis=0)
    return ops.reshape(x, ((size + left) // rows, rows, *shape))


def joined(pages: Tensor) -> Tensor:
    """Joins pages of rows to rows."""
    count, rows, *shape = ops.shape(pages)
    return ops.reshape(pages, (count * rows, *shape))


def beside(x: Tensor, rank: int) -> Tensor:
    """Aligns what all samples share, or one value per sample, with reports."""
    return pytree.align(x, rank, axis=1)


def _of_samples(times: Tensor, *others: Tensor) -> Tensor:
    """Adds an axis for the samples if one of the `others` has it."""
    shared = all(len(x.shape) == 0 for x in others)
    if shared or len(times.shape) > 1:
        return times
    return times[:, None]


def count_of(inside: Bool) -> Tensor:
    """Counts the times for which something holds."""
    return ops.cast(ops.sum(ops.cast(inside, "int32"), axis=0), "int32")


def flat(times: Tensor, *others: Tensor) -> Tensor:
    """Lists the times of all pages."""
    return _of_samples(joined(times), *others)


def pages_between(start, stop, pages, rows):
    """Finds the first page and the one after the last, from row to row."""
    some = stop > start
    first = ops.where(some, start // rows, pages)
    last = ops.where(some, (stop - 1) // rows + 1, 0)
    return (
        ops.cast(ops.min(first, initial=pages), "int32"),
        ops.cast(ops.max(last, initial=0), "int32"),
    )


def within(times, start, stop, dense, page):
    """Finds which reports of a page lie between two rows, and where.

    Returns:
        The times, the `theta` of each and whether it lies between the rows.
        They are `(K,)`, or `(K, batch)` where samples differ.
    """
    rows = ops.shape(times)[1]
    s = _of_samples(ops.take(times, page, axis=0), start, stop, dense.t)
    row = page * rows + ops.arange(0, rows, dtype="int32")
    row = _of_samples(row, s[0])
    due = ops.logical_and(row >= start, row < stop)
    theta = dense.fraction(s)
    return due, ops.where(due, theta, ops.zeros_like(theta))


def outer(x: Tensor, rank: int) -> Tensor:
    """Aligns `(K,)` or `(K, batch)` with reports of this rank."""
    index = (..., *[None] * (rank - len(x.shape)))
    return x[index]


def take_rows(ys: Tensor, rows: Tensor) -> Tensor:
    """Takes rows, or for each sample rows of its own."""
    if len(rows.shape) == 1:
        return ops.take(ys, rows, axis=0)
    size, batch, *shape = ops.shape(ys)
    flat = ops.reshape(ys, (size * batch, *shape))
    samples = ops.arange(0, batch, dtype="int32")
    places = ops.reshape(ops.cast(rows, "int32") * batch + samples, (-1,))
    taken = ops.take(flat, places, axis=0)
    # On JAX, Keras's `take` loses the shape of an empty index.
    return ops.reshape(taken, (size, batch, *shape))

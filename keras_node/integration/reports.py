"""Reports of the state during a solve, and the pullback of their cotangents.

Reports are written in the order of time, page by page: all reports of a page
are computed at once. A count tells which one is due next, so that their cost
does not depend on the number of steps. Where samples have steps or times of
their own, each has its own count.
"""

import functools
import math
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.integration.dense import Dense
from keras_node.integration.record import read_row
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree

# A page is computed in each step that it meets. Shorter pages waste less of
# it, longer ones need fewer operations.
_ROWS_AT_MOST = 16
_FLOATS_AT_MOST = 2**14
_LARGE_BATCH = 128  # in place of a size that is not known


class Pages(NamedTuple):
    """Reports written so far.

    `K` times make a page. The last page is filled up with infinite times.
    """

    times: Tensor  # (pages, K) or (pages, K, batch), ascending
    ys: Tree  # list of pages, (K, batch, ...) each
    page: State  # an empty page, for its shape and dtype
    count: Tensor  # reports written, of all samples or of each

    @classmethod
    def empty(cls, s_eval: Tensor, t: Scalar, y0: State) -> "Pages":
        """Makes room for the reports at `s_eval`, in steps that start at `t`.

        Args:
            s_eval: `(T,)` or `(T, batch)`, ascending.
            t: A time, for its shape.
            y0: A state, for its shape and dtype.
        """
        rows = _rows(s_eval, y0)
        times = _paged(s_eval, rows, math.inf)

        page = pytree.map_leaves(
            lambda y: ops.zeros((rows, *ops.shape(y)), dtype=y.dtype), y0
        )

        def leaf(page):
            pages = backend.new_list(page, ops.shape(times)[0])
            # The first step may fail, and then no page would be written.
            return backend.set_item(pages, ops.zeros((), "int32"), page)

        own = s_eval[0] if len(s_eval.shape) > 1 else t
        return cls(
            times=times,
            ys=pytree.map_leaves(leaf, page),
            page=page,
            count=ops.zeros(ops.shape(own), dtype="int32"),
        )

    def write(self, accept: Bool, dense: Dense, y1: State) -> "Pages":
        """Writes the states that are due in a step.

        Args:
            accept: Whether the step was accepted.
            dense: The state inside the step.
            y1: The state at its end.
        """
        count, page, stop = _reached(self.times, self.count, accept, dense)
        _, ys = backend.while_loop(
            lambda page, ys: page < stop,
            functools.partial(
                _write_page, self.times, self.count, count, dense, y1
            ),
            (page, self.ys),
        )
        return self._replace(ys=ys, count=count)

    def states(self, size: int, success: Bool) -> State:
        """Collects the first `size` reports, `(size, batch, ...)`.

        A report is NaN where the solve failed, like its final state, and where
        its time is outside the interval.
        """
        inside = _flat(self.times)[:size] >= 0

        def leaf(pages, page):
            rows = _joined(backend.stack_list(pages, page))[:size]
            index = ops.arange(0, ops.shape(rows)[0], dtype="int32")
            rank = len(rows.shape)
            done = pytree.align(index, rank) < _beside(self.count, rank)
            done = ops.logical_and(done, _beside(success, rank))
            done = ops.logical_and(done, outer(inside, rank))
            return rows + pytree.zero_or_nan(done, rows.dtype)

        return pytree.map_leaves(leaf, self.ys, self.page)


def _rows(s_eval: Tensor, y: State) -> int:
    """Chooses the number of reports on a page."""
    floats = 0
    for leaf in pytree.leaves(y):
        batch, *shape = tuple(leaf.shape) or (1,)
        floats += (batch or _LARGE_BATCH) * math.prod(n or 1 for n in shape)
    rows = min(_ROWS_AT_MOST, _FLOATS_AT_MOST // max(floats, 1))
    return max(1, min(rows, s_eval.shape[0] or rows))


def _paged(x: Tensor, rows: int, filling: float) -> Tensor:
    """Splits the first axis into pages of so many rows."""
    size, *shape = ops.shape(x)
    left = -size % rows
    if not isinstance(size, int) or left:
        space = ops.full((left, *shape), filling, dtype=x.dtype)
        x = ops.concatenate([x, space], axis=0)
    return ops.reshape(x, ((size + left) // rows, rows, *shape))


def _joined(pages: Tensor) -> Tensor:
    """Joins pages of rows to rows."""
    count, rows, *shape = ops.shape(pages)
    return ops.reshape(pages, (count * rows, *shape))


def _beside(x: Tensor, rank: int) -> Tensor:
    """Aligns what all samples share, or one value per sample, with reports."""
    return pytree.align(x, rank, axis=1)


def _of_samples(times: Tensor, *others: Tensor) -> Tensor:
    """Adds an axis for the samples if one of the `others` has it."""
    shared = all(len(x.shape) == 0 for x in others)
    if shared or len(times.shape) > 1:
        return times
    return times[:, None]


def _count(inside: Bool) -> Tensor:
    """Counts the times for which something holds."""
    return ops.cast(ops.sum(ops.cast(inside, "int32"), axis=0), "int32")


def _flat(times: Tensor, *others: Tensor) -> Tensor:
    """Lists the times of all pages."""
    return _of_samples(_joined(times), *others)


@backend.jit
def _reached(times, count, accept, dense):
    """Counts the reports due until the end of a step, and finds their pages.

    Returns:
        The count after the step, the first page that has a report due, and
        the page after the last one.
    """
    pages, rows = ops.shape(times)[:2]
    s = _flat(times, dense.t, accept)
    # Rounding may leave t + dt just short of the end of the interval.
    inside = ops.logical_or(s <= dense.t + dense.dt, dense.fraction(s) <= 1)
    reached = ops.maximum(_count(inside), count)
    reached = ops.where(accept, reached, count)
    return reached, *_pages_between(count, reached, pages, rows)


def _pages_between(start, stop, pages, rows):
    """Finds the first page and the one after the last, from row to row."""
    some = stop > start
    first = ops.where(some, start // rows, pages)
    last = ops.where(some, (stop - 1) // rows + 1, 0)
    return (
        ops.cast(ops.min(first, initial=pages), "int32"),
        ops.cast(ops.max(last, initial=0), "int32"),
    )


def _page(times, start, stop, dense, page):
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


def _write_page(times, start, stop, dense, y1, page, ys):
    due, theta = _page(times, start, stop, dense, page)

    def leaf(items, end, y, *q):
        rank = len(y.shape) + 1
        fraction, now = outer(theta, rank), outer(due, rank)
        total = q[-1]
        for term in reversed(q[:-1]):
            total = term + fraction * total
        states = ops.where(fraction >= 1, end, y + fraction * total)
        states = ops.where(now, states, backend.get_item(items, page, states))
        return backend.set_item(items, page, states)

    return page + 1, pytree.map_leaves(leaf, ys, y1, dense.y, *dense.q)


class Cotangents(NamedTuple):
    """Cotangents of reports, in the pages of `Pages`."""

    times: Tensor
    ys: Tree  # (pages, K, batch, ...)

    @classmethod
    def of(cls, s_eval: Tensor, adj_ys: State, y: State) -> "Cotangents":
        """Arranges the cotangents `(T, batch, ...)` of states like `y`."""
        rows = _rows(s_eval, y)
        ys = pytree.map_leaves(lambda leaf: _paged(leaf, rows, 0.0), adj_ys)
        return cls(_paged(s_eval, rows, math.inf), ys)

    def pull(
        self, left: Tensor, first: Bool, dense: Dense
    ) -> tuple[Tensor, State, list[State]]:
        """Pulls the cotangents of the reports in a step back to `Dense`.

        The polynomial is linear in `y` and `q`. The cotangent of `q_m` is the
        sum of the cotangents of the reports, each times its `theta^(m + 1)`.

        Args:
            left: The number of reports not yet pulled back.
            first: Whether it is the first step: what is left is its own.
            dense: The step. Only the structure of its `q` is used.

        Returns:
            The number of reports before the step, the cotangent of `y` and
            the cotangent of `q`.
        """
        before, page, stop = _left(self.times, left, first, dense)
        zeros = pytree.full_like((dense.y, dense.q), 0.0)
        _, adj_y, adj_q = backend.while_loop(
            lambda page, *_: page < stop,
            functools.partial(
                _pull_page, self.times, self.ys, before, left, dense
            ),
            (page, *zeros),
        )
        return before, adj_y, adj_q


@backend.jit
def _left(times, left, first, dense):
    """Counts the reports before a step, and finds the pages of its own."""
    pages, rows = ops.shape(times)[:2]
    before = _count(_flat(times, dense.t, left) <= dense.t)
    before = ops.where(first, 0, ops.minimum(before, left))
    before = ops.cast(before, "int32")
    return before, *_pages_between(before, left, pages, rows)


def _pull_page(times, adj_ys, start, stop, dense, page, adj_y, adj_q):
    due, theta = _page(times, start, stop, dense, page)

    def read(pages):
        adj = ops.take(pages, page, axis=0)
        now = outer(due, len(adj.shape))
        return ops.where(now, adj, ops.zeros_like(adj))

    def add(leaf, adj):
        return leaf + ops.sum(adj, axis=0)

    def times_theta(adj):
        return outer(theta, len(adj.shape)) * adj

    adj = pytree.map_leaves(read, adj_ys)
    adj_y = pytree.map_leaves(add, adj_y, adj)
    sums = []
    for adj_q_m in adj_q:
        adj = pytree.map_leaves(times_theta, adj)
        sums.append(pytree.map_leaves(add, adj_q_m, adj))
    return page + 1, adj_y, sums


def time_of(s_eval: Tensor, report: Tensor) -> Scalar:
    """Reads the time of a report, or for each sample that of its own."""
    if len(s_eval.shape) == 1:
        return ops.take(s_eval, report)
    if len(report.shape) == 0:
        return ops.take(s_eval, report, axis=0)
    return ops.take_along_axis(s_eval, report[None], axis=0)[0]


def cotangent(adj_ys: State, report: Tensor, valid: Bool) -> State:
    """Reads the cotangent of a report; zero where it is not `valid`."""
    adj = read_row(adj_ys, ops.maximum(report, 0))
    return pytree.where(valid, adj, pytree.full_like(adj, 0.0))

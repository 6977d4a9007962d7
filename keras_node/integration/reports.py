"""Reports of the state during a solve."""

import functools
import math
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.integration.dense import Dense
from keras_node.integration.pages import beside
from keras_node.integration.pages import count_of
from keras_node.integration.pages import flat
from keras_node.integration.pages import joined
from keras_node.integration.pages import outer
from keras_node.integration.pages import paged
from keras_node.integration.pages import pages_between
from keras_node.integration.pages import rows_of
from keras_node.integration.pages import within
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


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
        rows = rows_of(s_eval, y0)
        times = paged(s_eval, rows, math.inf)

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
        inside = flat(self.times)[:size] >= 0

        def leaf(pages, page):
            rows = joined(backend.stack_list(pages, page))[:size]
            index = ops.arange(0, ops.shape(rows)[0], dtype="int32")
            rank = len(rows.shape)
            done = pytree.align(index, rank) < beside(self.count, rank)
            done = ops.logical_and(done, beside(success, rank))
            done = ops.logical_and(done, outer(inside, rank))
            return rows + pytree.zero_or_nan(done, rows.dtype)

        return pytree.map_leaves(leaf, self.ys, self.page)


@backend.jit
def _reached(times, count, accept, dense):
    """Counts the reports due until the end of a step, and finds their pages.

    Returns:
        The count after the step, the first page that has a report due, and
        the page after the last one.
    """
    pages, rows = ops.shape(times)[:2]
    s = flat(times, dense.t, accept)
    # Rounding may leave t + dt just short of the end of the interval.
    inside = ops.logical_or(s <= dense.t + dense.dt, dense.fraction(s) <= 1)
    reached = ops.maximum(count_of(inside), count)
    reached = ops.where(accept, reached, count)
    return reached, *pages_between(count, reached, pages, rows)


def _write_page(times, start, stop, dense, y1, page, ys):
    due, theta = within(times, start, stop, dense, page)

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

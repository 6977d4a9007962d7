"""The way back from the cotangents of reports to the steps."""

import functools
import math
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.integration.dense import Dense
from keras_node.integration.pages import count_of
from keras_node.integration.pages import flat
from keras_node.integration.pages import outer
from keras_node.integration.pages import paged
from keras_node.integration.pages import pages_between
from keras_node.integration.pages import rows_of
from keras_node.integration.pages import within
from keras_node.integration.record import read_row
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Cotangents(NamedTuple):
    """Cotangents of reports, in the pages of `Pages`."""

    times: Tensor
    ys: Tree  # (pages, K, batch, ...)

    @classmethod
    def of(cls, s_eval: Tensor, adj_ys: State, y: State) -> "Cotangents":
        """Arranges the cotangents `(T, batch, ...)` of states like `y`."""
        rows = rows_of(s_eval, y)
        ys = pytree.map_leaves(lambda leaf: paged(leaf, rows, 0.0), adj_ys)
        return cls(paged(s_eval, rows, math.inf), ys)

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
    before = count_of(flat(times, dense.t, left) <= dense.t)
    before = ops.where(first, 0, ops.minimum(before, left))
    before = ops.cast(before, "int32")
    return before, *pages_between(before, left, pages, rows)


def _pull_page(times, adj_ys, start, stop, dense, page, adj_y, adj_q):
    due, theta = within(times, start, stop, dense, page)

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

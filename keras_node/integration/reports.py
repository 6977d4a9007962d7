"""Reports of the state during a solve, and the pullback of their cotangents.

Reports are written in the order of time. An index tells which one is due next,
so that their cost does not depend on the number of steps. Where each sample has
its own steps, it has its own index.
"""

import functools

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.integration.dense import Dense
from keras_node.integration.record import read_row
from keras_node.integration.record import rows_like
from keras_node.integration.record import write_row
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor


def start(t: Scalar, y0: State, size: int) -> tuple[State, Tensor]:
    """Makes room for `size` reports, and the index of the first one."""
    return rows_like(y0, size + 1), ops.zeros(ops.shape(t), dtype="int32")


def write(
    ys: State,
    next_report: Tensor,
    s_eval: Tensor,
    accept: Bool,
    dense: Dense,
    y1: State,
) -> tuple[State, Tensor]:
    """Writes the states due in an accepted step.

    Args:
        ys: `(T + 1, batch, ...)`, the reports; the last row is waste.
        next_report: The index of the next report.
        s_eval: `(T,)`, the times of the reports.
        accept: Whether the step was accepted.
        dense: The state inside the step.
        y1: The state at the end of the step.

    Returns:
        `ys` and `next_report` after the step.
    """
    ys, next_report, _, _ = backend.while_loop(
        lambda ys, next_report, now, s: ops.any(now),
        functools.partial(_write_one, s_eval, accept, dense, y1),
        (ys, next_report, *_due(s_eval, accept, dense, next_report)),
    )
    return ys, next_report


@backend.jit
def _due(s_eval, accept, dense, next_report):
    """Tells whether the next report is in the step, and finds its time."""
    size = ops.shape(s_eval)[0]
    s = ops.take(s_eval, ops.minimum(next_report, size - 1))
    # Rounding may leave t + dt just short of the end of the interval.
    inside = ops.logical_or(s <= dense.t + dense.dt, dense.fraction(s) <= 1)
    more = ops.logical_and(next_report < size, inside)
    return ops.logical_and(accept, more), s


def _write_one(s_eval, accept, dense, y1, ys, next_report, now, s):
    theta = dense.fraction(s)
    # Where nothing is due, `theta` may be far beyond 1.
    inside = dense.at(pytree.smaller(theta, ops.ones_like(theta)))
    state = pytree.where(theta >= 1, y1, inside)
    state = pytree.nan_unless(s >= 0, state)
    row = ops.where(now, next_report, ops.shape(s_eval)[0])
    ys = write_row(ys, row, state)
    next_report = next_report + ops.cast(now, "int32")
    return ys, next_report, *_due(s_eval, accept, dense, next_report)


@backend.jit
def finished(ys: State, num_reported: Tensor, success: Bool) -> State:
    """Finishes the reports of a solve that has ended.

    A report is NaN where the solve failed, like its final state, and where the
    time of the report was past the end.
    """
    size = ops.shape(pytree.leaves(ys)[0])[0] - 1

    def leaf(rows):
        rank = len(rows.shape)
        index = pytree.align(ops.arange(0, size, dtype="int32"), rank)
        done = index < pytree.align(num_reported, rank, axis=1)
        done = ops.logical_and(done, pytree.align(success, rank, axis=1))
        return rows[:-1] + pytree.zero_or_nan(done, rows.dtype)

    return pytree.map_leaves(leaf, ys)


def pull(
    adj_ys: State,
    last_report: Tensor,
    s_eval: Tensor,
    first: Bool,
    dense: Dense,
) -> tuple[Tensor, State, list[State]]:
    """Pulls the cotangents of the states reported in a step back to `Dense`.

    The polynomial is linear in `y` and `q`. The cotangent of `q_m` is the sum
    of the cotangents of the reports, each times its `theta^(m + 1)`.

    Args:
        adj_ys: `(T, batch, ...)`, the cotangents of all reports.
        last_report: The index of the last report not yet pulled back.
        s_eval: `(T,)`, the times of the reports.
        first: Whether it is the first step: all remaining reports are its own.
        dense: The step. Only the structure of its `q` is used.

    Returns:
        The index of the last report before the step, the cotangent of `y` and
        the cotangent of `q`.
    """
    zeros = pytree.full_like((dense.y, dense.q), 0.0)
    last_report, adj_y, adj_q, _, _ = backend.while_loop(
        lambda last_report, adj_y, adj_q, now, s: ops.any(now),
        functools.partial(_pull_one, adj_ys, s_eval, first, dense),
        (last_report, *zeros, *_left(s_eval, first, dense, last_report)),
    )
    return last_report, adj_y, adj_q


@backend.jit
def _left(s_eval, first, dense, last_report):
    """Tells whether the last report left is in the step, and finds its time."""
    s = ops.take(s_eval, ops.maximum(last_report, 0))
    inside = ops.logical_or(first, s > dense.t)
    return ops.logical_and(last_report >= 0, inside), s


def _pull_one(adj_ys, s_eval, first, dense, last_report, adj_y, adj_q, now, s):
    theta = dense.fraction(s)
    adj = cotangent(adj_ys, last_report, ops.logical_and(now, s >= 0))
    adj_y = pytree.add(adj_y, adj)
    sums = []
    for adj_q_m in adj_q:
        adj = pytree.scale(theta, adj)
        sums.append(pytree.add(adj_q_m, adj))
    last_report = last_report - ops.cast(now, "int32")
    left = _left(s_eval, first, dense, last_report)
    return last_report, adj_y, sums, *left


def cotangent(adj_ys: State, report: Tensor, valid: Bool) -> State:
    """Reads the cotangent of a report; zero where it is not `valid`."""
    adj = read_row(adj_ys, ops.maximum(report, 0))
    return pytree.where(valid, adj, pytree.full_like(adj, 0.0))

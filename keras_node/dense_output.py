"""States between the ends of a step, reported and pulled back.

Reports are written in the order of time, by a pointer to the next one due:
what they cost does not depend on the number of steps. Where each sample steps
for itself, it has a pointer of its own.
"""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import structure
from keras_node.trajectory import read_row
from keras_node.trajectory import write_row


class DenseStep(NamedTuple):
    """A step, and the state everywhere inside it.

    It is the polynomial

        y(theta) = y + sum_m q_m theta^(m + 1),    theta = (s - t) / dt
    """

    t: Any  # where the step starts
    dt: Any  # its size
    y: Any  # the state at its start
    q: list

    def fraction(self, s: Any) -> Any:
        """Where the time `s` lies: 0 at the start of the step, 1 at its end."""
        moves = self.dt > 0
        theta = (s - self.t) / ops.where(moves, self.dt, 1.0)
        return ops.where(moves, theta, ops.zeros_like(theta))

    def at(self, theta: Any) -> Any:
        """The state at the fraction `theta` of the step."""
        total = self.q[-1]
        for term in reversed(self.q[:-1]):
            total = structure.add(term, structure.scale(theta, total))
        return structure.add(self.y, structure.scale(theta, total))


def report(
    ys: Any, pointer: Any, s_eval: Any, accept: Any, step: DenseStep, y1: Any
) -> tuple[Any, Any]:
    """Writes the states due in an accepted step.

    Args:
        ys: `(T + 1, batch, ...)`, the reports; the last row is waste.
        pointer: The index of the next report.
        s_eval: `(T,)`, the times of the reports.
        accept: Whether the step was accepted.
        step: The step.
        y1: The state at its end.

    Returns:
        `ys` and `pointer` after the step.
    """
    ys, pointer, _, _ = backend.while_loop(
        lambda ys, pointer, now, s: ops.any(now),
        lambda *carry: _report_one(s_eval, accept, step, y1, *carry),
        (ys, pointer, *_due(s_eval, accept, step, pointer)),
    )
    return ys, pointer


@backend.recorded
def _due(s_eval, accept, step, pointer):
    """Whether the next report is in the step, and its time."""
    size = ops.shape(s_eval)[0]
    s = ops.take(s_eval, ops.minimum(pointer, size - 1))
    # Rounding may leave t + dt just short of the end of the interval.
    inside = ops.logical_or(s <= step.t + step.dt, step.fraction(s) <= 1)
    more = ops.logical_and(pointer < size, inside)
    return ops.logical_and(accept, more), s


@backend.recorded
def _report_one(s_eval, accept, step, y1, ys, pointer, now, s):
    theta = step.fraction(s)
    # Samples with nothing due may be at a large multiple of their step.
    inside = step.at(structure.smaller(theta, ops.ones_like(theta)))
    state = structure.where(theta >= 1, y1, inside)
    state = structure.nan_unless(s >= 0, state)
    row = ops.where(now, pointer, ops.shape(s_eval)[0])
    ys = write_row(ys, row, state)
    pointer = pointer + ops.cast(now, "int32")
    return ys, pointer, *_due(s_eval, accept, step, pointer)


@backend.recorded
def reported(ys: Any, num_reported: Any, success: Any) -> Any:
    """The reports of a solve.

    They are NaN, like its end, where it failed, and where a time was past it.
    """
    size = ops.shape(structure.leaves(ys)[0])[0] - 1

    def leaf(rows):
        rank = len(rows.shape)
        index = ops.arange(0, size, dtype="int32")
        index = ops.reshape(index, (-1,) + (1,) * (rank - 1))
        done = index < _of_samples(num_reported, rank)
        done = ops.logical_and(done, _of_samples(success, rank))
        return rows[:-1] + structure.zero_or_nan(done, rows.dtype)

    return structure.map_leaves(leaf, ys)


def _of_samples(x: Any, rank: int) -> Any:
    """Gives a value per sample, if it is not a scalar, the rank of reports."""
    return ops.reshape(x, (1, -1) + (1,) * (rank - 2)) if len(x.shape) else x


def collect(
    adj_ys: Any, pointer: Any, s_eval: Any, first: Any, step: DenseStep
) -> tuple[Any, Any, list]:
    """Gathers the cotangents of the states reported within a step.

    The polynomial is linear in `y` and `q`: the cotangent of `q_m` is the sum
    of those of the reports, each times its `theta^(m + 1)`.

    Args:
        adj_ys: `(T, batch, ...)`, the cotangents of all reports.
        pointer: The index of the last report not yet gathered.
        s_eval: `(T,)`, the times of the reports.
        first: Whether it is the first step: all that is left belongs to it.
        step: The step; of its polynomial only the structure is of account.

    Returns:
        The pointer before the step, the cotangent of `y` and that of `q`.
    """

    zeros = structure.full_like((step.y, step.q), 0.0)
    pointer, adj_y, adj_q, _, _ = backend.while_loop(
        lambda pointer, adj_y, adj_q, now, s: ops.any(now),
        lambda *carry: _collect_one(adj_ys, s_eval, first, step, *carry),
        (pointer, *zeros, *_last_due(s_eval, first, step, pointer)),
    )
    return pointer, adj_y, adj_q


@backend.recorded
def _last_due(s_eval, first, step, pointer):
    """Whether the last report left is in the step, and its time."""
    s = ops.take(s_eval, ops.maximum(pointer, 0))
    inside = ops.logical_or(first, s > step.t)
    return ops.logical_and(pointer >= 0, inside), s


@backend.recorded
def _collect_one(adj_ys, s_eval, first, step, pointer, adj_y, adj_q, now, s):
    theta = step.fraction(s)
    adj = cotangent(adj_ys, pointer, ops.logical_and(now, s >= 0))
    adj_y = structure.add(adj_y, adj)
    sums = []
    for adj_q_m in adj_q:
        adj = structure.scale(theta, adj)
        sums.append(structure.add(adj_q_m, adj))
    pointer = pointer - ops.cast(now, "int32")
    return pointer, adj_y, sums, *_last_due(s_eval, first, step, pointer)


def cotangent(adj_ys: Any, pointer: Any, valid: Any) -> Any:
    """The cotangent of a report, or zero where it is not `valid`."""
    adj = read_row(adj_ys, ops.maximum(pointer, 0))
    return structure.where(valid, adj, structure.full_like(adj, 0.0))

"""States between the ends of a step, reported and pulled back.

Inside a step of size `dt` from `(t, y)` the state is the polynomial

    y(theta) = y + sum_m q_m theta^(m + 1),    theta = (s - t) / dt

Reports are written in the order of time, by a pointer to the next one due:
what they cost does not depend on the number of steps. Where each sample steps
for itself, it has a pointer of its own.
"""

from typing import Any

from keras import ops
from keras import tree

from keras_node import backend
from keras_node import structure
from keras_node.trajectory import read_row
from keras_node.trajectory import write_row


def report(
    ys: Any,
    pointer: Any,
    s_eval: Any,
    accept: Any,
    t: Any,
    dt: Any,
    y: Any,
    y1: Any,
    q: list,
) -> tuple[Any, Any]:
    """Writes the states due in an accepted step.

    Args:
        ys: `(T + 1, batch, ...)`, the reports; the last row is waste.
        pointer: The index of the next report.
        s_eval: `(T,)`, the times of the reports.
        accept: Whether the step was accepted.
        t: The start of the step.
        dt: Its size.
        y: The state at its start.
        y1: The state at its end.
        q: The polynomial between them.

    Returns:
        `ys` and `pointer` after the step.
    """
    size = ops.shape(s_eval)[0]
    end = t + dt

    def due(pointer):
        s = ops.take(s_eval, ops.minimum(pointer, size - 1))
        # Rounding may leave t + dt just short of the end of the interval.
        inside = ops.logical_or(s <= end, _fraction(s, t, dt) <= 1)
        more = ops.logical_and(pointer < size, inside)
        return ops.logical_and(accept, more), s

    def write(ys, pointer):
        now, s = due(pointer)
        theta = _fraction(s, t, dt)
        inside = structure.add(y, _horner(q, theta))
        state = structure.where(theta >= 1, y1, inside)
        nan = structure.full_like(y, float("nan"))
        state = structure.where(s < 0, nan, state)
        row = ops.where(now, pointer, size)
        return _write(ys, row, state), pointer + ops.cast(now, "int32")

    return ops.while_loop(
        lambda _, pointer: ops.any(due(pointer)[0]), write, (ys, pointer)
    )


def reported(ys: Any, success: Any) -> Any:
    """The reports of a solve; NaN, like its end, where it failed."""

    def leaf(rows):
        mask = success
        if len(mask.shape):
            mask = ops.reshape(mask, (1, -1) + (1,) * (len(rows.shape) - 2))
        return ops.where(mask, rows[:-1], float("nan"))

    return tree.map_structure(leaf, ys)


def collect(
    adj_ys: Any, pointer: Any, s_eval: Any, first: Any, t: Any, dt: Any, q: list
) -> tuple[Any, Any, list]:
    """Gathers the cotangents of the states reported within a step.

    The polynomial is linear in `y` and `q`: the cotangent of `q_m` is the sum
    of those of the reports, each times its `theta^(m + 1)`.

    Args:
        adj_ys: `(T, batch, ...)`, the cotangents of all reports.
        pointer: The index of the last report not yet gathered.
        s_eval: `(T,)`, the times of the reports.
        first: Whether it is the first step: all that is left belongs to it.
        t: The start of the step.
        dt: Its size.
        q: Zeros like the polynomial.

    Returns:
        The pointer before the step, the cotangent of `y` and that of `q`.
    """

    def due(pointer):
        s = ops.take(s_eval, ops.maximum(pointer, 0))
        inside = ops.logical_or(first, s > t)
        return ops.logical_and(pointer >= 0, inside), s

    def gather(pointer, adj_y, adj_q):
        now, s = due(pointer)
        theta = _fraction(s, t, dt)
        adj = _read(adj_ys, ops.maximum(pointer, 0))
        valid = ops.logical_and(now, s >= 0)
        adj = structure.where(valid, adj, structure.full_like(adj, 0.0))
        adj_y = structure.add(adj_y, adj)
        sums = []
        for adj_q_m in adj_q:
            adj = structure.combine(theta, (1,), [adj])
            sums.append(structure.add(adj_q_m, adj))
        return pointer - ops.cast(now, "int32"), adj_y, sums

    return ops.while_loop(
        lambda pointer, *_: ops.any(due(pointer)[0]),
        gather,
        (pointer, q[0], q),
    )


def _fraction(s: Any, t: Any, dt: Any) -> Any:
    """Where `s` lies in the step: 0 at its start, 1 at its end."""
    moves = dt > 0
    zero = ops.zeros_like(dt)
    return ops.where(moves, (s - t) / ops.where(moves, dt, 1.0), zero)


def _horner(q: list, theta: Any) -> Any:
    total = q[-1]
    for term in reversed(q[:-1]):
        total = structure.add(term, structure.combine(theta, (1,), [total]))
    return structure.combine(theta, (1,), [total])


def _write(ys: Any, row: Any, y: Any) -> Any:
    """Writes a state into a row, or each sample into a row of its own."""
    if len(row.shape) == 0:
        return write_row(ys, row, y)
    samples = ops.arange(ops.shape(row)[0], dtype="int32")
    indices = ops.stack([row, samples], axis=-1)
    return tree.map_structure(
        lambda rows, leaf: backend.scatter(rows, indices, leaf), ys, y
    )


def _read(ys: Any, row: Any) -> Any:
    """Reads a row, or for each sample a row of its own."""
    if len(row.shape) == 0:
        return read_row(ys, row)

    def leaf(rows):
        index = ops.reshape(row, (1, -1) + (1,) * (len(rows.shape) - 2))
        index = ops.broadcast_to(index, (1, *ops.shape(rows)[1:]))
        return ops.take_along_axis(rows, index, axis=0)[0]

    return tree.map_structure(leaf, ys)

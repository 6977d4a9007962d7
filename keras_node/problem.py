"""Initial value problems over given spans, reported at given times."""

import math
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_node import adjoints
from keras_node import pytree
from keras_node import solvers
from keras_node.adjoints.base import Adjoint
from keras_node.dynamics.vector_field import VectorField
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.integration.span import Course
from keras_node.integration.span import OverSpan
from keras_node.integration.span import Span
from keras_node.integration.span import unmoved
from keras_node.times.elapsed import as_span
from keras_node.times.elapsed import as_tensor
from keras_node.times.elapsed import elapsed
from keras_node.times.elapsed import extent_of
from keras_node.times.given import Times
from keras_node.times.jumps import Jumps
from keras_node.times.reporting import Reporting
from keras_node.types import State


class Problem(NamedTuple):
    """Initial value problem `dy/dt = f(t, y)`, `y(t0) = y0`."""

    field: VectorField  # the right-hand side, and what it reads
    y0: State
    span: Times  # the ends of the interval, (2,) or (batch, 2)
    fixed: bool  # whether the span is a pair of floats that stays the same
    times: Times | None = None  # to report, (T,) or (batch, T)
    mask: Any = None  # (batch, T), false where a time does not count
    jumps: Times | None = None  # of the right-hand side, (L,) or (batch, L)


def solve(
    problem: Problem, solver: Solver, adjoint: Adjoint, carried: Any = None
) -> Solution:
    """Solves a problem, differentiable by `y0`, `params`, the span and times.

    Args:
        problem: The problem.
        solver: The solver.
        adjoint: The adjoint.
        carried: What is integrated beside the state: see `dynamics.carried`.

    Returns:
        A `Solution`, whose `ys` are `(T, batch, ...)`, in the order of the
        times given.
    """
    f: Any = problem.field.function
    y0, norm = problem.y0, None
    span, times = problem.span, problem.times
    dtype = keras.backend.standardize_dtype(pytree.leaves(y0)[0].dtype)
    args, frozen = problem.field.params, problem.field.frozen
    if carried is not None:
        y0 = carried.start(y0)
        f, frozen = carried.field(f, frozen)
        norm = pytree.RmsNorm(solver.per_sample, carried.num_judged)
    extent = extent_of(span, dtype, solver.per_sample)
    moves = _moves(problem)
    fixed = problem.fixed and problem.jumps is None
    s_jumps: Any = None
    t0: Any = 0.0
    if fixed:
        t0, t1 = span.values.tolist()
    else:
        ends, course = _over_span(problem, extent, dtype)
        if problem.jumps is not None:
            s_jumps = course.jumps
        t1, f = course.extent, OverSpan(f, moves)
        args, frozen = f.arguments(ends, course, args, frozen)
    reporting, s_eval = None, None
    if times is not None:
        reporting = _reporting(problem, times, extent, dtype)
        s_eval = reporting.s_eval
        if moves and s_jumps is not None:
            s_eval = unmoved(ends, course, s_eval)
        moves = moves or times.moves
    solution = adjoint.integrate(
        solver,
        f,
        t0,
        t1,
        y0,
        args,
        frozen,
        s_eval,
        norm,
        moves and times is not None,
        s_jumps,
    )
    if not fixed:
        solution = _in_time(solution, ends, t1)
    if reporting is not None:
        solution = solution._replace(ys=reporting.returned(solution.ys))
    return carried.split(solution) if carried is not None else solution


def _moves(problem: Problem) -> bool:
    """Tells whether a gradient may flow to the ends or to the jumps."""
    jumps = problem.jumps
    return problem.span.moves or (jumps is not None and jumps.moves)


def _over_span(
    problem: Problem, extent: Any, dtype: str
) -> tuple[Span, Course]:
    """Makes the `Span` of a problem, and the `Course` over it."""
    ends = as_span(problem.span, dtype)
    course = Course(as_tensor(extent, dtype))
    if problem.jumps is None:
        return ends, course
    jumps = Jumps.of(problem.jumps, problem.span, extent, dtype)
    return ends._replace(jumps=jumps.t), course._replace(jumps=jumps.s)


def _reporting(
    problem: Problem, times: Times, extent: Any, dtype: str
) -> Reporting:
    """Sorts the times to report."""
    # With jumps, the gradient to the ends is that of `unmoved`.
    span = problem.span if problem.jumps is None else problem.span.still()
    since = elapsed(times, span, extent, dtype, problem.mask)
    return Reporting.of(since, problem.mask, dtype)


def _in_time(solution: Solution, ends: Span, extent: Any) -> Solution:
    """Says in units of time what a solve says in those of its course."""
    rate = ends.length / extent
    reached = ends.t0 + rate * solution.t
    return solution._replace(
        t=ops.where(solution.success, ends.t1, reached),
        elapsed=ops.abs(rate) * solution.elapsed,
    )


def methods(
    solver: Any, adjoint: Any, rtol: float | None, atol: float | None
) -> tuple[Solver, Adjoint]:
    """Finds the solver and the adjoint that are meant, and whether they go
    together: an adjoint may need more of the steps than the solver keeps.
    """
    tolerances = {"rtol": rtol, "atol": atol}
    given = {k: v for k, v in tolerances.items() if v is not None}
    solver, adjoint = solvers.get(solver, **given), adjoints.get(adjoint)
    if adjoint.needs_steps and not solver.keeps_steps:
        names = solvers_that("keeps_steps")
        raise ValueError(
            f"`adjoint` {adjoint} needs a `solver` that keeps a record of its "
            f"steps: one of {names}. Received: solver={solver}"
        )
    if adjoint.solves_others and not solver.any_state:
        names = [k for k, v in adjoints.ALL.items() if not v().solves_others]
        raise ValueError(
            f"`solver` {solver} solves for states of its own kind alone, and "
            f"`adjoint` has it solve for another: use one of {names}, or give "
            f"the adjoint a solver of its own. Received: adjoint={adjoint}"
        )
    return solver, adjoint


def solvers_that(flag: str) -> list[str]:
    """Lists the names of the solvers that have a flag of `Solver`."""
    return [name for name, cls in solvers.ALL.items() if getattr(cls, flag)]


def finest_rtol(solver: Solver, adjoint: Adjoint) -> float:
    """Returns the smallest `rtol` of both solves, or infinity."""
    solves = (solver, getattr(adjoint, "solver", None))
    return min(getattr(one, "rtol", math.inf) for one in solves)


def check_solver(solver: Solver, times: Times, span: Times) -> None:
    """Refuses times of each sample if the solver cannot report at them."""
    own = max(len(times.shape), len(span.shape)) > 1
    if own and not solver.reports_own_times:
        names = solvers_that("reports_own_times")
        raise ValueError(
            "`t_eval` of shape `(batch, T)`, or `t_span` of shape "
            f"`(batch, 2)` with `t_eval`, needs a `solver` among {names}. "
            f"Received: solver={solver}"
        )


def check_jumps(solver: Solver) -> None:
    """Refuses a solver whose steps cannot end where the slope jumps."""
    if not solver.stops_at_jumps:
        names = solvers_that("stops_at_jumps")
        raise ValueError(
            f"`jump_times` needs a `solver` among {names}, whose steps can end "
            f"at any time. Received: solver={solver}"
        )

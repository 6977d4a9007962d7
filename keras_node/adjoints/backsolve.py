"""Gradients by solving backwards in time, together with the state."""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node import registry
from keras_node.adjoints.base import Adjoint
from keras_node.adjoints.solve import Cotangent
from keras_node.adjoints.solve import Solve
from keras_node.config import register
from keras_node.integration import report_cotangents
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import ReportAt
from keras_node.integration.pages import outer
from keras_node.integration.pages import take_rows
from keras_node.integration.record import read_row
from keras_node.integration.solution import Status
from keras_node.integration.solver import Solver
from keras_node.types import Bool
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree

_REMEDIES = (
    "The forward solve cannot be traced back in time. What helps, in this "
    'order: `adjoint="discrete"` with a native solver such as `"tsit5"`; '
    "smaller `rtol` and `atol`; smoother `dynamics`."
)


@register
class BacksolveAdjoint(Adjoint):
    """Adjoint that solves an augmented equation backwards in time.

    Let `a` be the gradient with respect to `y(t)`, and `g` the gradient of the
    parameters. The state `(y, a, g)` is integrated from `t1` back to `t0`:

        dy/dt = f,    da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    Memory does not depend on the number of steps. The state is computed again
    on the way back. This is unstable where the forward equation forgets its
    past (fast decay). The backward solve may fail, or miss the state that the
    forward solve came from by more than the size of that state. The gradients
    are then NaN; outside compiled code `keras_node.SolverError` is raised.
    Otherwise the gradients are as accurate as the state that is traced back.
    The backward pass takes one step size for the whole batch, even if the
    forward solver is `per_sample`.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, or
            `None` for the solver of the forward pass. Defaults to `None`.

    Raises:
        ValueError: If `solver` is neither, or is `Leapfrog`.

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), appendix B
    """

    needs_steps = False
    _config_keys = ("solver",)

    def __init__(self, solver: Solver | None = None):
        self.solver = solver
        if solver is not None:
            self.solver = registry.get("solver", solver, {}, Solver)
            if not self.solver.any_state:
                raise ValueError(
                    "`solver` of `BacksolveAdjoint` must be one for any state. "
                    f"Received: solver={solver}"
                )

    @property
    def solves_others(self) -> bool:  # type: ignore[override]
        return self.solver is None

    def outputs(
        self, solver: Solver, jumps: Tensor | None
    ) -> tuple[Output, ...]:
        return () if jumps is None else (ReportAt(jumps),)

    def pullback(
        self, solve: Solve, cotangent: Cotangent
    ) -> tuple[State, Tree]:
        forward = solve.solution
        state = (
            forward.y1,
            cotangent.adj_y1,
            pytree.full_like(solve.args, 0.0),
        )
        halts = _Halts.of(solve, cotangent)
        if halts is None:
            _, *gradients = self._back(solve, solve.span, 0.0, state, solve.y0)
            return tuple(gradients)

        # From each halt back to the one before it, where the state is known
        # and its cotangent is added; at last to t0. Elapsed time loses nothing
        # between two close reports.
        start = ops.zeros_like(halts.s[:1])
        times = ops.clip(halts.s, 0.0, solve.span)
        times = ops.concatenate([start, times, start + solve.span])

        def halt(j, state):
            reported = j > 0
            row = read_row(halts.ys, ops.maximum(j - 1, 0))
            expected = pytree.where(reported, row, solve.y0)
            start, end = (ops.take(times, i, axis=0) for i in (j + 1, j))
            _, adj_y, adj_args = self._back(solve, start, end, state, expected)
            adj = report_cotangents.cotangent(halts.adj_ys, j - 1, reported)
            return j - 1, (expected, pytree.add(adj_y, adj), adj_args)

        last = ops.shape(times)[0] - 2
        _, (_, *gradients) = backend.while_loop(
            lambda j, state: j >= 0,
            halt,
            (ops.convert_to_tensor(last, "int32"), state),
        )
        return tuple(gradients)

    def _back(
        self,
        solve: Solve,
        start: Scalar,
        end: Scalar,
        state: State,
        expected: State,
    ) -> State:
        """Solves from `start` back to `end`, where the state is `expected`."""
        field = solve.f.after(end)
        f: Any = _Augmented(field)
        t0, t1 = start, end
        if len(getattr(start, "shape", ())):
            # The sample with the longest way runs at full speed, others slower.
            whence, way, t0 = start, start - end, 0.0
            t1 = start = ops.max(way, initial=0.0)
            f = _AtRates(field, whence, way / ops.where(t1 > 0, t1, 1.0))
        # All samples share the gradient of the arguments. Nothing depends on
        # it, so its error does not count: Kidger et al., 2021.
        result = (
            (self.solver or solve.solver)
            .shared()
            .solve(
                f,
                t0,
                t1,
                state,
                solve.args,
                norm=pytree.RmsNorm(num_parts=2),
            )
        )
        drifted = _has_drifted(result.y1[0], state[0], expected)
        drifted = ops.logical_and(result.success, drifted)
        result = result._replace(
            status=ops.where(
                drifted, int(Status.BACKSOLVE_DRIFT), result.status
            ),
            elapsed=start - result.elapsed,
        )
        result.check_backward(solve.solution, _REMEDIES, solve.t_span)
        return pytree.nan_unless(result.success, result.y1)


class _Halts(NamedTuple):
    """Times at which the way back halts: at reports and where `f` jumps."""

    s: Tensor  # (T,) or (T, batch), ascending
    ys: State  # the states there, (T, batch, ...)
    adj_ys: State  # their cotangents, zero where there is no report

    @classmethod
    def of(cls, solve: Solve, cotangent: Cotangent) -> "_Halts | None":
        reports = None
        if solve.s_eval is not None:
            ys = solve.solution.ys
            reports = cls(solve.s_eval, ys, cotangent.adj_ys)
        if solve.f.jumps is None:
            return reports
        ((ys, _),) = solve.kept
        jumps = cls(solve.f.jumps, ys, pytree.full_like(ys, 0.0))
        return jumps if reports is None else _merged(reports, jumps)


def _merged(reports: _Halts, jumps: _Halts) -> _Halts:
    """Sorts the halts of two lists into one."""
    zero = ops.zeros_like(reports.s[0]) + ops.zeros_like(jumps.s[0])
    rank = len(zero.shape) + 1
    s = ops.concatenate(
        [outer(x.s, rank) + zero for x in (reports, jumps)], axis=0
    )
    order = ops.argsort(s, axis=0)

    def joined(first, second):
        return take_rows(ops.concatenate([first, second], axis=0), order)

    return _Halts(
        ops.take_along_axis(s, order, axis=0),
        pytree.map_leaves(joined, reports.ys, jumps.ys),
        pytree.map_leaves(joined, reports.adj_ys, jumps.adj_ys),
    )


class _Augmented(NamedTuple):
    """Slopes of the state, its cotangent and the gradient of the arguments."""

    f: RightHandSide

    def __call__(self, s: Scalar, state: State, args: Tree) -> State:
        y, adj_y, _ = state
        dy, (vjp_y, vjp_args) = backend.vjp(
            lambda y, args: self.f(s, y, args), (y, args), adj_y
        )
        minus = pytree.map_leaves(ops.negative, (vjp_y, vjp_args))
        return dy, *minus


class _AtRates(NamedTuple):
    """Slopes of the same in the time `tau` since each sample left its start.

    The time of a sample runs backwards, at its own rate.
    """

    f: RightHandSide
    start: Scalar  # (batch,)
    rate: Scalar  # (batch,)

    def __call__(self, tau: Scalar, state: State, args: Tree) -> State:
        y, adj_y, _ = state
        s = self.start - self.rate * tau
        dy, vjps = backend.vjp(
            lambda y, args: self.f(s, y, args),
            (y, args),
            pytree.scale(self.rate, adj_y),
        )
        return pytree.scale(-self.rate, dy), *vjps


def _has_drifted(y: State, start: State, expected: State) -> Bool:
    """Tells whether `y`, traced back from `start`, misses `expected`.

    It does if the error is larger than the state. A smaller error spoils the
    gradient in proportion. In practice the error is a few per cent in a good
    solve, and many powers of ten in a failed one.
    """
    gap = pytree.rms_norm(pytree.map_leaves(ops.subtract, y, expected))
    size = pytree.larger(pytree.rms_norm(start), pytree.rms_norm(expected))
    return gap > size + 1e-3  # for states of about zero

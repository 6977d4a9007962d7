"""The adjoints: how the gradient of a solve is computed."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_node import backend
from keras_node import checks
from keras_node import dense_output
from keras_node import structure
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.interval import Interval
from keras_node.solution import Solution
from keras_node.trajectory import read_row
from keras_node.trajectory import rows_like
from keras_node.trajectory import write_row

_BACKSOLVE_REMEDIES = (
    "The forward solve cannot be traced back in time. What helps, in this "
    'order: `adjoint="discrete"` with a native solver such as `"tsit5"`; '
    "smaller `rtol` and `atol`; smoother `dynamics`."
)


@keras.saving.register_keras_serializable(package="keras_node")
class BacksolveAdjoint(Adjoint):
    """Gradients by solving an augmented equation backwards in time.

    With `a` the gradient with respect to `y(t)`, the state
    `(y, a, gradient of the parameters)` is integrated from `t1` back to `t0`:

        dy/dt = f,    da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    Memory does not depend on the number of steps. The state is computed again
    on the way back, which is unstable where the forward equation forgets its
    past (fast decay): there the backward solve fails, and the gradients are
    NaN; outside compiled code a `keras_node.SolverError` says so. Gradients
    are as accurate as the tolerances of the solver. The backward pass takes
    one step size for the whole batch, even where the forward solver is
    `per_sample`.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, or
            `None` for the one of the forward pass. Defaults to `None`.

    Raises:
        ValueError: If `solver` is neither.

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), appendix B
    """

    _config_keys = ("solver",)

    def __init__(self, solver: Solver | None = None):
        self.solver = solver
        if solver is not None:
            self.solver = checks.lookup("solver", solver, {}, Solver)

    def pullback(
        self,
        solver: Solver,
        f: Callable,
        t0: float,
        t1: float,
        t_eval: Any,
        solution: Solution,
        params: Any,
        adjoint: Solution,
    ) -> tuple[Any, Any]:
        # The gradient of the parameters is one for all samples.
        backward = (self.solver or solver).together()

        def augmented(t, state):
            y, adj_y, _ = state
            dy, (vjp_y, vjp_params) = backend.vjp(
                lambda y, params: f(t, y, params), (y, params), adj_y
            )
            minus = tree.map_structure(ops.negative, (vjp_y, vjp_params))
            return dy, *minus

        def back(start, end, state):
            # Nothing depends on the integral of the parameters' gradient, so
            # that its error is of no account: Kidger et al., 2021.
            result = backward.solve(
                augmented,
                start,
                end,
                state,
                norm=lambda state: structure.rms_norm(state[:2]),
            )
            if not forward_failed:
                result.check("backward solve", _BACKSOLVE_REMEDIES)
            return result.y1

        failed = solution.failed()
        forward_failed = failed is not None and failed.size > 0
        zeros = structure.full_like(params, 0.0)
        state = (solution.y1, adjoint.y1, zeros)
        if t_eval is None:
            _, adj_y0, adj_params = back(t1, t0, state)
            return adj_y0, adj_params

        # From each time reported back to the one before it, where the state
        # is known and its cotangent comes in; at last to t0.
        dtype = solution.t.dtype
        times = ops.clip(ops.cast(t_eval, dtype), min(t0, t1), max(t0, t1))
        ends = [ops.full((1,), t, dtype=dtype) for t in (t0, t1)]
        times = ops.concatenate([ends[0], times, ends[1]])

        def jump(j, state):
            y, adj_y, adj_params = back(
                ops.take(times, j + 1), ops.take(times, j), state
            )
            reported = j > 0
            row = ops.maximum(j - 1, 0)
            y = structure.where(reported, read_row(solution.ys, row), y)
            adj = read_row(adjoint.ys, row)
            adj = structure.where(reported, adj, structure.full_like(adj, 0.0))
            return j - 1, (y, structure.add(adj_y, adj), adj_params)

        last = ops.shape(times)[0] - 2
        _, (_, adj_y0, adj_params) = ops.while_loop(
            lambda j, state: j >= 0,
            jump,
            (ops.convert_to_tensor(last, "int32"), state),
        )
        return adj_y0, adj_params


@keras.saving.register_keras_serializable(package="keras_node")
class DiscreteAdjoint(Adjoint):
    """Gradients by differentiating the steps of the solver themselves.

    The accepted steps are replayed one by one, last to first, and the
    cotangent pulled back through each: the exact gradient of the numbers that
    the solver computed, with the step sizes taken as given. It costs one step
    and one vector-Jacobian product per accepted step, and nothing for the
    rejected ones.

    The forward pass keeps `checkpoints` states at most. A solve of more steps
    than that keeps every second one, every fourth and so on, and computes
    those between again: at most one forward pass more.

    Needs a solver that keeps a record: every native one.

    Args:
        checkpoints: Int, how many states are kept. Compiled code reserves
            its memory beforehand: up to `checkpoints + 2 max_steps /
            checkpoints` states, whatever the number of steps taken. With a
            large `max_steps` its square root is a good choice. Defaults to
            `100`.

    Raises:
        ValueError: If `checkpoints` is not a positive integer.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", adjoint="discrete"
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hager, 2000, "Runge-Kutta methods in optimal control and the
          transformed adjoint system" (https://doi.org/10.1007/s002110000178)
    """

    _config_keys = ("checkpoints",)

    def __init__(self, checkpoints: int = 100):
        self.checkpoints = checks.positive_int("checkpoints", checkpoints)

    def pullback(
        self,
        solver: Solver,
        f: Callable,
        t0: float,
        t1: float,
        t_eval: Any,
        solution: Solution,
        params: Any,
        adjoint: Solution,
    ) -> tuple[Any, Any]:
        path = solution.trajectory
        interval = Interval(t0, t1, solution.t.dtype)
        g = interval.field(f)
        reports = t_eval is not None
        s_eval = interval.elapsed(t_eval) if reports else None

        def step(i, y, params):
            """The end of step `i`, and its dense output if it is needed."""
            t, dt = path.step(i)
            y1, slopes = solver.step(
                lambda s, y: g(s, y, params), t, dt, y, end_slope=reports
            )
            return y1, solver.dense(dt, slopes) if reports else []

        def undo(i, y, pointer, adj_y, adj_params):
            """Pulls back through step `i`, which started from `y`."""
            zero = structure.full_like(adj_y, 0.0)
            adj_start, adj_q = zero, []
            if reports:
                degree = len(solver.tableau.b_dense[0])
                pointer, adj_start, adj_q = dense_output.collect(
                    adjoint.ys,
                    pointer,
                    s_eval,
                    ops.equal(i, 0),
                    *path.step(i),
                    [zero] * degree,
                )
            _, (vjp_y, vjp_params) = backend.vjp(
                lambda y, params: step(i, y, params),
                (y, params),
                (adj_y, adj_q),
            )
            adj_y = structure.add(adj_start, vjp_y)
            return pointer, adj_y, structure.add(adj_params, vjp_params)

        def undo_segment(end, *carry):
            """Pulls back to the checkpoint before step `end`."""
            start = (end - 1) // path.stride * path.stride
            y = path.state(start)
            rows = write_row(rows_like(y, path.longest_stride), start * 0, y)

            def redo(i, rows, y):
                y, _ = step(i, y, params)
                return i + 1, write_row(rows, i + 1 - start, y), y

            def back(i, *carry):
                return i - 1, *undo(i, read_row(rows, i - start), *carry)

            _, rows, _ = ops.while_loop(
                lambda i, *_: i < end - 1, redo, (start, rows, y)
            )
            _, *carry = ops.while_loop(
                lambda i, *_: i >= start, back, (end - 1, *carry)
            )
            return start, *carry

        _, _, adj_y0, adj_params = ops.while_loop(
            lambda end, *_: end > 0,
            undo_segment,
            (
                path.num_steps,
                path.num_reported - 1,
                structure.nan_unless(solution.success, adjoint.y1),
                structure.full_like(params, 0.0),
            ),
        )
        return adj_y0, adj_params


ALL = {"backsolve": BacksolveAdjoint, "discrete": DiscreteAdjoint}


def get(identifier: str | dict | Adjoint) -> Adjoint:
    """Finds an adjoint.

    Args:
        identifier: A name in `ALL`, a config or an `Adjoint`.

    Returns:
        An `Adjoint`.

    Raises:
        ValueError: If `identifier` is none of these.
    """
    return checks.lookup("adjoint", identifier, ALL, Adjoint)

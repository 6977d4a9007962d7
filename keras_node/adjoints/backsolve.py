"""Gradients by solving backwards in time, the state along with them."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import dense_output
from keras_node import structure
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.interval import Field
from keras_node.interval import Interval
from keras_node.solution import Solution
from keras_node.solution import Status
from keras_node.trajectory import read_row

_REMEDIES = (
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
    past (fast decay). Where the backward solve fails, or misses the state it
    came from by more than its size, the gradients are NaN; outside compiled
    code a `keras_node.SolverError` says so. Else they are as accurate as the
    state is traced back. The backward pass takes one step size for the whole
    batch, even where the forward solver is `per_sample`.

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
        y0: Any,
        s_eval: Any,
        solution: Solution,
        params: Any,
        adjoint: Solution,
    ) -> tuple[Any, Any]:
        # The gradient of the parameters is one for all samples.
        backward = (self.solver or solver).together()

        # In elapsed time: between two close reports, none of it is lost.
        dtype = solution.t.dtype
        g = Field(f, Interval.between(t0, t1, dtype))
        augmented = structure.Bound(_augmented, (g, params))
        span = abs(t1 - t0)

        def back(start, end, state, expected):
            # Nothing depends on the integral of the parameters' gradient, so
            # that its error is of no account: Kidger et al., 2021.
            result = backward.solve(
                augmented,
                start,
                end,
                state,
                norm=structure.RmsNorm(num_parts=2),
            )
            astray = _astray(result.y1[0], state[0], expected)
            astray = ops.logical_and(result.success, astray)
            status = ops.where(astray, int(Status.ASTRAY), result.status)
            result = result._replace(
                status=status, elapsed=start - result.elapsed
            )
            result.check_backward(solution, _REMEDIES, (t0, t1))
            return structure.nan_unless(result.success, result.y1)

        zeros = structure.full_like(params, 0.0)
        state = (solution.y1, adjoint.y1, zeros)
        if s_eval is None:
            _, *gradients = back(span, 0.0, state, y0)
            return tuple(gradients)

        # From each time reported back to the one before it, where the state
        # is known and its cotangent comes in; at last to t0.
        ends = [ops.full((1,), s, dtype=dtype) for s in (0.0, span)]
        times = ops.clip(s_eval, 0.0, span)
        times = ops.concatenate([ends[0], times, ends[1]])

        def jump(j, state):
            reported = j > 0
            row = ops.maximum(j - 1, 0)
            expected = structure.where(reported, read_row(solution.ys, row), y0)
            _, adj_y, adj_params = back(
                ops.take(times, j + 1), ops.take(times, j), state, expected
            )
            adj = dense_output.cotangent(adjoint.ys, j - 1, reported)
            return j - 1, (expected, structure.add(adj_y, adj), adj_params)

        last = ops.shape(times)[0] - 2
        _, (_, *gradients) = backend.while_loop(
            lambda j, state: j >= 0,
            jump,
            (ops.convert_to_tensor(last, "int32"), state),
        )
        return tuple(gradients)


def _augmented(t: Any, state: Any, f: Callable, params: Any) -> Any:
    """The slopes of the state, of its cotangent and of the gradient."""
    y, adj_y, _ = state
    dy, (vjp_y, vjp_params) = backend.vjp(
        lambda y, params: f(t, y, params), (y, params), adj_y
    )
    minus = structure.map_leaves(ops.negative, (vjp_y, vjp_params))
    return dy, *minus


def _astray(y: Any, start: Any, expected: Any) -> Any:
    """Whether `y`, traced back from `start`, has nothing of the `expected`.

    It is further away than the state is large. An error smaller than that
    spoils the gradient in proportion; solves of practice come to a few per
    cent, failed ones to many powers of ten.
    """
    gap = structure.rms_norm(structure.map_leaves(ops.subtract, y, expected))
    size = structure.larger(
        structure.rms_norm(start), structure.rms_norm(expected)
    )
    return gap > size + 1e-3  # states of about zero

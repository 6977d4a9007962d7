"""Gradients of the steps that the solver took: discretise, then optimise."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import dense_output
from keras_node import structure
from keras_node.adjoints import replay
from keras_node.dense_output import DenseStep
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solver
from keras_node.interval import Field
from keras_node.interval import Interval
from keras_node.solution import Solution


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
        checkpoints: Int, how many states are kept. JAX and XLA reserve the
            memory beforehand: up to `checkpoints + 2 max_steps / checkpoints`
            states, whatever the number of steps taken. With a large
            `max_steps` its square root is a good choice. Defaults to `100`.
        keep_graphs: Int, of how many steps, the first ones, PyTorch keeps its
            graph, so that they need not be taken once more: each takes as
            much memory as the network takes to be trained without an ODE,
            times the number of stages. Other backends keep none: compiled,
            a loop would reserve the memory for all steps. Defaults to `8`.

    Raises:
        ValueError: If `checkpoints` is not a positive integer below `2**31`,
            or `keep_graphs` neither such an integer nor `0`.

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

    _config_keys = ("checkpoints", "keep_graphs")

    def __init__(self, checkpoints: int = 100, keep_graphs: int = 8):
        self.checkpoints = checks.positive_int("checkpoints", checkpoints)
        self.keep_graphs = checks.positive_int(
            "keep_graphs", keep_graphs, or_zero=True
        )

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
        path, tape = solution.trajectory, solution.tape
        interval = Interval.between(t0, t1, solution.t.dtype)
        g = Field(f, interval)
        reports = s_eval is not None

        def undo(i, y, pointer, adj_y, adj_params):
            adj_inside = ()
            if reports:
                degree = len(solver.tableau.b_dense[0])
                pointer, *adj_inside = dense_output.collect(
                    adjoint.ys,
                    pointer,
                    s_eval,
                    ops.equal(i, 0),
                    DenseStep(*path.step(i), y, [y] * degree),
                )
            cotangent = (adj_y, tuple(adj_inside))
            kept = tape.pull(i, cotangent) if tape else None
            if kept is None:
                kept = _pull(solver, g, path, i, y, params, cotangent)
            adj_y, vjp_params = kept
            return pointer, adj_y, structure.add(adj_params, vjp_params)

        def redo(i, y):
            return _take(solver, g, path, i, y, params)

        num_kept = len(tape) if tape else 0
        return replay.backwards(
            solution, y0, params, adjoint.y1, redo, undo, num_kept
        )


@backend.recorded
def _take(solver, g, path, i, y, params):
    """The end of step `i`."""
    return solver.step(structure.Bound(g, (params,)), *path.step(i), y).y1


@backend.recorded
def _pull(solver, g, path, i, y, params, cotangent):
    """The cotangents of the state at the start of step `i`, and of `params`.

    From those of the state at its end, and of its inside if that was reported.
    """
    t, dt = path.step(i)
    reports = bool(cotangent[1])

    def step(y, params):
        f = structure.Bound(g, (params,))
        y1, slopes = solver.step(f, t, dt, y, end_slope=reports)
        if not reports:
            return y1, ()
        dense = solver.dense(t, dt, y, slopes)
        return y1, (dense.y, dense.q)

    return backend.vjp(step, (y, params), cotangent)[1]

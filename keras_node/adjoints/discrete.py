"""Gradients of the steps that a solver took: discretise, then optimise."""

from keras import ops

from keras_node import backend
from keras_node import checks
from keras_node import pytree
from keras_node.adjoints import replay
from keras_node.adjoints.base import Adjoint
from keras_node.adjoints.solve import Cotangent
from keras_node.adjoints.solve import Solve
from keras_node.adjoints.tape import Tape
from keras_node.config import register
from keras_node.integration.dense import Dense
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import Record
from keras_node.integration.report_cotangents import Cotangents
from keras_node.integration.solver import Solver
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


@register
class DiscreteAdjoint(Adjoint):
    """Adjoint that differentiates the steps of the solver themselves.

    The accepted steps are replayed one by one, last to first. The cotangent is
    pulled back through each step. The result is the exact gradient of the
    numbers that the solver computed, with the step sizes taken as given. It
    costs one step and one vector-Jacobian product per accepted step. Rejected
    steps cost nothing.

    The forward pass keeps at most `checkpoints` states. A solve of more steps
    keeps every second state, every fourth and so on. It computes the states
    between again, which costs at most one more forward pass.

    It needs a solver that keeps a record of its steps, as every native one
    does.

    Args:
        checkpoints: Int, the number of states kept. JAX and XLA reserve the
            memory beforehand: up to `checkpoints + 2 max_steps / checkpoints`
            states, whatever the number of steps taken. With a large
            `max_steps` its square root is a good choice. Defaults to `100`.
        keep_graphs: Int, the number of leading steps whose graphs PyTorch
            keeps, so that these steps need not be taken again. Each graph
            takes as much memory as training the network without an ODE, times
            the number of stages. Other backends keep no graphs: a compiled
            loop would reserve the memory for all steps. Defaults to `8`.

    Raises:
        ValueError: If `checkpoints` is not a positive integer below `2**31`,
            or `keep_graphs` is neither such an integer nor `0`.

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

    def outputs(
        self, solver: Solver, jumps: Tensor | None
    ) -> tuple[Output, ...]:
        record = Record(solver.max_steps, self.checkpoints)
        # Graphs are kept only of steps that the whole batch shares.
        keep_graphs = 0 if solver.per_sample else self.keep_graphs
        return record, Tape(keep_graphs)

    def pullback(
        self, solve: Solve, cotangent: Cotangent
    ) -> tuple[State, Tree]:
        trajectory, pullbacks = solve.kept
        reported = None
        if solve.s_eval is not None:
            reported = Cotangents.of(solve.s_eval, cotangent.adj_ys, solve.y0)
        stepper = solve.solver.stepper(
            dense=reported is not None, chained=False
        )

        def undo(i, y, left, adj_y, adj_args):
            adj_inside = ()
            if reported is not None:
                dense = Dense(*trajectory.step(i), y, [y] * stepper.degree)
                left, *adj_inside = reported.pull(left, ops.equal(i, 0), dense)
            adj_ends = (adj_y, tuple(adj_inside))
            if pullbacks and i < len(pullbacks):
                adj_y, vjp_args = pullbacks[i](adj_ends)
            else:
                adj_y, vjp_args = _pull(
                    stepper, solve.f, trajectory, i, y, solve.args, adj_ends
                )
            return left, adj_y, pytree.add(adj_args, vjp_args)

        plain = solve.solver.stepper(dense=False, chained=False)

        def redo(i, y):
            return _take(plain, solve.f, trajectory, i, y, solve.args)

        return replay.backwards(
            solve, trajectory, cotangent.adj_y1, redo, undo, len(pullbacks)
        )


@backend.jit
def _take(stepper, f, trajectory, i, y, args):
    """Computes the state at the end of step `i`."""
    t, dt = trajectory.step(i)
    return stepper.step(f.after(t), t, dt, y, (), args).y1


@backend.jit
def _pull(stepper, f, trajectory, i, y, args, adj_ends):
    """Pulls the cotangent of the `ends` of step `i` back to its start."""
    t, dt = trajectory.step(i)
    return stepper.pull(f.after(t), t, dt, y, args, adj_ends)

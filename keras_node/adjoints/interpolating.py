"""Gradients by the adjoint equation along the recorded solution."""

from typing import Any

import keras

from keras_node import structure
from keras_node.adjoints.recorded import AdjointEquation
from keras_node.adjoints.recorded import RecordedAdjoint
from keras_node.interfaces import Solver
from keras_node.solution import Solution


@keras.saving.register_keras_serializable(package="keras_node")
class InterpolatingAdjoint(RecordedAdjoint):
    """Gradients by solving the adjoint equation along the recorded solution.

    With `a` the gradient with respect to `y(t)`, the state
    `(a, gradient of the parameters)` is integrated from `t1` back to `t0`:

        da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    The state `y(t)` is that of the forward solve, by the dense output of its
    steps: it is not integrated again, and where `BacksolveAdjoint` cannot
    trace it back this adjoint is sound. Each forward step is solved back over
    for itself, in one step where the tolerances allow it. They apply relative
    to the size of the gradient: the scale of the loss does not matter. The
    error of the parameters' gradient has no say. The backward pass takes one
    step size for the whole batch, even where the forward solver is
    `per_sample`.

    States are kept and computed again as by `DiscreteAdjoint`, in the same
    memory. Each forward step is taken once more, and costs at least as many
    vector-Jacobian products as the method has stages.

    Needs a solver that keeps a record: every native one.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, an
            adaptive one, or `None` for the one of the forward pass. Defaults
            to `None`.
        checkpoints: Int, how many states are kept, as for
            `DiscreteAdjoint`. Defaults to `100`.

    Raises:
        ValueError: If `solver` is not as described, or `checkpoints` is not a
            positive integer below `2**31`.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", adjoint="interpolating"
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), appendix B
        - [Kidger, Chen, Lyons, 2021](https://arxiv.org/abs/2009.09457) (the
          error norm)
        - [Ma et al., 2021](https://arxiv.org/abs/1812.01892) (the
          interpolated solution)
    """

    _allowed = "adaptive"

    def _allows(self, solver: Solver) -> bool:
        return solver.adaptive

    def _solve(
        self,
        solver: Solver,
        equation: AdjointEquation,
        duration: Any,
        adj_y: Any,
        adj_params: Any,
    ) -> tuple[Solution, Any, Any]:
        result = solver.solve(
            structure.Bound(_slopes, (equation,)),
            0.0,
            duration,
            (adj_y, adj_params),
            norm=structure.RmsNorm(num_parts=1),
        )
        return result, *result.y1


def _slopes(tau: Any, state: Any, equation: AdjointEquation) -> Any:
    adj_y, _ = state
    return equation.slopes(tau, adj_y)

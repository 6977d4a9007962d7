"""Gradients by the adjoint equation along the recorded solution."""

from keras_node import pytree
from keras_node.adjoints.along_trajectory import AdjointEquation
from keras_node.adjoints.along_trajectory import AlongTrajectoryAdjoint
from keras_node.config import register
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tree


@register
class InterpolatingAdjoint(AlongTrajectoryAdjoint):
    """Adjoint that solves the adjoint equation along the recorded solution.

    Let `a` be the gradient with respect to `y(t)`, and `g` the gradient of the
    parameters. The state `(a, g)` is integrated from `t1` back to `t0`:

        da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    The dense output of the forward steps gives the state `y(t)`, which is not
    integrated again. This adjoint is therefore sound where `BacksolveAdjoint`
    cannot trace the state back. The backward solve covers one forward step at
    a time, in a single step where the tolerances allow it. The tolerances
    apply relative to the size of the gradient: the scale of the loss does not
    matter. The error of `g` does not affect the steps. The backward pass takes
    one step size for the whole batch, even if the forward solver is
    `per_sample`.

    States are kept and computed again as in `DiscreteAdjoint`, in the same
    memory. Each forward step is taken once more. It costs at least as many
    vector-Jacobian products as the method has stages.

    It needs a solver that keeps a record of its steps, as every native one
    does.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, an
            adaptive one, or `None` for the solver of the forward pass.
            Defaults to `None`.
        checkpoints: Int, the number of states kept, as in `DiscreteAdjoint`.
            Defaults to `100`.

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

    @property
    def solves_others(self) -> bool:  # type: ignore[override]
        return self.solver is None

    def _allows(self, solver: Solver) -> bool:
        return solver.adaptive

    def _solve(
        self,
        solver: Solver,
        equation: AdjointEquation,
        duration: Scalar,
        adj_y: State,
        adj_args: Tree,
    ) -> tuple[Solution, State, Tree]:
        result = solver.solve(
            _slopes,
            0.0,
            duration,
            (adj_y, adj_args),
            equation,
            norm=pytree.RmsNorm(num_parts=1),
        )
        return result, *result.y1


def _slopes(tau: Scalar, state: State, equation: AdjointEquation) -> State:
    adj_y, _ = state
    return equation.slopes(tau, adj_y)

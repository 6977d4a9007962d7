"""Gradients by the adjoint equation, with quadrature for the parameters."""

from keras_node.adjoints.along_trajectory import AdjointEquation
from keras_node.adjoints.along_trajectory import AlongTrajectoryAdjoint
from keras_node.config import register
from keras_node.integration.outputs import Integral
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tree


@register
class GaussAdjoint(AlongTrajectoryAdjoint):
    """Adjoint that finds the gradient of the parameters by quadrature.

    Let `a` be the gradient with respect to `y(t)`. Only `a` is integrated from
    `t1` back to `t0`, along the recorded solution, as in
    `InterpolatingAdjoint`. The gradient `g` of the parameters is an integral:

        da/dt = -a (df/dy),    g = integral of a (df/dparams) dt

    Gauss-Legendre quadrature computes it inside each accepted step, with 3
    nodes for a method of order 5, instead of 6 stages. Stages and rejected
    steps do not touch the parameters. This pays off where there are many
    parameters.

    It needs a solver that keeps a record of its steps, as every native one
    does.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, a
            native and adaptive one, or `None` for the solver of the forward
            pass. Defaults to `None`.
        checkpoints: Int, the number of states kept, as in `DiscreteAdjoint`.
            Defaults to `100`.

    Raises:
        ValueError: If `solver` is not as described, or `checkpoints` is not a
            positive integer below `2**31`.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", adjoint="gauss"
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Norcliffe and Deisenroth, 2023](https://arxiv.org/abs/2308.10644)
          (quadrature for the parameters)
        - Davis and Rabinowitz, "Methods of Numerical Integration", 2nd
          edition, section 2.7
    """

    _allowed = "adaptive and native"

    def _allows(self, solver: Solver) -> bool:
        return solver.adaptive and solver.keeps_steps

    def _solve(
        self,
        solver: Solver,
        equation: AdjointEquation,
        duration: Scalar,
        adj_y: State,
        adj_args: Tree,
    ) -> tuple[Solution, State, Tree]:
        order = solver.stepper(dense=True).order
        integral = Integral(_slope_of_args, adj_args, order, equation)
        result = solver.solve(
            _slope, 0.0, duration, adj_y, equation, (integral,)
        )
        (adj_args,) = result.outputs
        return result, result.y1, adj_args


def _slope(tau: Scalar, adj_y: State, equation: AdjointEquation) -> State:
    return equation.slope(tau, adj_y)


def _slope_of_args(
    tau: Scalar, adj_y: State, equation: AdjointEquation
) -> Tree:
    return equation.slope_of_args(tau, adj_y)

"""Gradients by the adjoint equation, with quadrature for the parameters."""

from typing import Any

import keras

from keras_node import structure
from keras_node.adjoints.recorded import AdjointEquation
from keras_node.adjoints.recorded import RecordedAdjoint
from keras_node.interfaces import Solver
from keras_node.solution import Solution


@keras.saving.register_keras_serializable(package="keras_node")
class GaussAdjoint(RecordedAdjoint):
    """Gradients by the adjoint equation, and quadrature for the parameters.

    With `a` the gradient with respect to `y(t)`, only `a` is integrated from
    `t1` back to `t0`, along the recorded solution, as `InterpolatingAdjoint`
    does it. The gradient of the parameters is an integral,

        da/dt = -a (df/dy),    g = integral of a (df/dparams) dt

    taken by Gauss-Legendre quadrature inside each step as it is accepted: 3
    nodes for a method of order 5, instead of 6 stages. Stages and rejected
    steps do not touch the parameters, which pays off where there are many.

    Needs a solver that keeps a record: every native one.

    Args:
        solver: The `keras_node.solvers.Solver` of the backward pass, a
            native, adaptive one, or `None` for the one of the forward pass.
            Defaults to `None`.
        checkpoints: Int, how many states are kept, as for
            `DiscreteAdjoint`. Defaults to `100`.

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
        return solver.adaptive and solver.records

    def _solve(
        self,
        solver: Solver,
        equation: AdjointEquation,
        duration: Any,
        adj_y: Any,
        adj_params: Any,
    ) -> tuple[Solution, Any, Any]:
        result = solver.solve(
            structure.Bound(_slope, (equation,)),
            0.0,
            duration,
            adj_y,
            integrand=structure.Bound(_slope_of_params, (equation,)),
            integral=adj_params,
        )
        return result, result.y1, result.integral


def _slope(tau: Any, adj_y: Any, equation: AdjointEquation) -> Any:
    return equation.slope(tau, adj_y)


def _slope_of_params(tau: Any, adj_y: Any, equation: AdjointEquation) -> Any:
    return equation.slope_of_params(tau, adj_y)

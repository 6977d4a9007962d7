"""The adjoints: how the gradient of a solve is computed."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_node import backend
from keras_node import checks
from keras_node.interfaces import Adjoint
from keras_node.interfaces import Solution
from keras_node.interfaces import Solver


@keras.saving.register_keras_serializable(package="keras_node")
class BacksolveAdjoint(Adjoint):
    """Gradients by solving an augmented equation backwards in time.

    With `a` the gradient with respect to `y(t)`, the state
    `(y, a, gradient of the parameters)` is integrated from `t1` back to `t0`:

        dy/dt = f,    da/dt = -a (df/dy),    dg/dt = -a (df/dparams)

    Memory does not depend on the number of steps. The state is computed again
    on the way back, which is unstable where the forward equation forgets its
    past (fast decay): there the backward solve fails, and the gradients are
    NaN. Gradients are as accurate as the tolerances of the solver.

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
        solution: Solution,
        params: Any,
        adj_y1: Any,
    ) -> tuple[Any, Any]:
        def augmented(t, state):
            y, adj_y, _ = state
            dy, (vjp_y, vjp_params) = backend.vjp(
                lambda y, params: f(t, y, params), (y, params), adj_y
            )
            minus = tree.map_structure(ops.negative, (vjp_y, vjp_params))
            return dy, *minus

        zeros = tree.map_structure(ops.zeros_like, params)
        backward = (self.solver or solver).solve(
            augmented, t1, t0, (solution.y1, adj_y1, zeros)
        )
        _, adj_y0, adj_params = backward.y1
        return adj_y0, adj_params


ALL = {"backsolve": BacksolveAdjoint}


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

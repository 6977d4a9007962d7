"""The solvers: data and documentation. `ALL` names them, `get` finds them."""

from collections.abc import Callable
from typing import Any

import keras

from keras_node import checks
from keras_node.interfaces import Solution
from keras_node.interfaces import Solver


@keras.saving.register_keras_serializable(package="keras_node")
class DormandPrince(Solver):
    """Dormand and Prince's 5(4) method, by TensorFlow Probability.

    Explicit Runge-Kutta method of order 5 with an embedded method of order 4,
    7 stages, first same as last: 6 evaluations of the right-hand side per
    step. The steps are those of `tfp.math.ode.DormandPrince`, guarded: a solve
    ends after at most `max_steps` steps, a NaN ends it too, and the dynamics
    are never evaluated outside the interval.

    Args:
        rtol: Float, relative tolerance per step. Defaults to `1e-3`.
        atol: Float, absolute tolerance per step. Defaults to `1e-6`.
        max_steps: Int, bound on accepted plus rejected steps. When it is
            exceeded the solve has failed. Defaults to `4096`.
        first_step: Float, length of the first step in units of time, or
            `None` for Hairer's choice, which costs one evaluation. Defaults
            to `None`.

    Raises:
        ValueError: If an argument is not positive and finite.

    Example:
    >>> solver = keras_node.solvers.DormandPrince(rtol=1e-6, atol=1e-6)
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver=solver)
    >>> block(np.ones((8, 4))).shape
    TensorShape([8, 4])

    Reference:
        - [Dormand and Prince, 1980](
          https://doi.org/10.1016/0771-050X(80)90013-3)
        - [Shampine, 1986](https://doi.org/10.2307/2008219)
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4
    """

    _config_keys = ("rtol", "atol", "max_steps", "first_step")

    def __init__(
        self,
        rtol: float = 1e-3,
        atol: float = 1e-6,
        max_steps: int = 4096,
        first_step: float | None = None,
    ):
        self.rtol = checks.positive_float("rtol", rtol)
        self.atol = checks.positive_float("atol", atol)
        self.max_steps = checks.positive_int("max_steps", max_steps)
        self.first_step = first_step
        if first_step is not None:
            self.first_step = checks.positive_float("first_step", first_step)

    def solve(self, f: Callable, t0: float, t1: float, y0: Any) -> Solution:
        from keras_node import tfp

        return tfp.solve(self, f, t0, t1, y0)


ALL = {"dormand_prince": DormandPrince}


def get(identifier: str | dict | Solver, **kwargs: Any) -> Solver:
    """Finds a solver.

    Args:
        identifier: A name in `ALL`, a config or a `Solver`.
        **kwargs: Arguments for a solver given by its name.

    Returns:
        A `Solver`.

    Raises:
        ValueError: If `identifier` is none of these, or is no name and comes
            with `kwargs`.
    """
    return checks.lookup("solver", identifier, ALL, Solver, **kwargs)

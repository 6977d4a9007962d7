"""Dormand and Prince's 5(4) method, by TensorFlow Probability."""

import keras

from keras_node.config import register
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import ReportAt
from keras_node.integration.solution import Solution
from keras_node.solvers.dopri5 import DOPRI5
from keras_node.solvers.runge_kutta import AdaptiveRungeKutta
from keras_node.types import Norm
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


@register
class DormandPrince(AdaptiveRungeKutta):
    """Dormand and Prince's 5(4) method, by TensorFlow Probability.

    On TensorFlow `tfp.math.ode.DormandPrince` takes the steps, with guards: a
    solve ends after at most `max_steps` steps, a NaN ends it too, and the
    dynamics are never evaluated outside the interval. On other backends the
    steps are those of `Dopri5`.

    It keeps no record of its steps. Gradients are therefore computed by
    `BacksolveAdjoint`, on every backend.

    Args:
        rtol: Float, relative tolerance per step. Defaults to `1e-3`.
        atol: Float, absolute tolerance per step. Defaults to `1e-6`.
        max_steps: Int, bound on accepted plus rejected steps. When it is
            exceeded the solve fails. Defaults to `4096`.
        first_step: Float, length of the first step in units of time, or
            `None` for Hairer's choice, which costs one evaluation. Defaults
            to `None`.

    Raises:
        ValueError: If an argument is not as described. Floats lie between
            `1e-18` and `1e30`, integers below `2**31`.

    Example:
    >>> solver = keras_node.solvers.DormandPrince(rtol=1e-6, atol=1e-6)
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver=solver)
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Dormand and Prince, 1980](
          https://doi.org/10.1016/0771-050X(80)90013-3)
        - [Shampine, 1986](https://doi.org/10.2307/2008219)
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4
    """

    keeps_steps = False
    stops_at_jumps = False
    reports_own_times = keras.backend.backend() != "tensorflow"
    tableau = DOPRI5
    _config_keys = ("rtol", "atol", "max_steps", "first_step")

    def __init__(
        self,
        rtol: float = 1e-3,
        atol: float = 1e-6,
        max_steps: int = 4096,
        first_step: float | None = None,
    ):
        super().__init__(rtol, atol, max_steps, first_step)

    def solve(
        self,
        f: RightHandSide,
        t0: Scalar,
        t1: Scalar,
        y0: State,
        args: Tree = (),
        outputs: tuple[Output, ...] = (),
        norm: Norm | None = None,
        jumps: Tensor | None = None,
    ) -> Solution:
        if jumps is not None:
            raise ValueError(
                "`jumps` need a solver that stops at them, such as "
                f'"tsit5", "dopri5" or "bosh3". Received: solver={self}'
            )
        reports = tuple(x for x in outputs if isinstance(x, ReportAt))
        if len(reports) < len(outputs):
            raise ValueError(
                "`outputs` of a solver that keeps no steps must be reports; "
                '"tsit5", "dopri5", "bosh3" and those of fixed step serve all. '
                f"Received: solver={self}, outputs={outputs}"
            )
        if keras.backend.backend() != "tensorflow":
            return super().solve(f, t0, t1, y0, args, outputs, norm)
        from keras_node.solvers import tfp

        return tfp.solve(self, f, t0, t1, y0, args, reports, norm)

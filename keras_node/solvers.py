"""The solvers: a tableau and its documentation each.

`ALL` names them, `get` finds them.
"""

from collections.abc import Callable
from fractions import Fraction as Q
from typing import Any

import keras

from keras_node import checks
from keras_node.interfaces import Solution
from keras_node.interfaces import Solver
from keras_node.runge_kutta import AdaptiveRungeKutta
from keras_node.runge_kutta import FixedRungeKutta
from keras_node.tableau import Tableau

_register = keras.saving.register_keras_serializable(package="keras_node")


@_register
class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's 5(4) method.

    Explicit Runge-Kutta method of order 5 with an embedded method of order 4,
    7 stages, first same as last: 6 evaluations of the right-hand side per
    step. Dense output of order 4.

    Args:
        rtol: Float, relative tolerance per step. Defaults to `1e-3`.
        atol: Float, absolute tolerance per step. Defaults to `1e-6`.
        max_steps: Int, bound on accepted plus rejected steps. When it is
            exceeded the solve has failed. Defaults to `4096`.
        first_step: Float, length of the first step in units of time, or
            `None` for Hairer's choice, which costs one evaluation. Defaults
            to `None`.
        per_sample: Boolean, whether each sample of the batch has steps of its
            own, so that what becomes of it does not depend on its batch
            mates. Defaults to `False`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
    >>> solver = keras_node.solvers.Dopri5(rtol=1e-6, per_sample=True)
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver=solver)
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Dormand and Prince, 1980](
          https://doi.org/10.1016/0771-050X(80)90013-3)
        - [Shampine, 1986](https://doi.org/10.2307/2008219) (dense output)
    """

    tableau = Tableau(
        order=5,
        c=(0, Q(1, 5), Q(3, 10), Q(4, 5), Q(8, 9), 1, 1),
        a=(
            (),
            (Q(1, 5),),
            (Q(3, 40), Q(9, 40)),
            (Q(44, 45), Q(-56, 15), Q(32, 9)),
            (
                Q(19372, 6561),
                Q(-25360, 2187),
                Q(64448, 6561),
                Q(-212, 729),
            ),
            (
                Q(9017, 3168),
                Q(-355, 33),
                Q(46732, 5247),
                Q(49, 176),
                Q(-5103, 18656),
            ),
            (
                Q(35, 384),
                0,
                Q(500, 1113),
                Q(125, 192),
                Q(-2187, 6784),
                Q(11, 84),
            ),
        ),
        b=(
            Q(35, 384),
            0,
            Q(500, 1113),
            Q(125, 192),
            Q(-2187, 6784),
            Q(11, 84),
            0,
        ),
        b_error=(
            Q(71, 57600),
            0,
            Q(-71, 16695),
            Q(71, 1920),
            Q(-17253, 339200),
            Q(22, 525),
            Q(-1, 40),
        ),
        b_dense=(
            (
                1,
                Q(-8048581381, 2820520608),
                Q(8663915743, 2820520608),
                Q(-12715105075, 11282082432),
            ),
            (0, 0, 0, 0),
            (
                0,
                Q(131558114200, 32700410799),
                Q(-68118460800, 10900136933),
                Q(87487479700, 32700410799),
            ),
            (
                0,
                Q(-1754552775, 470086768),
                Q(14199869525, 1410260304),
                Q(-10690763975, 1880347072),
            ),
            (
                0,
                Q(127303824393, 49829197408),
                Q(-318862633887, 49829197408),
                Q(701980252875, 199316789632),
            ),
            (
                0,
                Q(-282668133, 205662961),
                Q(2019193451, 616988883),
                Q(-1453857185, 822651844),
            ),
            (
                0,
                Q(40617522, 29380423),
                Q(-110615467, 29380423),
                Q(69997945, 29380423),
            ),
        ),
    )


@_register
class DormandPrince(Dopri5):
    """Dormand and Prince's 5(4) method, by TensorFlow Probability.

    On TensorFlow the steps are those of `tfp.math.ode.DormandPrince`, guarded:
    a solve ends after at most `max_steps` steps, a NaN ends it too, and the
    dynamics are never evaluated outside the interval. On other backends this
    is `Dopri5`.

    It keeps no record of its steps: gradients are computed by
    `BacksolveAdjoint`, on every backend.

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
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Dormand and Prince, 1980](
          https://doi.org/10.1016/0771-050X(80)90013-3)
        - [Shampine, 1986](https://doi.org/10.2307/2008219)
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.4
    """

    records = False
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
        f: Callable,
        t0: Any,
        t1: Any,
        y0: Any,
        t_eval: Any = None,
        checkpoints: int = 0,
        norm: Callable | None = None,
    ) -> Solution:
        if keras.backend.backend() != "tensorflow":
            return super().solve(f, t0, t1, y0, t_eval, norm=norm)
        from keras_node import tfp

        return tfp.solve(self, f, t0, t1, y0, t_eval)


@_register
class Tsit5(AdaptiveRungeKutta):
    """Tsitouras' 5(4) method.

    Explicit Runge-Kutta method of order 5 with an embedded method of order 4,
    7 stages, first same as last: 6 evaluations of the right-hand side per
    step. Dense output of order 4. As a rule it takes fewer steps than
    `Dopri5` at the same accuracy.

    Args:
        rtol: Float, relative tolerance per step. Defaults to `1e-3`.
        atol: Float, absolute tolerance per step. Defaults to `1e-6`.
        max_steps: Int, bound on accepted plus rejected steps. When it is
            exceeded the solve has failed. Defaults to `4096`.
        first_step: Float, length of the first step in units of time, or
            `None` for Hairer's choice, which costs one evaluation. Defaults
            to `None`.
        per_sample: Boolean, whether each sample of the batch has steps of its
            own, so that what becomes of it does not depend on its batch
            mates. Defaults to `False`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="tsit5")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Tsitouras, 2011](https://doi.org/10.1016/j.camwa.2011.06.002)
    """

    tableau = Tableau(
        order=5,
        c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (
                5.325864828439257,
                -11.748883564062828,
                7.4955393428898365,
                -0.09249506636175525,
            ),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0,
        ),
        b_error=(
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        b_dense=(
            (1, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0, 0.1317, -0.2234, 0.1017),
            (0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0, 1.5, -4, 2.5),
        ),
    )


@_register
class Bosh3(AdaptiveRungeKutta):
    """Bogacki and Shampine's 3(2) method.

    Explicit Runge-Kutta method of order 3 with an embedded method of order 2,
    4 stages, first same as last: 3 evaluations of the right-hand side per
    step. Dense output of order 3. Cheaper than methods of order 5 where the
    tolerances are loose.

    Args:
        rtol: Float, relative tolerance per step. Defaults to `1e-3`.
        atol: Float, absolute tolerance per step. Defaults to `1e-6`.
        max_steps: Int, bound on accepted plus rejected steps. When it is
            exceeded the solve has failed. Defaults to `4096`.
        first_step: Float, length of the first step in units of time, or
            `None` for Hairer's choice, which costs one evaluation. Defaults
            to `None`.
        per_sample: Boolean, whether each sample of the batch has steps of its
            own, so that what becomes of it does not depend on its batch
            mates. Defaults to `False`.

    Raises:
        ValueError: If an argument is not as described.

    Example:
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="bosh3")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Bogacki and Shampine, 1989](
          https://doi.org/10.1016/0893-9659(89)90079-7)
    """

    tableau = Tableau(
        order=3,
        c=(0, Q(1, 2), Q(3, 4), 1),
        a=((), (Q(1, 2),), (0, Q(3, 4)), (Q(2, 9), Q(1, 3), Q(4, 9))),
        b=(Q(2, 9), Q(1, 3), Q(4, 9), 0),
        b_error=(Q(-5, 72), Q(1, 12), Q(1, 9), Q(-1, 8)),
    )


@_register
class Euler(FixedRungeKutta):
    """Euler's method, in steps of equal length.

    Explicit, of order 1: one evaluation of the right-hand side per step. With
    one step it is a residual connection.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer.

    Example:
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="euler")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section I.7
    """

    tableau = Tableau(order=1, c=(0,), a=((),), b=(1,))


@_register
class Midpoint(FixedRungeKutta):
    """The explicit midpoint method, in steps of equal length.

    Of order 2: two evaluations of the right-hand side per step.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer.

    Example:
    >>> solver = keras_node.solvers.Midpoint(num_steps=5)
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver=solver)
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.1, "Runge's method"
    """

    tableau = Tableau(order=2, c=(0, Q(1, 2)), a=((), (Q(1, 2),)), b=(0, 1))


@_register
class Heun(FixedRungeKutta):
    """Heun's method of order 2, in steps of equal length.

    The explicit trapezoidal rule: two evaluations of the right-hand side per
    step.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer.

    Example:
    >>> solver = keras_node.solvers.Heun(num_steps=5)
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver=solver)
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.1
    """

    tableau = Tableau(order=2, c=(0, 1), a=((), (1,)), b=(Q(1, 2), Q(1, 2)))


@_register
class RK4(FixedRungeKutta):
    """The classical Runge-Kutta method, in steps of equal length.

    Of order 4: four evaluations of the right-hand side per step.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer.

    Example:
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="rk4")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section II.1, "the" Runge-Kutta method
    """

    tableau = Tableau(
        order=4,
        c=(0, Q(1, 2), Q(1, 2), 1),
        a=((), (Q(1, 2),), (0, Q(1, 2)), (0, 0, 1)),
        b=(Q(1, 6), Q(1, 3), Q(1, 3), Q(1, 6)),
    )


ALL = {
    "dormand_prince": DormandPrince,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "bosh3": Bosh3,
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
}


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

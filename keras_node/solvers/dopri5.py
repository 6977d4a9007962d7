"""Dormand and Prince's 5(4) method, for every backend."""

from fractions import Fraction as Q

from keras_node.config import register
from keras_node.solvers.runge_kutta import AdaptiveRungeKutta
from keras_node.solvers.tableau import Tableau

DOPRI5 = Tableau(
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


@register
class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's 5(4) method.

    Explicit Runge-Kutta method of order 5 with an embedded method of order 4,
    7 stages, first same as last: 6 evaluations of the right-hand side per
    step. Dense output of order 4.

    Args:
        rtol: Float, relative tolerance per step. Defaults to `1e-3`.
        atol: Float, absolute tolerance per step. Defaults to `1e-6`.
        max_steps: Int, bound on accepted plus rejected steps. When it is
            exceeded the solve fails. Defaults to `4096`.
        first_step: Float, length of the first step in units of time, or
            `None` for Hairer's choice, which costs one evaluation. Defaults
            to `None`.
        per_sample: Boolean, whether each sample of the batch has its own
            steps. Its result then does not depend on the other samples.
            Defaults to `False`.

    Raises:
        ValueError: If an argument is not as described. Floats lie between
            `1e-18` and `1e30`, integers below `2**31`.

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

    tableau = DOPRI5

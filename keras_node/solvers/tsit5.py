"""Tsitouras' 5(4) method."""

from keras_node.config import register
from keras_node.solvers.runge_kutta import AdaptiveRungeKutta
from keras_node.solvers.tableau import Tableau

TSIT5 = Tableau(
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


@register
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
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="tsit5")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Tsitouras, 2011](https://doi.org/10.1016/j.camwa.2011.06.002)
    """

    tableau = TSIT5

"""Bogacki and Shampine's 3(2) method."""

from fractions import Fraction as Q

from keras_node.config import register
from keras_node.solvers.runge_kutta import AdaptiveRungeKutta
from keras_node.solvers.tableau import Tableau

BOSH3 = Tableau(
    order=3,
    c=(0, Q(1, 2), Q(3, 4), 1),
    a=((), (Q(1, 2),), (0, Q(3, 4)), (Q(2, 9), Q(1, 3), Q(4, 9))),
    b=(Q(2, 9), Q(1, 3), Q(4, 9), 0),
    b_error=(Q(-5, 72), Q(1, 12), Q(1, 9), Q(-1, 8)),
)


@register
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
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="bosh3")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Bogacki and Shampine, 1989](
          https://doi.org/10.1016/0893-9659(89)90079-7)
    """

    tableau = BOSH3

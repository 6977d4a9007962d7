"""The solvers of fixed step size."""

from fractions import Fraction as Q

from keras_node.config import register
from keras_node.solvers.runge_kutta import FixedRungeKutta
from keras_node.solvers.tableau import Tableau


@register
class Euler(FixedRungeKutta):
    """Euler's method, in steps of equal length.

    Explicit method of order 1: one evaluation of the right-hand side per step.
    With one step it is a residual connection.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer below `2**31`.

    Example:
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="euler")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I",
          2nd edition, section I.7
    """

    tableau = Tableau(order=1, c=(0,), a=((),), b=(1,))


@register
class Midpoint(FixedRungeKutta):
    """The explicit midpoint method, in steps of equal length.

    Method of order 2: two evaluations of the right-hand side per step.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer below `2**31`.

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


@register
class Heun(FixedRungeKutta):
    """Heun's method of order 2, in steps of equal length.

    The explicit trapezoidal rule: two evaluations of the right-hand side per
    step.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer below `2**31`.

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


@register
class RK4(FixedRungeKutta):
    """The classical Runge-Kutta method, in steps of equal length.

    Method of order 4: four evaluations of the right-hand side per step.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer below `2**31`.

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

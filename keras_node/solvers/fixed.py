"""The solvers of fixed step: a tableau each."""

import keras

from keras_node import tableau
from keras_node.step_control import FixedRungeKutta

_register = keras.saving.register_keras_serializable(package="keras_node")


@_register
class Euler(FixedRungeKutta):
    """Euler's method, in steps of equal length.

    Explicit, of order 1: one evaluation of the right-hand side per step. With
    one step it is a residual connection.

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

    tableau = tableau.EULER


@_register
class Midpoint(FixedRungeKutta):
    """The explicit midpoint method, in steps of equal length.

    Of order 2: two evaluations of the right-hand side per step.

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

    tableau = tableau.MIDPOINT


@_register
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

    tableau = tableau.HEUN


@_register
class RK4(FixedRungeKutta):
    """The classical Runge-Kutta method, in steps of equal length.

    Of order 4: four evaluations of the right-hand side per step.

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

    tableau = tableau.RK4

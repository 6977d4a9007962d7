"""The solvers that keep their error in bounds: a tableau each."""

from collections.abc import Callable
from typing import Any

import keras

from keras_node import tableau
from keras_node.solution import Solution
from keras_node.step_control import AdaptiveRungeKutta

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

    tableau = tableau.DOPRI5


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
        s_eval: Any = None,
        checkpoints: int = 0,
        norm: Callable | None = None,
        integrand: Callable | None = None,
        integral: Any = (),
        tape: Any = (),
    ) -> Solution:
        if keras.backend.backend() != "tensorflow":
            return super().solve(f, t0, t1, y0, s_eval, norm=norm)
        from keras_node import tfp

        return tfp.solve(self, f, t0, t1, y0, s_eval, norm)


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
        ValueError: If an argument is not as described. Floats lie between
            `1e-18` and `1e30`, integers below `2**31`.

    Example:
    >>> block = keras_node.ODEBlock(keras.layers.Dense(4), solver="tsit5")
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - [Tsitouras, 2011](https://doi.org/10.1016/j.camwa.2011.06.002)
    """

    tableau = tableau.TSIT5


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

    tableau = tableau.BOSH3

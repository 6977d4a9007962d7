"""The leapfrog method, for mechanical systems."""

import dataclasses

from keras import ops

from keras_node import pytree
from keras_node.config import register
from keras_node.integration.dense import Dense
from keras_node.integration.stepper import Step
from keras_node.integration.stepper import Stepper
from keras_node.solvers.steps import FixedSteps
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


@dataclasses.dataclass(frozen=True)
class KickDriftKick(Stepper):
    """Stepper of the leapfrog method.

    A kick moves the momenta, a drift the positions.

    Args:
        dense: Boolean, whether to compute the state inside the steps.
    """

    dense: bool = False

    @property
    def order(self) -> int:
        return 2

    @property
    def degree(self) -> int:
        return 3

    @property
    def error_weights(self) -> tuple:
        return ()

    def init(
        self, f: RightHandSide, t: Scalar, y: State, args: Tree
    ) -> tuple[tuple, int]:
        return (), 0

    def step(
        self,
        f: RightHandSide,
        t: Scalar,
        dt: Scalar,
        y: State,
        carry: tuple,
        args: Tree,
    ) -> Step:
        half = 0.5 * dt
        start = f(t, y, args)
        kicked = _moved(y, half, start, positions=False)
        middle = f(t + half, kicked, args)
        drifted = _moved(kicked, dt, middle, positions=True)
        end = f(t + dt, drifted, args)
        y1 = _moved(drifted, half, end, positions=False)
        dense = None
        if self.dense:
            dense = _hermite(t, dt, y, start, y1, f(t + dt, y1, args))
        return Step(
            y1=y1,
            error=None,
            slope=start,
            dense=dense,
            carry=(),
            num_evals=4 if self.dense else 3,
        )


def _moved(y: State, dt: Scalar, slope: State, positions: bool) -> State:
    """Moves the positions or the momenta along their slope."""
    part = pytree.map_leaves(lambda leaf: _part(leaf, positions), slope)
    return pytree.advance(y, dt, (1.0,), [part])


def _part(x: Tensor, positions: bool) -> Tensor:
    """Returns the positions or the momenta of a tensor, and 0 elsewhere."""
    size = x.shape[-1] if len(x.shape) > 1 else None
    if size is None or size % 2:
        raise ValueError(
            "`solver` 'leapfrog' solves for states of shape `(batch, ..., 2 "
            "n)`, `n` positions and their `n` momenta. Nothing else may be "
            f"integrated beside it. Received: a tensor of shape {x.shape}"
        )
    q, p = [float(positions)], [float(not positions)]
    mask = (size // 2) * q + (size // 2) * p
    return x * ops.convert_to_tensor(mask, x.dtype)


def _hermite(
    t: Scalar, dt: Scalar, y: State, start: State, y1: State, end: State
) -> Dense:
    """Makes the cubic that has the states and slopes of both ends."""
    first, last = pytree.scale(dt, start), pytree.scale(dt, end)
    way = pytree.map_leaves(lambda a, b: a - b, y1, y)
    second = pytree.map_leaves(
        lambda d, a, b: 3 * d - 2 * a - b, way, first, last
    )
    third = pytree.map_leaves(lambda d, a, b: a + b - 2 * d, way, first, last)
    return Dense(t, dt, y, [first, second, third])


@register
class Leapfrog(FixedSteps):
    """The leapfrog method, in steps of equal length.

    Symplectic method of order 2 for mechanical systems, also called
    Störmer-Verlet. The first half of the last axis of the state are the
    positions `q`, the second half the momenta `p`. The slope of `q` must
    depend on `p` alone, and that of `p` on `q` alone, as it is where the
    energy is a sum `T(p) + V(q)`; both may depend on time. Then the energy
    does not drift: its error stays bounded however long the solve. For other
    systems the method is of order 1, and not symplectic.

    It takes three evaluations of the right-hand side per step. Its adjoints
    are `"discrete"` and `"gauss"`, and the others with a solver of their own.

    Args:
        num_steps: Int, the number of steps. Defaults to `10`.

    Raises:
        ValueError: If `num_steps` is not a positive integer below `2**31`.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras_node.layers.Hamiltonian(keras.layers.Dense(1, "tanh")),
    ...     solver="leapfrog",
    ...     adjoint="discrete",
    ... )
    >>> tuple(block(np.ones((8, 4))).shape)
    (8, 4)

    Reference:
        - Hairer, Lubich, Wanner, "Geometric Numerical Integration", 2nd
          edition, section I.1.4
    """

    any_state = False

    def stepper(self, dense: bool, chained: bool = True) -> KickDriftKick:
        return KickDriftKick(dense)

"""Quantities that are integrated beside the state.

Each sample has one value of each, which starts at 0. They are more entries of
the state, so that every solver and every adjoint supports them. Errors are
judged by the first `num_judged` parts of the state. If it is 1, the state is
the same as without them.
"""

import dataclasses
from typing import Any
from typing import ClassVar
from typing import NamedTuple

from keras import ops

from keras_node import pytree
from keras_node.dynamics import divergence
from keras_node.integration.solution import Solution
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class _WithEnergy(NamedTuple):
    """Slopes of the state and of the energy."""

    f: Any  # of (t, y, args, frozen)

    def __call__(
        self, t: Scalar, state: State, args: Tree, frozen: Tree
    ) -> State:
        y, _ = state
        dy = self.f(t, y, args, frozen)
        return dy, pytree.sample_sums(ops.square(dy))


@dataclasses.dataclass(frozen=True)
class KineticEnergy:
    """Kinetic energy of a solve: the integral of `|f|^2` along the solution.

    Where time runs backwards, the integral falls: the energy is its size.

    Args:
        factor: Float, the factor of the energy in the loss.

    Reference:
        - [Finlay et al., 2020](https://arxiv.org/abs/2002.02798), section 4
    """

    factor: float
    num_judged: ClassVar[int] = 1

    def start(self, y0: State) -> State:
        """Makes the state at `t0`, with the energy."""
        return y0, _zeros(y0)

    def field(self, f: Any, frozen: Tree) -> tuple[_WithEnergy, Tree]:
        """Makes the right-hand side of both, and its constants."""
        return _WithEnergy(f), frozen

    def split(self, solution: Solution) -> Solution:
        """Splits the energy off the state, and returns it as `integral`."""
        y1, energy = solution.y1
        ys = solution.ys[0] if solution.ys else ()
        return solution._replace(y1=y1, ys=ys, integral=ops.abs(energy))

    def loss(self, solution: Solution) -> Tensor:
        """Computes the penalty: `factor` times the mean energy of the batch."""
        return self.factor * _mean(solution.integral)


class _WithDensity(NamedTuple):
    """Slopes of the state, of the log-determinant and of the penalties."""

    f: Any  # of (t, y, args, frozen)
    kinetic: bool
    jacobian: bool

    def __call__(
        self, t: Scalar, state: State, args: Tree, constants: Tree
    ) -> State:
        frozen, probes = constants
        y = state[0]

        def slope(y):
            return self.f(t, y, args, frozen)

        if isinstance(probes, tuple):
            found = divergence.exact(slope, y, self.jacobian)
        else:
            found = divergence.hutchinson(slope, y, probes, self.jacobian)
        dy, trace, frobenius = found
        rates = [dy, trace]
        if self.kinetic:
            rates.append(pytree.sample_sums(ops.square(dy)))
        if self.jacobian:
            rates.append(frobenius)
        return tuple(rates)


class Penalties(NamedTuple):
    """Factors of the penalties on the way of a flow."""

    kinetic: float = 0.0  # of the integral of |f|^2
    jacobian: float = 0.0  # of the integral of |df/dy|^2, entry by entry


class LogDensity(NamedTuple):
    """Log-determinant of a flow: the integral of the divergence of `f`.

    By the instantaneous change of variables, the log-density of a sample falls
    by it. The penalties of Finlay et al. are integrated with it.

    Args:
        penalties: The `Penalties`. Those of factor 0 are left out.
        probes: Tensor of shape `(num_probes, batch, ...)`: see
            `divergence.hutchinson`. `()` for the exact divergence.
        num_judged: 1, or 2 to keep the error of the log-determinant within
            the tolerances, too.

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), theorem 1
        - [Grathwohl et al., 2019](https://arxiv.org/abs/1810.01367), FFJORD
        - [Finlay et al., 2020](https://arxiv.org/abs/2002.02798)
    """

    penalties: Penalties
    probes: Tensor | tuple = ()
    num_judged: int = 1

    def start(self, y0: State) -> State:
        """Makes the state at `t0`, with all that is carried."""
        number = 1 + sum(map(bool, self.penalties))
        return y0, *(_zeros(y0) for _ in range(number))

    def field(self, f: Any, frozen: Tree) -> tuple[_WithDensity, Tree]:
        """Makes the right-hand side of all, and its constants."""
        return _WithDensity(f, *map(bool, self.penalties)), (
            frozen,
            self.probes,
        )

    def split(self, solution: Solution) -> Solution:
        """Splits off what is carried: `integral` is a tuple of it."""
        y1, *carried = solution.y1
        return solution._replace(y1=y1, integral=tuple(carried))

    def loss(self, solution: Solution) -> Tensor:
        """Computes the penalties, averaged over the batch."""
        _, *energies = solution.integral
        factors = filter(None, self.penalties)
        pairs = zip(factors, energies, strict=True)
        # Where time runs backwards, the integrals fall.
        return sum(factor * _mean(ops.abs(x)) for factor, x in pairs)


def _zeros(y0: Tensor) -> Tensor:
    return ops.zeros(ops.shape(y0)[:1], dtype=y0.dtype)


def _mean(x: Tensor) -> Tensor:
    """Computes the mean over the batch, 0 if it is empty."""
    return ops.sum(x) / ops.cast(ops.maximum(ops.shape(x)[0], 1), x.dtype)

"""The solvers: `ALL` names them, `get` finds them."""

from typing import Any

from keras_node import checks
from keras_node.interfaces import Solver
from keras_node.solvers.adaptive import Bosh3
from keras_node.solvers.adaptive import Dopri5
from keras_node.solvers.adaptive import DormandPrince
from keras_node.solvers.adaptive import Tsit5
from keras_node.solvers.fixed import RK4
from keras_node.solvers.fixed import Euler
from keras_node.solvers.fixed import Heun
from keras_node.solvers.fixed import Midpoint

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

"""The solvers: `ALL` names them, `get` finds them."""

from typing import Any

from keras_node import registry
from keras_node.integration.solver import Solver
from keras_node.solvers.bosh3 import Bosh3
from keras_node.solvers.dopri5 import Dopri5
from keras_node.solvers.dormand_prince import DormandPrince
from keras_node.solvers.fixed import RK4
from keras_node.solvers.fixed import Euler
from keras_node.solvers.fixed import Heun
from keras_node.solvers.fixed import Midpoint
from keras_node.solvers.leapfrog import Leapfrog
from keras_node.solvers.tsit5 import Tsit5

ALL: dict[str, type[Solver]] = {
    "dormand_prince": DormandPrince,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "bosh3": Bosh3,
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
    "leapfrog": Leapfrog,
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
    return registry.get("solver", identifier, ALL, Solver, **kwargs)

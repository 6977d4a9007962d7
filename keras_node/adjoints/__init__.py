"""The adjoints, which compute the gradient of a solve.

`ALL` names them, `get` finds them.
"""

from keras_node import registry
from keras_node.adjoints.backsolve import BacksolveAdjoint
from keras_node.adjoints.base import Adjoint
from keras_node.adjoints.discrete import DiscreteAdjoint
from keras_node.adjoints.gauss import GaussAdjoint
from keras_node.adjoints.interpolating import InterpolatingAdjoint

ALL = {
    "backsolve": BacksolveAdjoint,
    "discrete": DiscreteAdjoint,
    "interpolating": InterpolatingAdjoint,
    "gauss": GaussAdjoint,
}


def get(identifier: str | dict | Adjoint) -> Adjoint:
    """Finds an adjoint.

    Args:
        identifier: A name in `ALL`, a config or an `Adjoint`.

    Returns:
        An `Adjoint`.

    Raises:
        ValueError: If `identifier` is none of these.
    """
    return registry.get("adjoint", identifier, ALL, Adjoint)

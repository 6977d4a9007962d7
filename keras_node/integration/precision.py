"""The precision of a right-hand side, which may be coarser than the state's."""

import numpy as np

from keras_node import pytree
from keras_node.types import RightHandSide
from keras_node.types import Tree


def of_function(f: RightHandSide, args: Tree, dtype: str) -> float:
    """Finds the `eps` of a right-hand side if coarser than `dtype`, else 0.

    `eps` is an attribute of an object inside the function or its arguments.
    """
    eps = max(getattr(part, "eps", 0.0) for part in pytree.leaves((f, args)))
    return eps if eps > float(np.finfo(dtype).eps) else 0.0

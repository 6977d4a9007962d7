"""Names for type hints.

To a type checker all tensors are `Any`. Each framework has its own class, and
Keras has no common one.
"""

from typing import Any
from typing import Protocol
from typing import TypeAlias

Tensor: TypeAlias = Any  # a tensor of the backend
Scalar: TypeAlias = Any  # a float or scalar tensor, or one value per sample
Bool: TypeAlias = Any  # a boolean scalar tensor, or one value per sample
State: TypeAlias = Any  # a structure of float tensors of one dtype
Tree: TypeAlias = Any  # a structure of tensors


class RightHandSide(Protocol):
    """Right-hand side of an equation: a pure function of its arguments."""

    def __call__(self, t: Scalar, y: State, args: Tree, /) -> State: ...


class Norm(Protocol):
    """Norm of a state: a scalar, or one value per sample."""

    def __call__(self, y: State, /) -> Scalar: ...

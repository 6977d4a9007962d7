"""The result of `hoist`."""

from collections.abc import Callable
from collections.abc import Hashable
from typing import NamedTuple


class Hoisted(NamedTuple):
    """Function whose every tensor is an argument."""

    f: Callable  # of (args, floats, others)
    floats: list  # tensors that it read beside `args`, with a gradient
    others: list  # other tensors that must be arguments
    identity: Hashable  # equal if the functions are equal; or `None`


def as_it_is(f: Callable, identity: Hashable) -> Hoisted:
    """Wraps a function that reads its arguments alone."""
    return Hoisted(lambda args, floats, others: f(*args), [], [], identity)

"""What `hoist` returns."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple


class Hoisted(NamedTuple):
    """A function whose every tensor is an argument."""

    f: Callable  # of (args, floats, others)
    floats: list  # what it read beside its arguments and has a gradient
    others: list  # what else it read
    identity: Any  # hashable: equal, if the functions are; or `None`


def as_it_is(f: Callable, identity: Any) -> Hoisted:
    """For a function that reads its arguments alone."""
    return Hoisted(lambda args, floats, others: f(*args), [], [], identity)

"""Hooks for frameworks that do not define their own."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator

import keras
from keras import tree

from keras_node.types import Scalar
from keras_node.types import Tensor
from keras_node.types import Tree

while_loop = keras.ops.while_loop
keeps_pullbacks = False


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    yield


def add_scaled(x: Tensor, factor: Scalar, y: Tensor) -> Tensor:
    return x + factor * y


def scan(
    f: Callable, carry: Tree, xs: Tree, like: Tensor | None
) -> tuple[Tree, Tensor | None]:
    kept = []
    for i in range(tree.flatten(xs)[0].shape[0]):
        carry, y = f(carry, tree.map_structure(lambda x: x[i], xs))  # noqa: B023
        kept.append(y)
    return carry, None if like is None else keras.ops.stack(kept)


def jit(f: Callable) -> Callable:
    return f


def with_pullback(f: Callable, ends: Callable, inputs: tuple) -> tuple:
    raise NotImplementedError


def uncompiled(f: Callable) -> Callable:
    return f

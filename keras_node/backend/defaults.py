"""Hooks for frameworks that do not define their own."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator

import keras

from keras_node.types import Scalar
from keras_node.types import Tensor

while_loop = keras.ops.while_loop
keeps_pullbacks = False


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    yield


def add_scaled(x: Tensor, factor: Scalar, y: Tensor) -> Tensor:
    return x + factor * y


def jit(f: Callable) -> Callable:
    return f


def with_pullback(f: Callable, ends: Callable, inputs: tuple) -> tuple:
    raise NotImplementedError


def uncompiled(f: Callable) -> Callable:
    return f

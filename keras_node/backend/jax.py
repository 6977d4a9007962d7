"""Derivatives in JAX: eager and compiled."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.extend import core

from keras_node.backend.jax_layout import laid_out
from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32

# Where it is from JAX 0.10 on.
_concrete_or_error = getattr(core, "concrete_or_error", None)
_concrete_or_error = _concrete_or_error or jax.core.concrete_or_error


def vjp(f: Callable, args: tuple, cotangent: Any) -> tuple[Any, tuple]:
    out, pullback = jax.vjp(f, *args)
    return out, laid_out(pullback)(cotangent)


def custom_vjp(forward: Callable, backward: Callable) -> Callable:
    @jax.custom_vjp
    def function(args, constants):
        return forward(args, constants, False)[0]

    def keeping(args, constants):
        return forward(args, constants, True)

    def gradient(residuals, cotangent):
        return backward(residuals, cotangent), None

    function.defvjp(keeping, gradient)
    return function


def add_scaled(x: Any, factor: Any, y: Any) -> Any:
    return x + factor * y


def scatter(buffer: Any, indices: Any, updates: Any) -> Any:
    return buffer.at[tuple(indices.T)].set(updates)


def new_list(like: Any, size: int) -> Any:
    return jnp.zeros((size, *like.shape), like.dtype)


def set_item(items: Any, i: Any, x: Any) -> Any:
    return lax.dynamic_update_index_in_dim(items, x, i, 0)


def get_item(items: Any, i: Any, like: Any) -> Any:
    return lax.dynamic_index_in_dim(items, i, 0, keepdims=False)


def value(x: Any) -> np.ndarray | None:
    try:  # `jax.grad` traces outside of `jax.jit` as well, and knows values
        return np.asarray(_concrete_or_error(None, x))
    except jax.errors.ConcretizationTypeError:
        return None


def same_draws() -> Callable:
    return contextlib.nullcontext  # here Keras draws from its seeds alone


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    # The derivative of a product goes by what it was traced with.
    chosen = jax.config.jax_default_matmul_precision
    with jax.default_matmul_precision(chosen or "float32"):
        yield


def eps_of_products() -> float:
    chosen = jax.config.jax_default_matmul_precision
    if chosen in (None, "float32", "highest") or jax.default_backend() == "cpu":
        return EPS_FLOAT32
    return EPS_TF32


while_loop = keras.ops.while_loop


def new_tape(size: int, params: Any) -> tuple:
    return ()  # what is kept in a compiled loop is reserved beforehand


def recorded(f: Callable) -> Callable:
    return f  # compiled, all of it is


def uncompiled(f: Callable) -> Callable:
    return f


def identity(layer: Any, key: tuple) -> None:
    return None

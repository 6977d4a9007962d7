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
from jax.extend.core import ClosedJaxpr
from jax.extend.core import jaxpr_as_fun

from keras_node.backend.hoisted import Hoisted
from keras_node.backend.jax_layout import laid_out
from keras_node.backend.jax_programs import compiled
from keras_node.backend.jax_programs import is_eager
from keras_node.backend.jax_programs import name_of
from keras_node.backend.jax_programs import text_of
from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32

# Where it is from JAX 0.10 on.
_concrete_or_error = getattr(core, "concrete_or_error", None)
_concrete_or_error = _concrete_or_error or jax.core.concrete_or_error


def vjp(f: Callable, args: tuple, cotangent: Any) -> tuple[Any, tuple]:
    out, pullback = jax.vjp(f, *args)
    return out, laid_out(pullback)(cotangent)


def hoist(f: Callable, args: tuple, identity: Any, closed: bool) -> Hoisted:
    leaves, treedef = jax.tree.flatten(args)
    program = jax.make_jaxpr(lambda *xs: f(*jax.tree.unflatten(treedef, xs)))(
        *leaves
    )
    # What is being differentiated is a tracer.
    differentiable = [
        isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.floating)
        for x in program.consts
    ]
    pairs = list(zip(program.consts, differentiable, strict=True))
    floats = [x for x, is_float in pairs if is_float]
    others = [x for x, is_float in pairs if not is_float]
    identity = identity or text_of(program)
    if identity is not None:
        chosen = jax.config.jax_default_matmul_precision
        identity = (identity, chosen, tuple(differentiable))

    def evaluate(args, floats, others):
        floats, others = iter(floats), iter(others)
        consts = [next(floats if x else others) for x in differentiable]
        run = jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))
        (out,) = run(*jax.tree.leaves(args))
        return out

    jaxpr = program.jaxpr
    return Hoisted(evaluate, floats, others, identity)


def custom_vjp(
    forward: Callable, backward: Callable, identity: Any = None
) -> Callable:
    def run(keeps, args, constants):
        def f(args, constants):
            return forward(args, constants, keeps)

        if identity is not None and is_eager((args, constants)):
            f = compiled((identity, keeps), f)
        return f(args, constants)

    @jax.custom_vjp
    def function(args, constants):
        return run(False, args, constants)[0]

    def keeping(args, constants):
        return run(True, args, constants)

    if identity is not None:
        keeping.__name__ = name_of(identity)

    def gradient(residuals, cotangent):
        cotangent = jax.tree.map(_of_integers, cotangent)
        if identity is not None and is_eager((residuals, cotangent)):
            f = compiled((identity, "gradient"), backward)
            gradients = f(residuals, cotangent)
            if all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradients)):
                return gradients, None
        # Also to say why, where it has failed: a program cannot.
        return backward(residuals, cotangent), None

    function.defvjp(keeping, gradient)
    return function


def _of_integers(cotangent: Any) -> Any:
    """Zeros for what JAX has no cotangent of."""
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, bool)
    return cotangent


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

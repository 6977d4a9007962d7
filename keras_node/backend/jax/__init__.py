"""Derivatives in JAX: eager and compiled."""

import contextlib
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.core import jaxpr_as_fun

from keras_node.backend import _private
from keras_node.backend.hoisted import Hoisted
from keras_node.backend.jax.layout import laid_out
from keras_node.backend.jax.programs import compiled
from keras_node.backend.jax.programs import is_eager
from keras_node.backend.jax.programs import name_of
from keras_node.backend.jax.programs import text_of
from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32
from keras_node.backend.values import value_of
from keras_node.types import Tensor
from keras_node.types import Tree


def vjps(f: Callable, args: tuple, cotangents: list) -> tuple[Tree, list]:
    out, pullback = jax.vjp(f, *args)
    return out, list(map(laid_out(pullback), cotangents))


def hoist(
    f: Callable, args: tuple, identity: Hashable, closed: bool
) -> Hoisted:
    leaves, treedef = jax.tree.flatten(args)
    program, out = jax.make_jaxpr(
        lambda *xs: f(*jax.tree.unflatten(treedef, xs)), return_shape=True
    )(*leaves)
    differentiable = [is_tracked(x) for x in program.consts]
    pairs = list(zip(program.consts, differentiable, strict=True))
    floats = [x for x, is_float in pairs if is_float]
    others = [x for x, is_float in pairs if not is_float]
    identity = identity or text_of(program)
    if identity is not None:
        chosen = jax.config.jax_default_matmul_precision
        # The program is for these shapes alone.
        shapes = tuple(program.in_avals)
        identity = (identity, chosen, tuple(differentiable), shapes)

    def evaluate(args, floats, others):
        floats, others = iter(floats), iter(others)
        consts = [next(floats if x else others) for x in differentiable]
        run = jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))
        return jax.tree.unflatten(structure, run(*jax.tree.leaves(args)))

    jaxpr, structure = program.jaxpr, jax.tree.structure(out)
    return Hoisted(evaluate, floats, others, identity)


def custom_vjp(
    forward: Callable, backward: Callable, key: Hashable = None
) -> Callable:
    identity = value_of(key)

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
        # Run eagerly after a failure, too: a program cannot say why it failed.
        return backward(residuals, cotangent), None

    function.defvjp(keeping, gradient)
    return function


def _of_integers(cotangent: Tensor) -> Tensor:
    """Replaces the empty cotangent of integers in JAX by zeros."""
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, bool)
    return cotangent


def new_list(like: Tensor, size: int) -> Tensor:
    return jnp.zeros((size, *like.shape), like.dtype)


def set_item(items: Tensor, i: Tensor, x: Tensor) -> Tensor:
    return lax.dynamic_update_index_in_dim(items, x, i, 0)


def get_item(items: Tensor, i: Tensor, like: Tensor) -> Tensor:
    return lax.dynamic_index_in_dim(items, i, 0, keepdims=False)


def stack_list(items: Tensor, like: Tensor) -> Tensor:
    return items


def value(x: Tensor) -> np.ndarray | None:
    try:  # `jax.grad` traces outside of `jax.jit` as well, and knows values
        return np.asarray(_private.concrete_or_error(None, x))
    except jax.errors.ConcretizationTypeError:
        return None


def is_tracked(x: Tensor) -> bool:
    # A tensor that is being differentiated is a tracer.
    return isinstance(x, jax.core.Tracer) and jnp.issubdtype(
        x.dtype, jnp.floating
    )


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    # The derivative of a product has the precision that it was traced with.
    chosen = jax.config.jax_default_matmul_precision
    with jax.default_matmul_precision(chosen or "float32"):
        yield


def eps_of_products() -> float:
    chosen = jax.config.jax_default_matmul_precision
    if chosen in (None, "float32", "highest") or jax.default_backend() == "cpu":
        return EPS_FLOAT32
    return EPS_TF32


def scan(
    f: Callable, carry: Tree, xs: Tree, like: Tensor | None
) -> tuple[Tree, Tensor | None]:
    scope: contextlib.AbstractContextManager = contextlib.nullcontext()
    if not _private.in_stateless_scope():
        # A variable that is written in the loop would keep a tracer.
        scope = keras.StatelessScope()
    with scope:
        return lax.scan(
            lambda carry, x: (
                f(carry, x) if like is not None else (f(carry, x)[0], None)
            ),
            carry,
            xs,
        )

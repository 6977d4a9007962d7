"""Derivatives in PyTorch."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator

import numpy as np
import optree
import torch

from keras_node.backend import _private
from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32
from keras_node.backend.torch.capture import jit as jit
from keras_node.backend.torch.hoist import hoist as hoist
from keras_node.backend.torch.pullback import leaf
from keras_node.backend.torch.pullback import pull
from keras_node.backend.torch.pullback import with_pullback as with_pullback
from keras_node.types import Scalar
from keras_node.types import Tensor
from keras_node.types import Tree

keeps_pullbacks = True


def uncompiled(f: Callable) -> Callable:
    @functools.wraps(f)
    def call(*args, **kwargs):
        # Compiled, a loop over data would become hundreds of programs.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(f)(*args, **kwargs)
        return f(*args, **kwargs)

    return call


def vjps(f: Callable, args: tuple, cotangents: list) -> tuple[Tree, list]:
    if torch.is_grad_enabled():
        # The result may be differentiated again, by `args` and by the tensors
        # that `f` closes over.
        inputs = optree.tree_map(_tracked, args)
        out = f(*inputs)
        return out, [
            pull(out, inputs, x, create_graph=True) for x in cotangents
        ]
    inputs = optree.tree_map(leaf, args)
    with torch.enable_grad():
        out = f(*inputs)
    adj_args = [pull(out, inputs, x) for x in cotangents]
    return optree.tree_map(torch.Tensor.detach, out), adj_args


def _tracked(x: torch.Tensor) -> torch.Tensor:
    """Makes a separate tensor of the same values, to take derivatives by it."""
    return x.view_as(x) if x.requires_grad else leaf(x)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *inputs):
        outputs, ctx.backward_of_run = run(inputs)
        ctx.save_for_backward(*inputs)
        # An output that is a residual too would keep itself alive.
        outputs = [x.detach() for x in outputs]
        ctx.mark_non_differentiable(
            *(x for x in outputs if not x.is_floating_point())
        )
        return tuple(outputs)

    @staticmethod
    @uncompiled
    def backward(ctx, *cotangent):
        with torch.no_grad():
            gradients = ctx.backward_of_run(cotangent)
        if torch.is_grad_enabled():
            # With `create_graph`, the gradients may be differentiated again.
            inputs = (*ctx.saved_tensors, *cotangent)
            gradients = _Once.apply(gradients, *inputs)
        return None, *gradients


class _Once(torch.autograd.Function):
    """Gradients of a solve, which cannot be differentiated again."""

    @staticmethod
    def forward(ctx, gradients, *inputs):
        return tuple(gradients)

    @staticmethod
    def backward(ctx, *cotangent):
        raise NotImplementedError(
            "The gradient of a solve cannot be differentiated once more: "
            "second derivatives, as of a penalty on gradients, are not "
            "available through a solve."
        )


def custom_vjp(
    forward: Callable, backward: Callable, key: Hashable = None
) -> Callable:
    def function(args, constants):
        if torch.jit.is_tracing():
            raise NotImplementedError(
                "PyTorch's tracer, which the export to ONNX goes by, cannot "
                "record a solve: how many steps it takes depends on the data. "
                "Save the model as `.keras`, load and export it on TensorFlow "
                "or JAX."
            )
        inputs = _flatten((args, constants))
        if not torch.is_grad_enabled() or not any(
            x.requires_grad for x in inputs
        ):
            return forward(args, constants, False)[0]
        # Tensors kept for the gradient must not change meanwhile, as variables
        # do. One tensor in two places must become two arguments.
        inputs = [x.clone() for x in inputs]
        structure = None

        def run(inputs):
            nonlocal structure
            structure, residuals = forward(
                *_pack_as((args, constants), list(inputs)), True
            )
            outputs = structure

            def gradient(cotangent):
                cotangent = _pack_as(outputs, list(cotangent))
                adj_args = _flatten(backward(residuals, cotangent))
                return adj_args + [None] * (len(inputs) - len(adj_args))

            return _flatten(outputs), gradient

        flat = _Function.apply(run, *inputs)
        return _pack_as(structure, list(flat))

    return function


# `keras.tree` takes longer than the arithmetic here.
_flatten = functools.partial(optree.tree_leaves, none_is_leaf=True)


def _pack_as(structure: Tree, flat: list) -> Tree:
    treespec = optree.tree_structure(structure, none_is_leaf=True)
    return optree.tree_unflatten(treespec, flat)


def add_scaled(x: Tensor, factor: Scalar, y: Tensor) -> Tensor:
    # In one operation, which needs half the memory. A solve does little else.
    if isinstance(factor, float):
        return torch.add(x, y, alpha=factor)
    return torch.addcmul(x, factor, y)


def new_list(like: Tensor, size: int) -> Tensor:
    return like.new_empty((size, *like.shape))


def set_item(items: Tensor, i: Tensor, x: Tensor) -> Tensor:
    # In place: a solve owns its lists, and no gradient is taken by them.
    # `items[i] = x` could not be captured: it asks for the value of `i`.
    return items.index_copy_(0, i.long()[None], x[None])


def get_item(items: Tensor, i: Tensor, like: Tensor) -> Tensor:
    return items.index_select(0, i[None])[0]


def stack_list(items: Tensor, like: Tensor) -> Tensor:
    return items


def is_tracked(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    # By default, convolutions use TF32 and matrix products do not.
    cudnn = torch.backends.cudnn
    there = torch.cuda.is_available() and cudnn.enabled
    # Both are set: otherwise PyTorch refuses to read its older switch.
    parts = [cudnn.conv, cudnn.rnn] if there else []
    chosen = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, precision in zip(parts, chosen, strict=True):
            part.fp32_precision = precision


def eps_of_products() -> float:
    chosen = torch.get_float32_matmul_precision()
    if chosen == "highest" or not torch.cuda.is_available():
        return EPS_FLOAT32
    return EPS_TF32


def while_loop(cond: Callable, body: Callable, loop_vars: tuple) -> tuple:
    if isinstance(body, functools.partial):
        body = functools.partial(jit(body.func), *body.args)
    while cond(*loop_vars):
        loop_vars = body(*loop_vars)
    return loop_vars


def value(x: Tensor) -> np.ndarray | None:
    # To build a model, Keras runs it on made-up values.
    made_up = torch.compiler.is_compiling() or _private.in_symbolic_scope()
    return None if made_up else x.detach().cpu().numpy()

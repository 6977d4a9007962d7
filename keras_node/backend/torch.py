"""Derivatives in PyTorch."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import optree
import torch

# Keras has no public way to tell.
from keras.src.backend import in_symbolic_scope

from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32
from keras_node.backend.torch_hoist import hoist as hoist
from keras_node.backend.torch_record import recorded as recorded
from keras_node.backend.torch_tape import Tape
from keras_node.backend.torch_tape import cotangents
from keras_node.backend.torch_tape import leaf


def uncompiled(f: Callable) -> Callable:
    @functools.wraps(f)
    def call(*args, **kwargs):
        # Compiled, a loop over data would be hundreds of programs.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(f)(*args, **kwargs)
        return f(*args, **kwargs)

    return call


def vjp(f: Callable, args: tuple, cotangent: Any) -> tuple[Any, tuple]:
    inputs = optree.tree_map(leaf, args)
    with torch.enable_grad():
        out = f(*inputs)
    adj_args = cotangents(out, inputs, cotangent)
    return optree.tree_map(torch.Tensor.detach, out), adj_args


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
            # With `create_graph`, they are to be differentiated again.
            inputs = (*ctx.saved_tensors, *cotangent)
            gradients = _Once.apply(gradients, *inputs)
        return None, *gradients


class _Once(torch.autograd.Function):
    """Gradients that have no derivative by the inputs that they came from."""

    @staticmethod
    def forward(ctx, gradients, *inputs):
        return tuple(gradients)

    @staticmethod
    def backward(ctx, *cotangent):
        raise NotImplementedError(
            "The gradient of a solve cannot be differentiated once more: "
            "second derivatives, as of a penalty on gradients, are not "
            "available through an `ODEBlock`."
        )


def custom_vjp(
    forward: Callable, backward: Callable, identity: Any = None
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
        # What is kept for the gradient must not change meanwhile, as variables
        # do. And one tensor may be here in two places: each is an argument.
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


def _pack_as(structure: Any, flat: list) -> Any:
    treespec = optree.tree_structure(structure, none_is_leaf=True)
    return optree.tree_unflatten(treespec, flat)


def add_scaled(x: Any, factor: Any, y: Any) -> Any:
    # At once: most of what a solve does itself, and half of it in memory.
    if isinstance(factor, float):
        return torch.add(x, y, alpha=factor)
    return torch.addcmul(x, factor, y)


def scatter(buffer: Any, indices: Any, updates: Any) -> Any:
    # In place: a solve owns its buffers, and no gradient is taken of them.
    if indices.shape == (1, 1):
        return buffer.index_copy_(0, indices[0].long(), updates)
    buffer[tuple(indices.T)] = updates
    return buffer


def new_list(like: Any, size: int) -> Any:
    return like.new_empty((size, *like.shape))


def set_item(items: Any, i: Any, x: Any) -> Any:
    # `items[i] = x` could not be recorded: it asks for the value of `i`.
    return items.index_copy_(0, i.long()[None], x[None])


def get_item(items: Any, i: Any, like: Any) -> Any:
    return items.index_select(0, i[None])[0]


def new_tape(size: int, params: Any) -> Tape:
    return Tape(size, params)


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    # Convolutions take TF32 unless told otherwise, matrix products do not.
    cudnn = torch.backends.cudnn
    there = torch.cuda.is_available() and cudnn.enabled
    # Both, or PyTorch refuses to say what its older switch for them is at.
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
    while cond(*loop_vars):
        loop_vars = body(*loop_vars)
    return loop_vars


def value(x: Any) -> np.ndarray | None:
    # To build a model Keras runs it on made-up values.
    made_up = torch.compiler.is_compiling() or in_symbolic_scope()
    return None if made_up else x.detach().cpu().numpy()

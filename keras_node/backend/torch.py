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

from keras_node.backend.torch_record import identity as identity
from keras_node.backend.torch_record import recorded as recorded


def vjp(f: Callable, args: tuple, cotangent: Any) -> tuple[Any, tuple]:
    inputs = [x.detach().requires_grad_() for x in _flatten(args)]
    with torch.enable_grad():
        out = f(*_pack_as(args, inputs))
    pairs = zip(_flatten(out), _flatten(cotangent), strict=True)
    pairs = [(x, adj_x) for x, adj_x in pairs if x.requires_grad]
    if pairs and inputs:
        gradients = torch.autograd.grad(
            [x for x, _ in pairs],
            inputs,
            [adj_x for _, adj_x in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    else:
        gradients = [torch.zeros_like(x) for x in inputs]
    out = optree.tree_map(torch.Tensor.detach, out)
    return out, _pack_as(args, list(gradients))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *inputs):
        outputs, ctx.backward_of_run = run(inputs)
        # An output that is a residual too would keep itself alive.
        outputs = [x.detach() for x in outputs]
        ctx.mark_non_differentiable(
            *(x for x in outputs if not x.is_floating_point())
        )
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *cotangent):
        return None, *ctx.backward_of_run(cotangent)


def custom_vjp(forward: Callable, backward: Callable) -> Callable:
    def function(args, constants):
        if torch.jit.is_tracing():
            raise NotImplementedError(
                "PyTorch's tracer, which the export to ONNX goes by, cannot "
                "record a solve: how many steps it takes depends on the data. "
                "Save the model as `.keras`, load and export it on TensorFlow "
                "or JAX."
            )
        inputs = _flatten((args, constants))
        structure = None

        def run(inputs):
            nonlocal structure
            structure, residuals = forward(
                *_pack_as((args, constants), list(inputs))
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


def while_loop(cond: Callable, body: Callable, loop_vars: tuple) -> tuple:
    while cond(*loop_vars):
        loop_vars = body(*loop_vars)
    return loop_vars


def value(x: Any) -> np.ndarray | None:
    # To build a model Keras runs it on made-up values.
    made_up = torch.compiler.is_compiling() or in_symbolic_scope()
    return None if made_up else x.detach().cpu().numpy()


def same_draws() -> Callable:
    # Without a `seed=`, Keras's `Dropout` draws from PyTorch's generators.
    cuda = torch.cuda
    devices = [cuda.current_device()] if cuda.is_available() else []
    state = torch.get_rng_state()
    states = [cuda.get_rng_state(device) for device in devices]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with torch.random.fork_rng(devices):
            torch.set_rng_state(state)
            for pair in zip(states, devices, strict=True):
                cuda.set_rng_state(*pair)
            yield

    return again

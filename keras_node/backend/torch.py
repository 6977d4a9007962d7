"""Derivatives in PyTorch."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from keras import tree

# Keras has no public way to tell.
from keras.src.backend import in_symbolic_scope

from keras_node.backend.torch_trace import traced as traced


def vjp(f: Callable, args: tuple, cotangent: Any) -> tuple[Any, tuple]:
    inputs = [x.detach().requires_grad_() for x in tree.flatten(args)]
    with torch.enable_grad():
        out = f(*tree.pack_sequence_as(args, inputs))
    pairs = zip(tree.flatten(out), tree.flatten(cotangent), strict=True)
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
    out = tree.map_structure(torch.Tensor.detach, out)
    return out, tree.pack_sequence_as(args, list(gradients))


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
        inputs = tree.flatten((args, constants))
        structure = None

        def run(inputs):
            nonlocal structure
            structure, residuals = forward(
                *tree.pack_sequence_as((args, constants), list(inputs))
            )
            outputs = structure

            def gradient(cotangent):
                cotangent = tree.pack_sequence_as(outputs, list(cotangent))
                adj_args = tree.flatten(backward(residuals, cotangent))
                return adj_args + [None] * (len(inputs) - len(adj_args))

            return tree.flatten(outputs), gradient

        flat = _Function.apply(run, *inputs)
        return tree.pack_sequence_as(structure, list(flat))

    return function


def scatter(buffer: Any, indices: Any, updates: Any) -> Any:
    # In place: a solve owns its buffers, and no gradient is taken of them.
    buffer[tuple(indices.T)] = updates
    return buffer


def new_list(like: Any, size: int) -> Any:
    return like.new_empty((size, *like.shape))


def set_item(items: Any, i: Any, x: Any) -> Any:
    items[i] = x
    return items


def get_item(items: Any, i: Any, like: Any) -> Any:
    return items[i]


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

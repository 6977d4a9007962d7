"""Derivatives by the graph that PyTorch makes of an evaluation."""

from collections.abc import Callable
from typing import Any

import optree
import torch

from keras_node.types import Tree


def pull(
    outputs: Tree, inputs: Tree, cotangent: Tree, create_graph: bool = False
) -> Tree:
    """Pulls `cotangent` of `outputs` back to `inputs`."""
    leaves, treespec = optree.tree_flatten(inputs)
    outputs, cotangent = map(optree.tree_leaves, (outputs, cotangent))
    pairs = [
        (x, adj_x)
        for x, adj_x in zip(outputs, cotangent, strict=True)
        if x.requires_grad
    ]
    if not pairs or not leaves:
        return optree.tree_map(torch.zeros_like, inputs)
    gradients = torch.autograd.grad(
        [x for x, _ in pairs],
        leaves,
        [adj_x for _, adj_x in pairs],
        create_graph=create_graph,
        retain_graph=True,  # the backward pass may come again
        allow_unused=True,
        materialize_grads=True,
    )
    return optree.tree_unflatten(treespec, gradients)


def leaf(x: torch.Tensor) -> torch.Tensor:
    """Detaches a tensor, to take derivatives by it."""
    return x.detach().requires_grad_()


class Pullback:
    """Pullback of cotangents of `outputs` to the `inputs` of an evaluation."""

    def __init__(self, outputs: Tree, inputs: Tree):
        self.outputs = outputs
        self._inputs = inputs

    def __call__(self, cotangent: Tree) -> Tree:
        return pull(self.outputs, self._inputs, cotangent)


def with_pullback(f: Callable, ends: Callable, inputs: tuple) -> tuple:
    inputs = optree.tree_map(leaf, inputs)
    with torch.enable_grad():
        out = f(*inputs)
    return optree.tree_map(_detached, out), Pullback(ends(out), inputs)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x

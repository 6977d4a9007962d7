"""The graphs of the first steps of a solve, kept for their derivatives."""

from collections.abc import Callable
from typing import Any

import optree
import torch


def cotangents(outputs: Any, inputs: Any, cotangent: Any) -> Any:
    """Those of the structure `inputs`, which `outputs` were computed from."""
    leaves, treespec = optree.tree_flatten(inputs)
    pairs = zip(
        optree.tree_leaves(outputs), optree.tree_leaves(cotangent), strict=True
    )
    pairs = [(x, adj_x) for x, adj_x in pairs if x.requires_grad]
    if not pairs or not leaves:
        return optree.tree_map(torch.zeros_like, inputs)
    gradients = torch.autograd.grad(
        [x for x, _ in pairs],
        leaves,
        [adj_x for _, adj_x in pairs],
        retain_graph=True,  # the backward pass may come again
        allow_unused=True,
        materialize_grads=True,
    )
    return optree.tree_unflatten(treespec, gradients)


def leaf(x: torch.Tensor) -> torch.Tensor:
    """The tensor as one that derivatives are taken by."""
    return x.detach().requires_grad_()


class Tape:
    """Keeps PyTorch's graphs of the first `size` steps of a solve.

    What a step has computed need not be computed again for its derivative.

    Args:
        size: Int.
        params: What derivatives are taken by, beside the state.
    """

    def __init__(self, size: int, params: Any):
        self.params = optree.tree_map(leaf, params)
        self._size = size
        self._graphs = []

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def runs(self) -> bool:
        """Whether there is room."""
        return len(self) < self._size

    def run(self, f: Callable, y: Any) -> tuple[Any, tuple]:
        """Calls `f(y)`, which returns a pair: what has a derivative, and all.

        It reads `params`. Returns the latter, and the graph of the former.
        """
        y = optree.tree_map(leaf, y)
        with torch.enable_grad():
            outputs, everything = f(y)
        everything = optree.tree_map(torch.Tensor.detach, everything)
        return everything, (outputs, (y, self.params))

    def keep(self, accept: Any, graph: tuple) -> None:
        """Keeps the graph of a step that was tried, if it is accepted."""
        if accept:
            self._graphs.append(graph)

    def pull(self, i: Any, cotangent: Any) -> tuple | None:
        """The cotangents of the state and of `params` before step `i`.

        From those of what has a derivative. `None` if it was not kept.
        """
        if i >= len(self):
            return None
        return cotangents(*self._graphs[i], cotangent)

"""The first steps of a solve, kept for their derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import fx

from keras_node.backend import torch_record


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
    """Keeps what the first `size` steps of a solve have computed.

    It need not be computed again for their derivatives.

    Args:
        size: Int.
        params: What derivatives are taken by, beside the state.
    """

    def __init__(self, size: int, params: Any):
        self._size = size
        self._params = params
        self._pullbacks = []

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._pullbacks)

    @property
    def runs(self) -> bool:
        """Whether there is room."""
        return len(self) < self._size

    def run(
        self, f: Callable, then: Callable, args: tuple, y: Any
    ) -> tuple[Any, Callable]:
        """Takes a step from the state `y`, which is somewhere in `args`.

        Args:
            f: What is to be differentiated, `f(*args)`. It returns what has a
                derivative, and a tuple of what else it made.
            then: What is done next, `then(*args, *made)`.
            args: A structure, with `y` and `params` in it.
            y: The state.

        Returns:
            What `then` returns, and the pullback of `f`: from the cotangent of
            what has a derivative to those of `y` and of `params`.
        """
        args = ((y, self._params), f, then, args)
        graph, tensors = torch_record.graph_of(_run, args, _record)
        return graph(tensors) if graph else _run(*args)

    def keep(self, accept: Any, pullback: Callable) -> None:
        """Keeps a step that was tried, if it is accepted."""
        if accept:
            self._pullbacks.append(pullback)

    def pull(self, i: Any, cotangent: Any) -> tuple | None:
        """The cotangents before step `i`; `None` if it was not kept."""
        return self._pullbacks[i](cotangent) if i < len(self) else None


def _run(inputs: Any, f: Callable, then: Callable, args: tuple) -> tuple:
    """As PyTorch has it: the pullback is its graph."""
    watched = {id(x): leaf(x) for x in optree.tree_leaves(inputs)}

    def watch(structure):
        return optree.tree_map(lambda x: watched.get(id(x), x), structure)

    with torch.enable_grad():
        outputs, made = f(*watch(args))
    made = optree.tree_map(_detached, made)
    return then(*args, *made), functools.partial(
        cotangents, outputs, watch(inputs)
    )


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


def _record(run: Callable, args: tuple) -> Callable:
    """`_run` as two graphs: what the second needs, the first returns too."""

    def both(args_and_cotangent):
        args, cotangent = args_and_cotangent
        others, pullback = run(*args)
        return others, pullback(cotangent)

    _, f, _, f_args = args
    outputs, _ = f(*f_args)
    cotangent = optree.tree_map(torch.zeros_like, outputs)
    module, treespec = torch_record.module_of(both, (args, cotangent))
    of_others, of_cotangents = treespec.children()
    leaves, _ = torch_record.flatten(args)
    num_inputs = len({id(x) for x in leaves if isinstance(x, torch.Tensor)})
    forward, backward = _split(module, num_inputs, of_others.num_leaves)

    def run(tensors):
        results = forward(*tensors)
        others = results[: of_others.num_leaves]
        saved = results[of_others.num_leaves :]

        def pullback(cotangent):
            leaves = optree.tree_leaves(cotangent)
            return optree.tree_unflatten(
                of_cotangents, backward(*saved, *leaves)
            )

        return optree.tree_unflatten(of_others, others), pullback

    return run


def _split(
    module: fx.GraphModule, num_inputs: int, num_outputs: int
) -> tuple[Callable, Callable]:
    """Splits a graph in two, one to be called after the other.

    The first takes the first `num_inputs` and returns the first `num_outputs`
    and, after them, what the second takes before the other inputs.
    """
    nodes = list(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    (outputs,) = module.graph.output_node().args
    second = set(inputs[num_inputs:])
    for node in nodes:
        if node.op != "output" and second.intersection(node.all_input_nodes):
            second.add(node)
    last = module.graph.output_node()
    saved = [
        node
        for node in nodes
        if node not in second
        and node.op in ("placeholder", "call_function")
        and (
            second.intersection(node.users)
            or (last in node.users and node in outputs[num_outputs:])
        )
    ]

    def part(inputs, outputs, left_out):
        graph, copies = fx.Graph(), {}
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        for node in nodes:
            if node.op in ("call_function", "get_attr"):
                if node not in copies and node not in left_out:
                    copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output([copies.get(node, node) for node in outputs])
        graph.eliminate_dead_code()
        return fx.GraphModule(module, graph).forward

    calls = {node for node in nodes if node.op == "call_function"}
    return (
        part(inputs[:num_inputs], [*outputs[:num_outputs], *saved], second),
        part(
            [*saved, *inputs[num_inputs:]],
            outputs[num_outputs:],
            calls - second,
        ),
    )

"""Functions captured as graphs of PyTorch operations.

Called eagerly, a layer or an operation of Keras costs some ten times its
arithmetic. That is most of the time of a solve. A captured graph holds only the
PyTorch operations underneath, without this overhead.
"""

import collections
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import keras
import optree
import torch
from torch import fx

from keras_node.backend import _private
from keras_node.backend.torch.pullback import Pullback
from keras_node.backend.torch.split import split
from keras_node.backend.values import value_of
from keras_node.types import Tree

# By function and arguments: tensors by their shapes, all else by value. An
# entry is the number of calls so far, and later the graph, or None if capturing
# failed. In the order of last use.
_graphs: collections.OrderedDict = collections.OrderedDict()
_GRAPHS_AT_MOST = 128
# To capture a step takes as long as to take it some 30 times.
_CALLS_BEFORE = 30
_graphs_lock = threading.Lock()
# PyTorch's tracer has global state: one thread captures at a time, and the
# others go on without a graph.
_capturing = threading.Lock()
_thread = threading.local()
aten = torch.ops.aten


def jit(f: Callable) -> Callable:
    @functools.wraps(f)
    def call(*args):
        graph, tensors = _graph_of(f, args)
        return graph(tensors) if graph else f(*args)

    return call


def _graph_of(f: Callable, args: tuple) -> tuple:
    """Finds the graph of a function that is called often, and its tensors.

    It is a function of the tensors in `args`; `None` before it is captured,
    and where that is impossible. The tensors are returned too.
    """
    if getattr(_thread, "captures", False) or _private.in_symbolic_scope():
        return None, ()
    key, tensors = _key(f, args)
    if key is None:
        return None, ()
    with _graphs_lock:
        graph = _graphs.pop(key, 0)
        due = graph == _CALLS_BEFORE
        _keep(key, graph + 1 if isinstance(graph, int) and not due else graph)
    if due and _capturing.acquire(blocking=False):
        try:
            graph = _attempt(f, args, tensors)
        finally:
            _capturing.release()
        with _graphs_lock:
            _keep(key, graph)
    return (graph if callable(graph) else None), tensors


def _keep(key: tuple, graph: Callable | int | None) -> None:
    _graphs[key] = graph
    if len(_graphs) > _GRAPHS_AT_MOST:
        _graphs.popitem(last=False)


def _key(f: Callable, args: tuple) -> tuple:
    """Makes the key of a call's graph, or `None`, and lists its tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None, ()
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return None, ()
    leaves, treespec = _flatten(args)
    key = [f, treespec, keras.config.floatx(), torch.is_grad_enabled()]
    tensors = []
    for x in leaves:
        kind = type(x)
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            tensors.append(x)
            key.append((x.shape, x.stride(), x.dtype, x.device))
        else:
            value = value_of(x)
            if value is None:
                return None, ()
            key.append((kind, value))
    return tuple(key), tensors


def _flatten(structure: Tree) -> tuple[list, Any]:
    return optree.tree_flatten(structure, none_is_leaf=True)


def _attempt(f: Callable, args: tuple, tensors: list) -> Callable | None:
    _thread.captures = True
    try:
        graph = _capture(f, args)
        graph(tensors)  # it must run; the call repeats what this writes
        return graph
    except Exception:  # of any kind: a graph is only a shortcut
        return None
    finally:
        _thread.captures = False


def _capture(f: Callable, args: tuple) -> Callable:
    result, treespec = _flatten(f(*args))
    places = [i for i, x in enumerate(result) if isinstance(x, Pullback)]
    if places:
        (place,) = places
        return _capture_with_pullback(f, args, result[place], place, treespec)
    module, treespec = _module_of(lambda args: f(*args), args)
    forward = module.forward
    return lambda tensors: optree.tree_unflatten(treespec, forward(*tensors))


def _capture_with_pullback(
    f: Callable, args: tuple, pullback: Pullback, place: int, treespec: Any
) -> Callable:
    """Captures two graphs: the first also returns what the second needs."""

    def both(args_and_cotangent):
        args, cotangent = args_and_cotangent
        results, _ = _flatten(f(*args))
        pullback = results.pop(place)
        return results, pullback(cotangent)

    cotangent = optree.tree_map(torch.zeros_like, pullback.outputs)
    module, both_treespec = _module_of(both, (args, cotangent))
    of_results, of_cotangents = both_treespec.children()
    leaves, _ = _flatten(args)
    num_inputs = sum(isinstance(x, torch.Tensor) for x in leaves)
    forward, backward = split(module, num_inputs, of_results.num_leaves)

    def run(tensors):
        outputs = forward(*tensors)
        results = list(outputs[: of_results.num_leaves])
        saved = outputs[of_results.num_leaves :]

        def pullback(cotangent):
            leaves = optree.tree_leaves(cotangent)
            return optree.tree_unflatten(
                of_cotangents, backward(*saved, *leaves)
            )

        results.insert(place, pullback)
        return optree.tree_unflatten(treespec, results)

    return run


def _module_of(f: Callable, args: Tree) -> tuple[fx.GraphModule, Any]:
    """Captures `f(args)` as a graph of the tensors in `args`.

    The graph returns a flat list. The structure of the result is returned too.
    """
    leaves, inputs = _flatten(args)
    places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    outputs = None

    def flat(*tensors):
        nonlocal outputs
        given = list(leaves)
        for i, x in zip(places, tensors, strict=True):
            given[i] = x
        result, outputs = _flatten(f(optree.tree_unflatten(inputs, given)))
        return result

    # Without a mode to share, each operation would make one.
    mode = _private.FakeTensorMode()
    with _private.tracing(_private.TracingContext(mode)):
        module = _private.make_fx(flat)(*(leaves[i].detach() for i in places))
    return _slim(module), outputs


def _slim(module: fx.GraphModule) -> fx.GraphModule:
    """Removes what need not be computed, or not each time, from a graph.

    The results are the same as those of the function, to the last bit.
    """
    graph = module.graph
    for node in graph.nodes:
        if node.target is aten.detach.default and not torch.is_grad_enabled():
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.lift_fresh_copy.default:
            _keep_constant(module, node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "call_function":
            # The same function, by a shorter way than through the overload. A
            # function written in Python has the same name, but may do more.
            name = getattr(node.target, "__name__", "").split(".")[0]
            shorter = getattr(torch, name, None)
            if isinstance(shorter, types.BuiltinFunctionType):
                node.target = shorter
    module.recompile()
    return module


def _keep_constant(module: fx.GraphModule, node: fx.Node) -> None:
    """Removes the copy of a constant number that no operation changes."""
    constant = node.args[0]
    value = getattr(module, constant.target)
    users = [user for user in node.users if user.op == "call_function"]
    mutable = any(user.target._schema.is_mutable for user in users)
    if len(users) == len(node.users) and not mutable and not value.ndim:
        node.replace_all_uses_with(constant)

"""Recorded functions: graphs of PyTorch's own operations.

Called eagerly, a layer or an operation of Keras costs some ten times its
arithmetic: most of the time of a solve. The operations that it comes down to,
recorded once, do without.
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

# Keras has no public way to tell.
from keras.src.backend import in_symbolic_scope
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

# By function and arguments, tensors by their shapes and all else by value. What
# is there: how often it was called, and then the graph, or None if there is
# none to be had. The one used last comes last.
_graphs = collections.OrderedDict()
_GRAPHS_AT_MOST = 128
# Recording takes as long as some thirty calls to fifty.
_CALLS_BEFORE = 30
_graphs_lock = threading.Lock()
# One thread records at a time, the others go on without a graph: PyTorch's
# tracer has global state.
_recorder = threading.Lock()
_thread = threading.local()
_PLAIN = {bool, int, float, str, type(None)}
aten = torch.ops.aten


def recorded(f: Callable) -> Callable:
    @functools.wraps(f)
    def call(*args):
        graph, tensors = graph_of(f, args, _record)
        return graph(tensors) if graph else f(*args)

    return call


def graph_of(f: Callable, args: tuple, record: Callable) -> tuple:
    """What `record(f, args)` makes of a function that is called often.

    That is a function of the tensors in `args`, each once, or `None` as long
    as, or where, there is none. The tensors are returned too.
    """
    if getattr(_thread, "records", False) or in_symbolic_scope():
        return None, ()
    key, tensors = _key(f, args, record)
    if key is None:
        return None, ()
    with _graphs_lock:
        graph = _graphs.pop(key, 0)
        due = graph == _CALLS_BEFORE
        _keep(key, graph + 1 if isinstance(graph, int) and not due else graph)
    if due and _recorder.acquire(blocking=False):
        try:
            graph = _attempt(record, f, args, tensors)
        finally:
            _recorder.release()
        with _graphs_lock:
            _keep(key, graph)
    return (graph if callable(graph) else None), tensors


def _keep(key: tuple, graph: Callable | int | None) -> None:
    _graphs[key] = graph
    if len(_graphs) > _GRAPHS_AT_MOST:
        _graphs.popitem(last=False)


def _key(f: Callable, args: tuple, record: Callable) -> tuple:
    """What determines the graph of a call, or `None`; and the tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None, ()
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return None, ()
    leaves, treespec = flatten(args)
    key = [f, record, treespec, keras.config.floatx(), torch.is_grad_enabled()]
    tensors = {}
    for x in leaves:
        kind = type(x)
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            if id(x) in tensors:  # the same tensor in two places
                key.append(list(tensors).index(id(x)))
            else:
                tensors[id(x)] = x
                key.append((x.shape, x.stride(), x.dtype, x.device))
        elif kind in _PLAIN:
            key.append((kind, x))
        else:
            identity = _identity(x)
            if identity is None:
                return None, ()
            key.append(identity)
    return tuple(key), list(tensors.values())


def _identity(x: Any) -> Any:
    if isinstance(x, types.FunctionType):
        # One of a user's, or a closure, may read what changes.
        own = x.__module__.startswith("keras_node.")
        return x if own and x.__closure__ is None else None
    return x.identity() if hasattr(x, "identity") else None


def flatten(structure: Any) -> tuple[list, Any]:
    return optree.tree_flatten(structure, none_is_leaf=True)


def _attempt(
    record: Callable, f: Callable, args: tuple, tensors: list
) -> Callable | None:
    _thread.records = True
    try:
        graph = record(f, args)
        graph(tensors)  # it must run; what it writes, it will write again
        return graph
    except Exception:  # of whatever kind; it is no more than a shortcut
        return None
    finally:
        _thread.records = False


def _record(f: Callable, args: tuple) -> Callable:
    module, treespec = module_of(lambda args: f(*args), args)
    forward = module.forward
    return lambda tensors: optree.tree_unflatten(treespec, forward(*tensors))


def module_of(f: Callable, args: Any) -> tuple[fx.GraphModule, Any]:
    """The graph of `f(args)`, from the tensors in `args` to what it returns.

    That is flat; its structure is returned too.
    """
    leaves, inputs = flatten(args)
    tensors = {id(x): x for x in leaves if isinstance(x, torch.Tensor)}
    outputs = None

    def flat(*replacements):
        nonlocal outputs
        given = dict(zip(tensors, replacements, strict=True))
        replaced = [given.get(id(x), x) for x in leaves]
        result, outputs = flatten(f(optree.tree_unflatten(inputs, replaced)))
        return result

    module = make_fx(flat)(*(x.detach() for x in tensors.values()))
    return _slim(module), outputs


def _slim(module: fx.GraphModule) -> fx.GraphModule:
    """Without what needs not be computed, or not each time.

    The numbers are the same, to the last bit, as those of the function.
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
            # The same function, by a way that is shorter than the overload's.
            # What is written in Python goes by that name but may do more.
            name = getattr(node.target, "__name__", "").split(".")[0]
            shorter = getattr(torch, name, None)
            if isinstance(shorter, types.BuiltinFunctionType):
                node.target = shorter
    module.recompile()
    return module


def _keep_constant(module: fx.GraphModule, node: fx.Node) -> None:
    """A copy is made of constants lest they change: of numbers, none do."""
    constant = node.args[0]
    value = getattr(module, constant.target)
    users = [user for user in node.users if user.op == "call_function"]
    mutable = any(user.target._schema.is_mutable for user in users)
    if len(users) == len(node.users) and not mutable and not value.ndim:
        node.replace_all_uses_with(constant)

"""Keras networks as graphs of PyTorch's own operations.

Called eagerly, a Keras layer costs some ten times its arithmetic: most of the
time of a solve. The operations that it comes down to, recorded once, do
without.
"""

import weakref
from collections.abc import Callable

import keras
import torch
from keras import tree

# Keras has no public way to tell.
from keras.src.backend import in_symbolic_scope
from torch.fx.experimental.proxy_tensor import make_fx

from keras_node import structure

# By the layer, and then by what distinguishes functions of it, and shapes. What
# is there: how often it was called, and then the graph, or None if there is
# none to be had.
_graphs = weakref.WeakKeyDictionary()
# Recording takes as long as some fifty calls.
_CALLS_BEFORE = 100
_GRAPHS_AT_MOST = 32
_OWN = ("keras.src.", "keras_node.layers")


def traced(f: Callable, layer: keras.layers.Layer, key: tuple) -> Callable:
    """The function `f`, with its calls recorded when they are many.

    Args:
        f: A pure function of structures of tensors.
        layer: What `f` calls; what was recorded goes with it.
        key: What distinguishes `f` from other functions of the layer.
    """
    makeup = _makeup(layer)
    if makeup is None:
        return f
    key = (key, makeup)
    graphs = _graphs.setdefault(layer, {})

    def call(*args):
        leaves = structure.leaves(args)
        mode = (torch.compiler.is_compiling(), torch.jit.is_tracing())
        if any(mode) or in_symbolic_scope():
            return f(*args)
        shapes = tuple((x.shape, x.dtype, x.device) for x in leaves)
        graph = graphs.get((key, shapes), 0)
        if isinstance(graph, int):
            if graph < _CALLS_BEFORE:
                if graph or len(graphs) < _GRAPHS_AT_MOST:
                    graphs[key, shapes] = graph + 1
                return f(*args)
            graph = graphs[key, shapes] = _record(f, args, leaves)
        return f(*args) if graph is None else graph(*leaves)

    return call


def _makeup(layer: keras.layers.Layer) -> tuple | None:
    """What determines a layer that is made of Keras's own, which do the same
    in each call; `None` for others.

    One of a user's may read what changes between two calls, and a loss that is
    added in a call would be lost.
    """
    makeup = []
    for inner in layer._flatten_layers():
        # Objects and not their `id`, which another may have later. The layer
        # itself would keep itself alive.
        makeup.append(None if inner is layer else inner)
        if (
            not type(inner).__module__.startswith(_OWN)
            or isinstance(inner, keras.layers.Lambda)
            or inner.activity_regularizer is not None
        ):
            return None
        for name, value in vars(inner).items():
            if name.endswith("activation") and value is not None:
                module = getattr(value, "__module__", type(value).__module__)
                if not module.startswith(_OWN):
                    return None
                makeup.append(value)
            elif isinstance(value, (bool, int, float, str)):
                makeup.append((name, value))
    return tuple(makeup)


def _record(f: Callable, args: tuple, leaves: list) -> Callable | None:
    def flat(*leaves):
        return f(*tree.pack_sequence_as(args, list(leaves)))

    try:
        with torch.no_grad():
            return make_fx(flat)(*(x.detach() for x in leaves)).forward
    except Exception:  # of whatever kind; it is no more than a shortcut
        return None

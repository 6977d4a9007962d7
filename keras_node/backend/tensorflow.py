"""Derivatives in TensorFlow: eager, in graphs and under XLA."""

import functools
from collections.abc import Callable
from collections.abc import Hashable

import numpy as np
import tensorflow as tf
from keras import tree

from keras_node.backend import _private
from keras_node.backend.hoisted import Hoisted
from keras_node.backend.hoisted import as_it_is
from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32
from keras_node.types import Tensor
from keras_node.types import Tree


def vjps(f: Callable, args: tuple, cotangents: list) -> tuple[Tree, list]:
    args = _apart(args)
    with tf.GradientTape(
        persistent=len(cotangents) > 1, watch_accessed_variables=False
    ) as tape:
        tape.watch(tree.flatten(args))
        out = f(*args)

    def pull(cotangent):
        gradients = tape.gradient(
            tree.flatten(out),
            tree.flatten(args),
            output_gradients=tree.flatten(cotangent),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return tree.pack_sequence_as(args, gradients)

    return out, list(map(pull, cotangents))


def _apart(args: Tree) -> Tree:
    """Copies repeated tensors, and those from outside of this graph.

    A tape would take all places for one. A graph that has read a tensor from
    outside before reads it by its copy from then on, which no tape watches.
    """
    eager, graph = tf.executing_eagerly(), tf.compat.v1.get_default_graph()
    seen = set()

    def apart(x):
        outside = not eager and getattr(x, "graph", None) is not graph
        if id(x) in seen or outside:
            return tf.identity(x)
        seen.add(id(x))
        return x

    return tree.map_structure(apart, args)


def hoist(
    f: Callable, args: tuple, identity: Hashable, closed: bool
) -> Hoisted:
    if closed:
        return as_it_is(f, None)
    flat = [tf.convert_to_tensor(x) for x in tree.flatten(args)]
    program = tf.function(
        lambda *flat: f(*tree.pack_sequence_as(args, flat)), autograph=False
    ).get_concrete_function(*[tf.TensorSpec(x.shape, x.dtype) for x in flat])
    variables = [v.name for v in program.graph.trainable_variables]
    if variables:
        raise ValueError(
            "`dynamics` must not read a trainable `tf.Variable`: make it a "
            "weight of `dynamics`, by `add_weight`, or hand its value over as "
            "context, or in the `args` of `solve_ivp`. "
            f"Received: dynamics that read {variables}"
        )
    captured = program.captured_inputs
    places = [i for i, x in enumerate(captured) if is_tracked(x)]
    if not places:
        return as_it_is(f, None)

    def evaluate(args, floats, others):
        instead = list(captured)
        for i, x in zip(places, floats, strict=True):
            instead[i] = x
        program.set_external_captures(instead)
        return program(*tree.flatten(args))

    return Hoisted(evaluate, [captured[i] for i in places], [], None)


def is_tracked(x: Tensor) -> bool:
    if not x.dtype.is_floating:
        return False
    if tf.executing_eagerly():
        return _private.should_record_backprop([x])
    return isinstance(x, _private.EagerTensor) or x.op.type != "Const"


def custom_vjp(
    forward: Callable, backward: Callable, key: Hashable = None
) -> Callable:
    def function(args, constants):
        # Only tensors may enter: `tf.custom_gradient` refuses a function that
        # reads a variable, here or in the graph behind a captured tensor. They
        # must be of this very graph: the gradient of a branch in a branch
        # finds no others.
        inputs = [tf.identity(x) for x in tree.flatten((args, constants))]
        structure = None

        @tf.custom_gradient
        def run(*inputs):
            nonlocal structure
            outputs, residuals = forward(
                *tree.pack_sequence_as((args, constants), list(inputs)), True
            )
            structure = outputs

            def gradient(*cotangent):
                kept = residuals
                if _private.in_save_context():
                    # A SavedModel cannot hand over the lists of the forward
                    # solve. There, the gradient solves again.
                    _, kept = forward(
                        *tree.pack_sequence_as((args, constants), list(inputs)),
                        True,
                    )
                dense = map(_dense, tree.flatten(outputs), cotangent)
                cotangent = tree.pack_sequence_as(outputs, list(dense))
                adj_args = tree.flatten(backward(kept, cotangent))
                return adj_args + [None] * (len(inputs) - len(adj_args))

            return tree.flatten(outputs), gradient

        flat = run(*inputs)
        return tree.pack_sequence_as(structure, flat)

    return function


def _dense(x: Tensor, adj_x: Tensor | None) -> Tensor:
    """Returns the cotangent of `x` as a dense tensor.

    The cotangent is sparse where `x` was gathered from. It is `None` for
    integers in the gradient of a graph: a loop, a branch or a `tf.function`.
    """
    return tf.zeros_like(x) if adj_x is None else tf.convert_to_tensor(adj_x)


# Lists of tensors: as one tensor, all of it would be copied for each row.
# `tf.TensorArray` is the same, but complains where it is never read.


def new_list(like: Tensor, size: int) -> Tensor:
    return tf.raw_ops.TensorListReserve(
        element_shape=_known_shape(like),
        num_elements=size,
        element_dtype=like.dtype,
    )


def set_item(items: Tensor, i: Tensor, x: Tensor) -> Tensor:
    return tf.raw_ops.TensorListSetItem(input_handle=items, index=i, item=x)


def get_item(items: Tensor, i: Tensor, like: Tensor) -> Tensor:
    item = tf.raw_ops.TensorListGetItem(
        input_handle=items,
        index=i,
        element_shape=_known_shape(like),
        element_dtype=like.dtype,
    )
    return tf.ensure_shape(item, like.shape)


def stack_list(items: Tensor, like: Tensor) -> Tensor:
    return tf.raw_ops.TensorListStack(
        input_handle=items,
        element_shape=_known_shape(like),
        element_dtype=like.dtype,
    )


def _known_shape(x: Tensor) -> Tensor:
    return tf.constant([-1 if n is None else n for n in x.shape], tf.int32)


def value(x: Tensor) -> np.ndarray | None:
    if isinstance(x, tf.Variable) and not tf.executing_eagerly():
        return None  # it has a `numpy` method in a graph, too
    return x.numpy() if hasattr(x, "numpy") else None


def eps_of_products() -> float:
    if not tf.config.experimental.tensor_float_32_execution_enabled():
        return EPS_FLOAT32
    return EPS_TF32 if _has_tf32() else EPS_FLOAT32


@functools.cache
def _has_tf32() -> bool:
    """Tells whether there is a GPU of NVIDIA's Ampere generation or later."""
    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    found = [details(gpu).get("compute_capability", (0,)) for gpu in gpus]
    return any(capability >= (8,) for capability in found)


def scan(
    f: Callable, carry: Tree, xs: Tree, like: Tensor | None
) -> tuple[Tree, Tensor | None]:
    tensors = [tf.convert_to_tensor(x) for x in tree.flatten(xs)]
    size = tf.shape(tensors[0])[0]
    items = [
        tf.TensorArray(x.dtype, size, element_shape=x.shape[1:]).unstack(x)
        for x in tensors
    ]
    kept = []
    if like is not None:
        array = tf.TensorArray(like.dtype, size, element_shape=like.shape)
        kept.append(array)
    start = [tf.convert_to_tensor(x) for x in tree.flatten(carry)]

    def body(i, flat, kept):
        x = tree.pack_sequence_as(xs, [array.read(i) for array in items])
        new, y = f(tree.pack_sequence_as(carry, list(flat)), x)
        new = map(_of_shape, tree.flatten(new), start)
        return i + 1, list(new), [array.write(i, y) for array in kept]

    # XLA sizes what it keeps for the gradient by `maximum_iterations`.
    _, flat, kept = tf.while_loop(
        lambda i, *_: i < size,
        body,
        (tf.zeros((), tf.int32), start, kept),
        maximum_iterations=size,
    )
    ys = kept[0].stack() if kept else None
    return tree.pack_sequence_as(carry, list(flat)), ys


def _of_shape(x: Tensor, like: Tensor) -> Tensor:
    return tf.ensure_shape(x, like.shape)

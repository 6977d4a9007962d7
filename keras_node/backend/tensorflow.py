"""Derivatives in TensorFlow: eager, in graphs and under XLA."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

# TensorFlow has no public way to tell.
from tensorflow.python.saved_model.save_context import in_save_context

from keras_node.backend.precisions import EPS_FLOAT32
from keras_node.backend.precisions import EPS_TF32


def vjp(f: Callable, args: tuple, cotangent: Any) -> tuple[Any, tuple]:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tree.flatten(args))
        out = f(*args)
    gradients = tape.gradient(
        tree.flatten(out),
        tree.flatten(args),
        output_gradients=tree.flatten(cotangent),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return out, tree.pack_sequence_as(args, gradients)


def custom_vjp(forward: Callable, backward: Callable) -> Callable:
    def function(args, constants):
        # Only tensors may enter: `tf.custom_gradient` refuses a function that
        # reads a variable, here or in the graph behind a captured tensor.
        inputs = [
            tf.convert_to_tensor(x) for x in tree.flatten((args, constants))
        ]
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
                if in_save_context():
                    # A SavedModel cannot hand over the lists of the forward
                    # solve: there, the gradient solves anew.
                    _, kept = forward(
                        *tree.pack_sequence_as((args, constants), list(inputs)),
                        True,
                    )
                # Gathered outputs have sparse cotangents.
                dense = [tf.convert_to_tensor(x) for x in cotangent]
                cotangent = tree.pack_sequence_as(outputs, dense)
                adj_args = tree.flatten(backward(kept, cotangent))
                return adj_args + [None] * (len(inputs) - len(adj_args))

            return tree.flatten(outputs), gradient

        flat = run(*inputs)
        return tree.pack_sequence_as(structure, flat)

    return function


def add_scaled(x: Any, factor: Any, y: Any) -> Any:
    return x + factor * y


def scatter(buffer: Any, indices: Any, updates: Any) -> Any:
    # TensorFlow refuses to write nothing: not even that, then.
    rows = tf.minimum(tf.shape(indices)[0], tf.size(updates))
    indices, updates = indices[:rows], updates[:rows]
    return tf.tensor_scatter_nd_update(buffer, indices, updates)


# A list of tensors: written as one tensor, all of it would be copied for each
# row. `tf.TensorArray` is the same, but complains where none of it is read.


def new_list(like: Any, size: int) -> Any:
    return tf.raw_ops.TensorListReserve(
        element_shape=_known_shape(like),
        num_elements=size,
        element_dtype=like.dtype,
    )


def set_item(items: Any, i: Any, x: Any) -> Any:
    return tf.raw_ops.TensorListSetItem(input_handle=items, index=i, item=x)


def get_item(items: Any, i: Any, like: Any) -> Any:
    item = tf.raw_ops.TensorListGetItem(
        input_handle=items,
        index=i,
        element_shape=_known_shape(like),
        element_dtype=like.dtype,
    )
    return tf.ensure_shape(item, like.shape)


def _known_shape(x: Any) -> Any:
    return tf.constant([-1 if n is None else n for n in x.shape], tf.int32)


def value(x: Any) -> np.ndarray | None:
    return x.numpy() if hasattr(x, "numpy") else None


def same_draws() -> Callable:
    return contextlib.nullcontext  # here Keras draws from its seeds alone


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    yield  # TensorFlow has one switch for the whole process


def eps_of_products() -> float:
    if not tf.config.experimental.tensor_float_32_execution_enabled():
        return EPS_FLOAT32
    return EPS_TF32 if _has_tf32() else EPS_FLOAT32


@functools.cache
def _has_tf32() -> bool:
    """Whether there is a GPU of NVIDIA's Ampere generation or later."""
    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    found = [details(gpu).get("compute_capability", (0,)) for gpu in gpus]
    return any(capability >= (8,) for capability in found)


while_loop = keras.ops.while_loop


def new_tape(size: int, params: Any) -> tuple:
    return ()  # what is kept in a compiled loop is reserved beforehand


def recorded(f: Callable) -> Callable:
    return f  # compiled, all of it is


def uncompiled(f: Callable) -> Callable:
    return f


def identity(layer: Any, key: tuple) -> None:
    return None

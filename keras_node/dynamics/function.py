"""A Python function as dynamics."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence

import keras
from keras import ops
from keras import tree

from keras_node import input_checks
from keras_node import pytree
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class FunctionDynamics:
    """Dynamics that a Python function computes.

    Args:
        fun: The function, `fun(t, y, *args)`.
        args: A structure of its other arguments. The tensors in it are only
            for the structure: each call is handed its own.
        own_times: Boolean, whether samples have times of their own.
    """

    eps = 0.0
    draws = True  # nothing is known of what it does

    def __init__(self, fun: Callable, args: Tree, own_times: bool):
        self._fun = fun
        self._args = args
        self.trainable: list[keras.Variable] = []
        self.frozen: list[keras.Variable] = []
        self.time = _time_of_each if own_times else _time_of_all

    def identity(self, *key: Hashable) -> None:
        return None

    def __call__(self, t: Tensor, y: State, context: Sequence) -> State:
        given = iter(context)
        args = tree.map_structure(
            lambda x: next(given) if ops.is_tensor(x) else x, self._args
        )
        dy = self._fun(t, y, *args)
        try:
            if isinstance(dy, (list, tuple)) and not tree.is_nested(y):
                dy = ops.stack(dy)  # as SciPy has it
            tree.assert_same_structure(y, dy)
            dy = tree.map_structure(ops.convert_to_tensor, dy)
        except Exception as error:  # each framework raises its own
            raise ValueError(
                "`fun` must return the slope of the state, in the structure of "
                f"the state. Received: {dy!r} for {y!r}"
            ) from error

        def leaf(y, dy):
            input_checks.require_slope("fun", dy, tuple(y.shape))
            return ops.cast(dy, y.dtype)

        return pytree.map_leaves(leaf, y, dy)


def _time_of_all(t: Scalar, y: State) -> Tensor:
    return ops.convert_to_tensor(t, pytree.leaves(y)[0].dtype)


def _time_of_each(t: Scalar, y: State) -> Tensor:
    """Makes the time `(batch, 1, ...)` for a state `(batch, ...)`.

    Of several ranks it has the highest. With a part of a lower rank it makes
    no slope of that rank, and cannot go wrong in silence.
    """
    leaf = max(pytree.leaves(y), key=lambda leaf: len(leaf.shape))
    batch, *others = ops.shape(leaf)
    t = pytree.expand(ops.convert_to_tensor(t, leaf.dtype), leaf)
    return t + ops.zeros((batch, *[1] * len(others)), dtype=leaf.dtype)

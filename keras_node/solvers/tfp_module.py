"""A copy of TensorFlow Probability's Dormand-Prince module, mended.

This is the only module that imports TensorFlow Probability.
"""

import importlib.util
import logging
import types
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from keras_node import pytree
from keras_node.types import Tensor
from keras_node.types import Tree

# On import, tf_keras warns of its own deprecated names.
_logger = logging.getLogger("tensorflow")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    _spec: Any = importlib.util.find_spec(
        "tensorflow_probability.python.math.ode.dormand_prince"
    )
    # A copy of TFP's module. Its globals are changed below, and other users of
    # TFP's own module, in any thread, must not see the changes.
    _module: Any = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
finally:
    _logger.setLevel(_level)

DormandPrince: Any = _module.DormandPrince
State: Any = _module._RungeKuttaSolverInternalState
# `tf.cast` rounds a Python float to float32, but not a NumPy one.
_module._TABLEAU = tree.map_structure(np.float64, _module._TABLEAU)
ERROR_WEIGHTS = _module._TABLEAU.c_error


def _next_step_size(
    dt: Tensor, order: int, error_ratio: Tensor, *factors: float
) -> Tensor:
    """Computes TFP's next step, without the infinite power of an error of 0."""
    error_ratio = tf.maximum(error_ratio, tf.cast(1e-30, error_ratio.dtype))
    return _util.next_step_size(dt, order, error_ratio, *factors)


class PerEntry:
    """Absolute tolerance for each entry of the state."""

    def __init__(self, values: Tree):
        self.values = values


def _weighted_sum(weights: list, states: list) -> Tree:
    """Computes TFP's weighted sum, also with a tolerance for each entry."""
    first, *others = weights
    if not isinstance(first, PerEntry):
        return _rk_util.weighted_sum(weights, states)
    allowed = _rk_util.weighted_sum(others, states[1:])
    return pytree.map_leaves(tf.add, first.values, allowed)


_util, _rk_util = _module.util, _module.rk_util
_module.util = types.SimpleNamespace(
    **{**vars(_util), "next_step_size": _next_step_size}
)
_module.rk_util = types.SimpleNamespace(
    **{**vars(_rk_util), "weighted_sum": _weighted_sum}
)

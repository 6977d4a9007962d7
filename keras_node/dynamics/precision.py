"""The precision of the dynamics, which may be coarser than the state's.

Shorter steps do not help where the dynamics cannot resolve the error: see
`step_size.unexplained`.
"""

import warnings

import keras
import numpy as np

from keras_node import backend
from keras_node.backend import _private
from keras_node.backend.precisions import EPS_HALF

_warned = False


def of_state(dtype: str) -> str:
    """Chooses the dtype of the state, for layers that compute in `dtype`."""
    # Half precision cannot hold a time step.
    return dtype if dtype in ("float32", "float64") else "float32"


def of_layer(layer: keras.layers.Layer) -> float:
    """Finds the largest `eps` of a layer and the layers inside it."""
    return max([0.0, *map(_eps, _private.layers_of(layer))])


def _eps(layer: keras.layers.Layer) -> float:
    # Such layers pass their inputs on, and compute nothing themselves.
    if isinstance(layer, keras.Sequential) or not layer._convert_input_args:
        return 0.0
    if not layer.autocast:  # computes in the precision of its inputs
        return 0.0
    if layer.compute_dtype == "float32":
        return backend.eps_of_products()
    return EPS_HALF.get(layer.compute_dtype, 0.0)


def warn_below(rtol: float, dynamics: keras.layers.Layer) -> None:
    """Warns, once per process, if `dynamics` cannot resolve `rtol`."""
    global _warned
    eps = of_layer(dynamics)
    resolved = eps / 2  # rounded to nearest, a result is off by half of it
    # No warning for float32: the state is no finer.
    if _warned or rtol >= resolved or eps <= float(np.finfo("float32").eps):
        return
    _warned = True
    warnings.warn(
        f"`dynamics` compute in half precision or, on a GPU, in TF32, to "
        f"about {resolved:.0e} of their size: an `rtol` below that makes no "
        "solve more exact. What helps, in this order: give the layers inside "
        '`dtype="float32"`; on TensorFlow with a GPU, '
        "`tf.config.experimental.enable_tensor_float_32_execution(False)`; a "
        f"larger `rtol`. Received: rtol={rtol}",
        stacklevel=2,
    )

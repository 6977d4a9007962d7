"""In which precision dynamics compute, whatever that of the state.

For what they cannot resolve, no step is short enough: `step_size.unexplained`
says what is made of that.
"""

import warnings
from typing import Any

import keras
import numpy as np

from keras_node import backend
from keras_node import structure

# The spacing of floats at 1.
_HALF = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_warned = False


def of_layer(layer: keras.layers.Layer) -> float:
    """The `eps` of the coarsest that a layer, or one inside of it, does."""
    return max([0.0, *map(_eps, layer._flatten_layers())])


def _eps(layer: keras.layers.Layer) -> float:
    # These hand on what they are given, and compute nothing themselves.
    if isinstance(layer, keras.Sequential) or not layer._convert_input_args:
        return 0.0
    if not layer.autocast:  # in the precision of its inputs
        return 0.0
    if layer.compute_dtype == "float32":
        return backend.eps_of_products()
    return _HALF.get(layer.compute_dtype, 0.0)


def of_function(f: Any, dtype: str) -> float:
    """The `eps` that a right-hand side computes with; `0`: that of `dtype`.

    It is what something inside of it says: see `VectorField.eps`.
    """
    eps = max(getattr(part, "eps", 0.0) for part in structure.leaves((f,)))
    return eps if eps > float(np.finfo(dtype).eps) else 0.0


def warn_below(rtol: float, dynamics: keras.layers.Layer) -> None:
    """Says, once per process, that `dynamics` cannot resolve `rtol`."""
    global _warned
    eps = of_layer(dynamics)
    resolved = eps / 2  # to the nearest, a result is off by half of it
    # Float32 does what it can; and the state is no finer.
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

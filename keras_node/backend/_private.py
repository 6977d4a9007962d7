"""Private parts of other packages, and why they are used here.

`solvers/tfp_module.py` holds the private parts of TensorFlow Probability.
"""

from collections.abc import Iterator
from typing import Any

import keras

# Keras has no public way to read a variable as it is stored under a policy of
# half precision.
from keras.src.backend import AutocastScope as AutocastScope

# Keras has no public test for a scope that holds what variables are.
from keras.src.backend import in_stateless_scope as in_stateless_scope

# Keras has no public test for a run on made-up values, to build a model.
from keras.src.backend import in_symbolic_scope as in_symbolic_scope

# Keras has no public way to attach a mask that a layer was handed.
from keras.src.backend.common.masking import set_keras_mask

if keras.backend.backend() == "tensorflow":
    # TensorFlow has no public test for what a gradient may be taken by.
    from tensorflow.python.eager.record import (
        should_record_backprop as should_record_backprop,
    )

    # TensorFlow has no public test for what is a value in a graph.
    from tensorflow.python.framework.ops import EagerTensor as EagerTensor

    # TensorFlow has no public test for the export of a model.
    from tensorflow.python.saved_model.save_context import (
        in_save_context as in_save_context,
    )

if keras.backend.backend() == "torch":
    # PyTorch has no public way to give a tracer a mode.
    from torch._guards import TracingContext as TracingContext
    from torch._guards import tracing as tracing
    from torch._subclasses import FakeTensorMode as FakeTensorMode

    # PyTorch's public tracers see modules, and not the operations below them.
    from torch.fx.experimental.proxy_tensor import make_fx as make_fx

if keras.backend.backend() == "jax":
    import jax
    from jax.extend import core

    # JAX has no public way to ask a tracer for its value, if it has one. The
    # function has moved with JAX 0.10.
    _moved: Any = getattr(core, "concrete_or_error", None)
    concrete_or_error = _moved or jax.core.concrete_or_error


def layers_of(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Iterates over a layer and all layers inside it."""
    return layer._flatten_layers()


def set_mask(x: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, as Keras does after a call."""
    set_keras_mask(x, mask)


def mask_of(x: Any) -> Any:
    """Reads the mask that Keras attached to a tensor, or `None`."""
    return getattr(x, "_keras_mask", None)

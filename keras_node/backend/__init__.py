"""What `keras.ops` lacks: derivatives inside and around a solve.

One module per framework, each with the same three functions:

- `vjp(f, args, cotangent)`: `f(*args)` and the cotangents of `args`.
- `custom_vjp(forward, backward)`: a function with a gradient of its own.
- `is_concrete(x)`: whether the tensor `x` has a value now, or is traced.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_node.backend.tensorflow import custom_vjp
    from keras_node.backend.tensorflow import is_concrete
    from keras_node.backend.tensorflow import vjp
else:
    raise ImportError(
        "keras_node runs on the TensorFlow backend of Keras. Received: "
        f"backend {keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND to 'tensorflow'."
    )

__all__ = ["custom_vjp", "is_concrete", "vjp"]

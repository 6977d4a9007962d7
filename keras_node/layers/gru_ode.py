"""The dynamics of a gated recurrent unit in continuous time."""

from typing import Any

import keras
from keras import ops

from keras_node import checks
from keras_node import input_checks
from keras_node.config import register
from keras_node.types import Tensor


@register
class GRUODE(keras.layers.Layer):
    """Layer that computes the slope of a gated recurrent unit without inputs.

    The slope of a state `h` is `(1 - z) * (g - h)`, where

    - `r = sigmoid(U_r h + b_r)` is the reset gate,
    - `z = sigmoid(U_z h + b_z)` is the update gate,
    - `g = tanh(U_g (r * h) + b_g)` is the candidate.

    A state that starts between -1 and 1 stays there, unless a solver of fixed
    steps takes them too long. It suits the state of
    `GRUCell` and `LSTMCell` as the `dynamics` of `ODERNN`.

    Args:
        units: Int, the width of the state.
        activation: Activation of the candidate. With an activation of another
            range the state leaves (-1, 1). Defaults to `"tanh"`.
        recurrent_activation: Activation of the gates. Defaults to `"sigmoid"`.
        use_bias: Boolean, whether to add the biases. Defaults to `True`.
        recurrent_initializer: Initializer of the weights `U`. Defaults to
            `"orthogonal"`.
        bias_initializer: Initializer of the biases. Defaults to `"zeros"`.
        recurrent_regularizer: Regularizer of the weights. Defaults to `None`.
        bias_regularizer: Regularizer of the biases. Defaults to `None`.
        recurrent_constraint: Constraint of the weights. Defaults to `None`.
        bias_constraint: Constraint of the biases. Defaults to `None`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor of shape `(batch, units)`, the state.

    Input shape:
        `(batch, ..., units)`.

    Output shape:
        That of the input.

    Raises:
        ValueError: If `units` is not positive, or not the width of the input.

    Example:
    >>> block = keras_node.ODEBlock(keras_node.layers.GRUODE(4))
    >>> tuple(block(np.zeros((8, 4))).shape)
    (8, 4)

    Reference:
        - [De Brouwer, Simm, Arany, Moreau,
          2019](https://arxiv.org/abs/1905.12374), GRU-ODE-Bayes
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        self.supports_masking = True
        self.units = checks.positive_int("units", units)
        self.use_bias = checks.boolean("use_bias", use_bias)
        self.activation = _get(keras.activations, "activation", activation)
        self.recurrent_activation = _get(
            keras.activations, "recurrent_activation", recurrent_activation
        )
        self.recurrent_initializer = _get(
            keras.initializers, "recurrent_initializer", recurrent_initializer
        )
        self.bias_initializer = _get(
            keras.initializers, "bias_initializer", bias_initializer
        )
        self.recurrent_regularizer = _get(
            keras.regularizers, "recurrent_regularizer", recurrent_regularizer
        )
        self.bias_regularizer = _get(
            keras.regularizers, "bias_regularizer", bias_regularizer
        )
        self.recurrent_constraint = _get(
            keras.constraints, "recurrent_constraint", recurrent_constraint
        )
        self.bias_constraint = _get(
            keras.constraints, "bias_constraint", bias_constraint
        )

    def build(self, inputs_shape: tuple) -> None:
        shape = input_checks.shape("inputs", inputs_shape)
        if len(shape) < 2 or shape[-1] != self.units:
            raise ValueError(
                f"`inputs` must be a state of width `units`, {self.units}. "
                f"Received: inputs of shape {shape}"
            )
        # The gates `r` and `z`, and the candidate.
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, 3 * self.units),
            name="recurrent_kernel",
            initializer=self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(3 * self.units,),
                name="bias",
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs: Tensor) -> Tensor:
        h, n = inputs, 2 * self.units
        kernel = ops.convert_to_tensor(self.recurrent_kernel)
        # `ops.matmul` rounds float64 on PyTorch.
        gates = h @ kernel[:, :n]
        if self.bias is not None:
            bias = ops.convert_to_tensor(self.bias)
            gates = gates + bias[:n]
        r, z = ops.split(self.recurrent_activation(gates), 2, axis=-1)
        candidate = (r * h) @ kernel[:, n:]
        if self.bias is not None:
            candidate = candidate + bias[n:]
        return (1 - z) * (self.activation(candidate) - h)

    def compute_output_shape(self, inputs_shape: tuple) -> tuple:
        return input_checks.shape("inputs", inputs_shape)

    def get_config(self) -> dict[str, Any]:
        kinds = {
            "activation": keras.activations,
            "initializer": keras.initializers,
            "regularizer": keras.regularizers,
            "constraint": keras.constraints,
        }
        config = {"units": self.units, "use_bias": self.use_bias}
        for name in (
            "activation",
            "recurrent_activation",
            "recurrent_initializer",
            "bias_initializer",
            "recurrent_regularizer",
            "bias_regularizer",
            "recurrent_constraint",
            "bias_constraint",
        ):
            kind = kinds[name.split("_")[-1]]
            config[name] = kind.serialize(getattr(self, name))
        return {**super().get_config(), **config}


def _get(module: Any, name: str, value: Any) -> Any:
    """Finds an activation and the like, and names the argument if it fails."""
    try:
        return module.get(value)
    except Exception as error:  # Keras raises more than one kind
        raise ValueError(
            f"`{name}` must be one that Keras knows: {error} "
            f"Received: {name}={value!r}"
        ) from error

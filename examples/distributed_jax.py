"""Trains a neural ODE on two devices with JAX.

    python examples/distributed_jax.py

The CPU stands in for two devices: where there are GPUs or TPUs,
`DataParallel()` takes them all.
"""

import os
import zlib
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=2",
    ]
)

import keras
import numpy as np

import keras_node

DIGITS = Path(__file__).parent / "data" / "mnist-first-1500.npz"
BATCH = 500  # of all devices together, and a multiple of their number


def load_digits():
    with np.load(DIGITS) as data:
        return data["images"].reshape(-1, 784) / np.float32(255), data["labels"]


def build_model(solver="tsit5", adjoint="discrete", **options):
    inputs = keras.Input((784,))
    x = keras.layers.Dense(20, "tanh")(inputs)
    dynamics = [keras.layers.Dense(10, "tanh"), keras.layers.Dense(20, "tanh")]
    x = keras_node.ODEBlock(
        dynamics, solver=solver, adjoint=adjoint, **options
    )(x)
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax")(x))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def main(epochs=10, path=None, **options):
    keras.utils.set_random_seed(0)
    # Before the model, whose variables are then on every device.
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = build_model(**options)
    history = model.fit(*load_digits(), BATCH, epochs, shuffle=False).history
    copies = [variable.value.addressable_shards for variable in model.weights]
    for shards in zip(*copies, strict=True):
        arrays = [np.asarray(shard.data).tobytes() for shard in shards]
        print(
            f"{shards[0].device}: loss {history['loss'][-1]:.4f}, "
            f"weights {zlib.crc32(b''.join(arrays)):08x}"
        )
    if path:
        model.save(path)


if __name__ == "__main__":
    main()

"""Carries two interleaved classes apart, through an extra dimension.

    python examples/two_moons.py

The paths of an ODE do not cross: in the plane, two moons must be unwound.
`Augment` appends a dimension (Dupont, Doucet, Teh, 2019), room to pass each
other, and the kinetic regularizer asks for short ways. Then a straight cut
tells the classes apart.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from matplotlib import pyplot as plt

import keras_node

COLORS = np.array(["tab:blue", "tab:orange"])


def two_moons(count, random, noise=0.1):
    """Points of two half circles that reach into each other, and which."""
    angles = np.pi * random.uniform(size=count)
    labels = random.integers(2, size=count)
    upper = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lower = [1.0, 0.5] - upper
    points = np.where(labels[:, None], lower, upper) - [0.5, 0.25]
    points += random.normal(0, noise, points.shape)
    return points.astype("float32"), labels


def build_model(steps):
    hidden = [layers.Dense(32, "tanh") for _ in range(2)]
    block = keras_node.ODEBlock(
        [*hidden, layers.Dense(3)],
        solver="tsit5",
        adjoint="discrete",
        kinetic_regularizer=0.02,
    )
    augment = keras_node.layers.Augment(1)
    readout = layers.Dense(1, "sigmoid")
    model = keras.Sequential([keras.Input((2,)), augment, block, readout])
    rate = keras.optimizers.schedules.CosineDecay(0.01, steps)
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, "binary_crossentropy", metrics=["accuracy"])
    return model


def draw(model, points, labels):
    """The states at five times, seen along the cut between the classes."""
    augment, block, readout = model.layers
    times = np.linspace(0, 1, 5, dtype="float32")
    states = keras.ops.convert_to_numpy(block(augment(points), t_eval=times))
    weights, bias = readout.get_weights()
    # Up is across the cut; to the right is x, as far as that goes along it.
    length = np.linalg.norm(weights)
    up = -weights[:, 0] / length
    right = np.eye(3)[0]
    right -= (right @ up) * up
    right /= np.linalg.norm(right)
    size = {"figsize": (10, 3), "layout": "constrained"}
    figure, axes = plt.subplots(1, 5, sharex=True, sharey=True, **size)
    for i, (axis, t) in enumerate(zip(axes, times, strict=True)):
        x, y = states[:, i] @ right, states[:, i] @ up - bias[0] / length
        axis.scatter(x, y, 3, COLORS[labels])
        axis.axhline(0, color="k", lw=0.8)
        axis.set(title=f"t = {t:g}", xlabel="along the cut")
    low, high = axes[0].get_ylim()
    for axis in axes:
        axis.axhspan(0, high, color=COLORS[0], alpha=0.1, lw=0)
        axis.axhspan(low, 0, color=COLORS[1], alpha=0.1, lw=0)
    axes[0].set(ylabel="across the cut", ylim=(low, high))
    figure.savefig("two_moons.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    train, test = two_moons(2000, random), two_moons(1000, random)
    model = build_model(steps=20 * epochs)
    model.fit(*train, batch_size=100, epochs=epochs, validation_data=test)
    _, accuracy = model.evaluate(*test, verbose=0)
    print(f"test accuracy {accuracy:.1%}")
    draw(model, *test)


if __name__ == "__main__":
    main()

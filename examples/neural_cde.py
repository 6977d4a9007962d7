"""Says of a series full of gaps which way it turns.

    python examples/neural_cde.py

A neural controlled differential equation (Kidger et al., 2020) reads spirals,
clockwise or not, at irregular times. Half of their values are missing, each
channel at other times, and all are noisy. With every value the verdict changes;
where one is missing, it is ahead by the next one, which the path leads to.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from matplotlib import pyplot as plt

import keras_node

LENGTH, MISSING, NOISE, UNITS = 24, 0.5, 0.1, 8


def spirals(count, random):
    """Series with NaN where a value is missing, times, and which way."""
    labels = random.integers(2, size=(count, 1))
    t = (np.arange(LENGTH) + random.uniform(size=(count, LENGTH))) * 5 / LENGTH
    angle = random.uniform(0, 2 * np.pi, (count, 1)) + (2 * labels - 1) * t
    x = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    x = x * np.exp(-0.1 * t)[..., None] + random.normal(0, NOISE, x.shape)
    x[random.uniform(size=x.shape) < MISSING] = np.nan
    return x, t, labels


def build_model():
    """The probability of the one way at each time."""
    x, t = keras.Input((None, 2)), keras.Input((None,))
    block = keras_node.layers.CDEBlock(
        [layers.Dense(32, "softplus"), layers.Dense(UNITS * 3, "tanh")],
        return_sequences=True,
        rtol=1e-2,
        atol=1e-3,
    )
    model = keras.Model([x, t], layers.Dense(1, "sigmoid")(block([x, t])))
    return model


def draw(x, t, beliefs, labels):
    size = {"figsize": (10, 4.5), "layout": "constrained"}
    figure, axes = plt.subplots(2, 3, sharex=True, sharey="row", **size)
    rows = [*np.flatnonzero(labels)[:2], *np.flatnonzero(labels == 0)[:1]]
    for i, (above, below) in zip(rows, axes.T, strict=True):
        for channel, color in enumerate(("tab:orange", "tab:green")):
            above.plot(t[i], x[i, :, channel], ".", color=color)
        below.plot(t[i], beliefs[i], color="tab:blue", lw=2)
        below.axhline(labels[i], color="k", ls="--", lw=1)
        below.set(xlabel="time")
    axes[0, 0].set(ylabel="what is seen")
    axes[1, 0].set(ylabel="probability", ylim=(-0.05, 1.05))
    figure.savefig("neural_cde.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    *train, labels = spirals(1000, random)
    model = build_model()
    rate = keras.optimizers.schedules.CosineDecay(0.01, 10 * epochs)
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    # At every time: to be right as early as can be.
    always = np.repeat(labels[:, None], LENGTH, axis=1)
    model.fit(train, always, batch_size=100, epochs=epochs)
    *test, labels = spirals(500, random)
    beliefs = model.predict(test, batch_size=100, verbose=0)
    right = np.mean((beliefs[..., 0] > 0.5) == labels, axis=0)
    for i in (LENGTH // 4, LENGTH // 2, LENGTH):
        print(f"right after {i} of {LENGTH} steps: {right[i - 1]:.1%}")
    draw(*test, beliefs, labels)


if __name__ == "__main__":
    main()

"""Goes on with series that were seen at irregular times.

    python examples/latent_ode.py

A latent ODE (Rubanova, Chen, Duvenaud, 2019), a variational autoencoder of
time series: an ODE-RNN reads the observations of a sample from the last to the
first and says where its latent state begins, and an ODE takes it to any time,
also to those after the last observation.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from keras import ops
from matplotlib import pyplot as plt

import keras_node

SEEN, END, NOISE, LATENT = 4.0, 10.0, 0.1, 6


class Draw(layers.Layer):
    """Draws the start of a path; its divergence is a loss."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x, training=None):
        mean, log_std = ops.split(x, 2, axis=1)
        divergence = (mean**2 + ops.exp(2 * log_std) - 1) / 2 - log_std
        self.add_loss(ops.mean(ops.sum(divergence, axis=1)))
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean + ops.exp(log_std) * noise if training else mean


def negative_log_likelihood(y, fit):
    return ops.sum((y - fit) ** 2, axis=(1, 2)) / (2 * NOISE**2)


def build_model():
    """From observations `y` at times `t` to the path at the times `query`."""
    y, t, query = (
        keras.Input((None, 1)),
        keras.Input((None,)),
        keras.Input((None,)),
    )
    read = keras_node.layers.ODERNN(
        layers.GRUCell(24),
        [layers.Dense(24, "tanh"), layers.Dense(24)],
        solver=keras_node.solvers.Midpoint(num_steps=1),
        go_backwards=True,
    )
    start = Draw()(layers.Dense(2 * LATENT)(read([y, t])))
    hidden = [layers.Dense(32, "tanh") for _ in range(2)]
    block = keras_node.ODEBlock(
        [*hidden, layers.Dense(LATENT)], solver="tsit5", adjoint="discrete"
    )
    ends = ops.stack([query[:, 0], query[:, -1]], axis=1)
    path = block(start, t_eval=query, t_span=ends)
    return keras.Model([y, t, query], layers.Dense(1)(path))


def series(count, random):
    """Damped waves, each at 15 times of its own, the first of them 0."""
    phase, rate = random.uniform([0, 1.5], [2 * np.pi, 3], (count, 2)).T[
        ..., None
    ]
    t = np.sort(random.uniform(0, SEEN, (count, 15)))
    t[:, 0] = 0

    def wave(t):
        return (np.exp(-0.1 * t) * np.sin(rate * t + phase))[..., None]

    return t, wave(t) + random.normal(0, NOISE, (count, 15, 1)), wave


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    t, y, _ = series(1000, random)
    model = build_model()
    rate = keras.optimizers.schedules.CosineDecay(0.01, 10 * epochs)
    model.compile(keras.optimizers.Adam(rate), negative_log_likelihood)
    model.fit([y, t, t], y, batch_size=100, epochs=epochs)
    t, y, wave = series(200, random)
    fine = np.tile(np.linspace(0, END, 200), (200, 1))
    fit, truth = model.predict([y, t, fine], verbose=0), wave(fine)
    within, after = (
        np.sqrt(np.mean((fit - truth)[where] ** 2))
        for where in (fine <= SEEN, fine > SEEN)
    )
    print(f"rms error up to {SEEN:g} {within:.3f}, after it {after:.3f}")
    size = {"figsize": (10, 4), "layout": "constrained"}
    figure, axes = plt.subplots(2, 3, sharex=True, sharey=True, **size)
    for i, axis in enumerate(axes.flat):
        axis.axvspan(0, SEEN, color="0.93")
        axis.plot(t[i], y[i], ".", color="tab:orange", label="observed")
        axis.plot(fine[i], fit[i], color="tab:blue", lw=2.5, label="learned")
        axis.plot(fine[i], truth[i], "k--", lw=1, label="truth")
    axes[0, 0].legend()
    figure.savefig("latent_ode.png", dpi=110)


if __name__ == "__main__":
    main()

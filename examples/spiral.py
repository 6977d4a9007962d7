"""Learns a spiral from noisy observations at irregular times.

    python examples/spiral.py

The data: a damped pendulum, a spiral in the plane of angle and speed. It is
cut into windows, each with a start that is learned along with the network:
first of one second, which is easy, then one of all twelve.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from matplotlib import pyplot as plt

import keras_node

END, NOISE = 12.0, 0.1
STAGES = ((1.0, 0.03, 60), (END, 0.003, 24))  # window, rate, steps an epoch
METHOD = {"solver": "tsit5", "adjoint": "discrete"}


class Pendulum(layers.Layer):
    def call(self, y):
        angle, speed = keras.ops.split(y, 2, axis=1)
        slope = -2 * keras.ops.sin(angle) - 0.2 * speed
        return keras.ops.concatenate([speed, slope], axis=1)


def solve(dynamics, start, times):
    block = keras_node.ODEBlock(dynamics, t_span=(0, END), rtol=1e-5, **METHOD)
    return keras.ops.convert_to_numpy(block(start, t_eval=times))[0]


def learn(network, times, seen, window, rate, steps, epochs):
    """Trains on windows with times of their own; returns the first start."""
    begins = np.arange(0, END, window)
    guess = np.stack([np.interp(begins, times, y) for y in seen.T], axis=1)
    guess = keras.initializers.Constant(guess)
    starts = layers.Dense(2, use_bias=False, kernel_initializer=guess)
    own = times.reshape(len(begins), -1) % window
    which, t = keras.Input(begins.shape), keras.Input(own.shape[1:])
    block = keras_node.ODEBlock(network, (0, window), **METHOD)
    model = keras.Model([which, t], block(starts(which), t_eval=t))
    rate = keras.optimizers.schedules.CosineDecay(rate, steps * epochs)
    model.compile(keras.optimizers.Adam(rate), "mse")
    data = np.eye(len(begins)), own, seen.reshape(*own.shape, 2)
    *x, y = (np.concatenate([each] * steps) for each in data)
    model.fit(x, y, len(begins), epochs, shuffle=False)
    return starts(np.eye(1, len(begins)))


def draw(times, seen, fine, truth, fit, network):
    size = {"figsize": (10, 4), "layout": "constrained"}
    figure, (plane, curve) = plt.subplots(1, 2, **size)
    grid = np.stack(np.mgrid[-2:2.6:16j, -2.6:2.2:16j], axis=-1).reshape(-1, 2)
    slopes = keras.ops.convert_to_numpy(network(grid))
    plane.quiver(*grid.T, *slopes.T, color="0.75", width=0.003)
    for t, y, line, width, color, label in (
        (times, seen, ".", 1, "tab:orange", "observed"),
        (fine, fit, "-", 2.5, "tab:blue", "learned"),
        (fine, truth, "--", 1, "black", "truth"),
    ):
        plane.plot(*y.T, line, lw=width, color=color)
        curve.plot(t, y[:, 0], line, lw=width, color=color, label=label)
    plane.set(xlabel="angle", ylabel="speed", title="learned vector field")
    curve.set(xlabel="time", ylabel="angle", title="solved from its start")
    curve.legend()
    figure.savefig("spiral.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    start = np.array([[2.0, 0.0]], "float32")
    # One somewhere in each twentieth of a second.
    times = (np.arange(240) + random.uniform(size=240)) / 20
    seen = solve(Pendulum(), start, times) + random.normal(0, NOISE, (240, 2))
    hidden = [layers.Dense(32, "gelu") for _ in range(2)]
    network = keras.Sequential([*hidden, layers.Dense(2)])
    for stage in STAGES:
        learned = learn(network, times, seen, *stage, epochs)
    fine = np.linspace(0, END, 400, dtype="float32")
    truth, fit = solve(Pendulum(), start, fine), solve(network, learned, fine)
    error = np.sqrt(np.mean((fit - truth) ** 2))
    print(f"rms error of the fit {error:.3f}, noise of the data {NOISE}")
    draw(times, seen, fine, truth, fit, network)


if __name__ == "__main__":
    main()

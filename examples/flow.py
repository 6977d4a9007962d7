"""Learns a density, and draws from it.

    python examples/flow.py

A continuous normalizing flow (Chen et al., 2018; Grathwohl et al., 2019): an
ODE carries the data to a normal distribution, and its divergence says how much
the density changes on the way. The data are a pinwheel, Gaussians in a ring
that were twisted. Twists do not change areas, so its density is known exactly,
and what is learned can be measured against it.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from matplotlib import pyplot as plt

import keras_node

ARMS, RADIUS, LONG, WIDE, TWIST = 5, 2.0, 0.6, 0.25, 0.6
BATCH, STEPS = 250, 100


def rotate(points, angle):
    x, y = points.T
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * x - s * y, s * x + c * y], axis=1)


def twist(points, way=1):
    """Turns each point by an angle that depends on its radius."""
    return rotate(points, way * TWIST * np.linalg.norm(points, axis=1))


def pinwheel(count, random):
    points = random.normal((RADIUS, 0), (LONG, WIDE), (count, 2))
    arm = 2 * np.pi / ARMS * random.integers(ARMS, size=count)
    return twist(rotate(points, arm)).astype("float32")


def log_density(points):
    """The log-density of the pinwheel, in nats."""
    points = twist(points, -1)
    total = 0
    for arm in 2 * np.pi / ARMS * np.arange(ARMS):
        x, y = rotate(points, -arm).T
        total += np.exp(-(((x - RADIUS) / LONG) ** 2 + (y / WIDE) ** 2) / 2)
    return np.log(total / (2 * np.pi * LONG * WIDE * ARMS))


def build_flow(steps):
    hidden = [layers.Dense(64, "tanh") for _ in range(3)]
    flow = keras_node.ContinuousFlow(
        [layers.Concatenate(), *hidden, layers.Dense(2)], rtol=1e-4, atol=1e-4
    )
    rate = keras.optimizers.schedules.CosineDecay(0.01, steps)
    flow.compile(keras.optimizers.Adam(rate))
    return flow


def draw(flow, data, random):
    size = {"figsize": (12, 3.3), "layout": "constrained"}
    figure, axes = plt.subplots(1, 4, sharex=True, sharey=True, **size)
    seen, samples, density, way = axes
    seen.plot(*data.T, ",", color="tab:blue")
    seen.set(title="data")
    drawn = keras.ops.convert_to_numpy(flow.sample(len(data), seed=0))
    samples.plot(*drawn.T, ",", color="tab:orange")
    samples.set(title="samples of the flow")
    line = np.linspace(-4, 4, 120, dtype="float32")
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    found = np.exp(flow.predict(grid, batch_size=2400, verbose=0))
    density.pcolormesh(line, line, found.reshape(120, 120), rasterized=True)
    density.set(title="its density")
    # The same dynamics, backwards: from the normal distribution to the data.
    block = keras_node.ODEBlock(
        flow.dynamics, (1.0, 0.0), np.linspace(1, 0, 40), time_dependent=True
    )
    z = random.normal(size=(150, 2)).astype("float32")
    paths = keras.ops.convert_to_numpy(block(z))
    way.plot(*paths.T, color="0.75", lw=0.5)
    way.plot(*paths[:, 0].T, ".", ms=3, color="black", label="normal")
    way.plot(*paths[:, -1].T, ".", ms=3, color="tab:orange", label="flow")
    way.set(title="the way of the samples", xlim=(-4, 4), ylim=(-4, 4))
    way.legend(loc="upper right")
    figure.savefig("flow.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=7)
    epochs = parser.parse_args().epochs
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    flow = build_flow(steps=STEPS * epochs)
    flow.fit(pinwheel(BATCH * STEPS, random), batch_size=BATCH, epochs=epochs)
    test = pinwheel(10_000, random)
    loss = -np.mean(flow.predict(test, batch_size=2500, verbose=0))
    entropy = -np.mean(log_density(test))
    print(f"negative log-density {loss:.3f} nats, at best {entropy:.3f}")
    draw(flow, test, random)


if __name__ == "__main__":
    main()

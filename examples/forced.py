"""Learns the physics of an oscillator from how it answers a measured force.

    python examples/forced.py

A force known at some times pulls a mass on a spring. Mass and stiffness are
weights of the model and the friction is a network: a universal differential
equation (Rackauckas et al., 2020), learned from positions at irregular times.
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

END, NOISE, MASS, STIFFNESS = 3.0, 0.02, 0.5, 2.0
KNOTS = np.linspace(0, END, 31)


def factor(value, name):
    """Multiplies by a number that is learned."""
    start = keras.initializers.Constant(value)
    return layers.Dense(1, None, False, start, name=name)


def oscillator(friction, mass=1.0, stiffness=1.0):
    """`mass * x'' = force - stiffness * x - friction(x')`."""
    shapes = (1,), (2,), (len(KNOTS),), (len(KNOTS), 1)
    t, y, knots, force = inputs = list(map(keras.Input, shapes))
    x, v = ops.split(y, 2, axis=1)
    push = keras_node.layers.Interpolate("linear")([t, knots, force])
    pull = factor(stiffness, "stiffness")(x)
    slope = factor(1 / mass, "one_over_mass")(push - pull - friction(v))
    return keras.Model(inputs, ops.concatenate([v, slope], axis=1))


def true_friction(v):
    """Dry friction, nearly a jump, and viscous friction."""
    return 0.6 * ops.tanh(6 * v) + 0.2 * v


def positions(dynamics, steps=1):
    """From starts, knots, forces and times to positions; steps per knot."""
    shapes = (2,), (len(KNOTS),), (len(KNOTS), 1), (None,)
    *state, t = inputs = list(map(keras.Input, shapes))
    block = keras_node.ODEBlock(
        dynamics,
        t_span=(0.0, END),
        solver=keras_node.solvers.RK4(steps * (len(KNOTS) - 1)),
        adjoint="discrete",
        time_dependent=True,
    )
    return keras.Model(inputs, block(state, t_eval=t)[..., 0])


def experiments(count, random):
    """Forces of five frequencies each, and where they took the mass."""
    turns, phases = random.uniform(0.2, 6, (2, count, 5, 1))
    force = 1.2 * np.sin(turns * KNOTS + phases).sum(axis=1)[..., None]
    t = np.sort(random.uniform(0, END, (count, 40)))
    inputs = [np.zeros((count, 2)), np.tile(KNOTS, (count, 1)), force, t]
    inputs = [x.astype("float32") for x in inputs]
    truth = positions(oscillator(true_friction, MASS, STIFFNESS), steps=4)
    return inputs, truth.predict(inputs, verbose=0)


def draw(inputs, truth, fit, friction, title):
    size = {"figsize": (10, 3.5), "layout": "constrained"}
    figure, (answer, loss) = plt.subplots(1, 2, **size)
    _, _, (force, *_), (t, *_) = inputs
    answer.plot(KNOTS, force / 4, color="0.75", label="force / 4")
    v = ops.linspace(-2.5, 2.5, 200)[:, None]
    for f, x, label, style in (
        (friction, fit, "learned", {"color": "tab:blue", "lw": 2.5}),
        (true_friction, truth, "truth", {"color": "k", "ls": "--", "lw": 1}),
    ):
        answer.plot(t, x[0], label=label, **style)
        loss.plot(*map(ops.convert_to_numpy, (v, f(v))), **style)
    answer.set(xlabel="time", ylabel="position", title="a force not seen yet")
    answer.legend()
    loss.set(xlabel="velocity", ylabel="friction", title=title)
    figure.savefig("forced.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    epochs, steps = parser.parse_args().epochs, 40
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    inputs, truth = experiments(32, random)
    seen = truth + random.normal(0, NOISE, truth.shape)
    steep = keras.initializers.RandomUniform(-3, 3)  # as dry friction is
    hidden = layers.Dense(32, "tanh", kernel_initializer=steep)
    last = layers.Dense(1, kernel_initializer="zeros")
    friction = keras.Sequential([hidden, last])
    model = positions(dynamics := oscillator(friction))
    rate = keras.optimizers.schedules.CosineDecay(0.1, steps * epochs)
    model.compile(keras.optimizers.Adam(rate), "mse")
    *x, y = (np.concatenate([each] * steps) for each in (*inputs, seen))
    model.fit(x, y, len(seen), epochs, shuffle=False)
    inputs, truth = experiments(8, random)
    fit = model.predict(inputs, verbose=0)
    names = "one_over_mass", "stiffness"
    w, k = (dynamics.get_layer(n).get_weights()[0].item() for n in names)
    found = f"mass {1 / w:.3f} ({MASS}), stiffness {k:.3f} ({STIFFNESS})"
    print(f"{found}; rms error of new answers {np.std(fit - truth):.3f}")
    draw(inputs, truth, fit, friction, found)


if __name__ == "__main__":
    main()

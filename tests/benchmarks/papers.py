"""Published figures beside ours: the same models, data and training.

    python tests/benchmarks/papers.py               # all but `xor`
    python tests/benchmarks/papers.py latent_ode    # some

Prints a Markdown table, a work in each row. The initial weights and the order
of the batches are drawn anew, so figures agree as two seeds agree.
"""

import argparse
import time
from collections.abc import Callable
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers
from keras import ops
from scipy.integrate import solve_ivp

import keras_node

DISCRETE = {"solver": "tsit5", "adjoint": "discrete"}


def linear(inputs: int, units: int, activation: str | None = None):
    """A dense layer with the initial weights of PyTorch and Equinox."""
    bound = 1 / np.sqrt(inputs)
    start = [
        keras.initializers.RandomUniform(-bound, bound, seed)
        for seed in np.random.randint(2**31, size=2).tolist()
    ]
    return layers.Dense(units, activation, True, *start)


def perceptron(sizes: list, activation: str, last: str | None = None) -> list:
    """The layers between `sizes`."""
    activations = [activation] * (len(sizes) - 2) + [last]
    return [
        linear(*each)
        for each in zip(sizes, sizes[1:], activations, strict=False)
    ]


def batches(data: tuple, size: int, rng: np.random.Generator) -> Iterator:
    """Whole batches, in a new order each time around."""
    while True:
        order = rng.permutation(len(data[0]))
        for i in range(0, len(order) - size + 1, size):
            yield [x[order[i : i + size]] for x in data]


def train(model, data: tuple, size: int, steps: int, rng) -> list:
    """Trains on `(*inputs, target)` and returns the loss of each step."""
    losses = []
    for *x, y in batches(data, size, rng):
        x = x if len(x) > 1 else x[0]
        model.reset_metrics()
        logs = model.train_on_batch(x, y, return_dict=True)
        losses.append(float(logs["loss"]))
        if len(losses) == steps:
            return losses


class Scale(layers.Layer):
    """Multiplies by a number that is learned."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return self.scale * x


class Draw(layers.Layer):
    """Draws from a normal distribution, and adds its divergence to the loss."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        mean, log_std = ops.split(x, 2, axis=-1)
        std = ops.exp(log_std)
        divergence = (mean**2 + std**2 - 1) / 2 - log_std
        self.add_loss(ops.mean(ops.sum(divergence, axis=-1)))
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean + std * noise


def oscillators(count: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Damped oscillators, each at 20 times of its own, in closed form."""
    y0 = rng.normal(size=(count, 2))
    end = 2 + rng.uniform(size=(count, 1))
    t = np.sort(rng.uniform(size=(count, 20)) * end)
    fast = np.sqrt(1.3)
    c, s = np.cos(fast * t), np.sin(fast * t)
    x, v = y0[:, :1], y0[:, 1:]
    y = np.stack([c * x + fast * s * v, c * v - s * x / fast], axis=-1)
    y *= np.exp(-0.1 * t)[..., None]
    return t.astype("float32"), y.astype("float32")


def latent_ode(rng) -> str:
    """Each loss is the mean of the ten steps around it: of one it is noise."""
    t, y = oscillators(10_000, rng)
    times, seen = keras.Input((20,)), keras.Input((20, 2))
    x = layers.Concatenate()([times[..., None], seen])
    x = layers.GRU(16, go_backwards=True)(x)
    x = Draw()(linear(16, 32)(x))
    for layer in perceptron([16, 16, 16, 16], "relu"):
        x = layer(x)
    dynamics = [*perceptron([16, 16, 16, 16], "softplus", "tanh"), Scale()]
    block = keras_node.ODEBlock(dynamics, **DISCRETE)
    ends = ops.stack([times[:, 0], times[:, -1]], axis=1)
    outputs = linear(16, 2)(block(x, t_eval=times, t_span=ends))
    model = keras.Model([times, seen], outputs)

    def loss(y, fit):
        return ops.sum((y - fit) ** 2, axis=(1, 2)) / 2

    model.compile(keras.optimizers.Adam(1e-2), loss)
    losses = train(model, (t, y, y), 256, 250, rng)
    found = [losses[0]]
    found += [np.mean(losses[i - 5 : i + 5]) for i in (50, 100, 200)]
    return ", ".join(f"{x:.2f}" for x in [*found, np.mean(losses[-10:])])


class AdaBelief(keras.optimizers.Optimizer):
    """Adam by the variance around the mean gradient (arXiv 2010.07468)."""

    def build(self, variables):
        super().build(variables)
        self.moments = self.add_optimizer_variables(variables, ["m", "v"])

    def update_step(self, gradient, variable, rate):
        index = self._get_variable_index(variable)
        m, v = (moment[index] for moment in self.moments)
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(m, 0.1 * (gradient - m))
        self.assign_add(v, 0.001 * ((gradient - m) ** 2 - v) + 1e-16)
        mean, variance = m / (1 - 0.9**step), v / (1 - 0.999**step)
        change = mean / (ops.sqrt(variance) + 1e-16)
        self.assign_sub(variable, ops.cast(rate, variable.dtype) * change)


def neural_ode(rng) -> str:
    """The error over all series, and that of the last batches."""

    def slope(t, y):
        x = y / (1 + y)
        return ops.stack([x[:, 1], -x[:, 0]], axis=1)

    y0 = rng.uniform(-0.6, 1, (256, 2)).astype("float32")
    t = np.linspace(0, 10, 100)
    truth = keras_node.solve_ivp(slope, (0, 10), y0, t, rtol=1e-6, atol=1e-6)
    y = np.moveaxis(ops.convert_to_numpy(truth.ys), 0, 1)
    dynamics = keras.Sequential(perceptron([2, 64, 64, 2], "softplus"))
    start = keras.Input((2,))
    for length in (10, 100):
        span = (0.0, t[length - 1])
        block = keras_node.ODEBlock(dynamics, span, t[:length], **DISCRETE)
        model = keras.Model(start, block(start))
        model.compile(AdaBelief(3e-3), "mse")
        seen = y[:, :length]
        losses = train(model, (y0, seen), 32, 500, rng)
    error = model.evaluate(y0, y, batch_size=256, verbose=0)
    return f"{error:.4f} over all, {np.mean(losses[-10:]):.4f} in batches"


def spheres(rng) -> str:
    """Without and with five dimensions more: Huber loss, accuracy, calls of f
    in a solve of all points. In two dimensions of points, not of lines, a plain
    one can get by between them.
    """
    count = np.array([500, 1500])
    low, width = np.repeat([0.0, 1.0], count), 0.5
    radius = low + width * np.sqrt(rng.uniform(size=count.sum()))
    angle = rng.uniform(0, 2 * np.pi, count.sum())
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x, y = x.astype("float32"), np.repeat([[-1.0], [1.0]], count, axis=0)
    found = []
    for more in (0, 5):
        dims = 2 + more
        augment = [keras_node.layers.Augment(more)] if more else []
        block = keras_node.ODEBlock(
            [
                layers.Concatenate(),
                *perceptron([dims + 1, 32, 32, dims], "relu"),
            ],
            solver="dopri5",
            adjoint="discrete",
            rtol=1e-3,
            atol=1e-3,
            time_dependent=True,
        )
        model = keras.Sequential(
            [keras.Input((2,)), *augment, block, linear(dims, 1)]
        )
        model.compile(keras.optimizers.Adam(1e-3), keras.losses.Huber())
        model.fit(x, y, batch_size=64, epochs=30, verbose=0)
        right = np.mean(np.sign(model.predict(x, verbose=0)) == y)
        loss = model.evaluate(x, y, batch_size=2000, verbose=0)
        y0 = augment[0](x) if more else x
        calls = int(ops.convert_to_numpy(block.solve(y0).num_evals))
        found.append(f"+{more}: loss {loss:.5f}, {right:.1%}, {calls} calls")
    return "; ".join(found)


def spirals(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spirals that turn either way, and which."""
    t = np.tile(np.linspace(0, 4 * np.pi, 100), (256, 1))
    angle = rng.uniform(0, 2 * np.pi, (256, 1)) - 2 * t
    x = np.exp(-0.3 * t)[..., None] * np.stack(
        [np.cos(angle), np.sin(angle)], -1
    )
    x[:128, :, 0] *= -1
    return x.astype("float32"), t.astype("float32"), np.arange(256) < 128


def neural_cde(rng) -> str:
    """The loss and the accuracy on new spirals."""
    x, t = keras.Input((100, 2)), keras.Input((100,))
    block = keras_node.layers.CDEBlock(
        perceptron([8, 128, 8 * 3], "softplus", "tanh"),
        initial=keras.Sequential(perceptron([3, 128, 8], "relu")),
    )
    output = linear(8, 1, "sigmoid")(block([x, t]))
    model = keras.Model([x, t], output)
    adam = keras.optimizers.Adam(1e-2)
    model.compile(adam, "binary_crossentropy", metrics=["accuracy"])
    train(model, spirals(rng), 32, 20, rng)
    *new, labels = spirals(rng)
    loss, accuracy = model.evaluate(new, labels, batch_size=256, verbose=0)
    return f"{loss:.4f}, {accuracy:.1%}"


def streams(count: int, rng) -> tuple:
    """Random bits, a step for each run of equal ones, and their parity."""
    bits = rng.integers(2, size=(count, 32))
    length = rng.integers(2, 33, size=(count, 1))
    there = np.arange(32) < length
    starts = np.diff(bits, axis=1, prepend=2) != 0
    run = np.cumsum(starts, axis=1) - 1
    x, elapsed = np.zeros((count, 32, 1), "float32"), np.zeros((count, 32))
    row = np.repeat(np.arange(count)[:, None], 32, axis=1)
    np.add.at(elapsed, (row[there], run[there]), 1 / 32)
    x[row[there], run[there], 0] = bits[there]
    parity = (bits * there).sum(axis=1) % 2
    return x, elapsed.astype("float32"), elapsed > 0, parity


def xor(rng, epochs: int = 50) -> str:
    """The accuracy on new streams. Takes three quarters of an hour."""
    x, t = keras.Input((32, 1)), keras.Input((32,))
    mask = keras.Input((32,), dtype="bool")
    rnn = keras_node.layers.ODERNN(
        layers.LSTMCell(64),
        perceptron([64, 64, 64], "tanh"),
        evolve="after",
        solver=keras_node.solvers.RK4(num_steps=1),
        elapsed=True,
    )
    output = linear(64, 1, "sigmoid")(rnn([x, t], mask=mask))
    model = keras.Model([x, t, mask], output)
    rate = keras.optimizers.RMSprop(5e-4)
    model.compile(rate, "binary_crossentropy", metrics=["accuracy"])
    *seen, parity = streams(100_000, rng)
    model.fit(seen, parity, 256, epochs, verbose=0)
    *new, parity = streams(10_000, rng)
    _, accuracy = model.evaluate(new, parity, batch_size=256, verbose=0)
    return f"{accuracy:.2%} after {epochs} epochs"


def spring(rng) -> str:
    """The error of the energy of an ideal spring: `H = q^2 + p^2`."""
    return learned_energy(
        rng,
        energy=lambda q, p: q**2 + p**2,
        slope=lambda q, p: (2 * p, -2 * q),
        radius=(0.1, 1.0),
        count=30,
    )


def pendulum(rng) -> str:
    """The error of the energy of a pendulum: `H = 3 (1 - cos q) + p^2`."""
    return learned_energy(
        rng,
        energy=lambda q, p: 3 * (1 - np.cos(q)) + p**2,
        slope=lambda q, p: (2 * p, -3 * np.sin(q)),
        radius=(1.3, 2.3),
        count=45,
    )


def learned_energy(
    rng, energy: Callable, slope: Callable, radius: tuple, count: int
) -> str:
    """Learns an energy from noisy states and their slopes.

    Greydanus et al. (2019): 25 ways of 3 s, noise of 0.1, all of them in each
    of 2,000 steps. Then 15 new ways of 20 s: the mean squared error of their
    energy.
    """

    def starts(number):
        direction = rng.uniform(-1, 1, (number, 2))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        return direction * rng.uniform(*radius, (number, 1))

    def way(start, times):
        span = times[[0, -1]]
        return solve_ivp(
            lambda t, y: slope(*y), span, start, t_eval=times, rtol=1e-10
        ).y.T

    times = np.linspace(0, 3, count)
    y = np.concatenate([way(start, times) for start in starts(25)])
    dy = np.stack(slope(*y.T), axis=1).astype("float32")
    y = (y + rng.normal(0, 0.1, y.shape)).astype("float32")
    decay = {"kernel_regularizer": keras.regularizers.L2(5e-5)}
    start = {"kernel_initializer": "orthogonal"}
    network = [layers.Dense(200, "tanh", **start, **decay) for _ in range(2)]
    network.append(layers.Dense(1, use_bias=False, **start, **decay))
    dynamics = keras_node.layers.Hamiltonian(network)
    model = keras.Sequential([keras.Input((2,)), dynamics])
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(y, dy, len(y), 2000, verbose=0)
    times = np.linspace(0, 20, 200)
    block = keras_node.ODEBlock(
        dynamics, (0.0, 20.0), times, "tsit5", "discrete", 1e-6, 1e-6
    )
    new = starts(15).astype("float32")
    y = ops.convert_to_numpy(block(new))
    exact = energy(*new.T)[:, None]
    return f"{np.mean((energy(*np.moveaxis(y, 2, 0)) - exact) ** 2):.2e}"


WORKS: dict[str, tuple[Callable, str]] = {
    "latent_ode": (latent_ode, "19.93, 10.89, 6.75, 4.16, 3.97"),
    "neural_ode": (neural_ode, "0.0012"),
    "spheres": (spheres, "+0 cannot, +5 can"),
    "neural_cde": (neural_cde, "0.1057, 100 %"),
    "spring": (spring, "3.84e-4 (0.65e-4)"),
    "pendulum": (pendulum, "2.49e-2 (0.54e-2)"),
    "xor": (xor, "98.89 % after up to 500 epochs"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *WORKS], default=[])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| work | published | ours | seconds |\n|---|---|---|---|")
    for name in args.names or [work for work in WORKS if work != "xor"]:
        work, published = WORKS[name]
        keras.utils.set_random_seed(args.seed)
        start = time.perf_counter()
        ours = work(np.random.default_rng(args.seed))
        seconds = time.perf_counter() - start
        print(f"| {name} | {published} | {ours} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()

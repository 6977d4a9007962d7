"""Densities of the plane, learned by a flow, beside the best that is possible.

    python tests/benchmarks/densities.py              # all
    python tests/benchmarks/densities.py two_moons    # some

The sets are those of FFJORD (Grathwohl et al., 2019), at its scale. Prints a
Markdown table, a set in each row: the entropy in nats, which no density can
beat, the mean negative log-density of new points as the flow has it, and how
much this is above that of the true density at the same points. Each batch of
the training is new.
"""

import argparse
import time
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_node

ARC = np.linspace(0, np.pi, 501)
ARC = (ARC[1:] + ARC[:-1]) / 2


class EightGaussians:
    """Gaussians on a circle. They overlap a little."""

    spread = 0.5 / np.sqrt(2)
    angles = np.pi / 4 * np.arange(8)
    centres = 2 * np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], 1)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        centres = self.centres[rng.integers(8, size=count)]
        return centres + rng.normal(0, self.spread, (count, 2))

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        return mixture(x, self.centres, self.spread)


class Checkerboard:
    """Every other square of a board, of area 32."""

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        x = rng.uniform(-2, 2, count)
        y = rng.uniform(size=count) - 2 * rng.integers(2, size=count)
        return 2 * np.stack([x, y + np.floor(x) % 2], axis=1)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), -np.log(32))


class TwoMoons:
    """Half circles that reach into each other, with noise."""

    spread = 0.2
    upper = 2 * np.stack([np.cos(ARC), np.sin(ARC)], 1)
    lower = [2, 1] - upper

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        angles = rng.uniform(0, np.pi, count)
        upper = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        x = np.where(rng.integers(2, size=(count, 1)), upper, [2, 1] - upper)
        return x + rng.normal(0, self.spread, x.shape) - [1, 0.2]

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        centres = np.concatenate([self.upper, self.lower]) - [1, 0.2]
        return mixture(x, centres, self.spread)


def mixture(x: np.ndarray, centres: np.ndarray, spread: float) -> np.ndarray:
    """The log-density of equal Gaussians around `centres`."""
    total = np.zeros(len(x))
    for centre in centres:
        total += np.exp(-np.sum((x - centre) ** 2, axis=1) / (2 * spread**2))
    return np.log(total / len(centres)) - np.log(2 * np.pi * spread**2)


def learned(
    points, steps: int, args: argparse.Namespace, rng
) -> keras_node.ContinuousFlow:
    """A flow that was trained."""
    hidden = [layers.Dense(64, "tanh") for _ in range(3)]
    dynamics = [layers.Concatenate(), *hidden, layers.Dense(2)]
    # The solver looks at the points alone. At a looser tolerance, a flow can
    # gain by the errors of the log-density. The penalty keeps it smooth.
    flow = keras_node.ContinuousFlow(dynamics, jacobian_regularizer=0.001)
    rate = keras.optimizers.schedules.CosineDecay(args.rate, steps)
    flow.compile(keras.optimizers.Adam(rate))
    for _ in range(steps // 100):
        x = points.sample(100 * args.batch, rng).astype("float32")
        flow.fit(x, batch_size=args.batch, verbose=args.verbose)
    return flow


def log_density(flow, x: np.ndarray) -> np.ndarray:
    """The log-density by the same dynamics, solved more precisely."""
    flow = keras_node.ContinuousFlow(flow.dynamics, rtol=1e-6, atol=1e-6)
    flow.compile()
    return flow.predict(x.astype("float32"), batch_size=2000, verbose=0)


# With the number of training steps.
SETS: dict[str, tuple[Callable, int]] = {
    "eight_gaussians": (EightGaussians, 2000),
    "checkerboard": (Checkerboard, 3500),
    "two_moons": (TwoMoons, 2000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *SETS], default=[])
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    print(
        "| set | entropy | learned | above | seconds |\n|---|---|---|---|---|"
    )
    for name in args.names or SETS:
        keras.utils.set_random_seed(args.seed)
        rng = np.random.default_rng(args.seed)
        kind, steps = SETS[name]
        points = kind()
        entropy = -np.mean(points.log_prob(points.sample(100_000, rng)))
        start = time.perf_counter()
        flow = learned(points, args.steps or steps, args, rng)
        seconds = time.perf_counter() - start
        x = points.sample(20_000, rng)
        found = -log_density(flow, x)
        above = np.mean(found + points.log_prob(x))
        cells = [f"{value:.3f}" for value in (entropy, np.mean(found), above)]
        print(
            "|", " | ".join([name, *cells, f"{seconds:.0f}"]), "|", flush=True
        )


if __name__ == "__main__":
    main()

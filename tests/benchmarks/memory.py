"""The memory of a gradient against the number of steps, for each adjoint.

Trains one step of a block that takes 10 to 10,000 steps of RK4 on a state of
shape (8192, 32), each in a process of its own, and prints by how much the
process grew beyond what backsolve takes for two steps.

    KERAS_BACKEND=jax python tests/benchmarks/memory.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import resource
import subprocess
import sys

import keras
import numpy as np

import keras_node

SHAPE = (8192, 32)
STATE = np.prod(SHAPE) * 4 / 2**20  # MB
STEPS = (10, 100, 1000, 10_000)


def peak(adjoint, num_steps):
    """Trains one step and returns the peak memory of this process in MB."""
    block = keras_node.ODEBlock(
        keras.layers.Dense(SHAPE[1], activation="tanh"),
        solver=keras_node.solvers.RK4(num_steps=num_steps),
        adjoint=adjoint,
    )
    model = keras.Sequential([keras.Input(SHAPE[1:]), block])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    loss = model.fit(x, x, batch_size=len(x), verbose=0).history["loss"]
    assert np.isfinite(loss).all()  # noqa: S101
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(*args):
    command = [sys.executable, __file__, "--one", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def draw(table, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for adjoint, row in table.items():
        axis.loglog(STEPS, np.maximum(row, 1), "o-", ms=4, label=adjoint)
    roots = table["discrete"][0] * np.sqrt(np.divide(STEPS, STEPS[0]))
    axis.loglog(STEPS, roots, "k:", label="square root")
    backend = keras.backend.backend()
    axis.set(xlabel="steps", ylabel="MB beyond the model", title=backend)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", nargs=2, help="an adjoint and a step count")
    parser.add_argument("--picture", default="memory.png")
    args = parser.parse_args()
    if args.one:
        adjoint, num_steps = args.one
        print(peak(adjoint, int(num_steps)))
        return
    print(f"{keras.backend.backend()}, a state of {STATE} MB\n")
    print("| adjoint | " + " | ".join(f"{n:,} steps" for n in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    base, table = measure("backsolve", 2), {}
    for adjoint in keras_node.adjoints.ALL:
        table[adjoint] = [measure(adjoint, n) - base for n in STEPS]
        cells = " | ".join(f"{mb:.0f} MB" for mb in table[adjoint])
        print(f"| `{adjoint}` | {cells} |", flush=True)
    draw(table, args.picture)
    print(f"\n{args.picture} shows them")


if __name__ == "__main__":
    main()

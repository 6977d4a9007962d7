"""The memory of a long solve with its gradient.

Trains one step of a block of 2,000 accepted steps on a state of shape
(128, 256) and prints by how much the process grew beyond what the same model
takes with a solve of two steps.

    KERAS_BACKEND=jax python tests/benchmarks/memory.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import resource
import subprocess
import sys

import keras
import numpy as np

import keras_node

SHAPE = (128, 256)
STEPS = 2000


def peak(num_steps, checkpoints):
    """Trains one step and returns the peak memory of this process in MB."""
    solver = keras_node.solvers.RK4(num_steps=num_steps)
    adjoint = keras_node.adjoints.DiscreteAdjoint(checkpoints)
    block = keras_node.ODEBlock(
        keras.layers.Dense(SHAPE[1], activation="tanh"),
        solver=solver,
        adjoint=adjoint,
    )
    model = keras.Sequential([keras.Input(SHAPE[1:]), block])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    loss = model.fit(x, x, batch_size=len(x), verbose=0).history["loss"]
    assert np.isfinite(loss).all()  # noqa: S101
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    if len(sys.argv) > 1:
        print(peak(*map(int, sys.argv[1:])))
        return

    def measure(*args):
        command = [sys.executable, __file__, *map(str, args)]
        result = subprocess.run(
            command, capture_output=True, text=True, check=True
        )
        return float(result.stdout.split()[-1])

    base = measure(2, 2)
    state = np.prod(SHAPE) * 4 / 2**20
    print(f"{keras.backend.backend()}: {STEPS} steps, a state of {state} MB")
    for checkpoints in (10, 100, STEPS):
        more = measure(STEPS, checkpoints) - base
        print(f"checkpoints={checkpoints:5d}: {more:6.0f} MB more")


if __name__ == "__main__":
    main()

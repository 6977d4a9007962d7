"""Each example for one short run."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
from helpers import slow_on

from keras_node import adjoints

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *args, cwd):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@slow_on("jax")
def test_mnist_learns_saves_and_draws(tmp_path):
    result = run("mnist.py", "--epochs", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "equal predictions, bit for bit" in result.stdout
    accuracy = float(result.stdout.split("epoch  2")[1].split()[3].strip("%"))
    assert accuracy > 50
    assert (tmp_path / "mnist.png").read_bytes().startswith(b"\x89PNG")
    model = keras.models.load_model(tmp_path / "mnist.keras")
    # The tutorial's network: 784-20, 20-10-10-20 in the block, 20-10.
    assert model.count_params() == 15700 + 540 + 210


@slow_on("jax")
def test_mnist_says_in_a_sentence_what_does_not_go_together(tmp_path):
    result = run("mnist.py", "--adjoint", "discrete", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "Received: solver=DormandPrince" in result.stderr


def test_mnist_ships_the_digits_it_says():
    with np.load(EXAMPLES / "data" / "mnist-first-1500.npz") as data:
        assert data["images"].shape == (1500, 28, 28)
        assert data["labels"].tolist()[:10] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@slow_on("jax")
def test_mnist_says_in_a_sentence_that_the_data_is_missing(tmp_path):
    result = run(
        "mnist.py", "--dataset", "mnist", "--data-dir", tmp_path, cwd=tmp_path
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("MNIST is not")


@slow_on("jax", "tensorflow")
def test_mnist_compares_the_adjoints(tmp_path):
    result = run("mnist.py", "--compare", "--epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    table = result.stdout.split("|---|\n")[1].splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    assert [row[0] for row in rows] == [
        "dormand_prince, backsolve",
        *(f"tsit5, {adjoint}" for adjoint in adjoints.ALL),
    ]
    # The same weights, digits and order: every gradient learns the same.
    accuracies = np.array([float(row[3].strip("%")) for row in rows])
    assert accuracies.min() > 30 and np.ptp(accuracies) < 0.5
    for solver_and_adjoint, *_, forward, backward in rows:
        # PyTorch keeps what the discrete adjoint needs.
        kept = keras.backend.backend() == "torch"
        kept = kept and solver_and_adjoint == "tsit5, discrete"
        assert int(forward) > 0 and (int(backward) > 0 or kept)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@slow_on("jax", "tensorflow")
def test_spiral_learns_and_draws(tmp_path):
    result = run("spiral.py", "--epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "60/60" in result.stdout
    error = float(re.search(r"rms error of the fit (\S+),", result.stdout)[1])
    assert error < 0.5
    assert (tmp_path / "spiral.png").read_bytes().startswith(b"\x89PNG")


@slow_on("jax", "tensorflow")
def test_two_moons_come_apart(tmp_path):
    result = run("two_moons.py", "--epochs", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "20/20" in result.stdout
    accuracy = float(re.search(r"test accuracy (\S+)%", result.stdout)[1])
    assert accuracy > 90
    assert (tmp_path / "two_moons.png").read_bytes().startswith(b"\x89PNG")

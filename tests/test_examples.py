"""Each example for one short run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import slow_on

from keras_node import adjoints

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs an example in this process, which has imported everything."""

    def run(name, *args, **constants):
        path = str(EXAMPLES / name)
        spec = importlib.util.spec_from_file_location("example", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for constant, value in constants.items():
            setattr(module, constant, value)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [name, *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return run


@slow_on("jax")
def test_mnist_learns_saves_and_draws(tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLES / "mnist.py", "--epochs", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "equal predictions, bit for bit" in result.stdout
    accuracy = float(result.stdout.split("epoch  2")[1].split()[3].strip("%"))
    assert accuracy > 50
    assert (tmp_path / "mnist.png").read_bytes().startswith(b"\x89PNG")
    model = keras.models.load_model(tmp_path / "mnist.keras")
    # The tutorial's network: 784-20, 20-10-10-20 in the block, 20-10.
    assert model.count_params() == 15700 + 540 + 210


def test_mnist_says_in_a_sentence_what_does_not_go_together(run):
    with pytest.raises(SystemExit, match="Received: solver=DormandPrince"):
        run("mnist.py", "--adjoint", "discrete")


def test_mnist_ships_the_digits_it_says():
    with np.load(EXAMPLES / "data" / "mnist-first-1500.npz") as data:
        assert data["images"].shape == (1500, 28, 28)
        assert data["labels"].tolist()[:10] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@slow_on("jax", "torch")  # what it imports is TensorFlow's
def test_mnist_says_in_a_sentence_that_the_data_is_missing(run, tmp_path):
    with pytest.raises(SystemExit, match="^MNIST is not"):
        run("mnist.py", "--dataset", "mnist", "--data-dir", tmp_path)


@slow_on("jax", "tensorflow")
def test_mnist_compares_the_adjoints(run, tmp_path):
    out = run("mnist.py", "--compare", "--epochs", "1")
    table = out.split("|---|\n")[1].splitlines()
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


@slow_on("torch", "tensorflow")
def test_spiral_learns_and_draws(run, tmp_path):
    stages = (1.0, 0.03, 30), (12.0, 0.003, 8)
    out = run("spiral.py", "--epochs", "1", STAGES=stages)
    assert "30/30" in out
    error = float(re.search(r"rms error of the fit (\S+),", out)[1])
    assert error < 0.5
    assert (tmp_path / "spiral.png").read_bytes().startswith(b"\x89PNG")


@slow_on("torch", "tensorflow")
def test_two_moons_come_apart(run, tmp_path):
    out = run("two_moons.py", "--epochs", "4")
    assert "20/20" in out
    accuracy = float(re.search(r"test accuracy (\S+)%", out)[1])
    assert accuracy > 90
    assert (tmp_path / "two_moons.png").read_bytes().startswith(b"\x89PNG")


@slow_on("torch", "tensorflow")
def test_flow_learns_a_density(run, tmp_path):
    out = run("flow.py", "--epochs", "1")
    assert "100/100" in out
    found, best = map(float, re.findall(r"(\d\.\d+)", out)[-2:])
    assert best < found < best + 1  # the best Gaussian: 1.09 above
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


@slow_on("torch", "tensorflow")
def test_forced_finds_the_physics(run, tmp_path):
    out = run("forced.py", "--epochs", "2", KNOTS=np.linspace(0, 3, 11))
    mass, stiffness = map(float, re.findall(r"(\S+) \(\S+\)", out)[-2:])
    assert abs(mass - 0.5) < 0.2 and abs(stiffness - 2) < 0.8
    assert (tmp_path / "forced.png").read_bytes().startswith(b"\x89PNG")


@slow_on("torch", "tensorflow")
def test_latent_ode_goes_on(run, tmp_path):
    out = run("latent_ode.py", "--epochs", "3")
    within, after = map(float, re.findall(r"(\d\.\d+)", out)[-2:])
    assert within < 0.7 and after < 1
    assert (tmp_path / "latent_ode.png").read_bytes().startswith(b"\x89PNG")


@slow_on("torch", "tensorflow")
def test_neural_cde_tells_the_ways_apart(run, tmp_path):
    out = run("neural_cde.py", "--epochs", "2", LENGTH=8)
    assert float(re.findall(r"(\d+\.\d)%", out)[-1]) > 55
    assert (tmp_path / "neural_cde.png").read_bytes().startswith(b"\x89PNG")

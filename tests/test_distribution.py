"""More than one device: the examples train the weights that one device does.

Each mirrored replica and each process chooses its own steps for its part of
the batch; JAX takes one step for all of it. At the default tolerances the
weights may so differ by as much as the solver errs. At 1e-6, on this problem,
nothing but rounding is left: 7e-8 was the most.
"""

import importlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import run_python
from helpers import slow

BACKEND = keras.backend.backend()
EXAMPLES = Path(__file__).parents[1] / "examples"

# The three batches of an epoch are three training steps.
EXAMPLE = """
import sys
sys.path.insert(0, {folder!r})
import {name} as example
example.{train}(epochs=1, path={path!r}, **{options})
"""


@pytest.mark.parametrize(
    "train, solver, adjoint",
    {
        "tensorflow": [
            ("mirrored", "tsit5", "discrete"),
            slow("mirrored", "dormand_prince", "backsolve"),
            slow("workers", "tsit5", "discrete"),
            slow("workers", "dormand_prince", "backsolve"),
        ],
        "jax": [("main", "tsit5", "discrete")],
        "torch": [
            ("main", "tsit5", "discrete"),
            slow("main", "dormand_prince", "backsolve"),
        ],
    }[BACKEND],
)
def test_the_weights_are_those_of_one_device(
    train, solver, adjoint, tmp_path, monkeypatch
):
    options = {"solver": solver, "adjoint": adjoint, "rtol": 1e-6, "atol": 1e-6}
    name, path = f"distributed_{BACKEND}", str(tmp_path / "model.keras")
    code = EXAMPLE.format(
        folder=str(EXAMPLES), name=name, train=train, path=path, options=options
    )
    with ThreadPoolExecutor() as pool:
        together = pool.submit(run_python, code)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setenv("XLA_FLAGS", "")  # to which the example adds
        example = importlib.import_module(name)
        keras.utils.set_random_seed(0)
        alone = example.build_model(**options)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        alone.compile(optimizer, "sparse_categorical_crossentropy")
        images, labels = example.load_digits()
        alone.fit(images, labels, example.BATCH, shuffle=False, verbose=0)
        out = together.result()
    codes = re.findall(r"weights ([0-9a-f]{8})", out)
    assert len(codes) == 2 and codes[0] == codes[1], out
    weights = keras.models.load_model(path).get_weights()
    for two, one in zip(weights, alone.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)


# What no Keras model can do as of Keras 3.15.1. Where one of these passes, the
# README and the examples can say so, and do without what avoids it.

DENSE = """
import os
os.environ.update({environment!r})
import keras
import numpy as np

def fit(samples, **kwargs):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **kwargs)
    try:
        model.fit(np.ones((samples, 4)), np.ones((samples, 1)), verbose=0)
    except Exception as error:
        print(type(error).__name__, error)
"""
WORKER = """
import tensorflow as tf
with tf.distribute.MultiWorkerMirroredStrategy().scope():
    fit(8)
"""
JIT = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, devices)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    fit(8, jit_compile=True)
"""
ODD = """
keras.distribution.set_distribution(keras.distribution.DataParallel())
fit(8)
fit(7)
"""


def fit_dense(code, **environment):
    return run_python(DENSE.format(environment=environment) + code)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.slow
def test_keras_cannot_fit_with_several_workers():
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    with ThreadPoolExecutor() as pool:
        runs = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": {"worker": workers}, "task": task})
            runs.append(pool.submit(fit_dense, WORKER, TF_CONFIG=config))
        for run in runs:
            assert "PerReplica" in run.result()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.slow
def test_keras_cannot_mirror_what_it_compiles_with_xla():
    assert "from device" in fit_dense(JIT)


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
@pytest.mark.slow
def test_keras_cannot_split_an_odd_batch():
    flags = "--xla_force_host_platform_device_count=2"
    (line,) = fit_dense(ODD, XLA_FLAGS=flags).strip().splitlines()
    assert line.startswith("IndivisibleError")

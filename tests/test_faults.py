"""Runs that are killed; files that are damaged, hostile or old.

The old file is `data/golden.keras`, with its predictions in `golden.npz`, both
by version 0.1.0 under Keras 3.12, the last one for Python 3.10: an older Keras
cannot read the files of a newer one. There,
`KERAS_BACKEND=tensorflow python tests/test_faults.py` writes them anew.
"""

import base64
import io
import json
import pickle
import re
import signal
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import run_python
from helpers import slow_on
from keras import layers
from keras.models import load_model

import keras_node
from keras_node import adjoints
from keras_node import solvers

GOLDEN = Path(__file__).parent / "data" / "golden.keras"


def write_golden():
    """Writes a model in which every argument is given to some block."""
    keras.utils.set_random_seed(0)
    state = keras.Input((3,))
    hidden = layers.Dense(4, "tanh")(state)
    blocks = [
        keras_node.ODEBlock(
            [layers.Dense(4, "tanh"), layers.Dense(3)], name="default"
        ),
        keras_node.ODEBlock(
            keras.Model(state, layers.Dense(3)(hidden)),
            t_eval=(1.0, 0.25),
            solver=solvers.Tsit5(1e-5, 1e-6, max_steps=99, per_sample=True),
            adjoint=adjoints.DiscreteAdjoint(checkpoints=7),
            name="discrete",
        ),
        keras_node.ODEBlock(
            layers.Dense(3, "tanh"),
            t_span=(0.5, -1.0),
            solver=solvers.Bosh3(1e-4, first_step=0.125),
            adjoint=adjoints.InterpolatingAdjoint(solvers.Tsit5(1e-4)),
            name="interpolating",
        ),
        keras_node.ODEBlock(
            layers.Dense(3, "tanh"),
            solver=solvers.RK4(num_steps=5),
            adjoint=adjoints.GaussAdjoint(solvers.Dopri5(), checkpoints=3),
            name="gauss",
        ),
    ]
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {block.name: block(inputs) for block in blocks})
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model.train_on_batch(x, {k: 0 * y for k, y in numpy(model(x)).items()})
    model.save(GOLDEN)
    np.savez(GOLDEN.with_suffix(".npz"), x=x, **numpy(model(x)))


def content(name, path=GOLDEN):
    with zipfile.ZipFile(path) as file:
        return file.read(name)


def rewritten(path, **contents):
    """The golden file with other contents: bytes, or `None` to leave out."""
    with zipfile.ZipFile(path, "w") as file:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            data = contents.get(name.split(".")[0], content(name))
            if data is not None:
                file.writestr(name, data)
    return path


def kept(old, new):
    """Whether a config says what it said; a later version may add to it.

    Files that define a class may move: it is found by its registered name.
    """
    if isinstance(old, dict):
        keys = old.keys() - {"module"}
        return all(key in new and kept(old[key], new[key]) for key in keys)
    return old == new


def predictions():
    with np.load(GOLDEN.with_suffix(".npz")) as file:
        data = dict(file)
    return data.pop("x"), data


def test_an_old_file_is_what_it_was():
    model = load_model(GOLDEN)
    for layer in json.loads(content("config.json"))["config"]["layers"][1:]:
        old = layer["config"]
        new = model.get_layer(old["name"]).get_config()
        for key in ("t_span", "t_eval", "solver", "adjoint"):
            assert kept(old[key], new[key]), (old[key], new[key])
    x, expected = predictions()
    actual = model.predict_on_batch(x)
    assert actual.keys() == expected.keys()
    for name, y in expected.items():
        np.testing.assert_allclose(actual[name], y, 2e-5, 2e-5, err_msg=name)


@slow_on("jax")
def test_an_old_file_can_be_trained_on():
    model = load_model(GOLDEN)
    assert int(model.optimizer.iterations) == 1
    before = model.get_weights()
    x, ys = predictions()
    model.train_on_batch(x, {name: 0 * y for name, y in ys.items()})
    assert int(model.optimizer.iterations) == 2
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)


TRAIN = """
import os, signal
import keras, numpy as np
from keras import layers
from keras.callbacks import BackupAndRestore
import keras_node
from helpers import numpy

class Dropout(layers.Dropout):
    # Keras saves no seeds: https://github.com/keras-team/keras/issues/19796
    def save_own_variables(self, store):
        store["seed"] = self.seed_generator.state

    def load_own_variables(self, store):
        self.seed_generator.state.assign(store["seed"])

class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((4,)),
    keras_node.ODEBlock(
        [layers.Dense(8, "tanh"), Dropout(0.3, seed=7), layers.Dense(4)],
        solver="tsit5",
        adjoint="discrete",
    ),
])
model.compile(keras.optimizers.Adam(0.01), "mse")
model.optimizer.build(model.trainable_variables)
variables = model.variables + model.optimizer.variables
start = numpy([v.value for v in variables])

def train(start, *callbacks):
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    history = model.fit(
        x, x[::-1], 8, 4, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return numpy([v.value for v in variables]), history.epoch
"""


@slow_on("tensorflow", "jax")
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    backup = f"BackupAndRestore({str(tmp_path / 'backup')!r})"
    killed = f"{TRAIN}train(start, {backup}, Kill())"
    code = run_python(
        f"""
import subprocess, sys
killed = [sys.executable, "-c", {killed!r}]
print(subprocess.run(killed, timeout=100).returncode)
"""
    )
    assert int(code) == -signal.SIGKILL
    run_python(
        f"""{TRAIN}
whole, epochs = train(start)
assert epochs == [0, 1, 2, 3], epochs
resumed, epochs = train([0 * value for value in start], {backup})
assert epochs == [2, 3], epochs
for variable, ours, theirs in zip(variables, resumed, whole, strict=True):
    np.testing.assert_array_equal(ours, theirs, variable.path)
    # Dropout has drawn once per batch.
    assert "seed" not in variable.path or theirs[1] == 16
"""
    )


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(part, tmp_path):
    whole = GOLDEN.read_bytes()
    path = tmp_path / "cut.keras"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="accessible `.keras` zip file"):
        load_model(path)


def test_a_flipped_bit_is_found(tmp_path):
    whole = GOLDEN.read_bytes()
    weights = [weight.tobytes() for weight in load_model(GOLDEN).get_weights()]
    path = tmp_path / "flipped.keras"
    for part in [b'"tanh"', b'"rtol"', *weights]:
        damaged = bytearray(whole)
        damaged[whole.index(part) + 2] ^= 1
        path.write_bytes(damaged)
        # From Python 3.12 on Keras may wrap it.
        with pytest.raises((ValueError, zipfile.BadZipFile), match="CRC-32"):
            load_model(path)


@pytest.mark.parametrize(
    "contents, error, message",
    [
        ({"config": b"{'not': 'json'}"}, json.JSONDecodeError, "Expecting"),
        ({"config": None}, KeyError, "config.json"),
        ({"model": None}, ValueError, "Expected a model.weights.h5"),
        ({"model": b"not HDF5"}, OSError, "file signature"),
    ],
)
def test_damaged_contents_are_refused(contents, error, message, tmp_path):
    path = rewritten(tmp_path / "damaged.keras", **contents)
    with pytest.raises(error, match=message):
        load_model(path)


def test_missing_weights_are_refused(tmp_path):
    weights = io.BytesIO(content("model.weights.h5"))
    with h5py.File(weights, "a") as file:
        del file["layers/ode_block/dynamics/layers/dense"]
    path = rewritten(tmp_path / "missing.keras", model=weights.getvalue())
    with pytest.raises(ValueError, match="2 variables, but received 0"):
        load_model(path)


class Pickled:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def lambda_layer(path):
    layer = layers.Lambda(lambda y: (open(path, "w").close(), y)[1])
    return keras.saving.serialize_keras_object(layer)


def attacks(path):
    """Configs that would create a file at `path`, if they had their way."""

    def instance(module, name, /, **config):
        return {"module": module, "class_name": name, "config": config}

    def function(module, name):
        return {"module": module, "class_name": "function", "config": name}

    def call(function, **arguments):
        config = {"function": function, "arguments": arguments}
        return instance("keras.layers", "Lambda", **config)

    code = lambda_layer(path)["config"]["function"]["config"]["code"]
    adjoint = keras.saving.serialize_keras_object(adjoints.GaussAdjoint())
    adjoint["config"]["solver"] = lambda_layer(path)
    pickled = base64.b64encode(pickle.dumps(Pickled(path))).decode()
    return [
        lambda_layer(path),
        instance("keras", "Sequential", name="s", layers=[lambda_layer(path)]),
        {"class_name": "__lambda__", "config": {"value": code}},
        instance("keras.layers", "TorchModuleWrapper", module=pickled),
        instance("os", "system", command=f"touch {path}"),
        instance("subprocess", "Popen", args=["touch", path]),
        instance("builtins", "eval", source=f"open({path!r}, 'w')"),
        call(function("os", "system"), command=f"touch {path}"),
        call(function("builtins", "open"), mode="w"),
        call(function("keras.models", "load_model"), safe_mode=False),
        call(
            function("keras.utils", "get_file"),
            origin=f"file://{GOLDEN}",
            cache_dir=path,
        ),
        instance("keras.src.utils.python_utils", "func_load", code=code),
        function("keras.config", "enable_unsafe_deserialization"),
        # It would run if safe mode were off by now.
        adjoint,
    ]


def tampered(path, **arguments):
    """The golden file with other arguments of its first block."""
    config = json.loads(content("config.json"))
    block = config["config"]["layers"][1]
    block["config"] |= arguments
    rewritten(path, config=json.dumps(config))
    return block["config"]


@pytest.mark.parametrize("argument", ["dynamics", "solver", "adjoint"])
def test_a_hostile_file_never_runs_code(argument, tmp_path):
    path, trace = tmp_path / "hostile.keras", tmp_path / "trace"
    refused = (TypeError, ValueError, ImportError)  # of PyTorch
    for attack in attacks(str(trace)):
        print(attack)
        config = tampered(path, **{argument: attack})
        with pytest.raises(refused):
            load_model(path)
        with pytest.raises(refused):
            keras_node.ODEBlock.from_config(config)
        assert not trace.exists()


def test_only_with_safe_mode_off_code_runs(tmp_path):
    path, trace = tmp_path / "trusted.keras", tmp_path / "trace"
    tampered(path, dynamics=lambda_layer(str(trace)))
    load_model(path, safe_mode=False)
    assert trace.exists()


def test_a_file_holds_numbers_and_names_alone(tmp_path):
    path = tmp_path / "again.keras"
    load_model(GOLDEN).save(path)
    with zipfile.ZipFile(path) as file:
        assert set(file.namelist()) == {
            "metadata.json",
            "config.json",
            "model.weights.h5",
        }
    config = content("config.json", path).decode()
    assert set(re.findall(r'"module": "(\w+)', config)) == {
        "keras",
        "keras_node",
    }
    assert "lambda" not in config.lower()
    items = []
    with h5py.File(io.BytesIO(content("model.weights.h5", path))) as file:
        file.visititems(lambda _, item: items.append(item))
        data = [item for item in items if isinstance(item, h5py.Dataset)]
        assert data and all(item.dtype.kind in "fi" for item in data)


if __name__ == "__main__":
    write_golden()

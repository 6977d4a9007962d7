"""Configs, copies and files."""

import importlib.util

import keras
import numpy as np
import pytest
from helpers import PER_SAMPLE
from helpers import numpy
from helpers import run_python
from helpers import slow
from helpers import slow_on
from keras import layers

import keras_node
from keras_node import adjoints
from keras_node import solvers

x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


def model(solver="dormand_prince", adjoint="backsolve"):
    inputs = keras.Input((4,))
    outputs = keras_node.ODEBlock(
        [layers.Dense(8, activation="tanh"), layers.Dense(4)],
        t_span=(0.5, -1),
        solver=solver,
        adjoint=adjoint,
        name="flow",
    )(inputs)
    made = keras.Model(inputs, layers.Dense(2)(outputs))
    made.compile("adam", "mse")
    return made


# Networks whose steps used to follow the rounding of the backend: a seed, what
# their weights are multiplied by, an activation, a solver and its tolerance.
WILD = {
    "wild tsit5": (1, 3.0, "elu", ("tsit5", 1e-3)),
    "wild dopri5": (2, 3.0, "softplus", ("dopri5", 1e-3)),
    "wild bosh3": (3, 3.0, "gelu", ("bosh3", 1e-3)),
}


def wild(seed, scale, activation, solver):
    rng = np.random.default_rng(seed)
    name, rtol = solver
    block = keras_node.ODEBlock(
        [layers.Dense(16, activation), layers.Dense(4, "tanh")],
        t_span=(0.0, 3.0),
        solver=solvers.get(name, rtol=rtol, atol=1e-3 * rtol),
        adjoint="discrete",
        name="flow",
    )
    inputs = keras.Input((4,))
    made = keras.Model(inputs, block(inputs))
    made.set_weights(
        [
            scale * rng.normal(size=w.shape) / np.sqrt(w.shape[0])
            for w in made.get_weights()
        ]
    )
    return made


def test_config_round_trip():
    block = keras_node.ODEBlock(
        layers.Dense(4),
        t_span=(1, 3),
        t_eval=(1.5, 3),
        adjoint=adjoints.BacksolveAdjoint(solvers.DormandPrince(rtol=1e-7)),
        rtol=1e-5,
        atol=2e-5,
        name="flow",
        trainable=False,
    )
    config = block.get_config()
    again = keras_node.ODEBlock.from_config(config)
    assert again.get_config() == config == block.get_config()
    assert again.t_span == (1.0, 3.0)
    assert again.t_eval == [1.5, 3.0]
    assert again.name == "flow" and not again.trainable
    assert again.solver.get_config() == block.solver.get_config()
    assert again.adjoint.solver.rtol == 1e-7


@pytest.mark.parametrize(
    "solver, adjoint",
    [("dormand_prince", "backsolve"), slow("tsit5", "discrete")],
)
def test_a_fresh_process_predicts_bit_for_bit_the_same(
    solver, adjoint, tmp_path
):
    made = model(solver, adjoint)
    made.fit(x, x[:, :2], verbose=0)
    made.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", made.predict(x, verbose=0))
    run_python(
        f"""
import keras, numpy as np
import keras_node
model = keras.models.load_model(r"{tmp_path}/model.keras")
x, y = np.load(r"{tmp_path}/x.npy"), np.load(r"{tmp_path}/y.npy")
assert np.array_equal(model.predict(x, verbose=0), y)
assert model.get_layer("flow").t_span == (0.5, -1.0)
model.fit(x, y, verbose=0)  # the optimizer came along
assert not np.array_equal(model.predict(x, verbose=0), y)
"""
    )


def test_a_recurrent_model_is_the_same_in_a_fresh_process(tmp_path):
    series, times = keras.Input((None, 4)), keras.Input((None,))
    first = keras_node.layers.ODERNN(
        layers.LSTMCell(3),
        [layers.Dense(3, "tanh")],
        evolve="after",
        return_sequences=True,
        solver="heun",
    )
    last = keras_node.layers.ODERNN(
        layers.GRUCell(3), keras_node.layers.GRUODE(3), go_backwards=True
    )
    h = last([first([layers.Masking()(series), times]), times])
    made = keras.Model([series, times], h)
    xs = np.stack([x, 0 * x, 1 - x], axis=1)
    ts = np.cumsum(np.abs(xs[..., 0]), axis=1)
    made.save(tmp_path / "model.keras")
    np.savez(
        tmp_path / "data.npz", xs=xs, ts=ts, y=made.predict([xs, ts], verbose=0)
    )
    run_python(
        f"""
import keras, numpy as np
import keras_node
model = keras.models.load_model(r"{tmp_path}/model.keras")
data = np.load(r"{tmp_path}/data.npz")
y = model.predict([data["xs"], data["ts"]], verbose=0)
assert np.array_equal(y, data["y"])
"""
    )
    for layer in (first, last):
        config = layer.get_config()
        assert type(layer).from_config(config).get_config() == config


def test_weights_can_be_saved_alone(tmp_path):
    made, other = model(), model()
    made.save_weights(tmp_path / "model.weights.h5")
    assert not np.array_equal(
        other.predict(x, verbose=0), made.predict(x, verbose=0)
    )
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        other.predict(x, verbose=0), made.predict(x, verbose=0)
    )


def test_a_clone_has_weights_of_its_own():
    made = model()
    clone = keras.models.clone_model(made)
    mine = {id(w) for w in made.weights}
    assert len(clone.weights) == len(made.weights)
    assert not any(id(w) in mine for w in clone.weights)
    clone.set_weights(made.get_weights())
    np.testing.assert_array_equal(
        clone.predict(x, verbose=0), made.predict(x, verbose=0)
    )


@slow_on("jax", "torch")
def test_a_file_predicts_the_same_on_the_other_backends(tmp_path):
    cases = {name: solvers.get(name) for name in solvers.ALL}
    # TensorFlow Probability's steps differ: as close as the tolerance.
    cases["dormand_prince"] = solvers.get("dormand_prince", rtol=1e-5)
    for name in PER_SAMPLE:
        # Where rounding tips a step to the next size on the grid, results
        # differ by as much as a solve errs: here by less than is allowed.
        cases[f"{name} per sample"] = solvers.get(
            name, rtol=1e-5, per_sample=True
        )
    models = {name: wild(*made) for name, made in WILD.items()}
    for case, solver in cases.items():
        adjoint = "discrete" if solver.keeps_steps else "backsolve"
        models[case] = model(solver, adjoint)
    for case, made in models.items():
        if case == "tsit5":
            made.fit(x, x[:, :2], verbose=0)
            np.save(tmp_path / "prediction.npy", numpy(made(x)))
        made.save(tmp_path / f"{case}.keras")
        solution = numpy(made.get_layer("flow").solve(x))
        np.save(tmp_path / f"{case}.npy", solution.y1)
        np.save(tmp_path / f"{case} steps.npy", solution.num_steps)
    others = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
    for other in others:
        if not importlib.util.find_spec(other):
            pytest.skip(f"{other} is not installed")
        run_python(
            f"""
import keras, numpy as np
import keras_node
from helpers import numpy
assert keras.backend.backend() == "{other}"
x = np.array({x.tolist()}, "float32")
for case in {list(models)}:
    model = keras.models.load_model(rf"{tmp_path}/{{case}}.keras")
    y = np.load(rf"{tmp_path}/{{case}}.npy")
    ours = numpy(model.get_layer("flow").solve(x))
    np.testing.assert_allclose(ours.y1, y, rtol=2e-5, atol=2e-5, err_msg=case)
    # TensorFlow Probability's steps differ.
    if case != "dormand_prince" and "per sample" not in case:
        steps = np.load(rf"{tmp_path}/{{case}} steps.npy")
        np.testing.assert_array_equal(ours.num_steps, steps, err_msg=case)
    if case == "tsit5":
        y = np.load(rf"{tmp_path}/prediction.npy")
        np.testing.assert_allclose(numpy(model(x)), y, rtol=2e-5, atol=2e-5)
""",
            limit=200,
            backend=other,
        )


def test_importing_is_quiet_and_leaves_tfp_alone():
    out = run_python(
        """
import contextlib, io, sys
printed = io.StringIO()
import keras
with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    import keras_node
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")  # may still be chosen
    assert keras.layers.Dense(2).compute_dtype == "float64"
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    block = keras_node.ODEBlock(keras.layers.Dense(2))
    block.build((None, 2))
assert not printed.getvalue(), printed.getvalue()
assert not any("tensorflow_probability" in m for m in sys.modules)
if keras.backend.backend() != "tensorflow":
    assert "tensorflow" not in sys.modules
with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    block(keras.ops.ones((1, 2)))
assert not printed.getvalue(), printed.getvalue()
used = any("tensorflow_probability" in m for m in sys.modules)
assert used == (keras.backend.backend() == "tensorflow")
"""
    )
    assert out == ""

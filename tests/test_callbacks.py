"""What the solvers did, as the logs tell it."""

import warnings

import keras
import numpy as np
import pytest
from helpers import slow
from keras import layers
from keras import ops

import keras_node
from keras_node.callbacks import SolverStats

x = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
NAMES = ("ode_evals", "ode_steps", "ode_rejected", "ode_failed")


class Log(layers.Layer):
    """Defined for positive states only."""

    def call(self, y):
        return ops.log(y)


def model(dynamics, solver="tsit5", nested=False):
    block = keras_node.ODEBlock(
        dynamics, solver=solver, adjoint="discrete", name="ode"
    )
    if nested:
        block = keras.Sequential([keras.Input((4,)), block])
    made = keras.Sequential([keras.Input((4,)), block])
    made.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    return made


@pytest.mark.parametrize("nested", [slow(False), True])
def test_the_logs_tell_what_solve_tells(nested, tmp_path):
    made = model([layers.Dense(8, "tanh"), layers.Dense(4)], nested=nested)
    block = next(
        layer
        for layer in made._flatten_layers()
        if isinstance(layer, keras_node.ODEBlock)
    )
    # SGD with a rate of 0: what is solved in `fit` can be solved again.
    solutions = [block.solve(x[i : i + 16]) for i in range(0, 48, 16)]
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0}
    history = made.fit(
        x, x, epochs=2, validation_data=(x, x), callbacks=[SolverStats(), log],
        **fit,
    ).history  # fmt: skip
    for name, counts in (
        ("ode_evals", [s.num_evals for s in solutions]),
        ("ode_steps", [s.num_steps for s in solutions]),
        ("ode_rejected", [s.num_steps - s.num_accepted for s in solutions]),
        ("ode_failed", [0.0]),
    ):
        mean = np.mean([float(count) for count in counts])
        np.testing.assert_allclose(history[name], [mean, mean])
        np.testing.assert_allclose(history["val_" + name], [mean, mean])
    assert set(NAMES) < set(
        (tmp_path / "log.csv").read_text().split("\n")[0].split(",")
    )
    # Without it, all is as before.
    assert len(made.evaluate(x, x, verbose=0)) == 2
    assert set(made.fit(x, x, **fit).history) == {"loss", "mae"}


def test_a_failing_solve_warns_once_and_is_counted():
    solver = keras_node.solvers.Tsit5(per_sample=True)
    made = model(Log(), solver)
    positive = np.abs(x) + 1.5
    positive[:12] = -1.0
    if keras.backend.backend() == "torch":  # where every call is eager
        with pytest.raises(keras_node.SolverError, match="12 of 32 samples"):
            made.fit(positive, x, shuffle=False, callbacks=[SolverStats()])
        return
    with pytest.warns(UserWarning, match="of the solves of `ode`") as found:
        history = made.fit(
            positive, x, 16, epochs=2, callbacks=[SolverStats()], verbose=0
        ).history
    assert len([w for w in found if "solves of" in str(w.message)]) == 1
    np.testing.assert_allclose(history["ode_failed"], 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(layers.Dense(4)).fit(x, x, callbacks=[SolverStats()], verbose=0)


def test_mixed_precision_and_blocks_of_one_name_are_counted():
    def tower(max_steps):
        solver = keras_node.solvers.Tsit5(max_steps=max_steps)
        dynamics = layers.Dense(4, dtype="mixed_float16")
        block = keras_node.ODEBlock(
            dynamics, solver=solver, name="ode", dtype="mixed_float16"
        )
        return keras.Sequential([keras.Input((4,)), block])

    inputs = keras.Input((4,))
    towers = [tower(100), tower(99)]
    made = keras.Model(inputs, layers.add([each(inputs) for each in towers]))
    made.compile("sgd", "mse")
    history = made.fit(x, x, callbacks=[SolverStats()], verbose=0).history
    for each, name in zip(towers, ("ode", "ode_1"), strict=True):
        assert history[f"{name}_failed"] == [0.0]
        assert history[f"{name}_evals"][0] > 6, each

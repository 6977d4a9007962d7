"""What a user sees of a failed solve; the rest is in `test_adversarial.py`."""

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import run_python
from helpers import slow
from keras import ops

import keras_node
from keras_node import backend


class Sqrt(keras.layers.Layer):
    def call(self, y):
        return ops.sqrt(y)


@pytest.mark.parametrize("solver, adjoint", ADJOINTS)
def test_a_gradient_that_is_not_finite_is_an_error_in_eager_calls(
    solver, adjoint
):
    block = keras_node.ODEBlock(Sqrt(), solver=solver, adjoint=adjoint)

    def gradient(x):
        x = ops.convert_to_tensor(x, "float32")
        return backend.vjp(block, (x,), ops.ones_like(x))

    out, (adj_x,) = gradient(np.ones((2, 1)))
    np.testing.assert_allclose(ops.convert_to_numpy(out), 2.25, rtol=1e-2)
    np.testing.assert_allclose(ops.convert_to_numpy(adj_x), 1.5, rtol=1e-2)
    with pytest.raises(keras_node.SolverError, match="backward pass"):
        gradient(np.zeros((2, 1)))  # the state stays at 0


@pytest.mark.parametrize("solver, adjoint", ADJOINTS)
def test_the_solve_is_not_blamed_for_a_loss_that_is_not_finite(solver, adjoint):
    block = keras_node.ODEBlock(Sqrt(), solver=solver, adjoint=adjoint)
    x = ops.ones((2, 1))
    for bad in (np.nan, np.inf):
        cotangent = ops.convert_to_tensor([[bad], [1.0]], "float32")
        _, (adj_x,) = backend.vjp(block, (x,), cotangent)
        assert not np.isfinite(ops.convert_to_numpy(adj_x)).all()


def test_a_user_sees_nan_in_fit_and_an_error_in_eager_calls():
    run_python(
        """
import re, keras, numpy as np, keras_node, pytest
from helpers import COMPILED_FIT, numpy

class Square(keras.layers.Layer):
    def call(self, y):
        return y * y

# A few steps before the pole at t = 0.5: the more, the closer to it.
solver = keras_node.solvers.DormandPrince(max_steps=60)
block = keras_node.ODEBlock(Square(), t_span=(0.0, 1.0), solver=solver)
model = keras.Sequential([keras.Input((2,)), block, keras.layers.Dense(1)])
good, bad = np.full((4, 2), 0.5, "float32"), np.full((4, 2), 2.0, "float32")

with pytest.raises(keras_node.SolverError) as caught:
    block(bad)
message = str(caught.value)
assert re.search("t = 0.(5|49)", message), message
assert "max_steps" in message, message
np.testing.assert_allclose(numpy(block(good)), 1.0, rtol=1e-2)

for jit in COMPILED_FIT:
    model.compile("adam", "mse", jit_compile=jit)
    if keras.backend.backend() != "torch":  # which takes long to compile
        assert np.isnan(model.predict(bad, verbose=0)).all()
        assert np.isfinite(model.predict(good, verbose=0)).all()
    stop = keras.callbacks.TerminateOnNaN()
    before = model.get_weights()
    history = model.fit(bad, good[:, :1], epochs=5, callbacks=[stop], verbose=0)
    assert len(history.history["loss"]) == 1
    model.set_weights(before)

model.compile("adam", "mse", run_eagerly=True)
with pytest.raises(keras_node.SolverError, match="t = 0.(5|49)"):
    model.fit(bad, good[:, :1], verbose=0)

# Also where a gradient to the state is taken.
deep = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), block])
deep.layers[0].set_weights([np.eye(2), np.zeros(2)])
deep.compile("adam", "mse", run_eagerly=True)
with pytest.raises(keras_node.SolverError, match="t = 0.(5|49)"):
    deep.fit(bad, good, verbose=0)
""",
        limit=120,
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's debugger"
)
@pytest.mark.parametrize(
    "pairs",
    [
        "('dormand_prince', 'backsolve'), (per_sample, 'discrete')",
        slow(
            "(per_sample, 'interpolating'), ('tsit5', 'gauss'), "
            "('tsit5', 'backsolve'), ('rk4', 'discrete')"
        ),
    ],
)
def test_who_looks_for_the_first_nan_finds_none_of_the_solver(pairs):
    run_python(
        f"""
import keras, numpy as np, pytest, tensorflow as tf
import keras_node
from keras_node import backend, solvers

tf.debugging.enable_check_numerics(stack_height_limit=1)

class Power(keras.layers.Layer):
    def call(self, y):  # y' = 0 for the first, y' = y^2 for the second
        return y * y * tf.constant([0.0, 1.0])

# y = x / (1 - x t), dy/dx = 1 / (1 - x t)^2
x = tf.constant([[0.0, 0.5], [1.0, -1.0]])
pole = tf.constant([[0.0, 2.0], [1.0, -1.0]])  # at t = 0.5
t = np.array([0.0, 0.3, 1.0])
truth = [[3, np.sum((1 - 0.5 * t) ** -2)], [3, np.sum((1 + t) ** -2)]]
per_sample = solvers.Tsit5(per_sample=True)
for solver, adjoint in [{pairs}]:
    block = keras_node.ODEBlock(
        Power(), t_eval=t, solver=solver, adjoint=adjoint,
        kinetic_regularizer=1.0,
    )

    @tf.function(autograph=False)
    def run(x):
        return backend.vjp(block, (x,), tf.ones((2, 3, 2)))

    ys, (adj,) = run(x)
    np.testing.assert_allclose(ys[0, :, 1], 0.5 / (1 - 0.5 * t), rtol=1e-2)
    np.testing.assert_allclose(adj, truth, rtol=2e-2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Inf"):
        run(pole)
"""
    )

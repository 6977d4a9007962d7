"""What works with Keras's own layers works with `ODEBlock`.

Most blocks here take two steps of Euler's method over linear dynamics, and
everything about them is known in closed form, whatever the backend.
"""

import importlib.util
import shutil

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import slow
from helpers import slow_on
from keras import layers
from keras import ops
from scipy.linalg import expm

import keras_node
from keras_node import solvers

BACKEND = keras.backend.backend()
A = np.array([[0.1, 0.9], [-0.7, -0.2]], "float32")


def normal(*shape, seed=0):
    draw = np.random.default_rng(seed).normal(size=shape)
    return draw.astype("float32")


def euler_block(dynamics, num_steps=2, **kwargs):
    solver = solvers.get("euler", num_steps=num_steps)
    kwargs = {"solver": solver, "adjoint": "discrete", **kwargs}
    return keras_node.ODEBlock(dynamics, **kwargs)


def linear(**kwargs):
    """The dynamics `y A`."""
    start = keras.initializers.Constant(A)
    return layers.Dense(2, use_bias=False, kernel_initializer=start, **kwargs)


def end(x, a):
    """Where two steps of Euler's method take `x`."""
    step = np.eye(len(a)) + a / 2
    return x @ step @ step


def trained(batches, rate):
    """`A` after gradient descent on the mean squared error, by hand."""
    a = A.astype("float64")
    for x, y in batches:
        step = np.eye(2) + a / 2
        error = end(x, a) - y
        adjoint = 2 / error.size * x.T @ error
        a = a - rate * (adjoint @ step.T + step.T @ adjoint) / 2
    return a


def test_the_output_has_the_shape_that_is_announced():
    time, image = keras.Input((1,)), keras.Input((None, None, 2))
    cases = [
        ((4,), None, (4,)),
        ((4,), [0.5, 1.0], (2, 4)),
        ((6, 5, 2), None, (6, 5, 2)),
        ((None, 2), [0.5], (1, None, 2)),
    ]
    for shape, t_eval, expected in cases:
        block = euler_block(layers.Dense(shape[-1]), t_eval=t_eval)
        inputs = keras.Input(shape)
        spec = block.compute_output_spec(inputs)
        assert spec.shape == (None, *expected)
        assert block.compute_output_shape(inputs.shape) == spec.shape
        assert spec.shape == block(inputs).shape
        out = block(normal(3, *(7 if n is None else n for n in shape)))
        known = [7 if n is None else n for n in expected]
        assert tuple(out.shape) == (3, *known)
        assert keras.backend.standardize_dtype(out.dtype) == spec.dtype

    # With context, and times at call time.
    dynamics = keras.Model([image, time], image * time[:, None, None])
    block = euler_block(dynamics)
    spec = block.compute_output_spec([image, time], t_eval=np.ones(3))
    assert spec.shape == (None, 3, None, None, 2)
    shapes = [image.shape, time.shape]
    assert block.compute_output_shape(shapes) == image.shape
    out = block([normal(3, 6, 5, 2), normal(3, 1)], t_eval=np.ones(3))
    assert tuple(out.shape) == (3, 3, 6, 5, 2)


class MaskWanted(layers.Layer):
    """The slope is 1, or 100 where a mask has come through."""

    supports_masking = True

    def call(self, y, mask=None):
        return ops.ones_like(y) * (1.0 if mask is None else 100.0)

    def compute_output_shape(self, shape):
        return shape


def test_a_mask_goes_past_the_dynamics_to_the_next_layer():
    words = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [6, 1, 2, 3, 4]])
    inputs = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(7, 4, mask_zero=True)
    block, lstm = euler_block(MaskWanted()), layers.LSTM(3)
    embedded = embedding(inputs)
    model = keras.Model(inputs, [block(embedded), lstm(block(embedded))])
    states, answer = model.predict(words, verbose=0)
    vectors = embedding.get_weights()[0][words]
    np.testing.assert_allclose(states, vectors + 1, rtol=1e-5)
    by_hand = lstm(ops.convert_to_tensor(states), mask=words != 0)
    np.testing.assert_allclose(answer, numpy(by_hand), atol=1e-6)
    without = numpy(lstm(ops.convert_to_tensor(states)))
    assert np.abs(answer - without)[:2].min() > 1e-4
    # Eagerly, the very tensor that carries the mask comes in.
    np.testing.assert_allclose(
        numpy(block(embedding(words))), vectors + 1, rtol=1e-5
    )
    # It is that of the state, and has no place for the times reported.
    pair = euler_block(layers.Add())([embedded, layers.ReLU()(embedded)])
    assert pair._keras_mask is embedded._keras_mask
    reporting = euler_block(MaskWanted(), t_eval=[1.0])(embedded)
    assert getattr(reporting, "_keras_mask", None) is None


def flow_model():
    inputs = keras.Input((4,))
    network = [layers.Dense(8, "tanh"), layers.Dense(4, name="inside")]
    block = euler_block(network, t_eval=[0.5, 1.0], name="flow")
    return keras.Model(inputs, block(inputs))


def test_a_summary_lists_the_block_as_one_layer_with_its_weights():
    model = flow_model()
    lines = []
    model.summary(72, expand_nested=True, print_fn=lines.append)
    (row,) = [x for x in "".join(lines).splitlines() if "flow" in x]
    assert "ODEBlock" in row and "(None, 2, 4)" in row and " 76 " in row
    assert "Total params: 76" in "".join(lines)
    lines.clear()
    model.get_layer("flow").dynamics.summary(72, print_fn=lines.append)
    assert "inside (Dense)" in "".join(lines)


def test_a_plot_shows_the_block(tmp_path):
    model = flow_model()
    pytest.importorskip("pydot")
    dot = keras.utils.model_to_dot(model, show_shapes=True).to_string()
    assert "<b>flow</b> (ODEBlock)" in dot and "(None, 2, 4)" in dot
    if shutil.which("dot"):
        keras.utils.plot_model(model, tmp_path / "model.png")
        assert (tmp_path / "model.png").stat().st_size > 1000


class OwnTrainStep(keras.Model):
    """A training step of one's own, as Keras's guides have it."""

    def train_step(self, *args):
        return getattr(self, f"_{BACKEND}_step")(*args)

    def _tensorflow_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}

    def _jax_step(self, state, data):
        import jax

        weights, others, slots, metrics = state
        x, y = data

        def loss_of(weights):
            y_pred, _ = self.stateless_call(weights, others, x, training=True)
            return self.compute_loss(y=y, y_pred=y_pred)

        loss, gradients = jax.value_and_grad(loss_of)(weights)
        weights, slots = self.optimizer.stateless_apply(
            slots, gradients, weights
        )
        return {"loss": loss}, (weights, others, slots, metrics)

    def _torch_step(self, data):
        import torch

        x, y = data
        self.zero_grad()
        loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        loss.backward()
        gradients = [w.value.grad for w in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


WAYS = {
    "accumulated": {"batch_size": 3, "gradient_accumulation_steps": 2},
    "eager": {"run_eagerly": True},
    "own step": {"model": OwnTrainStep},
    "several at once": {"steps_per_execution": 2},
}
if BACKEND == "torch":
    del WAYS["several at once"]  # Keras refuses it, whatever the model


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_ends_at_the_same_weights(way):
    arguments = dict(WAYS[way])
    batch_size = arguments.pop("batch_size", 6)
    cls = arguments.pop("model", keras.Model)
    steps = arguments.pop("gradient_accumulation_steps", None)
    inputs = keras.Input((2,))
    model = cls(inputs, euler_block(linear())(inputs))
    rate = 0.2
    optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=steps)
    model.compile(optimizer, "mse", **arguments)
    x, y = normal(12, 2), normal(12, 2, seed=1)
    model.fit(x, y, batch_size, epochs=2, shuffle=False, verbose=0)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])] * 2
    np.testing.assert_allclose(
        model.get_weights()[0], trained(batches, rate), atol=1e-5
    )


def test_time_distributed_is_one_solve_for_each_time():
    inputs = keras.Input((3, 2))
    outputs = layers.TimeDistributed(euler_block(linear()))(inputs)
    assert outputs.shape == (None, 3, 2)
    model = keras.Model(inputs, outputs)
    x, y = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    model.compile(keras.optimizers.SGD(0.2), "mse")
    model.fit(x, y, verbose=0)
    batch = x.reshape(12, 2), y.reshape(12, 2)
    after = trained([batch], 0.2)
    np.testing.assert_allclose(model.get_weights()[0], after, atol=1e-5)
    predictions = model.predict(x, verbose=0)
    np.testing.assert_allclose(predictions, end(x, after), atol=1e-5)


def nested_end(x, a, solver):
    """Where `dy/dt = y exp(a / 2)` takes `x` in a unit of time."""
    if solver == "euler":
        return end(x, end(np.eye(2), a / 2))
    return x @ expm(expm(a / 2))


@pytest.mark.parametrize(
    "solver, adjoint, inner",
    [
        ("euler", "discrete", "discrete"),
        slow("tsit5", "discrete", "backsolve"),
        slow("tsit5", "interpolating", "discrete"),
        slow("tsit5", "gauss", "gauss"),
        slow("dormand_prince", "backsolve", "backsolve"),
    ],
)
def test_a_block_inside_a_block(solver, adjoint, inner, tmp_path):
    by_name = {"rtol": 1e-6, "atol": 1e-6}
    by_name = {"num_steps": 2} if solver == "euler" else by_name
    method = solvers.get(solver, **by_name)
    inside = keras_node.ODEBlock(linear(), (0, 0.5), None, method, inner)
    block = keras_node.ODEBlock(inside, solver=method, adjoint=adjoint)
    model = keras.Sequential([keras.Input((2,)), block])
    assert model.count_params() == 4
    x = normal(6, 2)
    rate = 0.1
    model.compile(keras.optimizers.SGD(rate), "mse")
    loss = model.fit(x, 0 * x, batch_size=6, verbose=0).history["loss"][0]

    def exact(a):
        return np.mean(nested_end(x.astype("float64"), a, solver) ** 2)

    np.testing.assert_allclose(loss, exact(A), rtol=1e-4)
    step = (A - model.get_weights()[0]) / rate
    for i, j in np.ndindex(2, 2):
        shift = np.zeros((2, 2))
        shift[i, j] = 1e-5
        slope = (exact(A + shift) - exact(A - shift)) / 2e-5
        np.testing.assert_allclose(step[i, j], slope, rtol=1e-3, atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    predictions = loaded.predict(x, verbose=0)
    np.testing.assert_allclose(
        predictions,
        nested_end(x, model.get_weights()[0], solver),
        rtol=1e-4,
        atol=1e-4,
    )
    np.testing.assert_array_equal(predictions, model.predict(x, verbose=0))


def test_the_best_of_several_blocks_is_checkpointed(tmp_path):
    inputs = keras.Input((2,))
    first = euler_block([layers.Dense(3, "tanh"), layers.Dense(2)])
    second = euler_block(layers.Dense(2, "tanh"))
    model = keras.Model(inputs, first(second(first(inputs))))
    assert len(model.weights) == 6
    model.compile(keras.optimizers.SGD(), "mse")
    rates = [0.1, 0.1, 1e2, 0.1]
    weights = []
    path = tmp_path / "best.keras"
    x = normal(8, 2)
    losses = model.fit(
        x,
        -x,
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda i: rates[i]),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda i, logs: weights.append(model.get_weights())
            ),
            keras.callbacks.ModelCheckpoint(
                path, monitor="loss", save_best_only=True
            ),
        ],
    ).history["loss"]
    best = int(np.argmin(losses))
    assert 0 < best < 3
    loaded = keras.models.load_model(path)
    for ours, theirs in zip(weights[best], loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.set_weights(weights[best])
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


def test_regularizers_and_constraints_of_inner_layers():
    arguments = {
        "kernel_regularizer": keras.regularizers.L2(0.3),
        "activity_regularizer": keras.regularizers.L2(0.5),
        "kernel_constraint": keras.constraints.UnitNorm(),
    }
    dynamics, alone = linear(**arguments), linear(**arguments)
    model = keras.Sequential([keras.Input((2,)), euler_block(dynamics)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = normal(6, 2)
    loss = model.fit(x, 0 * x, verbose=0).history["loss"][0]
    # Once a call, that of the activity from the start: as of a layer alone.
    # Newer Keras averages that over samples.
    alone(x)
    penalties = numpy(sum(alone.losses))
    assert penalties > 0.3 * np.sum(A**2) + 0.5 * np.sum((x @ A) ** 2) / 7
    expected = np.mean(end(x, A) ** 2) + penalties
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    norms = np.linalg.norm(model.get_weights()[0], axis=0)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_lora_trains_its_own_weights_alone(tmp_path):
    model = keras.Sequential([keras.Input((2,)), euler_block(linear())])
    dense = model.layers[0].dynamics
    dense.enable_lora(1)
    assert len(model.trainable_weights) == 2
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = normal(6, 2)
    # The first factor starts at random, the second at zero.
    before = numpy(dense.lora_kernel_a.value)
    model.fit(x, -x, epochs=3, verbose=0)
    a, b = numpy([dense.lora_kernel_a.value, dense.lora_kernel_b.value])
    assert np.abs(a - before).max() > 1e-6 and np.abs(b).max() > 1e-4
    np.testing.assert_array_equal(numpy(dense._kernel.value), A)
    scale = dense.lora_alpha / dense.lora_rank
    predictions = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        predictions, end(x, A + scale * a @ b), atol=1e-5
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].dynamics.lora_enabled
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), predictions, atol=1e-5
    )


def network():
    return [layers.Dense(8, "tanh"), layers.Dense(4)]


@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras exports no model from PyTorch, not Dense"
)
@pytest.mark.parametrize(
    "solver, adjoint",
    [
        ("tsit5", "discrete"),
        slow("tsit5", "gauss"),
        slow("dormand_prince", "backsolve"),
    ],
)
def test_an_exported_model_serves_what_the_model_predicts(
    solver, adjoint, tmp_path
):
    tf = pytest.importorskip("tensorflow")
    # TensorFlow's XLA rounds otherwise than JAX's, and so may step otherwise.
    method = solvers.get(solver, rtol=1e-6, atol=1e-6)
    block = keras_node.ODEBlock(network(), solver=method, adjoint=adjoint)
    model = keras.Sequential([keras.Input((4,)), block])
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    served = loaded.serve
    x = normal(8, 4)
    for batch in (x, x[:1], 3 * x[:5]):
        np.testing.assert_allclose(
            served(batch).numpy(), model.predict(batch, verbose=0), atol=2e-5
        )
    if BACKEND == "tensorflow":
        # The gradient goes along.
        inputs = tf.constant(x)
        gradients = []
        for f in (served, model):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                loss = tf.reduce_sum(f(inputs) ** 2)
            gradients.append(tape.gradient(loss, inputs))
        np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)


@slow_on("tensorflow", "jax")
@pytest.mark.filterwarnings("ignore")  # of the tracer, as errors they crash it
@pytest.mark.parametrize("solver, t_eval", [("tsit5", None), ("rk4", [0.5, 1])])
def test_onnx_has_the_whole_solve(solver, t_eval, tmp_path):
    block = keras_node.ODEBlock(
        network(), t_eval=t_eval, solver=solver, adjoint="discrete"
    )
    model = keras.Sequential([keras.Input((4,)), block])
    if BACKEND == "torch":
        import torch

        with pytest.raises(NotImplementedError, match="on TensorFlow or JAX"):
            torch.jit.trace(model, torch.ones(2, 4))
        return
    converter = {"tensorflow": "tf2onnx", "jax": "jax2onnx"}[BACKEND]
    if not importlib.util.find_spec(converter):
        pytest.skip(f"{converter} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime")
    x = normal(8, 4)
    model(x)  # Keras exports what has been called
    path = tmp_path / "model.onnx"
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    # The larger state takes more steps.
    for batch in (x, x[:1], 30 * x[:5]):
        (out,) = session.run(None, {given.name: batch})
        np.testing.assert_allclose(
            out, model.predict(batch, verbose=0), rtol=1e-3, atol=1e-3
        )

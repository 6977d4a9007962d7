"""ODEBlock as a Keras layer."""

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import COVER
from helpers import JITS
from helpers import PER_SAMPLE
from helpers import SOLVERS
from helpers import accurate
from helpers import kinds
from helpers import numpy
from helpers import slow
from helpers import slow_on
from helpers import slow_unless
from keras import layers
from keras import ops

import keras_node
from keras_node import solvers

# The default solver is TensorFlow Probability's there, `dopri5` elsewhere.
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def network(units=4):
    return keras.Sequential(
        [layers.Dense(8, activation="tanh"), layers.Dense(units)]
    )


def classifier(block, shape=(4,)):
    inputs = keras.Input(shape)
    x = layers.Flatten()(block(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def labelled(samples, shape=(4,)):
    x = normal(samples, *shape)
    return x, np.argmax(x.reshape(samples, -1)[:, :3], axis=-1)


def linear_block(matrix, **kwargs):
    """A block whose dynamics are `y A`: its solution is `y0 exp(A t)`."""
    dense = layers.Dense(len(matrix), use_bias=False)
    block = keras_node.ODEBlock(dense, **kwargs)
    block.build((None, len(matrix)))
    dense.kernel.assign(matrix)
    return block


@pytest.mark.parametrize("t_span", [(0, 1), (2.0, 0.5), [-1, 1]])
def test_output_is_the_solution_at_the_end(t_span):
    omega = 2.0
    block = linear_block(
        [[0.0, omega], [-omega, 0.0]], t_span=t_span, rtol=1e-5, atol=1e-5
    )
    angle = omega * (t_span[1] - t_span[0])
    rotation = [
        [np.cos(angle), np.sin(angle)],
        [-np.sin(angle), np.cos(angle)],
    ]
    x = normal(5, 2)
    np.testing.assert_allclose(numpy(block(x)), x @ rotation, atol=1e-4)
    model = keras.Sequential([keras.Input((2,)), block])
    np.testing.assert_allclose(
        model.predict(x, verbose=0), x @ rotation, atol=1e-4
    )


@keras.saving.register_keras_serializable(package="tests")
class SubclassedLayer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        return ops.silu(self.dense(x))


@keras.saving.register_keras_serializable(package="tests")
class SubclassedModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(8, activation="tanh")
        self.outer = layers.Dense(4)

    def call(self, x, training=False):
        return self.outer(self.inner(x)) - x


def functional_model():
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="tanh")(inputs)
    return keras.Model(inputs, layers.Dense(4)(x) + inputs)


def stateful_network():
    return [
        layers.Dense(8, activation="tanh"),
        layers.BatchNormalization(),
        layers.Dropout(0.2, seed=1),
        layers.Dense(4),
    ]


FORMS = {
    "layer": lambda: layers.Dense(4),
    "list": lambda: [layers.Dense(8, activation="tanh"), layers.Dense(4)],
    "tuple": lambda: (layers.Dense(4),),
    "sequential": network,
    "functional": functional_model,
    "subclassed layer": SubclassedLayer,
    "subclassed model": SubclassedModel,
    "with a state of its own": stateful_network,
}


@pytest.mark.parametrize(
    "number",
    [slow(0), slow(1), slow(2), slow(3), 4, slow(5), 6, 7],
    ids=FORMS,
)
def test_every_form_of_dynamics_trains_saves_and_loads(number, tmp_path):
    dynamics = list(FORMS.values())[number]()
    solver, adjoint = ADJOINTS[1 + number % 4]
    block = keras_node.ODEBlock(dynamics, solver=solver, adjoint=adjoint)
    model = classifier(block)
    assert model.count_params() == block.count_params() + 15
    before = model.get_weights()
    x, y = labelled(16)
    model.fit(x, y, verbose=0)
    after = model.get_weights()
    assert len(after) >= 4
    for old, new in zip(before, after, strict=True):
        assert not np.array_equal(old, new)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for mine, its in zip(after, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)


@pytest.mark.parametrize(
    "solver, adjoint, jit",
    slow_unless(
        lambda solver, adjoint, jit: (
            (solver, adjoint) == ("tsit5", "discrete")
            and jit == JITS[0]
            or (solver, adjoint, jit) == (*ADJOINTS[0], False)
            and ON_TENSORFLOW
        ),
        [(*pair, jit) for jit in JITS for pair in COVER],
    ),
)
def test_fit_lowers_the_loss_with_a_partial_last_batch(solver, adjoint, jit):
    x, y = labelled(70)
    model = classifier(
        keras_node.ODEBlock(network(), solver=solver, adjoint=adjoint)
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit,
    )
    losses = model.fit(x, y, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    # The step size is the batch's: alone, a sample is as exact, not equal.
    whole = model.predict(x, batch_size=64, verbose=0)
    one = model.predict(x[:1], verbose=0)
    np.testing.assert_allclose(one, whole[:1], atol=1e-2)


@slow_on("jax", "tensorflow")
def test_a_convolutional_block_trains_on_images():
    shape = (7, 7, 16)
    block = keras_node.ODEBlock(
        [
            layers.GroupNormalization(4),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(16, 3, padding="same"),
        ],
        rtol=1e-3,
        atol=1e-3,
    )
    model = classifier(block, shape)
    assert block.compute_output_shape((None, *shape)) == (None, *shape)
    x, y = labelled(20, shape)
    history = model.fit(x, y, batch_size=8, epochs=6, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_gradients_equal_those_of_the_exact_solution():
    matrix = np.array([[0.1, 0.9], [-0.7, -0.2]], "float32")
    block = linear_block(matrix, rtol=1e-6, atol=1e-6)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, block(inputs))
    model.compile(keras.optimizers.SGD(1.0), loss="mse", run_eagerly=False)
    x = normal(6, 2)
    model.fit(x, np.zeros_like(x), batch_size=6, verbose=0)
    step = matrix - ops.convert_to_numpy(block.dynamics.kernel)

    def loss(a):
        from scipy.linalg import expm

        return np.mean((x.astype("float64") @ expm(a)) ** 2)

    exact = np.zeros((2, 2))
    for i, j in np.ndindex(2, 2):
        shift = np.zeros((2, 2))
        shift[i, j] = 1e-5
        exact[i, j] = (loss(matrix + shift) - loss(matrix - shift)) / 2e-5
    np.testing.assert_allclose(step, exact, rtol=1e-3, atol=1e-5)


@slow_on("jax", "tensorflow")
def test_frozen_layers_stay_frozen():
    dynamics = network()
    dynamics.layers[0].trainable = False
    block = keras_node.ODEBlock(dynamics)
    model = classifier(block)
    assert len(block.trainable_weights) == 2
    before = [ops.convert_to_numpy(w) for w in dynamics.layers[0].weights]
    model.fit(*labelled(16), verbose=0)
    for old, new in zip(before, dynamics.layers[0].weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))

    block.trainable = False
    model.compile(loss="sparse_categorical_crossentropy", optimizer="sgd")
    before = block.get_weights()
    model.fit(*labelled(16), verbose=0)
    for old, new in zip(before, block.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_block_called_twice_shares_its_weights():
    matrix = np.array([[0.0, 1.0], [-1.0, 0.0]], "float32")
    block = linear_block(matrix, rtol=1e-6, atol=1e-6)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, block(block(inputs)))
    assert len(model.weights) == 1
    x = normal(3, 2)
    twice = linear_block(matrix, t_span=(0, 2), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), numpy(twice(x)), atol=1e-4
    )
    model.compile(optimizer="sgd", loss="mse")
    model.fit(x, np.zeros_like(x), verbose=0)
    assert not np.array_equal(block.get_weights()[0], matrix)


@slow_on("tensorflow")
def test_batch_statistics_move_once_a_call():
    norm = layers.BatchNormalization(momentum=0.9)
    block = keras_node.ODEBlock([norm, layers.Dense(4, activation="tanh")])
    model = classifier(block)
    x, y = labelled(8)
    x += 5.0
    model.fit(x, y, batch_size=8, verbose=0)
    mean = numpy(norm.moving_mean.value)
    np.testing.assert_allclose(mean, 0.1 * x.mean(0), rtol=1e-4)
    model.predict(x, verbose=0)
    np.testing.assert_array_equal(numpy(norm.moving_mean.value), mean)


def test_dtypes_follow_the_policy():
    x = normal(6, 4)
    kernel = normal(4, 4)
    exact = exact_losses = None
    # The mixed ones are in `test_dynamics.py`.
    for policy, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
        dense = layers.Dense(4, activation="tanh", dtype=policy)
        block = keras_node.ODEBlock(dense, rtol=1e-6, atol=1e-6, dtype=policy)
        model = keras.Sequential([keras.Input((4,)), block])
        dense.kernel.assign(kernel)
        out = model(x)
        assert keras.backend.standardize_dtype(out.dtype) == block.compute_dtype
        out = ops.convert_to_numpy(ops.cast(out, "float64"))
        exact = out if exact is None else exact
        np.testing.assert_allclose(out, exact, atol=tolerance)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses = model.fit(x, x, epochs=10, verbose=0).history["loss"]
        exact_losses = losses if exact_losses is None else exact_losses
        assert losses[-1] < losses[0]
        np.testing.assert_allclose(losses, exact_losses, rtol=tolerance)


@pytest.mark.parametrize(
    "solver, adjoint, weights, state",
    [
        ("dormand_prince", "backsolve", "float32", "float64"),
        ("tsit5", "discrete", "float64", "float32"),
        ("tsit5", "interpolating", "bfloat16", "bfloat16"),
        ("tsit5", "gauss", "float16", "float16"),
    ],
)
def test_weights_may_have_another_dtype_than_the_state(
    solver, adjoint, weights, state
):
    dynamics = layers.Dense(4, dtype=weights)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras_node.ODEBlock(
                dynamics, solver=solver, adjoint=adjoint, dtype=state
            ),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x = normal(8, 4)
    losses = model.fit(x, -x, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert dynamics.kernel.dtype == weights


def test_solve_tells_what_happened():
    block = keras_node.ODEBlock(network(), rtol=1e-6, atol=1e-6)
    solution = block.solve(np.ones((2, 4), "float32"))
    assert bool(solution.success)
    assert int(solution.num_evals) > int(solution.num_steps) > 0
    np.testing.assert_array_equal(
        numpy(solution.y1), numpy(block(np.ones((2, 4))))
    )


@pytest.mark.parametrize("solver", kinds(SOLVERS))
def test_states_at_many_times_in_any_order(solver):
    t_span = (1.0, -1.0)
    t_eval = [0.75, t_span[1], 0.25, t_span[0]]
    matrix = np.array([[0.0, 1.0], [-1.0, 0.0]], "float32")
    x = normal(5, 2)

    def exact(t):
        angle = t - t_span[0]
        cos, sin = np.cos(angle), np.sin(angle)
        return x @ [[cos, sin], [-sin, cos]]

    block = linear_block(
        matrix, t_span=t_span, t_eval=t_eval, solver=accurate(solver, 1e-5)
    )
    assert block.compute_output_shape((None, 2)) == (None, 4, 2)
    model = keras.Sequential([keras.Input((2,)), block])
    assert model.output_shape == (None, 4, 2)
    expected = np.stack([exact(t) for t in t_eval], axis=1)
    order = solvers.ALL[solver].tableau.order
    atol = {1: 0.2, 2: 1e-2}.get(order, 2e-4)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=atol)
    # Times at call time take their place.
    times = ops.convert_to_tensor([0.5, 0.0], "float32")
    np.testing.assert_allclose(
        numpy(block(x, t_eval=times)),
        np.stack([exact(0.5), exact(0.0)], axis=1),
        atol=atol,
    )


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_prediction_does_not_depend_on_its_batch_mates(name):
    solver = solvers.get(name, rtol=1e-4, atol=1e-4, per_sample=True)
    block = keras_node.ODEBlock(
        [layers.Dense(16, activation="tanh"), layers.Dense(4)],
        t_span=(0.0, 2.0),
        solver=solver,
    )
    model = keras.Sequential([keras.Input((4,)), block])
    x = normal(16, 4) * np.geomspace(0.01, 10, 16)[:, None]
    together = model.predict(x, verbose=0)
    for i in range(16):
        alone = model.predict(x[i : i + 1], verbose=0)[0]
        apart = np.max(np.abs(together[i] - alone))
        # Tsit5's coefficients reach 13, and its rounding errors likewise.
        factor = 10 if name == "tsit5" else 1
        assert apart <= factor * 1e-6 * max(1, np.max(np.abs(alone)))
    assert len(set(numpy(block.solve(x).num_steps).tolist())) > 1
    x[5] = np.nan
    with_nan = numpy(block.solve(x).y1)
    assert np.isnan(with_nan[5]).all()
    np.testing.assert_allclose(
        np.delete(with_nan, 5, 0), np.delete(together, 5, 0), atol=2e-4
    )

"""`ContinuousFlow`: densities against closed forms, and as a Keras model."""

import keras
import numpy as np
import problems
import pytest
from helpers import JITS
from helpers import numpy
from helpers import slow
from helpers import slow_on
from keras import layers
from keras import ops
from scipy.linalg import expm

import keras_node
from keras_node import ContinuousFlow
from keras_node import ODEBlock
from keras_node import adjoints
from keras_node import backend
from keras_node import solvers

A = np.array([[0.3, -1.0, 0.2], [0.7, 0.2, -0.4], [0.1, 0.5, -0.9]])
T = 1.5
X = np.random.default_rng(0).normal(size=(5, 3))


class Product(layers.Layer):
    """Product with a matrix; Keras's own layers round float64 to float32."""

    def __init__(self, units, activation=lambda x: x, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.activation = activation

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))

    def call(self, x):
        return self.activation(x @ self.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)


def linear(kernel=A, dtype="float64", **kwargs):
    """The flow of `dx/dt = x kernel`."""
    size = len(kernel)
    dense = Product(size, dtype=dtype)
    kwargs = {"t_span": (0.0, T), "rtol": 1e-6, "atol": 1e-6} | kwargs
    flow = ContinuousFlow(dense, time_dependent=False, dtype=dtype, **kwargs)
    flow.build((None, size))
    dense.kernel.assign(ops.convert_to_tensor(kernel, dtype))
    return flow


def network(size=2, width=16, dtype="float32"):
    """Layers whose flow depends on time."""
    dense = [
        layers.Dense(width, "tanh", dtype=dtype, bias_initializer="normal"),
        layers.Dense(size, dtype=dtype),
    ]
    return [layers.Concatenate(dtype=dtype), *dense]


def normal(z):
    return -0.5 * np.sum(z**2 + np.log(2 * np.pi), axis=-1)


@pytest.mark.parametrize("t_span", [(0.0, T), slow((T, 0.0))])
def test_a_linear_flow_is_known(t_span):
    flow = linear(t_span=t_span)
    way = t_span[1] - t_span[0]
    z, log_det = numpy(flow(X))
    exact = X @ expm(way * A)
    np.testing.assert_allclose(z, exact, atol=1e-5)
    np.testing.assert_allclose(log_det, way * np.trace(A), rtol=1e-10)
    density = normal(exact) + way * np.trace(A)
    np.testing.assert_allclose(numpy(flow.log_prob(X)), density, atol=1e-4)
    np.testing.assert_allclose(flow.predict(X, verbose=0), density, atol=1e-4)
    x, back = numpy(flow(z, inverse=True))
    np.testing.assert_allclose(x, X, atol=1e-5)
    np.testing.assert_allclose(back, -log_det, rtol=1e-10)


def test_the_divergence_of_a_state_of_many_entries():
    # Its rows are computed one by one.
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(20, 20)) / 20
    _, log_det = numpy(linear(kernel)(rng.normal(size=(2, 20))))
    np.testing.assert_allclose(log_det, T * np.trace(kernel), rtol=1e-10)


def test_images():
    conv = layers.Conv2D(2, 3, padding="same", use_bias=False)
    flow = ContinuousFlow(
        conv, time_dependent=False, divergence="hutchinson", rtol=1e-3, seed=0
    )
    x = np.random.default_rng(0).normal(size=(3, 5, 4, 2)).astype("float32")
    z, log_det = numpy(flow(x))
    assert z.shape == x.shape and log_det.shape == (3,)
    # Of a convolution only the centre is on the diagonal.
    centre = numpy(conv.kernel.value)[1, 1]
    np.testing.assert_allclose(log_det, 20 * np.trace(centre), rtol=1e-4)
    assert flow.sample(2).shape == (2, 5, 4, 2)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinsons_estimate(noise):
    # Each sample has probes of its own.
    x = np.zeros((20_000, 3))
    symmetric = A + A.T
    variance = np.sum(symmetric**2) / 2
    if noise == "rademacher":
        variance -= np.sum(np.diag(symmetric) ** 2) / 2
    for num_probes in (1, 4):
        flow = linear(num_probes=num_probes, noise=noise, seed=3, rtol=1e-3)
        _, found = numpy(flow(x, divergence="hutchinson"))
        found = found / T
        error = np.sqrt(variance / num_probes / len(x))
        assert abs(np.mean(found) - np.trace(A)) < 4 * error
        np.testing.assert_allclose(
            np.var(found), variance / num_probes, rtol=0.1
        )
        # Each call draws anew.
        _, other = numpy(flow(x, divergence="hutchinson"))
        assert np.mean(other / T == found) < 0.7


def test_a_density_sums_to_one_and_has_no_say_in_the_steps():
    keras.utils.set_random_seed(1)
    flow = ContinuousFlow(network(width=64), divergence="hutchinson")
    side = np.linspace(-8, 8, 100, dtype="float32")
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    density = np.exp(flow.predict(grid, batch_size=len(grid), verbose=0))
    total = np.sum(density) * (side[1] - side[0]) ** 2
    np.testing.assert_allclose(total, 1, atol=1e-3)
    assert abs(np.max(density) - 1 / (2 * np.pi)) > 0.01  # not the base's
    x = grid[::97]
    z, log_det = numpy(flow(x))
    back, log_back = numpy(flow(z, inverse=True))
    np.testing.assert_allclose(back, x, atol=1e-3)
    np.testing.assert_allclose(log_back, -log_det, atol=1e-3)
    # In training the steps are those without the density.
    block = ODEBlock(
        flow.dynamics,
        solver=solvers.Tsit5(rtol=1e-5, atol=1e-5),
        time_dependent=True,
    )
    z, _ = numpy(flow(x, training=True))
    np.testing.assert_allclose(numpy(block(x)), z, rtol=1e-5, atol=1e-6)


class Cosine(layers.Layer):
    def call(self, x):
        return problems.cos(x)


def test_the_error_of_a_density_is_within_the_tolerance():
    # So far from 0 the points themselves need not be known well.
    x = 1000 + np.linspace(0, 6, 7)[:, None]

    def log_det(tolerance, **kwargs):
        flow = ContinuousFlow(
            Cosine(dtype="float64"),
            time_dependent=False,
            t_span=(0.0, 2.0),
            rtol=tolerance,
            atol=tolerance,
            dtype="float64",
        )
        return numpy(flow(x, **kwargs)[1])

    exact = log_det(1e-9)
    told = np.max(np.abs(log_det(1e-3) - exact))
    trained = np.max(np.abs(log_det(1e-3, training=True) - exact))
    assert 4 * told < 4e-3 < trained


@pytest.fixture
def double():
    """Losses in float64, as Keras casts them to `floatx`."""
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


ADJOINTS = [
    name if name == "discrete" or keras.backend.backend() == "torch"
    # Where each is compiled, one is enough: it is one more entry of the state.
    else slow(name)
    for name in adjoints.ALL
]  # fmt: skip


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_gradients(adjoint, divergence, double):
    flow = ContinuousFlow(
        [
            layers.Concatenate(dtype="float64"),
            Product(5, problems.cos, dtype="float64"),
            Product(2, dtype="float64"),
        ],
        adjoint=adjoint,
        solver=solvers.Tsit5(rtol=1e-9, atol=1e-9),
        dtype="float64",
        divergence=divergence,
        kinetic_regularizer=0.1,
        jacobian_regularizer=0.2,
    )
    flow.build((None, 2))
    variables = flow.trainable_variables
    x = ops.convert_to_tensor(X[:, :2], "float64")
    state = [v.value for v in flow.non_trainable_variables]

    def loss(x, values):
        mapping = list(zip(variables, values, strict=True))
        # The same probes in each call.
        mapping += zip(flow.non_trainable_variables, state, strict=True)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            density = flow._log_prob(*flow(x, training=True))
        return ops.sum(density) + sum(scope.losses)

    given = x, [v.value for v in variables]
    one = ops.ones((), "float64")
    _, gradients = numpy(backend.vjp(loss, given, one))
    rng = np.random.default_rng(0)
    flat = keras.tree.flatten(numpy(given))
    way = [rng.normal(size=a.shape) for a in flat]
    ends = []
    for h in (1e-5, -1e-5):
        moved = [
            ops.convert_to_tensor(a + h * v, "float64")
            for a, v in zip(flat, way, strict=True)
        ]
        ends.append(float(numpy(loss(moved[0], moved[1:]))))
    exact = (ends[0] - ends[1]) / 2e-5
    flat = keras.tree.flatten(gradients)
    found = sum(np.sum(g * v) for g, v in zip(flat, way, strict=True))
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_the_penalties_of_a_linear_flow():
    for t_span in ((0.0, T), (T, 0.0)):
        flow = linear(
            t_span=t_span, kinetic_regularizer=0.1, jacobian_regularizer=0.01
        )
        flow(X)
        assert not flow.losses
        flow(X, training=True)
        times = np.linspace(0, T, 2001)
        sign = np.sign(t_span[1] - t_span[0])
        energy = [np.sum((X @ expm(sign * t * A) @ A) ** 2) for t in times]
        kinetic = np.trapezoid(energy, times) / len(X)
        exact = 0.1 * kinetic + 0.01 * T * np.sum(A**2)
        (loss,) = numpy(flow.losses)
        np.testing.assert_allclose(loss, exact, rtol=1e-4)


@pytest.mark.parametrize(
    "jit",
    [
        jit if jit == (keras.backend.backend() != "torch") else slow(jit)
        for jit in JITS
    ],
)
def test_fit_with_a_condition_weights_and_counts(jit, tmp_path):
    rng = np.random.default_rng(0)
    condition = rng.choice([-1.0, 1.0], size=(512, 1)).astype("float32")
    x = condition + 0.5 * rng.normal(size=(512, 1)).astype("float32")
    wrong = np.full((512, 1), 30, "float32")
    weights = np.repeat([2.0, 0.0], 512)
    flow = ContinuousFlow(network(1), rtol=1e-3, atol=1e-3, name="flow")
    flow.compile(keras.optimizers.Adam(0.05), jit_compile=jit)
    history = flow.fit(
        [np.concatenate([x, wrong]), np.concatenate([condition, condition])],
        sample_weight=weights,
        batch_size=256,
        epochs=30,
        verbose=0,
        callbacks=[keras_node.callbacks.SolverStats()],
    ).history
    assert history["flow_failed"][-1] == 0 < history["flow_evals"][-1]
    density = flow.predict([x, condition], verbose=0)
    # The density is N(c, 0.25).
    exact = normal(2 * (x - condition)) + np.log(2)
    assert np.mean(exact) - np.mean(density) < 0.05
    loss = flow.evaluate([x, condition], verbose=0)
    np.testing.assert_allclose(loss, -np.mean(density), rtol=1e-4)
    np.testing.assert_allclose(
        numpy(flow.log_prob(x, condition)), density, rtol=1e-3, atol=1e-3
    )
    samples = numpy(flow.sample(2000, condition=[[1.0]], seed=0))
    again = numpy(flow.sample(2000, condition=np.ones((2000, 1)), seed=0))
    np.testing.assert_array_equal(samples, again)
    assert abs(np.mean(samples) - 1) < 0.15
    assert abs(np.std(samples) - 0.5) < 0.1
    flow.save(tmp_path / "flow.keras")
    loaded = keras.models.load_model(tmp_path / "flow.keras")
    np.testing.assert_array_equal(
        loaded.predict([x, condition], verbose=0), density
    )
    np.testing.assert_array_equal(
        numpy(loaded.sample(9, np.ones((1, 1)), seed=0)),
        numpy(flow.sample(9, np.ones((1, 1)), seed=0)),
    )


def test_training_estimates_and_evaluation_does_not():
    flow = linear(divergence="hutchinson", seed=0, rtol=1e-3)
    exact = T * np.trace(A)
    _, trained = numpy(flow(X, training=True))
    assert np.max(np.abs(trained - exact)) > 0.1
    for other in (flow(X), flow(X, training=False)):
        np.testing.assert_allclose(numpy(other[1]), exact, rtol=1e-6)
    flow = linear(eval_divergence="hutchinson", seed=0, rtol=1e-3)
    assert np.max(np.abs(numpy(flow(X)[1]) - exact)) > 0.1
    _, found = numpy(flow(X, divergence="exact"))
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@slow_on("tensorflow")
def test_half_precision_keeps_densities_in_float32():
    full = ContinuousFlow(network(), rtol=1e-2, atol=1e-2)
    x = X[:, :2].astype("float32")
    density = numpy(full.log_prob(x))
    half = ContinuousFlow(
        network(dtype="mixed_float16"),
        rtol=1e-2,
        atol=1e-2,
        dtype="mixed_float16",
    )
    half.build((None, 2))
    half.set_weights(full.get_weights())
    found = numpy(half.log_prob(x))
    assert found.dtype == "float32" and numpy(half.sample(3)).dtype == "float32"
    np.testing.assert_allclose(found, density, atol=0.05)


class Shifted:
    """Base of unit normals around 3, in NumPy's manner of sampling."""

    def log_prob(self, z):
        squares = ops.sum(ops.square(z - 3), axis=-1)
        return -0.5 * squares - np.log(2 * np.pi)

    def sample(self, shape, seed=None):
        rng = np.random.default_rng(seed)
        return 3 + rng.normal(size=(*shape, 2)).astype("float32")


def test_other_bases():
    bases = [Shifted()]
    if keras.backend.backend() == "tensorflow":
        import tensorflow_probability as tfp

        bases.append(tfp.distributions.MultivariateNormalDiag([3.0, 3.0]))
    if keras.backend.backend() == "torch":
        import torch

        place = torch.tensor([3.0, 3.0])
        bases.append(
            torch.distributions.MultivariateNormal(place, torch.eye(2))
        )
    kernel = np.array([[0.1, 0.2], [-0.3, 0.4]])
    x = X[:, :2].astype("float32")
    for base in bases:
        flow = linear(kernel, "float32", base=base, rtol=1e-5, atol=1e-5)
        exact = normal(x @ expm(T * kernel) - 3) + T * np.trace(kernel)
        np.testing.assert_allclose(numpy(flow.log_prob(x)), exact, rtol=1e-4)
        samples = numpy(flow.sample(4000))
        mean = np.array([3, 3]) @ expm(-T * kernel)
        np.testing.assert_allclose(np.mean(samples, axis=0), mean, atol=0.2)
    with pytest.raises(ValueError, match="(?s)get_config.*Received"):
        linear(kernel, base=Shifted()).get_config()


class Wrong(Shifted):
    def log_prob(self, z):
        return z

    def sample(self, shape):
        return np.zeros((*shape, 5), "float32")


def test_bad_arguments():
    dense = layers.Dense(2)
    for name, bad in (
        ("divergence", "trace"),
        ("eval_divergence", None),
        ("noise", "uniform"),
        ("num_probes", 0),
        ("seed", -1),
        ("kinetic_regularizer", -1.0),
        ("jacobian_regularizer", "much"),
        ("base", 3),
        ("t_span", (0.0, 0.0)),
        ("solver", "none"),
        ("rtol", -1.0),
        ("dynamics", None),
    ):
        with pytest.raises(ValueError, match=f"(?s)`{name}`.*Received"):
            ContinuousFlow(**{"dynamics": dense, name: bad})
    # A solver of its own has its own tolerances; a second one is refused.
    ContinuousFlow(dense, solver="rk4")
    ContinuousFlow(dense, solver=solvers.Bosh3())
    with pytest.raises(ValueError, match="`rtol`"):
        ContinuousFlow(dense, solver=solvers.Bosh3(), rtol=1e-3)
    with pytest.raises(ValueError, match="leapfrog"):
        ContinuousFlow(dense, solver="leapfrog", time_dependent=False)(X[:, :2])


def test_bad_calls():
    flow = ContinuousFlow(layers.Dense(2), time_dependent=False)
    with pytest.raises(ValueError, match="(?s)not known.*Received"):
        flow.sample(2)
    with pytest.raises(ValueError, match="(?s)known beside.*Received"):
        flow.build((None, None))
    x = X[:, :2].astype("float32")
    with pytest.raises(ValueError, match="(?s)`inputs`.*Received"):
        flow(x.astype("int32"))
    flow(x)
    for bad in (X.astype("float32"), x[0]):
        with pytest.raises(ValueError):
            flow(bad)
    for n in (0, 1.5, "3", True):
        with pytest.raises(ValueError, match="(?s)`n`.*Received"):
            flow.sample(n)
    for condition in (np.ones((3, 1)), 1.0):
        with pytest.raises(ValueError, match="(?s)`condition`.*Received"):
            flow.sample(2, condition)
    with pytest.raises(ValueError, match="Received"):
        flow.sample(2, np.ones((2, 1)))  # it has none
    for name, bad in (("inverse", 1), ("divergence", "no"), ("training", 3)):
        with pytest.raises(ValueError, match=f"(?s)`{name}`.*Received"):
            flow(x, **{name: bad})
    flow.compile("sgd")
    for call in (flow.fit, flow.evaluate, flow.train_on_batch):
        with pytest.raises(ValueError, match="(?s)targets `y`.*Received: y"):
            call(x, x)
    flow.compile("sgd", "mse")
    with pytest.raises(ValueError, match="(?s)no `loss`.*Received: loss"):
        flow.fit(x)
    flow = linear(np.eye(2), "float32", base=Wrong())
    with pytest.raises(ValueError, match="(?s)`base`.*Received"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match="(?s)`base`.*Received"):
        flow.sample(3)


def test_layers_that_mix_samples_or_have_kinks():
    norm = layers.BatchNormalization()
    flow = ContinuousFlow([norm, layers.Dense(2)], time_dependent=False)
    with pytest.raises(ValueError, match="(?s)BatchNormalization.*Received"):
        flow(X[:, :2].astype("float32"))
    norm.trainable = False
    flow(X[:, :2].astype("float32"))
    kinked = [layers.Dense(4, "relu"), layers.Dense(2)]
    flow = ContinuousFlow(kinked, time_dependent=False)
    with pytest.warns(UserWarning, match="relu.*softplus.*tanh"):
        flow.build((None, 2))

"""`layers.Hamiltonian` and the solver `"leapfrog"`."""

import keras
import numpy as np
import problems
import pytest
from helpers import COMPILED_FIT
from helpers import numpy
from helpers import slow_on
from keras import layers
from keras import ops
from scipy.integrate import solve_ivp

import keras_node
from keras_node import ODEBlock
from keras_node import adjoints
from keras_node import backend
from keras_node import solvers

Y0 = np.array([[0.9, 0.1], [-0.4, 1.2], [1.5, -0.3]])


@keras.saving.register_keras_serializable("tests")
class Pendulum(layers.Layer):
    """Energy `p^2 / 2 + k (1 - cos q)`, with a trainable `k`."""

    def build(self, inputs_shape):
        self.k = self.add_weight(shape=(), initializer="ones", name="k")

    def call(self, y):
        q, p = ops.split(y, 2, axis=-1)
        energy = ops.square(p) / 2 + self.k * (1 - problems.cos(q))
        return ops.sum(energy, axis=-1, keepdims=True)

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[:-1], 1)


def slope(t, y, k=1.0):
    q, p = np.split(y.reshape(-1, 2), 2, axis=-1)
    return np.concatenate([p, -k * np.sin(q)], axis=-1).ravel()


def energies(y):
    q, p = np.split(np.asarray(y), 2, axis=-1)
    return (p**2 / 2 + 1 - np.cos(q))[..., 0]


def block(solver, adjoint="discrete", t1=2.0, **kwargs):
    dynamics = keras_node.layers.Hamiltonian(Pendulum(dtype="float64"))
    return ODEBlock(
        dynamics, (0.0, t1), None, solver, adjoint, dtype="float64", **kwargs
    )


def loss_and_gradients(made, y0):
    """The sum of the squares at the end, and its gradients."""
    y0 = ops.convert_to_tensor(y0)
    if not made.built:
        made.build(tuple(y0.shape))
    variables = made.trainable_variables

    def loss(y0, values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return ops.sum(ops.square(made(y0)))

    values = [v.value for v in variables]
    one = ops.ones((), "float64")
    return numpy(backend.vjp(loss, (y0, values), one))


def exact_end(y0, t1=2.0, k=1.0):
    solution = solve_ivp(
        slope, (0, t1), y0.ravel(), "DOP853", args=(k,), rtol=1e-12, atol=1e-13
    )
    return solution.y[:, -1].reshape(y0.shape)


def test_the_slope_is_that_of_hamiltons_equations():
    layer = keras_node.layers.Hamiltonian(Pendulum(dtype="float64"))
    found = numpy(layer(Y0))
    np.testing.assert_allclose(found.ravel(), slope(0, Y0), rtol=1e-12)
    # With the time and with context, which the energy may depend on.
    t, y, u = (keras.Input((n,), dtype="float64") for n in (1, 2, 1))
    energy = (1 + t) * layers.Dot(1)([y, y]) / 2 + u * y[:, :1]
    energy = keras.Model([t, y, u], energy)
    layer = keras_node.layers.Hamiltonian(energy, True, dtype="float64")
    at, context = np.full((3, 1), 0.5), np.array([[1.0], [2.0], [3.0]])
    found = numpy(layer([at, Y0, context]))
    q, p = np.split(1.5 * Y0, 2, axis=-1)
    exact = np.concatenate([p, -q - context], axis=-1)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@slow_on("tensorflow")
@pytest.mark.parametrize("name", ["tsit5", "leapfrog"])
def test_the_energy_is_kept(name):
    if name == "tsit5":
        solver = solvers.Tsit5(rtol=1e-8, atol=1e-8)
        drifts = [
            energies(numpy(block(solver, t1=t1)(Y0))) - energies(Y0)
            for t1 in (2.0, 20.0)
        ]
        assert np.max(np.abs(drifts)) < 1e-5
        return
    # A symplectic method does not drift; one that is not does, at that step.
    times = np.linspace(0, 120, 101)
    made = block(solvers.Leapfrog(400), t1=120.0)
    late = energies(numpy(made(Y0, t_eval=times))) - energies(Y0)[:, None]
    assert np.max(np.abs(late[:, 50:])) < 1.1 * np.max(np.abs(late[:, :50]))
    assert np.max(np.abs(late)) < 2e-2
    heun = block(solvers.Heun(400), t1=120.0)
    assert np.max(np.abs(energies(numpy(heun(Y0))) - energies(Y0))) > 0.05


@slow_on("tensorflow")
@pytest.mark.parametrize("adjoint", ["discrete", "gauss"])
def test_leapfrog_is_of_order_2(adjoint):
    exact = exact_end(Y0)
    h = 1e-5
    ends = [np.sum(exact_end(Y0, k=1 + d) ** 2) for d in (-h, h)]
    adj_k = (ends[1] - ends[0]) / (2 * h)
    num_steps, errors = [20, 40, 80], []
    for n in num_steps:
        made = block(solvers.Leapfrog(n), adjoint)
        _, (_, (found,)) = loss_and_gradients(made, Y0)
        off = np.max(np.abs(numpy(made(Y0)) - exact))
        errors.append([off, abs(found - adj_k)])
    slopes = np.polyfit(np.log(num_steps), np.log(errors), 1)[0]
    np.testing.assert_allclose(-slopes, 2, atol=0.1)


def test_leapfrog_goes_back_the_way_it_came():
    y1 = block(solvers.Leapfrog(15))(Y0)
    back = keras_node.layers.Hamiltonian(Pendulum(dtype="float64"))
    back = ODEBlock(
        back,
        (2.0, 0.0),
        solver=solvers.Leapfrog(15),
        adjoint="discrete",
        dtype="float64",
    )
    np.testing.assert_allclose(numpy(back(y1)), Y0, rtol=1e-12)


def test_leapfrogs_gradient_is_that_of_its_steps():
    made = block(solvers.Leapfrog(7))
    value, (adj_y0, (adj_k,)) = loss_and_gradients(made, Y0)

    def plain(y0, k):
        q, p = ops.split(y0, 2, axis=-1)
        dt = 2.0 / 7
        for _ in range(7):
            p = p - dt / 2 * k * problems.cos(q - np.pi / 2)
            q = q + dt * p
            p = p - dt / 2 * k * problems.cos(q - np.pi / 2)
        return ops.sum(ops.square(q)) + ops.sum(ops.square(p))

    given = ops.convert_to_tensor(Y0), ops.ones((), "float64")
    one = ops.ones((), "float64")
    exact, (exact_y0, exact_k) = numpy(backend.vjp(plain, given, one))
    np.testing.assert_allclose(value, exact, rtol=1e-13)
    np.testing.assert_allclose(adj_y0, exact_y0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(adj_k, exact_k, rtol=1e-9)


def test_reports_of_leapfrog():
    times = [0.0, 0.33, 1.1, 2.0]
    made = block(solvers.Leapfrog(40))
    ys = numpy(made(Y0, t_eval=times))
    for t, y in zip(times[1:], np.moveaxis(ys, 1, 0)[1:], strict=True):
        np.testing.assert_allclose(y, exact_end(Y0, t), atol=2e-3)
    np.testing.assert_allclose(ys[:, -1], numpy(made(Y0)), rtol=1e-12)
    # Spans of each sample, to which gradients flow.
    ends = np.array([[0.0, 1.0], [0.0, 0.0], [1.5, 0.5]])
    y1 = numpy(made(Y0, t_span=ends))
    for i, (t0, t1) in enumerate(ends):
        exact = Y0[i : i + 1]
        if t1 != t0:
            way = np.array([1, -1]) if t1 < t0 else 1
            exact = way * exact_end(way * exact, abs(t1 - t0))
        np.testing.assert_allclose(y1[i : i + 1], exact, atol=2e-3)


@slow_on("tensorflow")
@pytest.mark.parametrize("jit", COMPILED_FIT)
def test_a_network_learns_an_energy_and_is_saved(jit, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(64, 2)).astype("float32")
    y = exact_end(x.astype("float64"), 0.5)
    energy = [layers.Dense(32, "tanh"), layers.Dense(1)]
    made = ODEBlock(
        keras_node.layers.Hamiltonian(energy),
        (0.0, 0.5),
        solver="rk4",
        adjoint="discrete",
    )
    model = keras.Sequential([keras.Input((2,)), made])
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit)
    losses = model.fit(x, y, 64, 60, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 10
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(model(x)), numpy(loaded(x)))


@pytest.mark.parametrize("name", adjoints.ALL)
def test_adjoints_that_leapfrog_cannot_go_with_say_so(name):
    layer = layers.Dense(2)
    if not adjoints.get(name).solves_others:
        ODEBlock(layer, solver="leapfrog", adjoint=name)
        return
    with pytest.raises(ValueError, match=r"discrete.*Received"):
        ODEBlock(layer, solver="leapfrog", adjoint=name)
    own = type(adjoints.get(name))(solver=solvers.Tsit5())
    ODEBlock(layer, solver="leapfrog", adjoint=own)
    with pytest.raises(ValueError, match="solver.*Received"):
        type(adjoints.get(name))(solver=solvers.Leapfrog())


def test_bad_arguments():
    for odd in (np.ones((2, 3)), np.ones((4,))):
        with pytest.raises(ValueError, match=r"(?s)\(batch.*Received"):
            keras_node.solve_ivp(
                lambda t, y: -y,
                (0, 1),
                odd.astype("float32"),
                solver="leapfrog",
            )
        with pytest.raises(ValueError, match="(?s)2 n.*Received"):
            keras_node.layers.Hamiltonian(layers.Dense(1))(odd)
    with pytest.raises(ValueError, match="beside"):
        made = block("leapfrog", kinetic_regularizer=0.1)
        made(Y0)
    for bad in (layers.Dense(2), layers.Reshape((1, 2))):
        with pytest.raises(ValueError, match="(?s)potential.*Received"):
            keras_node.layers.Hamiltonian(bad)(Y0)
    with pytest.raises(ValueError, match="`potential`"):
        keras_node.layers.Hamiltonian(lambda y: y)
    with pytest.raises(ValueError, match="time_dependent"):
        keras_node.layers.Hamiltonian(layers.Dense(1), time_dependent=1)
    with pytest.raises(ValueError, match="(?s)t, y.*Received"):
        keras_node.layers.Hamiltonian(layers.Dense(1), True)(Y0)


def test_kinks_are_warned_of():
    for kinked, name in (
        ([layers.Dense(4, "relu"), layers.Dense(1)], "relu"),
        ([layers.Dense(4), layers.LeakyReLU(), layers.Dense(1)], "LeakyReLU"),
    ):
        with pytest.warns(UserWarning, match=f"{name}.*softplus.*tanh"):
            keras_node.layers.Hamiltonian(kinked)(Y0)

"""Values between knots, and gaps that are filled."""

import keras
import numpy as np
import pytest
from helpers import COMPILED
from helpers import compilations
from helpers import numpy
from keras import layers
from keras import ops
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline

from keras_node import ODEBlock
from keras_node import backend
from keras_node import solvers
from keras_node.layers import Interpolate
from keras_node.layers import fill_missing

METHODS = ["previous", "linear", "hermite"]
RANDOM = np.random.default_rng(0)
# The second row has a knot twice, and both end in padding.
TS = np.array([[0.1, 0.4, 1.1, 1.5, 1.5], [-1.0, 0.0, 0.0, 0.7, 0.7]])
U = RANDOM.normal(size=(2, 5, 3))
HOW = COMPILED[0] if COMPILED else "eager"
TIMES = np.array([-2.0, -1.0, -0.3, 0.0, 0.1, 0.25, 0.4, 0.9, 1.1, 1.3, 1.5, 9])


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float64")


def path(method, ts, u, t, derivative=False):
    """The path by SciPy, which has no repeated knots."""
    last = np.append(np.diff(ts) > 0, True)
    first = np.insert(np.diff(ts) > 0, 0, True)
    before, after = u[first], u[last]  # on the way to a knot, and from it
    ts = ts[last]
    i = np.clip(np.searchsorted(ts, t, "right") - 1, 0, len(ts) - 1)
    if t < ts[0] or i == len(ts) - 1:
        return np.zeros(u.shape[1]) if derivative else after[i]
    if method == "previous":
        return np.zeros(u.shape[1]) if derivative else after[i]
    ends, values = ts[i : i + 2], np.stack([after[i], before[i + 1]])
    slope = np.diff(values, axis=0)[0] / np.diff(ends)
    slopes = np.stack([slope, slope])
    if method == "hermite" and i > 0:
        slopes[0] = (after[i] - after[i - 1]) / (ts[i] - ts[i - 1])
    return CubicHermiteSpline(ends, values, slopes)(t, int(derivative))


@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_path_is_that_of_scipy(method, derivative):
    layer = Interpolate(method, derivative, dtype="float64")
    rows, t = np.repeat([0, 1], len(TIMES)), np.tile(TIMES, 2)
    found = layer([*map(tensor, (t[:, None], TS[rows], U[rows]))])
    expected = [
        path(method, TS[i], U[i], time, derivative)
        for i, time in zip(rows, t, strict=True)
    ]
    np.testing.assert_allclose(numpy(found), expected, atol=1e-13)
    one = layer([tensor([[0.5]]), tensor([[0.7]]), tensor(U[:1, :1])])
    np.testing.assert_array_equal(numpy(one), 0 if derivative else U[0, :1])


@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_are_finite_differences(method, derivative):
    layer = Interpolate(method, derivative, dtype="float64")
    t = np.array([[0.25], [-9.0], [9.0], [0.25], [1.2]])
    ts, u = TS[[0, 0, 0, 1, 1]], RANDOM.normal(size=(5, 5, 3))
    adj = RANDOM.normal(size=(5, 3))

    @compilations()[HOW]
    def gradients(t, ts, u):
        return backend.vjp(lambda *args: layer(args), (t, ts, u), tensor(adj))

    _, found = numpy(gradients(*map(tensor, (t, ts, u))))
    assert all(np.isfinite(x).all() for x in found)
    ts = ts + [0, 0, 0.1, 0.2, 0.4]  # no knot twice
    _, found = numpy(gradients(*map(tensor, (t, ts, u))))
    for row in range(5):
        args = t[row, 0], ts[row], u[row]

        def loss(t, ts, u, row=row):
            return adj[row] @ path(method, ts, u, t, derivative)

        for k, x in enumerate(args):
            for i in np.ndindex(np.shape(x)):
                step = np.zeros(np.shape(x))
                step[i] = 1e-6
                up, down = (
                    loss(*args[:k], x + s * step, *args[k + 1 :])
                    for s in (1, -1)
                )
                slope = (up - down) / 2e-6
                there = found[k][row].reshape(np.shape(x))[i]
                np.testing.assert_allclose(there, slope, atol=1e-7)


def test_unix_seconds_lose_nothing_but_their_own_rounding():
    start = np.float32(1.7e9)
    ts = start + 1024 * np.arange(4, dtype="float32")[None]
    t = np.array([[start + 1024 + 256]], "float32")
    u = np.array([[[0.0], [1.0], [3.0], [0.0]]], "float32")
    found = numpy(Interpolate()([t, ts, u]))
    np.testing.assert_allclose(found, [[1.5]], rtol=1e-6)


class Driven(layers.Layer):
    """y' = u(t) - y."""

    def __init__(self, method):
        super().__init__(dtype="float64")
        self.interpolate = Interpolate(method, dtype="float64")

    def call(self, inputs):
        t, y, ts, u = inputs
        return self.interpolate([t, ts, u]) - y


@pytest.mark.parametrize("method", ["hermite", "linear"])
def test_inputs_over_time_drive_dynamics(method):
    ts, u = (
        np.array([[0, 0.5, 0.8, 1.2], [0.1, 0.3, 0.9, 0.9]]),
        U[:, [0, 1, 2, 2]],
    )
    made = ODEBlock(
        Driven(method),
        time_dependent=True,
        # Its steps end at the knots.
        solver=solvers.RK4(num_steps=40),
        adjoint="discrete",
        dtype="float64",
    )

    @compilations()[HOW]
    def function(y0, ts, u):
        return backend.vjp(
            lambda *args: made(list(args)), (y0, ts, u), tensor(np.ones((2, 3)))
        )

    y1, (_, _, adj_u) = numpy(function(*map(tensor, (U[:, 0], ts, u))))
    for i in range(2):

        def f(t, y, i=i):
            return path(method, ts[i], u[i], t) - y

        exact = solve_ivp(f, (0, 1), U[i, 0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(y1[i], exact.y[:, -1], atol=1e-6)
    # y1 is linear in u and y0, in the same way for all channels.
    found = np.einsum("bl,blc->bc", adj_u[..., 0], u) + U[:, 0] / np.e
    np.testing.assert_allclose(found, y1, atol=1e-6)


def test_a_layer_of_ones_own_takes_series_of_any_length():
    shapes = (1,), (3,), (None,), (None, 3)
    inputs = [keras.Input(shape, dtype="float64") for shape in shapes]
    assert Driven("linear")(inputs).shape == (None, 3)


def test_it_is_saved(tmp_path):
    t, ts, u = map(keras.Input, [(1,), (None,), (None, 3)])
    outputs = Interpolate("hermite", derivative=True)([t, ts, u])
    assert outputs.shape == (None, 3)
    model = keras.Model([t, ts, u], outputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs = [x.astype("float32") for x in (np.full((2, 1), 0.5), TS, U)]
    np.testing.assert_array_equal(
        loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )


@pytest.mark.parametrize(
    "inputs",
    [
        U,
        [TS, U],
        [TS[:, :1], U],
        [TS[:, :2], TS, U],
        [TS[:, :1], TS[:, :4], U],
        [TS[:, :1], TS[:, :0], U[:, :0]],
        [TS[:, :1], TS, U[..., 0]],
        [TS[:, :1], TS[:1], U],
        [TS[:, :1], -TS, U],
        [TS[:, :1], TS * [1, 1, np.nan, 1, 1], U],
    ],
)
def test_other_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match="(?s)`inputs`.*Received: "):
        Interpolate()(inputs)


N = np.nan
GAPS = np.array(
    [
        [[N, 1, N], [2, N, N], [N, N, N], [N, 4, N], [5, N, N]],
        [[1, N, 0], [2, 1, 1], [3, N, N], [N, N, N], [5, 5, 0]],
    ]
)


def filled(x, t, method):
    """Every channel by NumPy."""
    y = np.zeros_like(x)
    for i, _, c in np.ndindex(len(x), 1, x.shape[2]):
        seen = ~np.isnan(x[i, :, c])
        if seen.any() and method == "linear":
            y[i, :, c] = np.interp(t[i], t[i][seen], x[i, seen, c])
        elif seen.any():
            k = np.maximum(np.cumsum(seen) - 1, 0)
            y[i, :, c] = x[i, seen, c][k]
    return y


@pytest.mark.parametrize("method", ["linear", "previous"])
def test_gaps_are_filled_in_time(method):
    t = np.array([[0, 0.5, 0.7, 2, 3], [-1, 0, 0.1, 0.2, 5.0]])

    @compilations()[HOW]
    def gradients(x, t):
        return backend.vjp(
            lambda *args: fill_missing(*args, method=method), (x, t), adj
        )

    adj = tensor(RANDOM.normal(size=GAPS.shape))
    y, (adj_x, adj_t) = numpy(gradients(tensor(GAPS), tensor(t)))
    np.testing.assert_allclose(y, filled(GAPS, t, method), rtol=1e-14)
    # Each value is linear in what was seen, and so is the rest in time.
    weighed = np.sum(adj_x * np.nan_to_num(GAPS))
    np.testing.assert_allclose(weighed, np.sum(numpy(adj) * y), rtol=1e-12)
    assert np.isfinite(adj_t).all()
    assert not adj_x[np.isnan(GAPS)].any()
    for i in np.ndindex(t.shape):
        step = np.zeros_like(t)
        step[i] = 1e-6
        up, down = (filled(GAPS, t + s * step, method) for s in (1, -1))
        slope = np.sum(numpy(adj) * (up - down)) / 2e-6
        np.testing.assert_allclose(adj_t[i], slope, atol=1e-7)


def test_steps_without_times_are_as_long_as_each_other():
    t = np.arange(5.0)
    for found in (fill_missing(GAPS), fill_missing(GAPS, t)):
        expected = filled(GAPS, np.tile(t, (2, 1)), "linear")
        np.testing.assert_allclose(numpy(found), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("x", {"x": GAPS[0]}),
        ("x", {"x": GAPS[:, :0]}),
        ("x", {"x": [["a"]]}),
        ("x", {"x": np.ones((2, 5, 3), int)}),
        ("x", {"x": keras.KerasTensor((2, 5, 3))}),
        ("t", {"t": np.arange(4.0)}),
        ("t", {"t": np.zeros((3, 5))}),
        ("t", {"t": np.zeros((2, 5, 1))}),
        ("t", {"t": -np.arange(5.0)}),
        ("t", {"t": [0, 1, N, 3, 4]}),
        ("t", {"t": "now"}),
        ("method", {"method": "hermite"}),
    ],
)
def test_what_cannot_be_filled_is_refused(name, arguments):
    with pytest.raises(ValueError, match=f"(?s)`{name}`.*Received: "):
        fill_missing(**{"x": GAPS, **arguments})

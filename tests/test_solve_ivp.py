"""A function and not a layer: `solve_ivp`, beside SciPy's."""

import re

import keras
import numpy as np
import pytest
import scipy.integrate
from helpers import COMPILED
from helpers import accurate
from helpers import compilations
from helpers import numpy
from helpers import slow
from keras import layers
from keras import ops

import keras_node
from keras_node import adjoints
from keras_node import backend
from keras_node import solve_ivp
from keras_node.integration.solution import Status

HOW = (COMPILED or ["eager"])[0]


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float64")


def lotka_volterra(t, y, a, b, c, d):
    x, z = y[0], y[1]
    return [a * x - b * x * z, -c * z + d * x * z]


def test_what_scipy_solves_is_solved_likewise():
    args, t_eval = (1.5, 1, 3, 1), [0.0, 7.5, 2.5, 12.0]
    found = numpy(
        solve_ivp(
            lotka_volterra, (0, 15), [10.0, 5.0], t_eval, args,
            solver=accurate("dopri5", 1e-6),
        )
    )  # fmt: skip
    expected = scipy.integrate.solve_ivp(
        lotka_volterra, (0, 15), [10.0, 5.0], dense_output=True,
        args=args, rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    assert found.success and expected.success
    np.testing.assert_allclose(found.y1, expected.y[:, -1], rtol=1e-3)
    np.testing.assert_allclose(found.ys, expected.sol(t_eval).T, rtol=1e-3)
    assert isinstance(found, keras_node.Solution)


@pytest.mark.parametrize(
    "adjoint, own",
    [("discrete", False), *(slow(name, True) for name in adjoints.ALL)],
)
def test_structures_and_all_their_gradients(adjoint, own):
    """x' = -k x, w' = k x: by the state, the rate, the times and the ends."""
    random = np.random.default_rng(0)
    x, w, k = random.normal(size=(3, 2)), np.zeros((3, 2)), 0.7
    times, span = np.array([0.5, 0.2, 0.5]), np.array([0.1, 0.9])
    if own:
        times, span = np.tile(times, (3, 1)), np.tile(span, (3, 1))
        times = times + 0.1 * random.random((3, 3))

    def fun(t, y, params):
        flow = params["k"] * y["x"]
        return {"x": -flow, "w": flow + 0 * t}

    @compilations()[HOW]
    def run(y0, params, t_eval, t_span):
        def reported(y0, params, t_eval, t_span):
            return solve_ivp(
                fun, t_span, y0, t_eval, (params,),
                solver=accurate("tsit5", 1e-10), adjoint=adjoint,
            ).ys  # fmt: skip

        inputs = (y0, params, t_eval, t_span)
        ones = ops.ones((3, 3, 2), dtype="float64")
        return backend.vjp(reported, inputs, {"x": 2 * ones, "w": ones})

    y0 = {"x": tensor(x), "w": tensor(w)}
    ys, (adj_y0, adj_params, adj_t, adj_span) = numpy(
        run(y0, {"k": tensor(k)}, tensor(times), tensor(span))
    )
    rows = times if own else np.tile(times, (3, 1))
    since = (rows - 0.1).T[..., None]
    decay = np.exp(-k * since)
    np.testing.assert_allclose(ys["x"], decay * x, atol=1e-8)
    np.testing.assert_allclose(ys["w"], w + (1 - decay) * x, atol=1e-8)
    # The sum of 2 x(t) + w(t), which is x0 (1 + e^(-k t)) + w0.
    np.testing.assert_allclose(adj_y0["x"], (1 + decay).sum(0) + 0 * x)
    np.testing.assert_allclose(adj_y0["w"], 3 + 0 * w)
    exact_k = np.sum(-since * decay * x)
    np.testing.assert_allclose(adj_params["k"], exact_k, rtol=1e-7)
    slope = np.sum(-k * decay * x, axis=-1).T
    exact_t, exact_t0 = slope, -slope.sum(1)
    if not own:
        exact_t, exact_t0 = slope.sum(0), -slope.sum()
    np.testing.assert_allclose(adj_t, exact_t, atol=1e-8)
    np.testing.assert_allclose(adj_span[..., 0], exact_t0, atol=1e-8)
    np.testing.assert_allclose(adj_span[..., 1], 0, atol=1e-8)


def test_a_layer_that_a_function_closes_over_has_its_gradient():
    network = layers.Dense(3, "tanh")
    network.build((None, 3))
    block = keras_node.ODEBlock(network, solver="tsit5", adjoint="discrete")
    x = ops.convert_to_tensor(np.linspace(-1, 1, 6).reshape(2, 3), "float32")

    def by_function(x):
        return solve_ivp(lambda t, y: network(y), (0.0, 1.0), x).y1

    weights = network.trainable_variables

    def gradients(f):
        def loss(*values):
            with keras.StatelessScope(list(zip(weights, values, strict=True))):
                return f(x)

        values = tuple(v.value + 0 for v in weights)
        return numpy(backend.vjp(loss, values, ops.ones_like(x)))

    out, adj = gradients(by_function)
    expected, expected_adj = gradients(block)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    for a, b in zip(adj, expected_adj, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_shapes_dtypes_and_times_that_a_function_sees():
    seen = []

    def fun(t, y):
        seen.append((tuple(t.shape), keras.backend.standardize_dtype(y.dtype)))
        return -y

    for y0, span, state, time, dtype in (
        (1.0, (0, 1), (), (), "float32"),
        ([1, 2], (1, 0), (2,), (), "float32"),
        (np.ones((3, 2, 4), "float16"), (0, 1), (3, 2, 4), (), "float32"),
        (np.ones((3, 2)), [(0, 1)] * 3, (3, 2), (3, 1), "float64"),
    ):
        if isinstance(y0, np.ndarray):
            y0 = ops.convert_to_tensor(y0, y0.dtype.name)
        solution = solve_ivp(fun, span, y0)
        assert tuple(solution.y1.shape) == state
        assert set(seen) == {(time, dtype)}
        seen.clear()


def test_a_scalar_and_numbers_as_exact_as_the_state():
    rate = 0.1  # not a number of float32
    solution = solve_ivp(
        lambda t, y, rate, n: -rate * n * y, (0, 1), tensor(1.0), [0.5],
        (rate, 2), solver=accurate("tsit5", 1e-11),
    )  # fmt: skip
    np.testing.assert_allclose(numpy(solution.ys), [np.exp(-0.1)], rtol=1e-10)


def test_times_of_each_do_not_meet_parts_of_another_rank():
    spans = [(0, 1), (0, 2), (1, 2)]
    state = {"a": np.ones((3, 2)), "b": np.ones((3, 3, 2))}
    solution = solve_ivp(
        lambda t, y: {"a": 0 * y["a"], "b": t + 0 * y["b"]}, spans, state
    )
    exact = np.array([1.5, 3.0, 2.5])[:, None, None] + np.zeros((3, 3, 2))
    np.testing.assert_allclose(numpy(solution.y1["b"]), exact, rtol=1e-5)
    with pytest.raises(ValueError, match="`fun`"):
        solve_ivp(lambda t, y: {"a": t * y["a"], "b": y["b"]}, spans, state)


def test_a_failed_solve_does_not_raise():
    solution = solve_ivp(lambda t, y: y**2, (0.0, 1.0), [2.0])
    found = numpy(solution)
    assert np.isnan(found.y1).all() and found.status != Status.SUCCESS
    assert not numpy(solution.success) and abs(found.t - 0.5) < 1e-3
    with pytest.raises(keras_node.SolverError, match="t = 0.(49|5)"):
        solution.check()
    empty = solve_ivp(lambda t, y: y / 0.0, (1.0, 1.0), [2.0])
    assert np.isnan(numpy(empty.y1)).all()


def decay(t, y, *args):
    return -y


PER_SAMPLE = keras_node.solvers.Tsit5(per_sample=True)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("fun", {"fun": 3}),
        ("fun", {"fun": lambda t, y: {"y": y}}),
        ("fun", {"fun": lambda t, y: y[:1]}),
        ("fun", {"fun": lambda t, y: None}),
        ("fun", {"fun": lambda t, y: ops.cast(y, "int32")}),
        ("t_span", {"t_span": None}),
        ("t_span", {"t_span": (0, 1, 2)}),
        ("t_span", {"t_span": (0.0, float("nan"))}),
        ("t_span", {"t_span": [(0, 1)] * 3}),
        ("y0", {"y0": np.ones(2, "int32")}),
        ("y0", {"y0": []}),
        ("y0", {"y0": "state"}),
        ("y0", {"y0": {"x": None}}),
        ("y0", {"y0": 1.0, "t_eval": [[0.5]]}),
        ("y0", {"y0": 1.0, "solver": PER_SAMPLE}),
        ("t_eval", {"t_eval": [1.5]}),
        ("t_eval", {"t_eval": [[0.5]] * 3}),
        ("args", {"args": 2.0}),
        ("args", {"args": ("rate",)}),
        ("solver", {"solver": "eulerish"}),
        ("solver", {"solver": "dormand_prince"}),
        ("adjoint", {"adjoint": 3}),
        ("rtol", {"rtol": -1}),
        ("atol", {"atol": "small"}),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(name, changes):
    arguments = {"fun": decay, "t_span": (0.0, 1.0), "y0": [1.0, 2.0]}
    with pytest.raises(ValueError) as caught:
        solve_ivp(**{**arguments, **changes})
    assert re.search(rf"`{name}`.*Received: ", str(caught.value), re.S)

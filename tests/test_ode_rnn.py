"""Recurrent layers whose state evolves between observations."""

import itertools

import keras
import numpy as np
import pytest
from helpers import COMPILED
from helpers import accurate
from helpers import compilations
from helpers import numpy
from helpers import slow
from helpers import slow_unless
from keras import layers
from keras import ops
from scipy.linalg import expm

import keras_node
from keras_node import backend
from keras_node.backend import _private
from keras_node.layers import GRUODE
from keras_node.layers import ODERNN

BATCH, LENGTH = 3, 5
random = np.random.default_rng(0)
A = np.array([[-0.3, 1.1], [-0.9, 0.1]])
W, U = random.normal(size=(2, 3, 2))[:, :2]
X = random.normal(size=(BATCH, LENGTH, 2))
T = np.sort(random.uniform(high=1.5, size=(BATCH, LENGTH)), axis=1)
D = random.uniform(high=0.3, size=(BATCH, LENGTH))
# Gaps at the start, in the middle and at the end; and nothing to see.
MASK = np.array([[0, 1, 0, 0, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
SOLVER = keras_node.solvers.RK4(20)
H0 = random.normal(size=(BATCH, 2))


def tensor(x):
    return ops.convert_to_tensor(x, "float64")


class Linear(layers.Layer):
    """The product with a matrix, which Keras rounds to float32 on PyTorch."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(2, 2), name="matrix")

    def call(self, y):
        return y @ ops.convert_to_tensor(self.matrix)


class LinearCell(layers.Layer):
    """A cell `x W + h U`, in full precision."""

    state_size = 2

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Linear(**kwargs), Linear(**kwargs)

    def build(self, shape):
        for layer in self.inner:
            layer.build((None, 2))

    def call(self, x, states):
        w, u = self.inner
        h = w(x) + u(states[0])
        return h, [h]


def make(evolve="before", **kwargs):
    kwargs = {
        "solver": SOLVER,
        "dtype": "float64",
        **kwargs,
    }
    cell = LinearCell(dtype=kwargs["dtype"])
    dynamics = Linear(dtype=kwargs["dtype"])
    made = ODERNN(cell, dynamics, evolve, **kwargs)
    made.build([(BATCH, LENGTH, 2), (BATCH, LENGTH)])
    cell.set_weights([W, U])
    dynamics.set_weights([A.T])
    return made


def exact(x, t, mask, h, evolve, elapsed, backwards, weights=(W, U, A)):
    """Outputs at the steps, and the last state, sample by sample."""
    outputs, states = [], []
    w, u, a = weights
    for x, t, mask, h in zip(x, t, mask, h, strict=True):  # noqa: B020
        start, end = None, None
        if elapsed:
            start, end = 0.0, np.sum(t)
            t = np.cumsum(t) - (t if evolve == "after" else 0)
        steps = np.flatnonzero(mask)
        order = range(len(t))
        if backwards:
            start = end = None
            steps, order = steps[::-1], reversed(order)
        times = [t[k] for k in steps]
        if start is not None and times:
            h = expm(a * (times[0] - start)) @ h
        elif evolve == "after" and end is not None:
            h = expm(a * end) @ h
        end = times[-1] if end is None and times else end
        output = 0 * h
        for k in order:
            if k in steps:
                i = list(steps).index(k)
                if evolve == "before":
                    if i:
                        h = expm(a * (times[i] - times[i - 1])) @ h
                    h = x[k] @ w + h @ u
                else:
                    h = x[k] @ w + h @ u
                    following = [*times, end][i + 1]
                    h = expm(a * (following - times[i])) @ h
                output = h
            outputs.append(output)
        states.append(h)
    return np.reshape(outputs, (len(states), -1, 2)), np.array(states)


WAYS = [*itertools.product(("before", "after"), (False, True), (False, True))]
FAST = [WAYS[0], WAYS[6]]


def compiled(f):
    return compilations()[COMPILED[0]](f) if COMPILED else f


def cases(fast, all_cases):
    """All cases; where each is compiled, the others are in the slow group."""
    if keras.backend.backend() == "torch":
        return all_cases
    return slow_unless(lambda *case: case in fast, all_cases)


@pytest.mark.parametrize("evolve, elapsed, backwards", cases(FAST, WAYS))
def test_a_linear_system_is_solved(evolve, elapsed, backwards):
    made = make(
        evolve,
        elapsed=elapsed,
        go_backwards=backwards,
        return_sequences=True,
        return_state=True,
    )
    t = D if elapsed else T
    padded = np.where(MASK | elapsed, t, np.nan)
    x = np.where(MASK[..., None], X, np.nan)

    @compiled
    def run(x, t, padded, h):
        return (
            made([tensor(X), t], initial_state=[h]),
            made([x, padded], initial_state=[h], mask=MASK),
        )

    plain, masked = numpy(run(*map(tensor, (x, t, padded, H0))))
    for found, mask in ((plain, MASK | True), (masked, MASK)):
        wanted = exact(X, t, mask, H0, evolve, elapsed, backwards)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("evolve, elapsed, backwards", cases([WAYS[6]], WAYS))
def test_gradients_are_those_of_the_exact_solution(evolve, elapsed, backwards):
    made = make(
        evolve, elapsed=elapsed, go_backwards=backwards, return_sequences=True
    )
    t = D if elapsed else T
    adj = np.random.default_rng(1).normal(size=(BATCH, LENGTH, 2))

    @compiled
    def pull(values, x, t, h):
        def f(values, x, t, h):
            arguments = {"initial_state": [h], "mask": MASK}
            return made.stateless_call(values, [], [x, t], **arguments)[0]

        return backend.vjp(f, (values, x, t, h), tensor(adj))[1]

    values = [tensor(v) for v in made.trainable_variables]
    found = numpy(pull(values, tensor(X), tensor(t), tensor(H0)))
    names = [v.path for v in made.trainable_variables]
    assert len(names) == 3, names
    args = [W, U, A.T.copy(), X.copy(), t.copy(), H0.copy()]

    def loss():
        w, u, a, x, t, h = args
        out = exact(x, t, MASK, h, evolve, elapsed, backwards, (w, u, a.T))[0]
        return np.sum(adj * out)

    for arg, adj_arg in zip(args, [*found[0], *found[1:]], strict=True):
        for i in np.ndindex(arg.shape):
            value = arg[i]
            arg[i] = value + 1e-5
            more = loss()
            arg[i] = value - 1e-5
            slope = (more - loss()) / 2e-5
            arg[i] = value
            np.testing.assert_allclose(adj_arg[i], slope, rtol=1e-5, atol=1e-6)


def still(cell, units=4, **kwargs):
    """A layer whose state does not evolve."""
    dynamics = layers.Dense(units, kernel_initializer="zeros")
    solver = keras_node.solvers.Euler(1)
    return ODERNN(cell, dynamics, solver=solver, **kwargs)


SEEN = np.array([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], bool)
OPTIONS = [
    {"return_sequences": True, "return_state": True},
    {"return_sequences": True, "zero_output_for_mask": True},
    {"return_state": True, "go_backwards": True},
]


CASES = [*itertools.product(range(3), ("before", "after"))]


@pytest.mark.parametrize("options, evolve", cases([CASES[3]], CASES))
def test_without_dynamics_it_is_the_layer_of_keras(options, evolve):
    options = OPTIONS[options]
    cell = layers.LSTMCell(4)
    made = still(cell, evolve=evolve, **options)
    keras_own = layers.RNN(cell, **options)
    x, state = X.astype("float32"), np.ones((BATCH, 4), "float32")

    @compiled
    def run(x, t, state):
        plain = {"initial_state": [state, state]}
        masked = {"mask": ops.convert_to_tensor(SEEN)}
        return [
            (made([x, t], **kwargs), keras_own(x, **kwargs))
            for kwargs in (plain, masked)
        ]

    made.build([x.shape, T.shape])
    found = run(*map(ops.convert_to_tensor, (x, T, state)))
    for pair in numpy(found):
        for a, b in zip(*map(keras.tree.flatten, pair), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("evolve", ["before", slow("after")])
def test_unrolled_or_compiled_it_is_the_same(evolve):
    made = make(evolve, return_sequences=True)
    unrolled = make(evolve, return_sequences=True, unroll=True)
    inputs = [tensor(X), tensor(T)]
    wanted = numpy(made(inputs, mask=MASK))
    run = compiled(lambda inputs: unrolled(inputs, mask=MASK))
    np.testing.assert_allclose(numpy(run(inputs)), wanted, atol=1e-12)


CASES = [*itertools.product(("before", "after"), (False, True))]


@pytest.mark.parametrize("evolve, elapsed", cases([CASES[0]], CASES))
def test_a_stateful_layer_goes_on(evolve, elapsed):
    t = D if elapsed else T
    wanted = exact(X, t, MASK, 0 * H0, evolve, elapsed, False)[1]
    made = make(evolve, elapsed=elapsed, stateful=True, return_state=True)
    for part in (slice(0, 2), slice(2, 5)):
        found = made([X[:, part], t[:, part]], mask=MASK[:, part])[1]
    np.testing.assert_allclose(numpy(found), wanted, atol=1e-6)
    made.reset_state()
    first = numpy(made([X, t], mask=MASK)[1])
    np.testing.assert_allclose(first, wanted, atol=1e-6)
    if not elapsed:
        with pytest.raises(ValueError, match=r"decrease.*Received"):
            made([X, t], mask=MASK)


def test_it_is_trained_on_series_of_any_length():
    x, t = keras.Input((None, 2)), keras.Input((None,))
    h = ODERNN(
        layers.LSTMCell(4, dropout=0.1, recurrent_dropout=0.1),
        [layers.Dense(4, "tanh"), layers.Dropout(0.1)],
        evolve="after",
        return_sequences=True,
        solver=keras_node.solvers.Midpoint(2),
        name="first",
    )([layers.Masking()(x), t])
    cell, dynamics = layers.GRUCell(4), GRUODE(4)
    h = ODERNN(cell, dynamics, solver="heun", name="second")([h, t])
    model = keras.Model([x, t], layers.Dense(1)(h))
    assert h.shape == (None, 4)
    model.compile("adam", "mse")
    before = numpy([w.value for w in model.trainable_variables])
    history = model.fit(
        [np.where(SEEN[..., None], X, 0), T],
        X[:, 0, :1],
        epochs=2,
        callbacks=[keras_node.callbacks.SolverStats()],
        verbose=0,
    ).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["first_evals"][0] == 4 * LENGTH
    assert history["second_failed"] == [0, 0]
    after = numpy([w.value for w in model.trainable_variables])
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_a_mask_goes_on_in_the_order_of_the_outputs():
    x = layers.Masking()(np.where(SEEN[..., None], X, 0).astype("float32"))
    made = still(layers.GRUCell(4), return_sequences=True, go_backwards=True)
    out = made([x, T])
    mask = numpy(_private.mask_of(out))
    np.testing.assert_array_equal(mask, SEEN[:, ::-1])
    state = np.zeros((BATCH, 4), "float32")
    again = numpy(made([x, T], initial_state=[state]))
    np.testing.assert_allclose(again, numpy(out))


@pytest.mark.parametrize("how", compilations())
def test_a_failed_solve_is_told(how):
    made = make(solver="tsit5")
    made.dynamics.set_weights([np.full((2, 2), np.nan)])
    run = compilations()[how](lambda x, t: made([x, t]))
    if how == "eager":
        with pytest.raises(keras_node.SolverError, match="between two steps"):
            run(X, T)
    else:
        assert np.all(np.isnan(numpy(run(tensor(X), tensor(T)))))


@pytest.mark.skipif(not COMPILED, reason="nothing is compiled")
def test_times_in_disorder_give_nan_in_compiled_code():
    made = make()
    t = T.copy()
    t[1] = t[1, ::-1]
    out = compiled(lambda x, t: made([x, t]))(tensor(X), tensor(t))
    assert np.all(np.isnan(numpy(out)[1]))


def test_unix_seconds_are_told_apart():
    made = make(return_sequences=True)
    run = compiled(lambda x, t: made([x, t]))
    near, far = (numpy(run(tensor(X), tensor(t))) for t in (T, 1.7e9 + T))
    np.testing.assert_allclose(far, near, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", slow("mixed_bfloat16")])
def test_half_precision(policy):
    made = ODERNN(
        layers.GRUCell(4, dtype=policy),
        GRUODE(4, dtype=policy),
        return_state=True,
        solver=keras_node.solvers.Midpoint(2),
        dtype=policy,
    )
    for y in made([X, T]):
        assert keras.backend.standardize_dtype(y.dtype) == policy[6:]
        assert np.all(np.isfinite(numpy(ops.cast(y, "float32"))))


class Rate(layers.Layer):
    """dh/dt = 2 t"""

    def call(self, inputs):
        t, h = inputs
        return 0 * h + 2 * t


class Keep(layers.Layer):
    """A cell that sees nothing."""

    state_size = 1

    def call(self, x, states):
        return states[0], states


@pytest.mark.parametrize("elapsed", [slow(False), True])
def test_the_dynamics_get_the_real_time(elapsed):
    made = ODERNN(
        Keep(dtype="float64"),
        Rate(dtype="float64"),
        elapsed=elapsed,
        time_dependent=True,
        dtype="float64",
    )
    t = 3 + T
    given = np.diff(t, axis=1, prepend=0) if elapsed else t
    wanted = t[:, -1] ** 2 - (0 if elapsed else t[:, 0] ** 2)
    run = compiled(lambda x, t: made([x, t]))
    found = numpy(run(tensor(X), tensor(given)))[:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "solver, adjoint",
    [("dormand_prince", "backsolve"), slow("tsit5", "interpolating")],
)
def test_other_solvers_and_adjoints(solver, adjoint):
    made = make(solver=accurate(solver, 1e-9), adjoint=adjoint)
    adj = np.ones((BATCH, 2))

    @compiled
    def pull(x, t):
        return backend.vjp(lambda *xs: made(list(xs)), (x, t), tensor(adj))

    y, (adj_x, _) = numpy(pull(tensor(X), tensor(T)))
    every = np.ones((BATCH, LENGTH), bool)
    y_exact = exact(X, T, every, 0 * H0, "before", False, False)[1]
    np.testing.assert_allclose(y, y_exact, atol=1e-6)
    adj_h = adj
    for k in range(LENGTH - 1, -1, -1):
        np.testing.assert_allclose(adj_x[:, k], adj_h @ W.T, atol=1e-6)
        flows = [expm(A * gap) for gap in T[:, k] - T[:, k - 1]]
        adj_h = np.einsum("bi,bij->bj", adj_h @ U.T, flows)


def test_the_state_of_a_gated_unit_stays_within_bounds():
    h = np.random.default_rng(0).uniform(-1, 1, size=(8, 4))
    made = GRUODE(4, bias_initializer="ones", recurrent_initializer="normal")
    block = keras_node.ODEBlock(made, t_span=(0.0, 50.0), solver="tsit5")
    assert np.max(np.abs(numpy(block(h)))) < 1
    kernel, bias = made.get_weights()

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    r = sigmoid(h @ kernel[:, :4] + bias[:4])
    z = sigmoid(h @ kernel[:, 4:8] + bias[4:8])
    g = np.tanh((r * h) @ kernel[:, 8:] + bias[8:])
    np.testing.assert_allclose(numpy(made(h)), (1 - z) * (g - h), atol=1e-6)


def test_both_ways_by_the_wrapper_of_keras():
    """As `Bidirectional` does it: with masks in lists, and outputs turned."""
    x, t = (
        np.random.default_rng(0).normal(size=(2, 4, 3)),
        np.array([0, 0.5, 0.7, 2]),
    )
    x, t = x.astype("float32"), np.tile(t.astype("float32"), (2, 1))
    layer = ODERNN(
        layers.GRUCell(3), layers.Dense(3, "tanh"), return_sequences=True
    )
    both = layers.Bidirectional(layer)
    found = numpy(both([ops.convert_to_tensor(x), ops.convert_to_tensor(t)]))
    one, other = both.forward_layer, both.backward_layer
    expected = [numpy(one([x, t])), numpy(other([x, t]))[:, ::-1]]
    np.testing.assert_allclose(
        found, np.concatenate(expected, axis=-1), atol=1e-6
    )
    assert both([keras.Input((4, 3)), keras.Input((4,))]).shape == (None, 4, 6)
    # A mask as rows of booleans is a mask, too.
    rows = [[True, True, False, True]] * 2
    masked = numpy(layer([x, t], mask=rows))
    np.testing.assert_array_equal(masked[:, 2], masked[:, 1])

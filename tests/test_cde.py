"""Controlled differential equations, driven by series."""

import keras
import numpy as np
import pytest
from helpers import COMPILED
from helpers import JITS
from helpers import compilations
from helpers import numpy
from helpers import run_python
from helpers import slow
from helpers import slow_on
from keras import layers
from keras import ops
from scipy.integrate import solve_ivp
from test_interpolate import filled
from test_interpolate import path

import keras_node
from keras_node import backend
from keras_node import solvers
from keras_node.layers import CDEBlock

HOW = COMPILED[0] if COMPILED else "eager"
METHODS = ["linear", "hermite"]
# Where each is compiled, the other is in the slow group.
FAST = METHODS if HOW == "eager" else [slow("linear"), "hermite"]
RANDOM = np.random.default_rng(0)
B, T, C, H = 3, 5, 2, 2
X = RANDOM.normal(size=(B, T, C))
X[0, 1, 0] = X[1, 0, 1] = X[2, 2, 0] = np.nan
# At times of their own, one of them far away.
TIMES = np.cumsum(RANDOM.uniform(0.1, 1, size=(B, T)), axis=1) + [[0], [0], [5]]
LENGTHS = [5, 3, 4]
MASK = np.arange(T) < np.array(LENGTHS)[:, None]
KERNEL = 0.7 * RANDOM.normal(size=(H, H * (C + 1)))
START = RANDOM.normal(size=(C + 1, H))


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float64")


class Linear(layers.Layer):
    """A `Dense` layer in the precision of its input, on PyTorch too."""

    def __init__(self, width, dtype):
        super().__init__(dtype=dtype)
        self.width = width

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.width))

    def call(self, x):
        return x @ ops.convert_to_tensor(self.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)


def block(method="hermite", kernel=KERNEL, **kwargs):
    """A linear equation: h' = (A_0 + sum_c A_c dx_c/dt) h."""
    kwargs = {"dtype": "float64", "rtol": 1e-7, "atol": 1e-7, **kwargs}
    dtype = kwargs["dtype"]
    made = CDEBlock(
        Linear(H * (C + 1), dtype),
        method,
        Linear(H, dtype),
        **kwargs,
    )
    made.build([(None, T, C), (None, T)])
    made.dynamics.set_weights([kernel])
    made.initial.set_weights([START])
    return made


def reference(method, x, t, kernel):
    """The states at all times of one series, by SciPy."""
    x = np.concatenate(
        [t[:, None], filled(x[None], t[None], "linear")[0]], axis=-1
    )
    matrices = kernel.reshape(H, H, C + 1)
    states = [x[0] @ START]

    def f(s, h):
        dx = path(method, t, x, s, derivative=True)
        return np.einsum("jic,c,j->i", matrices, dx, h)

    for start, end in zip(t, t[1:], strict=False):
        # Up to the last float before a knot, where the slope jumps.
        to = np.nextafter(end, start)
        solved = solve_ivp(
            f, (start, to), states[-1], rtol=1e-10, atol=1e-10, method="DOP853"
        )
        states.append(solved.y[:, -1])
    return np.array(states)


@pytest.mark.parametrize("method", FAST)
def test_a_linear_equation_and_its_gradients(method):
    made = block(method, return_sequences=True)
    adj = RANDOM.normal(size=(B, T, H))
    weights = made.dynamics.kernel

    @compilations()[HOW]
    def function(x, t, kernel):
        def call(x, t, kernel):
            with keras.StatelessScope([(weights, kernel)]):
                return made([x, t], mask=ops.convert_to_tensor(MASK))

        return backend.vjp(call, (x, t, kernel), tensor(adj))

    def exact(x, t, kernel):
        found = np.zeros((B, T, H))
        for i, n in enumerate(LENGTHS):
            found[i, :n] = reference(method, x[i, :n], t[i, :n], kernel)
            found[i, n:] = found[i, n - 1]
        return found

    args = (X, TIMES, KERNEL)
    states, gradients = numpy(function(*map(tensor, args)))
    np.testing.assert_allclose(states, exact(*args), atol=2e-6)
    for k, gradient in enumerate(gradients):
        assert np.isfinite(gradient).all()
        direction = RANDOM.normal(size=gradient.shape)
        up, down = (
            exact(*args[:k], args[k] + e * direction, *args[k + 1 :])
            for e in (1e-4, -1e-4)
        )
        slope = np.sum(adj * (up - down)) / 2e-4
        found = np.sum(gradient * direction)
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)
    # Masked steps have no say.
    assert not gradients[0][~MASK].any() and not gradients[1][~MASK].any()


@slow_on("jax", "tensorflow")
@pytest.mark.parametrize("method", METHODS)
def test_padding_is_as_if_it_were_not_there(method):
    x, t = X.copy(), TIMES.copy()
    x[~MASK], t[~MASK] = 1e6, np.nan
    t[1, 3] = -1e9
    made = block(method, rtol=1e-6, atol=1e-6)
    found = numpy(made([tensor(x), tensor(t)], mask=MASK))
    alone = made([tensor(x[1:2, : LENGTHS[1]]), tensor(t[1, : LENGTHS[1]])])
    np.testing.assert_allclose(found[1], numpy(alone)[0], atol=2e-5)


@slow_on("jax", "tensorflow")
def test_a_value_that_lies_on_the_line_may_be_missing():
    made = block("linear", rtol=1e-6, atol=1e-6)
    x, t = np.nan_to_num(X), TIMES
    share = (t[:, 2] - t[:, 1]) / (t[:, 3] - t[:, 1])
    x[:, 2] = x[:, 1] + share[:, None] * (x[:, 3] - x[:, 1])
    some = [0, 1, 3, 4]
    found = numpy(made([tensor(x[:, some]), tensor(t[:, some])]))
    x[:, 2, 1] = np.nan
    np.testing.assert_allclose(
        numpy(made([tensor(x), tensor(t)])), found, atol=2e-5
    )


@pytest.mark.parametrize("how", COMPILED[:1])
def test_compiled_times_and_masks_that_an_eager_call_refuses(how):
    made = block("linear", rtol=1e-6, atol=1e-6)
    t, mask = TIMES.copy(), np.ones((B, T), bool)
    t[0, 1:3] = t[0, [2, 1]]
    mask[1, [0, 2]] = False
    mask[2] = False
    run = compilations()[how](lambda x, t, mask: made([x, t], mask=mask))
    found = numpy(run(tensor(X), tensor(t), ops.convert_to_tensor(mask)))
    assert np.isnan(found[0]).all()
    alone = made([tensor(X[1:2, mask[1]]), tensor(t[1, mask[1]])])
    np.testing.assert_allclose(found[1], numpy(alone)[0], atol=2e-5)
    assert not found[2].any()  # nothing at all: its initial state is 0
    with pytest.raises(ValueError, match="`t` must increase"):
        made([tensor(X), tensor(t)])
    with pytest.raises(ValueError, match="`mask`.*end of a series"):
        made([tensor(X), tensor(TIMES)], mask=mask)


@pytest.mark.parametrize("method", METHODS)
def test_one_observation_is_the_initial_state(method):
    made = block(method, return_sequences=True)
    x = np.nan_to_num(X[:, :1])
    found = numpy(made([tensor(x), tensor(TIMES[:, :1])]))
    first = np.concatenate([TIMES[:, :1], x[:, 0]], axis=-1)
    np.testing.assert_allclose(found[:, 0], first @ START, rtol=1e-14)


@slow_on("jax", "tensorflow")
def test_unix_seconds_lose_nothing():
    made = block(dtype="float32", rtol=1e-5, atol=1e-5)
    made.initial.set_weights([START * [[0], [1], [1]]])
    x = ops.convert_to_tensor(X, "float32")
    found, expected = (
        numpy(made([x, tensor(t)])) for t in (TIMES + 1.7e9, TIMES)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def series(n=32, size=5):
    """Which way round does it turn? Seen at times of its own."""
    random = np.random.default_rng(0)
    t = np.sort(random.uniform(0, 3, (n, size)), axis=1).astype("float32")
    y = random.integers(0, 2, n).astype("float32")
    phase = (2 * y[:, None] - 1) * 2 * t + random.uniform(0, 6, (n, 1))
    x = np.stack([np.cos(phase), np.sin(phase)], -1).astype("float32")
    x[random.random(x.shape) < 0.1] = np.nan
    mask = np.arange(size) < random.integers(2, size + 1, (n, 1))
    return (x, t, mask), y[:, None]


FUNCTIONAL = """
import keras, numpy as np, keras_node
from test_cde import series
inputs, y = series()
"""


@pytest.mark.parametrize("jit_compile", [JITS[0], *map(slow, JITS[1:])])
def test_a_model_learns_and_is_saved(jit_compile, tmp_path):
    inputs, y = series()
    x, t = keras.Input((None, 2)), keras.Input((None,))
    mask = keras.Input((None,), dtype="bool")
    dynamics = [layers.Dense(8, "tanh"), layers.Dense(4 * 3, "tanh")]
    made = CDEBlock(dynamics, return_sequences=True)
    states = made([x, t], mask=mask)
    assert states.shape == (None, None, 4)
    pooled = layers.GlobalAveragePooling1D()(states)
    outputs = layers.Dense(1, "sigmoid")(pooled)
    model = keras.Model([x, t, mask], outputs)
    model.compile(
        keras.optimizers.Adam(0.1),
        "binary_crossentropy",
        jit_compile=jit_compile,
    )
    stats = keras_node.callbacks.SolverStats()
    losses = model.fit(
        inputs, y, batch_size=32, epochs=8, verbose=0, callbacks=[stats]
    ).history["loss"]
    assert losses[-1] < 0.6 * losses[0], losses
    path, answer = tmp_path / "model.keras", tmp_path / "answer.npy"
    model.save(path)
    run_python(
        f"{FUNCTIONAL}model = keras.models.load_model({str(path)!r})\n"
        f"y = model.predict(inputs, verbose=0)\n"
        f"np.save({str(answer)!r}, y)"
    )
    found = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(np.load(answer), found, rtol=1e-6)


@slow_on("tensorflow")
def test_the_mask_of_keras_counts_and_goes_on():
    x, t = (ops.convert_to_tensor(a, "float32") for a in (X, TIMES))
    made = block(dtype="float32", rtol=1e-3, atol=1e-3, return_sequences=True)
    last = block(dtype="float32", rtol=1e-3, atol=1e-3)
    expected = numpy(made([x, t], mask=MASK))
    x._keras_mask = ops.convert_to_tensor(MASK)
    found = made([x, t])
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-6)
    np.testing.assert_array_equal(numpy(found._keras_mask), MASK)
    found = last([x, t])
    np.testing.assert_allclose(numpy(found), expected[:, -1], rtol=1e-3)
    assert getattr(found, "_keras_mask", None) is None


def test_half_precision_keeps_times_apart():
    made = CDEBlock(
        layers.Dense(H * (C + 1), "tanh"), dtype="mixed_bfloat16", rtol=1e-2
    )
    x, t = X.astype("float32"), 100 + TIMES.astype("float32")
    found = made([x, t])
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    assert np.isfinite(numpy(ops.cast(found, "float32"))).all()


def test_a_solve_that_fails_says_so():
    made = block(solver=solvers.Tsit5(max_steps=2), rtol=None, atol=None)
    with pytest.raises(keras_node.SolverError):
        made([tensor(X), tensor(TIMES)])


X32, T32 = np.ones((3, 5, 2), "float32"), np.arange(5, dtype="float32")
ROWS = np.tile(T32, (3, 1))


@pytest.mark.parametrize(
    "name, inputs, mask",
    [
        ("inputs", X32, None),
        ("inputs", [X32], None),
        ("inputs", [X32, T32, T32], None),
        ("inputs", [X32[:, :0], T32[:0]], None),
        ("inputs", [X32[0], T32], None),
        ("inputs", [X32[..., None], T32], None),
        ("inputs", [X32[..., :1], T32], None),
        ("inputs", [X32.astype("int32"), T32], None),
        ("t", [X32, T32[:4]], None),
        ("t", [X32, ROWS[:2]], None),
        ("t", [X32, T32[0]], None),
        ("t", [X32, ROWS[..., None]], None),
        ("t", [X32, -T32], None),
        ("t", [X32, 0 * T32], None),
        ("t", [X32, T32 * np.nan], None),
        ("mask", [X32, T32], np.ones((3, 4), bool)),
        ("mask", [X32, T32], np.ones((3, 5))),
        ("mask", [X32, T32], ROWS != 2),
    ],
)
def test_other_inputs_are_refused(name, inputs, mask):
    made = block(dtype="float32")
    with pytest.raises(ValueError, match=f"(?s)`({name}|inputs)`.*Received: "):
        made(inputs, mask=mask)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("dynamics", {"dynamics": layers.Dense(7)}),
        ("dynamics", {"dynamics": layers.Reshape((1, -1))}),
        ("dynamics", {"dynamics": layers.Dense(9), "initial": layers.Dense(2)}),
        ("dynamics", {"dynamics": [np.tanh]}),
        ("initial", {"initial": layers.Reshape((3, 1))}),
        ("initial", {"initial": np.tanh}),
        ("interpolation", {"interpolation": "previous"}),
        ("solver", {"solver": "rk4"}),
    ],
)
def test_other_arguments_are_refused(name, arguments):
    with pytest.raises(ValueError, match=f"(?s)`{name}`.*Received: "):
        CDEBlock(**{"dynamics": layers.Dense(6), **arguments})([X32, T32])

"""Times far from 0, at an end but for rounding, and kept in weights."""

import contextlib
import functools
import re

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import COMPILED
from helpers import JITS
from helpers import compilations
from helpers import numpy
from helpers import slow_unless
from keras import layers
from keras import ops

import keras_node
from keras_node import ODEBlock
from keras_node import backend
from keras_node import solvers

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
ON_JAX = keras.backend.backend() == "jax"
UNIX = (1.7e9, 1.7e9 + 3600)
SPANS = {
    "unix": UNIX,
    "milliseconds": (1.7e12, 1.7e12 + 5000),
    "julian": (2460000.0, 2460001.0),
    "mjd": (60000.1, 60000.0),
    "zero": (0.0, 3600.0),
    "negative": (-1e9, -1e9 - 60),
}
FRACTIONS = np.array([0.5, 0.0, 1.0, 0.2501, 0.25, 0.25])
X = np.zeros((2, 1), "float32")


@pytest.fixture(autouse=True)
def single_precision():
    """JAX as it is found: without float64."""
    disabled = contextlib.nullcontext()
    if ON_JAX:
        import jax

        disabled = _x64(jax, False)
    with disabled:
        yield


def _x64(jax, enabled):
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    names = {True: "enable_x64", False: "disable_x64"}
    return getattr(jax.experimental, names[enabled])()


class Clock(layers.Layer):
    """y = the share of the span that has gone: exact in any solver."""

    def __init__(self, span, **kwargs):
        super().__init__(**kwargs)
        self.duration = span[1] - span[0]

    def call(self, y):
        return ops.ones_like(y) / self.duration


def clock(span, **kwargs):
    kwargs = {"solver": solvers.Euler(4), **kwargs}
    return ODEBlock(Clock(span), t_span=span, **kwargs)


def at(span, fractions=FRACTIONS):
    return span[0] + fractions * (span[1] - span[0])


def shares(states):
    return numpy(states)[0, :, 0]


@pytest.mark.parametrize("name", SPANS)
def test_only_the_time_since_the_start_counts(name):
    span = SPANS[name]
    times = at(span)
    expected = (times - span[0]) / (span[1] - span[0])
    made = clock(span, t_eval=times, solver="tsit5")
    compiled = list(compilations().values())[-1]
    x = ops.convert_to_tensor(X)
    for states in (compiled(made)(x), clock(span)(X, t_eval=times)):
        # Tsit5's coefficients reach 13, and its rounding errors likewise.
        np.testing.assert_allclose(shares(states), expected, atol=5e-6)


def forms(times):
    """Unix seconds in every form."""
    whole = times.astype("int64")
    yield from (times.tolist(), tuple(whole.tolist()), list(times), times)
    yield from (whole, whole.astype("uint32"), times.astype("longdouble"))
    yield ops.convert_to_tensor(whole)
    yield keras.Variable(whole, dtype="int32", trainable=False)
    if not ON_JAX:
        yield ops.convert_to_tensor(times)


def test_times_of_every_form_are_as_exact_as_given():
    times = at(UNIX, np.array([0.25, 0.75]))
    made = clock(UNIX)
    for given in forms(times):
        assert clock(UNIX, t_eval=given).t_eval == times.tolist()
        states = shares(made(X, t_eval=given))
        np.testing.assert_allclose(states, [0.25, 0.75], atol=1e-6)
    # As a constant of a functional model, saved with it, and as its input.
    x, t = keras.Input((1,)), keras.Input(batch_shape=(2,), dtype="float64")
    model = keras.Model(x, made(x, t_eval=times))
    with keras.saving.custom_object_scope({"Clock": Clock}):
        model = keras.Model.from_config(model.get_config())
    np.testing.assert_allclose(shares(model(X)), [0.25, 0.75], atol=1e-6)
    if not ON_JAX:
        model = keras.Model([x, t], made(x, t_eval=t))
        states = model([ops.convert_to_tensor(v) for v in (X, times)])
        np.testing.assert_allclose(shares(states), [0.25, 0.75], atol=1e-6)


@pytest.mark.parametrize("how", COMPILED)
def test_whole_and_exact_times_in_compiled_code(how):
    times = at(UNIX, np.array([0.25, 0.75]))
    made = clock(UNIX)

    def run(times):
        return made(ops.convert_to_tensor(X), t_eval=times)

    if ON_JAX:
        import jax

        with _x64(jax, True):
            states = compilations()[how](run)(ops.convert_to_tensor(times))
        np.testing.assert_allclose(shares(states), [0.25, 0.75], atol=1e-6)
        return
    for dtype in ("int64", "float64"):
        states = compilations()[how](run)(ops.convert_to_tensor(times, dtype))
        np.testing.assert_allclose(shares(states), [0.25, 0.75], atol=1e-6)


@pytest.mark.parametrize("name", ["unix", "julian", "mjd"])
def test_a_dtype_that_does_not_tell_the_times_apart_is_refused(name):
    span = SPANS[name]
    array = at(span).astype("float32")
    tensor = ops.convert_to_tensor(array)
    made = clock(span)

    def call(times, x=X):
        return made(x, t_eval=times)

    calls = [
        lambda: clock(span, t_eval=array),
        lambda: call(keras.Input(batch_shape=(6,)), keras.Input((1,))),
    ]
    for times in (array, tensor):
        # What compiled code is made of is known before there are values.
        for wrap in compilations().values():
            calls.append(functools.partial(wrap(call), times))
    for refused in calls:
        with pytest.raises(ValueError, match="`t_eval`.*float64"):
            refused()


def test_float32_is_enough_for_a_thousand_days():
    times = np.float32([60250, 60500])
    states = clock((60000.0, 61000.0))(X, t_eval=times)
    np.testing.assert_allclose(shares(states), [0.25, 0.5], atol=1e-6)


class Growth(layers.Layer):
    """y = exp(u s) y0, with s the share of the span that has gone."""

    def __init__(self, span):
        super().__init__()
        self.duration = span[1] - span[0]

    def call(self, inputs):
        y, u = inputs
        return u * y / self.duration


@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(
        lambda _, adjoint: adjoint in ("backsolve", "discrete"), ADJOINTS
    ),
)
def test_gradients_far_from_0(solver, adjoint):
    span = UNIX[::-1]
    solver = solvers.get(solver, rtol=1e-6, atol=1e-6)
    block = ODEBlock(Growth(span), span, at(span), solver, adjoint)

    def run(y0, u):
        def total(y0, u):
            return ops.sum(block.solve([y0, u]).ys, axis=0)

        return backend.vjp(total, (y0, u), ops.ones_like(y0))

    if COMPILED:
        run = compilations()[COMPILED[0]](run)
    rate = np.float32([[-1.5], [0.5]])
    y0, u = ops.ones((2, 1)), ops.convert_to_tensor(rate)
    total, (adj_y0, adj_u) = numpy(run(y0, u))
    growth = np.exp(rate * FRACTIONS)
    exact = growth.sum(1, keepdims=True)
    np.testing.assert_allclose(total, exact, rtol=1e-5)
    np.testing.assert_allclose(adj_y0, exact, rtol=1e-5)
    exact = (FRACTIONS * growth).sum(1, keepdims=True)
    np.testing.assert_allclose(adj_u, exact, rtol=1e-5)


@pytest.mark.parametrize(
    "solver", ["tsit5", *(["dormand_prince"] if ON_TENSORFLOW else [])]
)
def test_a_time_at_an_end_but_for_rounding_is_the_end(solver):
    span = (0.1, 0.1 + 0.3)
    decay = layers.Dense(1, kernel_initializer=keras.initializers.Constant(-1))
    block = ODEBlock(decay, t_span=span, solver=solver)
    x = np.ones((2, 1), "float32")
    rounded = [0.1 - 1e-17, 0.2, 0.4 + 1e-16]
    for times in (rounded, np.float32([0.1, 0.2, 0.4])):
        made = ODEBlock(decay, t_span=span, t_eval=times, solver=solver)
        assert (made.t_eval[0], made.t_eval[-1]) == span
        solution = block.solve(x, t_eval=times)
        y1, (start, between, end) = numpy((solution.y1, solution.ys))
        np.testing.assert_array_equal(start, x)
        np.testing.assert_array_equal(end, y1)
        assert np.all(between > y1)
    for beyond in (span[1] * (1 + 2e-6), span[0] * (1 - 4e-6)):
        message = f"within `t_span`.*{re.escape(str(beyond))}"
        with pytest.raises(ValueError, match=message):
            ODEBlock(decay, t_span=span, t_eval=[beyond])
        with pytest.raises(ValueError, match=message):
            block(x, t_eval=[beyond])


class TimesInAWeight(keras.Model):
    def __init__(self, times, **kwargs):
        super().__init__(**kwargs)
        self.ode = ODEBlock(
            Clock((0.0, 1.0), dtype="float32"),
            solver=solvers.Euler(4),
            dtype="float32",
        )
        self.bias = layers.Dense(1, dtype="float32")
        self.times = self.add_weight(
            shape=(2,),
            initializer=lambda *_, **__: ops.convert_to_tensor(times),
            trainable=False,
        )

    def call(self, x):
        return self.bias(self.ode(x, t_eval=self.times))


@pytest.mark.parametrize(
    "dtype, jit_compile",
    [("float32", JITS[0]), ("mixed_bfloat16", ON_TENSORFLOW or ON_JAX)],
)
def test_times_may_be_kept_in_a_weight(dtype, jit_compile):
    # Under a mixed policy bfloat16 would make 1 of 0.998.
    model = TimesInAWeight(np.float32([0.5, 0.998]), dtype=dtype)
    model(X)
    model.bias.set_weights([np.ones((1, 1)), np.zeros(1)])
    np.testing.assert_allclose(shares(model(X)), [0.5, 0.998], atol=1e-6)
    model.compile("sgd", "mse", jit_compile=jit_compile)
    found = model.predict(X, verbose=0)
    np.testing.assert_allclose(shares(found), [0.5, 0.998], atol=1e-6)
    model.times.assign([0.25, 0.5])
    y = np.tile(np.float32([[[0.25], [0.5]]]), (2, 1, 1))
    loss = model.fit(X, y, verbose=0).history["loss"]
    np.testing.assert_allclose(loss, 0, atol=1e-9)
    found = model.predict(X, verbose=0)
    np.testing.assert_allclose(shares(found), [0.25, 0.5], atol=1e-6)


def test_a_functional_model_reads_the_variable_in_each_call():
    times = keras.Variable([0.25, 0.5])
    x = keras.Input((1,))
    model = keras.Model(x, clock((0.0, 1.0))(x, t_eval=times))
    np.testing.assert_allclose(shares(model(X)), [0.25, 0.5], atol=1e-6)
    times.assign([0.75, 1.0])
    np.testing.assert_allclose(shares(model(X)), [0.75, 1.0], atol=1e-6)


def test_a_failure_tells_when():
    # y' = y^2 / 1800 from 1 has a pole half an hour from the start.
    class Explosion(layers.Layer):
        def call(self, y):
            return ops.square(y) / 1800

    block = ODEBlock(Explosion(), t_span=UNIX, solver="tsit5")
    with pytest.raises(keras_node.SolverError) as caught:
        block(np.ones((1, 1), "float32"))
    t = float(re.search(r"t = (\S+) ", str(caught.value))[1])
    assert abs(t - (UNIX[0] + 1800)) < 1

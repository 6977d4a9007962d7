"""Times far from 0, at an end but for rounding, and kept in weights."""

import contextlib
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

        disabled = jax.experimental.disable_x64()
    with disabled:
        yield


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
        np.testing.assert_allclose(shares(states), expected, atol=1e-6)


def forms(times):
    """Unix seconds in every form, and which are known in compiled code."""
    whole = times.astype("int64")
    return {
        "list": times.tolist(),
        "ints": tuple(whole.tolist()),
        "scalars": list(times),
        "int64": whole,
        "uint32": whole.astype("uint32"),
        "long": times.astype("longdouble"),
        "tensor": ops.convert_to_tensor(whole),
    }


def test_times_of_every_form_are_as_exact_as_given():
    times = at(UNIX, np.array([0.25, 0.75]))
    made = clock(UNIX)
    given = forms(times)
    if not ON_JAX:
        given["float64"] = ops.convert_to_tensor(times)
    for form, value in given.items():
        states = shares(made(X, t_eval=value))
        np.testing.assert_allclose(states, [0.25, 0.75], atol=1e-6), form
        assert clock(UNIX, t_eval=value).t_eval == times.tolist()
    # As a constant of a functional model, saved with it, and as its input.
    x, t = keras.Input((1,)), keras.Input(batch_shape=(2,), dtype="float64")
    model = keras.Model(x, made(x, t_eval=times))
    model = keras.Model.from_config(
        model.get_config(), custom_objects={"Clock": lambda **_: Clock(UNIX)}
    )
    np.testing.assert_allclose(shares(model(X)), [0.25, 0.75], atol=1e-6)
    if not ON_JAX:
        model = keras.Model([x, t], made(x, t_eval=t))
        states = model([X, ops.convert_to_tensor(times)])
        np.testing.assert_allclose(shares(states), [0.25, 0.75], atol=1e-6)


@pytest.mark.parametrize("how", COMPILED)
def test_whole_and_exact_times_in_compiled_code(how):
    times = at(UNIX, np.array([0.25, 0.75]))
    made = clock(UNIX)

    def run(times):
        return made(ops.convert_to_tensor(X), t_eval=times)

    if ON_JAX:
        import jax

        with jax.experimental.enable_x64():
            states = compilations()[how](run)(ops.convert_to_tensor(times))
        np.testing.assert_allclose(shares(states), [0.25, 0.75], atol=1e-6)
        return
    for dtype in ("int64", "float64"):
        states = compilations()[how](run)(ops.convert_to_tensor(times, dtype))
        np.testing.assert_allclose(shares(states), [0.25, 0.75], atol=1e-6)


def test_a_dtype_that_does_not_tell_the_times_apart_is_refused():
    for name in ("unix", "julian", "mjd"):
        span = SPANS[name]
        array = at(span).astype("float32")
        tensor = ops.convert_to_tensor(array)
        made = clock(span)
        calls = [
            lambda: clock(span, t_eval=array),
            lambda: made(X, t_eval=array),
            lambda: made(X, t_eval=tensor),
            lambda: made(
                keras.Input((1,)), t_eval=keras.Input(batch_shape=(6,))
            ),
            *(
                lambda wrap=compilations()[how]: wrap(
                    lambda t: made(X, t_eval=t)
                )(tensor)
                for how in COMPILED
            ),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="`t_eval`.*float64"):
                call()
    # 6 s are not too few for 1000 days of MJD.
    span = (60000.0, 61000.0)
    states = clock(span)(X, t_eval=np.float32([60250, 60500]))
    np.testing.assert_allclose(shares(states), [0.25, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    "solver, adjoint", slow_unless(lambda s, a: a != "gauss", ADJOINTS)
)
def test_gradients_far_from_0(solver, adjoint):
    # y = exp(u s) y0, with s = (t - t0) / (t1 - t0).
    class Growth(layers.Layer):
        def call(self, inputs):
            y, u = inputs
            return u * y / (t1 - t0)

    wrap = list(compilations().values())[-1]
    for name in ("unix", "mjd"):
        t0, t1 = SPANS[name]
        known = {"rtol": 1e-6, "atol": 1e-6}
        made = ODEBlock(
            Growth(),
            t_span=(t0, t1),
            t_eval=at((t0, t1)),
            solver=solvers.get(solver, **known),
            adjoint=adjoint,
        )
        rate = np.float32([[-1.5], [0.5]])

        def run(y0, u, made=made):
            def total(y0, u):
                return ops.sum(made.solve([y0, u]).ys, axis=0)

            return backend.vjp(total, (y0, u), ops.ones_like(y0))

        y0 = ops.ones((2, 1))
        total, (adj_y0, adj_u) = numpy(
            wrap(run)(y0, ops.convert_to_tensor(rate))
        )
        s = (at((t0, t1)) - t0) / (t1 - t0)
        growth = np.exp(rate * s)
        exact = growth.sum(1, keepdims=True)
        np.testing.assert_allclose(total, exact, rtol=1e-5)
        np.testing.assert_allclose(adj_y0, exact, rtol=2e-5)
        np.testing.assert_allclose(
            adj_u, (s * growth).sum(1, keepdims=True), rtol=2e-5
        )


@pytest.mark.parametrize("solver", ["dormand_prince", "tsit5"])
def test_a_time_at_an_end_but_for_rounding_is_the_end(solver):
    span = (0.1, 0.1 + 0.3)
    decay = layers.Dense(
        1, kernel_initializer=lambda *_, **__: -ops.ones((1, 1))
    )
    block = ODEBlock(decay, t_span=span, solver=solver)
    x = np.ones((2, 1), "float32")
    rounded = [0.1 - 1e-17, 0.1, 0.2, 0.4 + 1e-16]
    for times in (
        rounded,
        np.float32([0.1, 0.1, 0.2, 0.4]),
        [0.1, 0.1, 0.2, 0.4],
    ):
        made = ODEBlock(decay, t_span=span, t_eval=times, solver=solver)
        assert made.t_eval[0] == span[0] and made.t_eval[-1] == span[1]
        for solution in (made.solve(x), block.solve(x, t_eval=times)):
            y1, ys = numpy((solution.y1, solution.ys))
            np.testing.assert_array_equal(ys[0], x)
            np.testing.assert_array_equal(ys[1], x)
            np.testing.assert_array_equal(ys[-1], y1)
            assert np.all(ys[2] > y1)
    for beyond in (span[1] * (1 + 2e-6), span[0] * (1 - 2e-6)):
        message = f"within `t_span`.*{re.escape(str(float(beyond)))}"
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


@pytest.mark.parametrize("jit_compile", JITS)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
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

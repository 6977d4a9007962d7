"""Times and spans as data: of each sample, with gradients."""

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import COMPILED
from helpers import JITS
from helpers import SOLVERS
from helpers import accurate
from helpers import compilations
from helpers import numpy
from helpers import run_python
from helpers import slow
from helpers import slow_unless
from keras import layers
from keras import ops
from scipy.linalg import expm

from keras_node import ODEBlock
from keras_node import adjoints
from keras_node import backend
from keras_node import solvers

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
ON_JAX = keras.backend.backend() == "jax"
A = np.array([[-0.1, 1.3], [-1.0, -0.1]])
SPAN = (0.2, 1.8)
# In any order, at both ends, and one of them twice.
TIMES = np.array(
    [
        [1.1, 0.2, 1.8, 0.7],
        [0.9, 0.9, 0.3, 1.7],
        [0.2, 0.4, 0.6, 0.8],
        [1.5, 1.2, 1.8, 1.8],
    ]
)
# Forwards, backwards, empty, and from somewhere else.
SPANS = np.array([[0.2, 1.8], [1.8, 0.2], [1.0, 1.0], [-0.5, 0.5]])
Y0 = np.random.default_rng(0).normal(size=(4, 2))
PER_SAMPLE = [("tsit5", "discrete"), ("tsit5", "backsolve"), ("tsit5", "gauss")]


def reports_own_times(solver):
    return solvers.get(solver).reports_own_times


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float64")


class Linear(layers.Layer):
    """y' = y A', in the precision of `y`."""

    def call(self, y):
        return y @ ops.convert_to_tensor(A.T, y.dtype)


def block(solver="tsit5", adjoint="discrete", **kwargs):
    kwargs = {"t_span": SPAN, "dtype": "float64", **kwargs}
    return ODEBlock(
        Linear(dtype=kwargs["dtype"]), solver=solver, adjoint=adjoint, **kwargs
    )


def flow(t):
    """The matrices that take y over so much time, of the shape of `t`."""
    matrices = [expm(A * s) for s in np.ravel(t)]
    return np.reshape(matrices, (*np.shape(t), 2, 2))


def compiled(f):
    return compilations()[COMPILED[0]](f) if COMPILED else f


CASES = [(*pair, False) for pair in ADJOINTS]
CASES += [(*pair, True) for pair in PER_SAMPLE]
FAST = [
    ("tsit5", "discrete", False),
    ("tsit5", "discrete", True),
    ("tsit5", "backsolve", False),
]


@pytest.mark.parametrize(
    "solver, adjoint, per_sample",
    slow_unless(lambda *case: case in FAST, CASES),
)
def test_a_linear_system_and_its_gradients(solver, adjoint, per_sample):
    """By the states, the times and the ends, in closed form."""
    options = {"per_sample": True} if per_sample else {}
    made = block(accurate(solver, 1e-11, **options), adjoint)
    random = np.random.default_rng(1)
    ends, y0 = np.tile(SPAN, (4, 1)), tensor(Y0)
    if reports_own_times(solver):
        adj = random.normal(size=(4, 4, 2))
        function = compiled(
            lambda y0, times, ends: backend.vjp(
                lambda *args: made(args[0], t_eval=args[1], t_span=args[2]),
                (y0, times, ends),
                tensor(adj),
            )
        )
        ys, (adj_y0, adj_t, adj_ends) = numpy(
            function(y0, tensor(TIMES), tensor(ends))
        )
        phi = flow(TIMES - SPAN[0])
        exact = np.einsum("btij,bj->bti", phi, Y0)
        np.testing.assert_allclose(ys, exact, atol=1e-9)
        exact_y0 = np.einsum("bti,btij->bj", adj, phi)
        np.testing.assert_allclose(adj_y0, exact_y0, atol=1e-8)
        # dy/dt = A y, and dy/dt0 = -Phi A y0. The end has no say.
        exact_t = np.einsum("bti,bti->bt", adj, exact @ A.T)
        np.testing.assert_allclose(adj_t, exact_t, atol=1e-8)
        exact_t0 = -np.einsum("bti,btij,bj->b", adj, phi, Y0 @ A.T)
        np.testing.assert_allclose(adj_ends[:, 0], exact_t0, atol=1e-8)
        np.testing.assert_allclose(adj_ends[:, 1], 0, atol=1e-8)
    adj = random.normal(size=(4, 2))
    function = compiled(
        lambda y0, ends: backend.vjp(
            lambda y0, ends: made(y0, t_span=ends), (y0, ends), tensor(adj)
        )
    )
    y1, (adj_y0, adj_ends) = numpy(function(y0, tensor(SPANS)))
    phi = flow(SPANS[:, 1] - SPANS[:, 0])
    exact = np.einsum("bij,bj->bi", phi, Y0)
    np.testing.assert_allclose(y1, exact, atol=1e-9)
    exact_y0 = np.einsum("bi,bij->bj", adj, phi)
    np.testing.assert_allclose(adj_y0, exact_y0, atol=1e-8)
    # Also where the span is empty: it might not be.
    exact_t1 = np.einsum("bi,bi->b", adj, exact @ A.T)
    exact_ends = np.stack([-exact_t1, exact_t1], axis=-1)
    np.testing.assert_allclose(adj_ends, exact_ends, atol=1e-8)
    np.testing.assert_array_equal(y1[2], Y0[2])
    np.testing.assert_allclose(adj_y0[2], adj[2], rtol=1e-15)


@pytest.mark.parametrize(
    "solver",
    [
        name if name in ("dormand_prince", "heun") else slow(name)
        for name in SOLVERS
    ],
)
def test_every_solver_over_spans_of_each_sample(solver):
    made = block(accurate(solver), "backsolve")
    phi = flow(SPANS[:, 1] - SPANS[:, 0])
    exact = np.einsum("bij,bj->bi", phi, Y0)
    plain = block(accurate(solver), "backsolve", t_span=(0.0, 1.6))
    # The coarse ones are as coarse as over a span for all.
    alone = numpy(plain(tensor(Y0)))
    off = np.max(np.abs(alone - np.einsum("ij,bj->bi", flow(1.6), Y0)))
    y1 = numpy(made(tensor(Y0), t_span=SPANS))
    np.testing.assert_allclose(y1, exact, atol=max(1e-7, 2 * off))
    if reports_own_times(solver):
        # Times of each, in spans of each.
        share = np.array([[0.25, 1.0], [0.5, 0.5], [0.3, 0.7], [0.0, 0.9]])
        times = SPANS[:, :1] + share * np.diff(SPANS)
        ys = numpy(made(tensor(Y0), t_eval=times, t_span=SPANS))
        phi = flow(times - SPANS[:, :1])
        exact = np.einsum("btij,bj->bti", phi, Y0)
        # Inside a step the state is known less well than at its ends.
        np.testing.assert_allclose(ys, exact, atol=max(1e-6, 4 * off))


@pytest.mark.parametrize(
    "solver", ["dormand_prince", slow("tsit5"), slow("rk4")]
)
def test_a_span_at_the_call_is_that_of_a_layer_to_the_last_bit(solver):
    y0 = ops.convert_to_tensor(Y0, "float32")
    for span in ((0.2, 1.8), (1.8, 0.2)):
        times = np.linspace(*span, 5)
        layer = block(solver, "backsolve", t_span=span, dtype="float32")
        other = block(solver, "backsolve", dtype="float32")
        expected = numpy((layer(y0), layer(y0, t_eval=times)))
        for given in (span, np.array(span), tensor(span)):
            found = numpy(
                (
                    other(y0, t_span=given),
                    other(y0, t_eval=times, t_span=given),
                )
            )
            for a, b in zip(found, expected, strict=True):
                assert_same(a, b)
        if reports_own_times(solver):
            rows = numpy(layer(y0, t_eval=np.tile(times, (4, 1))))
            assert_same(rows, expected[1])


def assert_same(a, b):
    """To the last bit. On JAX, XLA rounds two programs in two ways."""
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * ON_JAX)


def test_samples_with_steps_of_their_own_do_not_meet():
    made = block(solvers.Tsit5(1e-4, 1e-4, per_sample=True))
    y0 = tensor(Y0)
    together = numpy(made.solve(y0, t_eval=SPANS[:, :1], t_span=SPANS))
    for i in range(4):
        alone = numpy(
            made.solve(
                y0[i : i + 1],
                t_eval=SPANS[i : i + 1, :1],
                t_span=SPANS[i : i + 1],
            )
        )
        assert alone.num_steps == together.num_steps[i]
        np.testing.assert_allclose(alone.y1[0], together.y1[i], rtol=1e-13)


MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]], bool)


@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(
        lambda solver, adjoint: adjoint in ("discrete", "backsolve"),
        [("tsit5", name) for name in adjoints.ALL],
    ),
)
def test_what_a_mask_hides_is_zero_and_has_no_gradient(solver, adjoint):
    times = np.where(MASK, TIMES, np.nan)
    times[0, 2] = 1e9
    made = block(accurate(solver), adjoint)
    shown = MASK[..., None]

    @compiled
    def function(y0, times, mask):
        def reported(y0, times):
            return made(y0, t_eval=times, t_eval_mask=mask)

        return backend.vjp(reported, (y0, times), tensor(np.ones((4, 4, 2))))

    phi = flow(TIMES - SPAN[0])
    exact = np.einsum("btij,bj->bti", phi, Y0)
    mask = ops.convert_to_tensor(MASK)
    ys, (adj_y0, adj_t) = numpy(function(tensor(Y0), tensor(times), mask))
    np.testing.assert_allclose(ys, shown * exact, atol=1e-6)
    exact_y0 = np.einsum("bt,btij->bj", MASK, phi)
    np.testing.assert_allclose(adj_y0, exact_y0, atol=1e-6)
    exact_t = MASK * (exact @ A.T).sum(-1)
    np.testing.assert_allclose(adj_t, exact_t, atol=1e-6)
    # Known times, and a mask that Keras has attached to them.
    found = made(tensor(Y0), t_eval=times, t_eval_mask=MASK)
    np.testing.assert_allclose(numpy(found), ys, atol=1e-8)
    attached = tensor(times)
    attached._keras_mask = mask
    for given in ({"t_eval": attached}, {"t_eval": times, "t_eval_mask": MASK}):
        found = made(tensor(Y0), **given)
        np.testing.assert_allclose(numpy(found), ys, atol=1e-8)
        np.testing.assert_array_equal(numpy(found._keras_mask), MASK)


@pytest.mark.parametrize("how", COMPILED)
def test_compiled_times_outside_are_nan_and_others_are_not(how):
    times = np.where(MASK, TIMES, [[np.nan, 0.1, 1.9, np.inf]])
    made = block()
    run = compilations()[how](lambda times: made(tensor(Y0), t_eval=times))
    ys = numpy(run(tensor(times)))
    np.testing.assert_array_equal(np.isfinite(ys).all(-1), MASK)
    plain = numpy(made(tensor(Y0), t_eval=TIMES))
    np.testing.assert_allclose(ys[MASK], plain[MASK], rtol=1e-12)


def series(n=48, size=5):
    """Decaying oscillators, seen at times of their own, some more often."""
    random = np.random.default_rng(0)
    y0 = random.normal(size=(n, 2)).astype("float32")
    times = random.uniform(0, 2, (n, size)).astype("float32")
    mask = random.random((n, size)) < 0.8
    ys = np.einsum("btij,bj->bti", flow(times), y0).astype("float32")
    times[~mask] = np.nan
    return (y0, times, mask), np.where(mask[..., None], ys, 0)


FUNCTIONAL = """
import keras, numpy as np, keras_node
from keras import layers
from test_own_times import series
inputs, ys = series()
"""


@pytest.mark.parametrize("jit_compile", [JITS[0], *map(slow, JITS[1:])])
def test_a_functional_model_is_fed_with_times(jit_compile, tmp_path):
    inputs, ys = series()
    state, times = keras.Input((2,)), keras.Input((None,))
    mask = keras.Input((None,), dtype="bool")
    network = keras.Sequential([layers.Dense(8, "tanh"), layers.Dense(2)])
    made = ODEBlock(network, (0.0, 2.0), solver="tsit5", adjoint="discrete")
    outputs = made(state, t_eval=times, t_eval_mask=mask)
    assert outputs.shape == (None, None, 2)
    model = keras.Model([state, times, mask], layers.Dense(2)(outputs))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit_compile)
    losses = model.fit(inputs, ys, batch_size=16, epochs=8, verbose=0).history[
        "loss"
    ]
    assert losses[-1] < 0.5 * losses[0]
    found = model.predict(inputs, verbose=0)
    assert np.isfinite(found).all()
    path, answer = tmp_path / "model.keras", tmp_path / "answer.npy"
    model.save(path)
    if jit_compile == JITS[0]:
        run_python(
            f"{FUNCTIONAL}model = keras.models.load_model({str(path)!r})\n"
            f"y = model.predict(inputs, verbose=0)\n"
            f"np.save({str(answer)!r}, y)"
        )
        np.testing.assert_array_equal(np.load(answer), found)


class WhenWasIt(keras.Model):
    """A time of observation that is learned."""

    def __init__(self, adjoint):
        super().__init__()
        self.ode = block("tsit5", adjoint, t_span=(0, 2), dtype="float32")
        self.time = self.add_weight(
            shape=(1,), initializer=keras.initializers.Constant(0.7)
        )

    def call(self, x):
        return self.ode(x, t_eval=self.time * 1.0)[:, 0]


@pytest.mark.parametrize("adjoint", ["discrete", slow("backsolve")])
def test_a_time_is_learned(adjoint):
    model = WhenWasIt(adjoint)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.ones((4, 2), "float32")
    model.fit(x, x @ expm(A * 1.5).T, epochs=40, verbose=0)
    np.testing.assert_allclose(numpy(model.time.value), [1.5], atol=1e-3)


def test_an_energy_is_positive_whatever_the_direction():
    made = block(solvers.Tsit5(1e-9, 1e-9), kinetic_regularizer=1.0)
    energy = numpy(made.solve(tensor(Y0), t_span=SPANS).integral)
    for i, (t0, t1) in enumerate(SPANS):
        if t0 != t1:
            alone = block(
                solvers.Tsit5(1e-9, 1e-9),
                t_span=(t0, t1),
                kinetic_regularizer=1.0,
            )
            expected = numpy(alone.solve(tensor(Y0[i : i + 1])).integral)
            np.testing.assert_allclose(energy[i], expected[0], rtol=1e-6)
    assert energy[2] == 0


def test_the_first_step_is_in_units_of_time():
    made = block(solvers.Tsit5(first_step=1e-3, max_steps=1))
    for span in (SPANS, (0.0, 5.0)):
        solution = numpy(made.solve(tensor(Y0), t_span=span))
        rate = np.abs(np.diff(span)).ravel() / np.max(np.abs(np.diff(span)))
        np.testing.assert_allclose(
            np.ravel(solution.elapsed), 1e-3 * rate, rtol=1e-6
        )
        assert np.isnan(solution.y1).all()


@pytest.mark.parametrize("adjoint", ["discrete", "backsolve"])
def test_an_empty_batch_has_times_too(adjoint):
    made, none = block(adjoint=adjoint), tensor(np.zeros((0, 2)))
    for times in ([0.5, 1.0], np.ones((0, 2))):
        ys, (adj_y0,) = backend.vjp(
            lambda y0, times=times: made(y0, t_eval=times),
            (none,),
            tensor(np.zeros((0, 2, 2))),
        )
        assert tuple(ys.shape) == (0, 2, 2)
        assert tuple(adj_y0.shape) == (0, 2)


def test_unix_times_of_each_sample_lose_nothing():
    start = 1.7e9 + np.arange(4.0)
    made = block(solvers.Tsit5(1e-6, 1e-6), dtype="float32")
    ys = numpy(
        made(
            ops.convert_to_tensor(Y0, "float32"),
            t_eval=start[:, None] + TIMES,
            t_span=start[:, None] + SPAN,
        )
    )
    exact = np.einsum("btij,bj->bti", flow(TIMES - SPAN[0]), Y0)
    np.testing.assert_allclose(ys, exact, atol=2e-5)

"""Dynamics that jump at known times: steps end there."""

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import COMPILED
from helpers import accurate
from helpers import compilations
from helpers import numpy
from helpers import slow_on
from helpers import slow_unless
from keras import layers
from keras import ops
from scipy.linalg import expm

import keras_node
from keras_node import ODEBlock
from keras_node import backend
from keras_node import solvers

A = np.array([[-0.1, 1.3], [-1.0, -0.1]])
B = np.array([0.7, -0.4])
HEIGHTS = np.array([1.5, -2.0, 3.0])
Y0 = np.random.default_rng(0).normal(size=(3, 2))
SPANS = np.array([[0.2, 1.8], [1.8, 0.2], [-0.5, 1.5]])
# In any order, and outside.
JUMPS = np.array([[0.9, 0.5, 7.0], [1.1, 0.3, 1.6], [-0.2, 0.1, 1.4]])
TIMES = np.array([[0.6, 1.7, 0.2], [0.25, 1.2, 1.5], [-0.3, 1.5, 0.0]])
PAIRS = [pair for pair in ADJOINTS if solvers.get(pair[0]).stops_at_jumps]
OTHERS = [(name, "discrete") for name in ("dopri5", "bosh3")]


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x), "float64")


class Pushed(layers.Layer):
    """y' = A y + u(t) B, where u is the sum of the steps until then."""

    def call(self, inputs):
        t, y, jumps, heights = inputs
        on = ops.cast(t >= jumps, y.dtype)
        u = ops.sum(on * heights, axis=-1, keepdims=True)
        matrix, b = (ops.convert_to_tensor(x, y.dtype) for x in (A.T, B))
        return y @ matrix + u * b


def block(solver, adjoint="discrete", **kwargs):
    kwargs = {"dtype": "float64", **kwargs}
    return ODEBlock(
        Pushed(dtype=kwargs["dtype"]),
        solver=solver,
        adjoint=adjoint,
        time_dependent=True,
        **kwargs,
    )


def exact(y0, jumps, span, t):
    """The state at `t`, forced from each jump on."""
    m = np.zeros((3, 3))
    m[:2, :2], m[:2, 2] = A, B
    t0, way = span[0], np.sign(t - span[0])
    inside = way * (jumps - t0) > 0
    inside &= way * (t - jumps) > 0
    y = y0
    for stop in [*sorted(jumps[inside], key=lambda s: way * s), t]:
        u = np.sum(HEIGHTS[jumps < 0.5 * (t0 + stop)])
        # The third entry carries u.
        y, t0 = (expm(m * (stop - t0)) @ [*y, u])[:2], stop
    return np.array(y)


def exact_batch(y0, jumps, spans, times):
    return np.array(
        [
            [exact(*row[:3], t) for t in row[3]]
            for row in zip(y0, jumps, spans, times, strict=True)
        ]
    )


def slopes_of(f, x, h=1e-5):
    """The derivative of a scalar function, by central differences."""
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        d = np.zeros_like(x)
        d[i] = h
        slopes[i] = (f(x + d) - f(x - d)) / (2 * h)
    return slopes


def compiled(f):
    return compilations()[COMPILED[0]](f) if COMPILED else f


CASES = [(*pair, False) for pair in PAIRS + OTHERS]
CASES += [(*pair, True) for pair in PAIRS]
FAST = [
    ("tsit5", "discrete", False),
    ("tsit5", "backsolve", True),
]
if keras.backend.backend() == "torch":
    FAST = CASES


@pytest.mark.parametrize(
    "solver, adjoint, per_sample",
    slow_unless(lambda *case: case in FAST, CASES),
)
def test_jumps_of_each_sample_and_all_gradients(solver, adjoint, per_sample):
    """To 1e-8 in float64: by the states, the jumps and the ends."""
    tolerance = 1e-6 if solver == "bosh3" else 1e-9
    options = {"per_sample": True} if per_sample else {}
    made = block(accurate(solver, tolerance, **options), adjoint)
    adj = np.random.default_rng(1).normal(size=TIMES.shape + (2,))
    heights = np.tile(HEIGHTS, (3, 1))

    def run(y0, jumps, spans):
        context = ops.stop_gradient(jumps)
        return made(
            [y0, context, tensor(heights)],
            t_span=spans,
            t_eval=tensor(TIMES),
            jump_times=jumps,
        )

    function = compiled(
        lambda *args: backend.vjp(run, args, tensor(adj)),
    )
    args = Y0, JUMPS, SPANS
    ys, found = numpy(function(*map(tensor, args)))
    slack = 30 * tolerance
    np.testing.assert_allclose(ys, exact_batch(*args, TIMES), atol=slack)
    for i, (name, gradient) in enumerate(
        zip(("y0", "jumps", "spans"), found, strict=True)
    ):

        def product(x, i=i):
            given = [*args[:i], x, *args[i + 1 :]]
            return np.sum(adj * exact_batch(*given, TIMES))

        np.testing.assert_allclose(
            gradient,
            slopes_of(product, args[i]),
            atol=10 * slack,
            err_msg=name,
        )


@slow_on("tensorflow")
def test_a_report_at_a_jump_and_jumps_that_do_nothing():
    """Times outside, twice, at the ends or NaN."""
    nan = np.full((3, 1), np.nan)
    ends = np.concatenate([JUMPS, JUMPS[:, :1], SPANS, nan], axis=1)
    made = block(accurate("tsit5", 1e-6))
    inputs = [tensor(x) for x in (Y0, JUMPS, np.tile(HEIGHTS, (3, 1)))]
    given = {"t_span": SPANS, "t_eval": JUMPS, "t_eval_mask": JUMPS < 2}
    ys = numpy(made(inputs, jump_times=ends, **given))
    times = np.where(JUMPS < 2, JUMPS, SPANS[:, :1])
    exact = exact_batch(Y0, JUMPS, SPANS, times)
    exact = exact * (JUMPS < 2)[..., None]
    np.testing.assert_allclose(ys, exact, atol=1e-5)
    made, given = block("tsit5"), {"t_span": SPANS}
    same = numpy(made(inputs, jump_times=np.full((3, 2), np.nan), **given))
    np.testing.assert_allclose(same, made(inputs, **given), rtol=1e-6)
    np.testing.assert_array_equal(
        *(numpy(made(inputs, **given, **x)) for x in ({}, {"jump_times": []}))
    )


@slow_on("tensorflow")
def test_jumps_as_close_as_numbers_are():
    """Short steps between them do not make later steps short."""
    jumps = np.float32(0.5) + np.arange(30, dtype="float32") * 2e-7
    made = block("tsit5", t_span=(0.0, 2.0), dtype="float32")
    jumps = np.tile(jumps, (3, 1)).astype("float32")
    inputs = [Y0.astype("float32"), jumps, np.full((3, 30), 0.1, "float32")]
    solution = made.solve(inputs, jump_times=jumps[0])
    assert np.all(numpy(solution.success))
    assert numpy(solution.num_steps) < 30 + 15
    one = exact_pushed(Y0, np.full((3, 1), 0.5), np.full((3, 1), 3.0), 2.0)
    np.testing.assert_allclose(numpy(solution.y1), one, atol=5e-3)


def test_the_error_comes_back_to_the_tolerance():
    """Untold, a jump can lead the solver astray by hundreds of tolerances."""
    tolerance = 1e-5
    jumps = np.linspace(0.1, 1.9, 40)[:, None]
    y0, heights = np.tile(Y0[:1], (40, 1)), np.full((40, 1), HEIGHTS[2])
    expected = exact_pushed(y0, jumps, heights, 2.0)
    inputs = [tensor(x) for x in (y0, jumps, heights)]
    solver = solvers.Tsit5(tolerance, tolerance, per_sample=True)
    made, errors, evals = block(solver, t_span=(0.0, 2.0)), [], []
    for given in ({}, {"jump_times": jumps}):
        found = made.solve(inputs, **given)
        errors.append(np.max(np.abs(numpy(found.y1) - expected)))
        evals.append(np.mean(numpy(found.num_evals)))
    assert errors[1] < 3 * tolerance
    assert errors[0] > 20 * errors[1]
    assert evals[0] > evals[1]


@slow_on("jax", "tensorflow")
def test_the_order_is_kept():
    """The error falls along a line, as if nothing jumped."""
    context = [tensor(x) for x in (Y0[:1], JUMPS[1:2], HEIGHTS[None])]
    span = (0.0, 5.0)
    expected = exact(Y0[0], JUMPS[1], span, span[1])
    found = []
    for tolerance in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        made = block(accurate("tsit5", tolerance), t_span=span)
        solution = made.solve(context, jump_times=JUMPS[1])
        error = np.max(np.abs(numpy(solution.y1)[0] - expected))
        found.append((numpy(solution.num_evals), error))
    evals, errors = np.log(found).T
    order, _ = line = np.polyfit(evals, errors, 1)
    assert order < -4.7
    np.testing.assert_allclose(np.polyval(line, evals), errors, atol=1)


def exact_pushed(y0, jumps, heights, t1):
    m = np.zeros((3, 3))
    m[:2, :2], m[:2, 2] = A, B
    ys = []
    for y, (j,), (u,) in zip(y0, jumps, heights, strict=True):
        y = (expm(m * j) @ [*y, 0])[:2]
        ys.append((expm(m * (t1 - j)) @ [*y, u])[:2])
    return np.array(ys)


def test_a_model_with_jumps_as_an_input(tmp_path):
    y0, jumps = keras.Input((2,)), keras.Input((2,))
    made = block("tsit5", dtype="float32")
    model = keras.Model(
        [y0, jumps], made([y0, jumps, layers.ReLU()(jumps)], jump_times=jumps)
    )
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(8, 2)), rng.uniform(0, 1, (8, 2))]
    x = [a.astype("float32") for a in x]
    expected = exact_of_model(*x)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"Pushed": Pushed}
    )
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def exact_of_model(y0, jumps):
    """Of heights that are the times."""
    m = np.zeros((3, 3))
    m[:2, :2], m[:2, 2] = A, B
    ys = []
    for y, row in zip(y0, jumps, strict=True):
        t0, u = 0.0, 0.0
        for j in [*np.sort(row), 1.0]:
            y = (expm(m * (j - t0)) @ [*y, u])[:2]
            t0, u = j, u + j
        ys.append(y)
    return np.array(ys)


def test_solve_ivp_with_jumps():
    """Of all samples, and of each."""

    def push(t, y, jump):
        return ops.cast(t >= jump, y.dtype) * ops.ones_like(y)

    y0 = tensor(np.zeros((2, 1)))
    for jump in (0.25, np.array([[0.25], [0.75]])):
        times = jump if np.ndim(jump) else [jump]
        solution = keras_node.solve_ivp(
            push, (0.0, 1.0), y0, args=(tensor(jump),), jump_times=times
        )
        exact = np.zeros((2, 1)) + 1 - jump
        np.testing.assert_allclose(numpy(solution.y1), exact, atol=1e-12)
        assert np.all(numpy(solution.num_steps) < 11)

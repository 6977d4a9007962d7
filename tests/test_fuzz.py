"""What must hold for any network, span, tolerance, shape and dtype.

    python -m pytest tests/test_fuzz.py --hypothesis-profile=long

tries more than a thousand of them, without the option fifty or so.
"""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from helpers import ADAPTIVE
from helpers import PAIRS
from helpers import PER_SAMPLE
from helpers import compilations
from helpers import numpy
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from scipy.integrate import solve_ivp

from keras_node import ODEBlock
from keras_node import SolverError
from keras_node import backend
from keras_node import solvers

COMPILED = list(compilations().values())[-1]
ADAPTIVE_PAIRS = [pair for pair in PAIRS if pair[0] in ADAPTIVE]
OWN_TIMES = [pair for pair in PAIRS if solvers.get(pair[0]).reports_own_times]


class Case(NamedTuple):
    """A network of two layers, a batch, and how to solve."""

    shape: tuple  # of one sample
    batch: int
    dtype: str
    activation: str
    gain: float  # bounds the derivative of the dynamics, for tanh
    seed: int
    t0: float
    duration: float  # negative: backwards in time
    solver: str
    adjoint: str
    tolerance: float
    per_sample: bool

    @property
    def weights(self) -> list[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        wide = rng.normal(size=(self.shape[-1], 6))
        back = rng.normal(size=(6, self.shape[-1]))
        wide, back = (x / np.linalg.norm(x, 2) for x in (wide, back))
        biases = rng.normal(size=6), rng.normal(size=self.shape[-1])
        return [wide, biases[0], self.gain * back, self.gain * biases[1]]

    @property
    def x(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed + 1)
        return rng.normal(size=(self.batch, *self.shape)).astype(self.dtype)

    def block(self, **changes: Any) -> ODEBlock:
        known = {"num_steps": 20}
        if solvers.ALL[self.solver].adaptive:
            tolerance = self.tolerance
            known = {"rtol": tolerance, "atol": tolerance, "max_steps": 200}
        if self.per_sample:
            known["per_sample"] = True
        network = keras.Sequential(
            [
                layers.Dense(6, self.activation, dtype=self.dtype),
                layers.Dense(self.shape[-1], dtype=self.dtype),
            ]
        )
        made = ODEBlock(
            network,
            **{
                "t_span": (self.t0, self.t0 + self.duration),
                "solver": solvers.get(self.solver, **known),
                "adjoint": self.adjoint,
                "dtype": self.dtype,
                **changes,
            },
        )
        made.build((None, *self.shape))
        network.set_weights(self.weights)
        return made

    def truth(self) -> np.ndarray:
        """The end, by SciPy."""
        wide, bias, back, last = self.weights
        x = self.x.astype("float64")

        def f(t, y):
            hidden = np.tanh(y.reshape(x.shape) @ wide + bias)
            return (hidden @ back + last).reshape(-1)

        span = (0.0, self.duration)
        solved = solve_ivp(
            f, span, x.reshape(-1), "DOP853", rtol=1e-10, atol=1e-10
        )
        return solved.y[:, -1].reshape(x.shape)


@st.composite
def cases(draw, pairs=PAIRS, per_sample=(False, True), wild=False):
    solver, adjoint = draw(st.sampled_from(pairs))
    gain = st.floats(0, 1)
    activation = ["tanh"]
    if wild:
        gain = st.floats(-3, 6).map(lambda x: 10**x)
        activation = ["tanh", "relu", "exponential", "softplus"]
    sixteenths = st.integers(-32, 32).map(lambda n: n / 16)
    return Case(
        shape=draw(st.sampled_from([(1,), (3,), (2, 4), (2, 3, 2)])),
        batch=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        activation=draw(st.sampled_from(activation)),
        gain=draw(gain),
        seed=draw(st.integers(0, 2**16)),
        t0=draw(sixteenths),
        duration=draw(sixteenths.filter(bool)),
        solver=solver,
        adjoint=adjoint,
        tolerance=draw(st.floats(-5, -2).map(lambda x: 10**x)),
        per_sample=solver in PER_SAMPLE and draw(st.sampled_from(per_sample)),
    )


def solve(block: ODEBlock, x: np.ndarray, **kwargs: Any) -> Any:
    x = keras.ops.convert_to_tensor(x)
    return numpy(COMPILED(lambda x: block.solve(x, **kwargs))(x))


def error(case: Case, found: np.ndarray, expected: np.ndarray) -> float:
    """In units of the tolerance of a step."""
    allowed = case.tolerance * (1 + np.max(np.abs(expected)))
    return np.max(np.abs(found - expected)) / allowed


@given(cases(wild=True), st.sampled_from([1.0, 1e6, 1e30, np.inf, np.nan]))
def test_it_returns_and_is_finite_or_declared_failed(case, scale):
    block, x = case.block(), case.x
    x[0] *= scale

    def run(x):
        def end(x):
            return block.solve(x).y1

        cotangent = keras.ops.ones_like(x)
        return block.solve(x), backend.vjp(end, (x,), cotangent)[1][0]

    try:
        solution, gradient = COMPILED(run)(keras.ops.convert_to_tensor(x))
    except SolverError:  # of the way back, on PyTorch
        assert keras.backend.backend() == "torch"
        return
    solution, gradient = numpy((solution, gradient))
    success = np.broadcast_to(np.equal(solution.status, 0).T, x.T.shape).T
    np.testing.assert_array_equal(np.isfinite(solution.y1), success)
    assert np.isnan(gradient[~success]).all()
    assert np.all(solution.num_steps <= block.solver.max_steps)


@given(cases(ADAPTIVE_PAIRS))
def test_there_and_back_again_is_where_it_started(case):
    t0, t1 = case.t0, case.t0 + case.duration
    there = solve(case.block(), case.x).y1
    back = solve(case.block(t_span=(t1, t0)), there).y1
    assert error(case, back, case.x) < 100


@given(
    cases(),
    st.integers(-(10**9), 10**9),
    st.lists(st.integers(0, 16), min_size=1, max_size=3),
)
def test_time_itself_is_of_no_account(case, shift, sixteenths):
    # All of these times are exact in float64: so are the numbers the same.
    here, there = (
        solve(
            case.block(
                t_span=(t0, t0 + case.duration),
                t_eval=[t0 + n * case.duration / 16 for n in sixteenths],
            ),
            case.x,
        )
        for t0 in (case.t0, case.t0 + shift)
    )
    np.testing.assert_array_equal(there.num_steps, here.num_steps)
    np.testing.assert_array_equal(there.y1, here.y1)
    np.testing.assert_array_equal(there.ys, here.ys)


@given(cases([(name, "backsolve") for name in PER_SAMPLE], (True,)), st.data())
def test_samples_may_change_places(case, data):
    order = data.draw(st.permutations(range(case.batch)))
    straight = solve(case.block(), case.x).y1
    mixed = solve(case.block(), case.x[order]).y1
    # Rounding may tip a step: then within the tolerance.
    assert error(case, mixed, straight[order]) < 10


@given(cases(), st.lists(st.floats(0, 1), max_size=3))
def test_a_state_reported_at_the_end_is_the_output(case, fractions):
    end = case.t0 + case.duration
    times = [case.t0 + x * case.duration for x in fractions] + [end]
    alone = solve(case.block(), case.x)
    reported = solve(case.block(t_eval=times), case.x)
    np.testing.assert_allclose(reported.y1, alone.y1, rtol=1e-6, atol=1e-6)
    # XLA may compute the end of a step twice, and fuse it in two ways.
    ulps = 2 if keras.backend.backend() == "jax" else 0
    rtol = ulps * np.finfo(np.asarray(reported.y1).dtype).eps
    np.testing.assert_allclose(reported.ys[-1], reported.y1, rtol=rtol)


@given(cases(OWN_TIMES), st.data())
def test_times_of_each_sample_are_those_of_its_row(case, data):
    fractions = st.floats(0, 1, width=32)
    row = st.lists(fractions, min_size=3, max_size=3)
    rows = data.draw(st.lists(row, min_size=case.batch, max_size=case.batch))
    times = case.t0 + np.array(rows) * case.duration
    order = data.draw(st.permutations(range(3)))
    i = data.draw(st.integers(0, case.batch - 1))
    block = case.block()
    all_rows = solve(block, case.x, t_eval=times)
    mixed = solve(block, case.x, t_eval=times[:, order])
    np.testing.assert_array_equal(mixed.ys, all_rows.ys[order])
    # The steps do not depend on what is reported.
    alone = solve(block, case.x, t_eval=times[i])
    np.testing.assert_array_equal(alone.num_steps, all_rows.num_steps)
    assert error(case, all_rows.ys[:, i], alone.ys[:, i]) < 0.1


@given(cases(ADAPTIVE_PAIRS), st.floats(0, 1, width=32), st.booleans())
def test_a_span_in_two_parts_is_the_whole(case, part, each):
    t0, t1 = case.t0, case.t0 + case.duration
    middle = t0 + part * case.duration
    spans = np.array([(t0, t1), (t0, middle), (middle, t1)])
    if each:
        spans = np.tile(spans[:, None], (1, case.batch, 1))
    block = case.block()
    whole, half = (solve(block, case.x, t_span=span) for span in spans[:2])
    end = solve(block, half.y1, t_span=spans[2]).y1
    assert error(case, end, whole.y1) < 100


# At rest, with tolerances near rounding: steps once could not grow.
AT_REST = Case(
    (1,), 4, "float32", "tanh", 0.0, 0, 0.0, 1 / 16, "dopri5", "backsolve",
    1e-5, True,
)  # fmt: skip


@example(AT_REST)
@given(cases(ADAPTIVE_PAIRS))
def test_tighter_tolerances_come_closer_to_the_truth(case):
    truth = case.truth()
    for tolerance in (case.tolerance, case.tolerance / 30):
        case = case._replace(tolerance=tolerance)
        assert error(case, solve(case.block(), case.x).y1, truth) < 100

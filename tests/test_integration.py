"""The parts of a solve, each by itself, with no numerics around it."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_node import pytree
from keras_node import solvers
from keras_node.adjoints import replay
from keras_node.adjoints.solve import Solve
from keras_node.integration import report_cotangents
from keras_node.integration import reports
from keras_node.integration import step_size
from keras_node.integration.controller import Adaptive
from keras_node.integration.controller import Controller
from keras_node.integration.controller import Fixed
from keras_node.integration.controller import Verdict
from keras_node.integration.dense import Dense
from keras_node.integration.interval import ElapsedField
from keras_node.integration.interval import Interval
from keras_node.integration.loop import integrate
from keras_node.integration.outputs import Integral
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import Record
from keras_node.integration.outputs import ReportAt
from keras_node.integration.record import Trajectory
from keras_node.integration.solution import Status
from keras_node.integration.stepper import Step
from keras_node.integration.stepper import Stepper
from keras_node.solvers.runge_kutta import ExplicitRungeKutta


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(x, dtype)


class Counting(Stepper):
    """A stepper that counts: the state goes up by 1 in each step."""

    order, degree, error_weights = 1, 1, ()

    def init(self, f, t, y, args):
        return y, 1

    def step(self, f, t, dt, y, carry, args):
        one = ops.ones_like(y)
        dense = Dense(t, dt, y, [one])
        return Step(y + one, None, carry, dense, y + one, 3)


class Scripted(Controller):
    """Steps of size 1, of which those that end at `bad` are refused."""

    max_steps = 100

    def __init__(self, bad=(), next_dt=1.0, finite=True, per_sample=False):
        self.bad, self.next_dt, self.finite = bad, next_dt, finite
        self.per_sample = per_sample

    def start(self, f, y, slope, span):
        return tensor(1.0), 2

    def propose(self, state, span):
        last = span - state.t <= state.dt
        return ops.where(last, span - state.t, state.dt), last

    def judge(self, state, dt, step):
        good = ops.ones_like(state.running)
        for n in self.bad:
            good = ops.logical_and(good, ops.not_equal(state.num_steps, n))
        next_dt = self.next_dt * ops.ones_like(state.t)
        finite = ops.convert_to_tensor(self.finite)
        return Verdict(good, finite, next_dt)


def run(controller, span, outputs=(), start=0.0):
    y0 = ops.full((2, 1), start)
    solution = integrate(
        Counting(), controller, nothing, 0.0, span, y0, (), outputs
    )
    # The lists of a record are no arrays on TensorFlow.
    results = tuple(
        x.num_steps if isinstance(x, Trajectory) else x
        for x in solution.outputs
    )
    return numpy(solution._replace(outputs=results))


def nothing(t, y, args):
    return ops.zeros_like(y)


def test_the_loop_counts_what_it_does():
    # Of 5 steps tried, numbers 1 and 2 are refused and taken again.
    solution = run(Scripted(bad=(1, 2)), 3.0)
    assert solution.status == Status.SUCCESS
    assert (solution.num_steps, solution.num_accepted) == (5, 3)
    assert solution.num_evals == 1 + 2 + 5 * 3
    assert solution.t == solution.elapsed == 3.0
    np.testing.assert_array_equal(solution.y1, [[3.0], [3.0]])


@pytest.mark.parametrize(
    "controller, reason, steps",
    [
        (Scripted(bad=range(100)), Status.STEP_LIMIT, 100),
        (Scripted(bad=range(100), next_dt=0.0), Status.STEP_UNDERFLOW, 1),
        (Scripted((0,), 0.0, finite=False), Status.NON_FINITE, 1),
    ],
)
def test_the_loop_says_why_it_ends(controller, reason, steps):
    solution = run(controller, 3.0)
    assert (solution.status, solution.num_steps) == (reason, steps)
    assert np.isnan(solution.y1).all() and solution.t == 0.0


def test_a_state_that_is_not_finite_is_stepped_off_by_no_step():
    solution = run(Scripted(), 3.0, start=np.nan)
    assert (solution.status, solution.num_steps) == (Status.NON_FINITE, 0)


class Log(Output):
    """Adds up the times at which accepted steps start, and their sizes."""

    def init(self, t, y0):
        return ops.zeros_like(t), ops.zeros_like(t)

    def step(self, carry, taken):
        times, sizes = carry
        accept = ops.cast(taken.accept, taken.t.dtype)
        return times + accept * taken.t, sizes + accept * taken.dt

    def result(self, carry, success):
        return carry


def test_outputs_watch_the_accepted_steps():
    s_eval = tensor([0.0, 0.25, 1.0, 2.5])
    outputs = (
        Log(),
        ReportAt(s_eval),
        Record(max_steps=100, checkpoints=2),
        Integral(lambda s, y, factor: factor * y, ops.zeros((2, 1)), 1, 2.0),
    )
    (times, sizes), found, num_steps, integral = run(
        Scripted(bad=(1,)), 2.5, outputs
    ).outputs
    assert (times, sizes) == (0 + 1 + 2, 2.5)
    # The state goes up by 1 in each step, of size 1, 1 and 0.5.
    np.testing.assert_allclose(found.ys[:, 0, 0], [0, 0.25, 1, 3], rtol=1e-6)
    assert found.num_reported == 4
    assert num_steps == 3
    np.testing.assert_allclose(integral, 2 * (0.5 + 1.5 + 0.5 * 2.5))


def test_times_that_a_failed_solve_did_not_reach_are_nan():
    outputs = (ReportAt(tensor([0.5, 2.0])),)
    (found,) = run(Scripted(bad=range(1, 100)), 3.0, outputs).outputs
    assert np.isnan(found.ys).all() and found.num_reported == 1


def test_an_interval_maps_time_both_ways():
    interval = Interval.between(3.0, 1.0, "float32")
    assert (float(interval.span), interval.sign) == (2.0, -1.0)
    assert numpy(interval.time(tensor([0.0, 0.5, 2.0]))).tolist() == [3, 2.5, 1]
    # Rounding does not leave it.
    assert float(interval.time(tensor(2.0001))) == 1.0
    field = ElapsedField(lambda t, y, args: args * t * y, interval)
    slope = field(tensor(0.5), ops.ones((2, 3)), 2.0)
    np.testing.assert_allclose(numpy(slope), -5 * np.ones((2, 3)))
    # Times per sample meet the state.
    slope = field(tensor([0.0, 2.0]), ops.ones((2, 3)), 1.0)
    np.testing.assert_allclose(numpy(slope), [[-3.0] * 3, [-1.0] * 3])


@pytest.mark.parametrize("per_sample", [False, True])
def test_cotangents_of_reports_come_back_through_the_polynomial(per_sample):
    """By the transpose of what `write` computes, entry by entry."""
    t = tensor([1.0, 1.0]) if per_sample else tensor(1.0)
    s_eval, dt = tensor([0.5, 1.25, 2.0]), ops.full_like(t, 2.0)
    y, q = ops.ones((2, 1)), [ops.full((2, 1), 3.0), ops.full((2, 1), -1.0)]
    dense = Dense(t, dt, y, q)
    # The first report was due in the step before.
    first = ops.ones_like(ops.cast(t, "int32"))
    pages = reports.Pages.empty(s_eval, t, y)._replace(count=first)
    pages = pages.write(ops.ones_like(t) > 0, dense, y)
    ys, count = pages.states(3, ops.ones_like(t) > 0), pages.count
    theta = np.array([0.125, 0.5])
    exact = 1 + 3 * theta - theta**2
    np.testing.assert_allclose(numpy(ys)[1:3, 1, 0], exact, rtol=1e-6)
    assert (numpy(count) == 3).all()

    adj_ys = tensor(np.array([7.0, 2.0, -1.0]).reshape(3, 1, 1) * [[1], [10]])
    no = ops.convert_to_tensor(False)
    cotangents = report_cotangents.Cotangents.of(s_eval, adj_ys, y)
    left, adj_y, adj_q = cotangents.pull(count, no, dense)
    assert (numpy(left) == 1).all()
    weights = np.array([2.0, -1.0])
    sums = [np.sum(weights * theta**m) for m in range(3)]
    for adj, total in zip((adj_y, *adj_q), sums, strict=True):
        np.testing.assert_allclose(numpy(adj), [[total], [10 * total]], 1e-6)


def test_the_controller_by_its_formulas():
    stepper = solvers.Tsit5().stepper(dense=False)
    weights = stepper.error_weights
    base = solvers.Tsit5(rtol=1e-2, atol=1e-2).controller(
        stepper, pytree.rms_norm, 0.0
    )
    assert isinstance(base, Adaptive) and base.order == 5
    ones = ops.ones((2, 2), dtype="float64")
    state = _State(rejected=ops.convert_to_tensor(False), y=ones)
    dt = tensor(1.0, "float64")

    def judged(error, rejected=False, controller=base):
        step = Step(ones, error * ones, ones, None, (), 6)
        state_ = dataclasses.replace(
            state, rejected=ops.convert_to_tensor(rejected)
        )
        return numpy(controller.judge(state_, dt, step))

    # An error of as much as is allowed: atol + rtol |y| = 0.02.
    good, finite, next_dt = judged(0.02)
    assert good and finite
    np.testing.assert_allclose(next_dt, 0.9, rtol=1e-6)
    good, _, next_dt = judged(0.02 * 32)
    assert not good
    np.testing.assert_allclose(next_dt, 0.45, rtol=1e-6)
    # Longer by a factor of 10 at most, and not at all after a rejection.
    assert judged(0.0).next_dt == 10.0
    assert judged(0.0, rejected=True).next_dt == 1.0
    good, finite, next_dt = judged(float("nan"))
    assert not good and not finite
    np.testing.assert_allclose(next_dt, 0.2)
    # What the right-hand side cannot resolve does not count as an error.
    coarse = dataclasses.replace(base, eps=0.1)
    noise = numpy(step_size.rounding(tensor(0.1, "float64"), weights, ones))[
        0, 0
    ]
    assert judged(0.9 * noise, controller=coarse).good
    assert not judged(noise + 0.03, controller=coarse).good


@dataclasses.dataclass
class _State:
    """As much of a `LoopState` as a controller reads."""

    rejected: object
    y: object


def test_fixed_steps_end_at_the_end():
    controller = Fixed(max_steps=3)
    dt, evals = controller.start(nothing, None, (), tensor(1.0))
    assert evals == 0 and abs(float(dt) - 1 / 3) < 1e-7


def test_equal_steppers_and_controllers_are_one():
    solver = solvers.Tsit5(rtol=1e-5)
    stepper = solver.stepper(dense=True)
    assert stepper == ExplicitRungeKutta(solvers.Tsit5.tableau, dense=True)
    assert hash(stepper) == hash(solvers.Tsit5().stepper(dense=True))
    assert stepper != solver.stepper(dense=False)
    norm = pytree.RmsNorm()
    made = [
        solvers.Tsit5(rtol=rtol).controller(stepper, norm, 0.0)
        for rtol in (1e-5, 1e-5, 1e-4)
    ]
    assert made[0] == made[1] != made[2]
    assert hash(made[0]) == hash(made[1])
    assert solvers.Tsit5(rtol=1e-5) == solver != solvers.Tsit5(rtol=1e-4)
    assert solver.replace(per_sample=True).shared() == solver
    assert solver.over_step() == solver.replace(first_step=1e30)


def test_a_solver_refuses_an_output_that_it_cannot_serve():
    with pytest.raises(ValueError, match=r'"tsit5".*Received: solver=Dorm'):
        solvers.DormandPrince().solve(
            lambda t, y, args: -y,
            0.0,
            1.0,
            ops.ones((2, 3)),
            outputs=(Record(10, 2),),
        )


def test_the_dense_output_is_the_polynomial():
    dense = Dense(
        tensor(2.0), tensor(0.5), tensor([1.0]), [tensor([2.0]), tensor([4.0])]
    )
    assert float(dense.fraction(tensor(2.25))) == 0.5
    assert numpy(dense.at(tensor(0.5))).tolist() == [1 + 2 * 0.5 + 4 * 0.25]
    # A step of no length has no inside.
    still = dense._replace(dt=tensor(0.0))
    assert float(still.fraction(tensor(2.0))) == 0.0
    assert keras.backend.standardize_dtype(dense.at(tensor(0.5)).dtype)


def test_a_record_keeps_every_stride_th_state():
    # With rejected steps between, whether slots are free or all taken.
    path = Trajectory.empty(ops.zeros(()), ops.zeros((1,)), 50, 4)
    for n in range(50):
        for keep in (False, False, True):
            state = ops.full((1,), float(n if keep else -1))
            path = path.write(
                ops.convert_to_tensor(keep), state[0], state[0], state
            )
        assert int(path.num_steps) == n + 1
        stride = int(path.stride)
        assert (n + 1) / 4 <= stride <= max(1, (n + 1) / 2)
        for i in range(0, n + 1, stride):
            index = ops.convert_to_tensor(i, "int32")
            assert float(path.step(index)[0]) == i
            start, kept = path.start(index + 1, state)
            assert int(start) == i and float(kept[0]) == i


@pytest.mark.parametrize("num_kept", [0, 3])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_replay_goes_back_over_every_step_once(count, num_kept):
    """States count the steps, and only every so many of them are kept."""
    y0 = ops.zeros((1, 1))
    trajectory = Trajectory.empty(ops.zeros(()), y0, 16, 2)
    yes, one = ops.convert_to_tensor(True), ops.ones(())
    for n in range(count):
        trajectory = trajectory.write(yes, n * one, one, y0 + n)
    solve = Solve(
        solver=None,
        f=None,
        t_span=(0.0, float(count)),
        y0=y0,
        args=ops.zeros(()),
        s_eval=None,
        num_reported=(),
        solution=_Succeeded(),
        kept=(),
    )
    kept = min(num_kept, count)

    def undo(i, y, last_report, adj_y, adj_args):
        # The steps kept need no state. For the others it must be theirs.
        i = ops.cast(i, "float32")
        off = ops.where(i < kept, 0.0, y[0, 0] - i)
        return last_report, 2 * adj_y + i, adj_args + ops.square(off)

    adj_y0, off = replay.backwards(
        solve, trajectory, y0 + 1, lambda i, y: y + 1, undo, kept
    )
    expected = 1.0
    for i in reversed(range(count)):
        expected = 2 * expected + i
    assert (float(adj_y0[0, 0]), float(off)) == (expected, 0.0)


class _Succeeded:
    """As much of a `Solution` as the replay reads."""

    @property
    def success(self):
        return ops.convert_to_tensor(True)

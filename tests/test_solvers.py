"""Every solver against exact solutions."""

import itertools

import keras
import numpy as np
import problems
import pytest
from helpers import ADAPTIVE
from helpers import COMPILED
from helpers import PER_SAMPLE
from helpers import SOLVERS
from helpers import accurate
from helpers import compilations
from helpers import elapsed
from helpers import kinds
from helpers import numpy
from helpers import slow_on
from helpers import slow_unless
from helpers import untraced
from keras import ops

from keras_node import solvers
from keras_node.integration.outputs import ReportAt
from keras_node.solvers.runge_kutta import AdaptiveRungeKutta
from keras_node.solvers.runge_kutta import FixedRungeKutta
from keras_node.solvers.tableau import Tableau

FIXED = [name for name in SOLVERS if name not in ADAPTIVE]
NATIVE = [name for name in SOLVERS if name != "dormand_prince"]


def solve(solver, problem, dtype="float64", wrap=lambda f: f, t_eval=None):
    params = ops.convert_to_tensor(problem.params, dtype)
    y0 = ops.convert_to_tensor(problem.y0, dtype)
    s_eval = elapsed(problem, t_eval, dtype)
    return numpy(
        wrap(
            lambda y0: with_reports(
                solver, problem.f, problem.t0, problem.t1, y0, params, s_eval
            )
        )(y0)
    )


def with_reports(solver, f, t0, t1, y0, args=(), s_eval=None):
    outputs = () if s_eval is None else (ReportAt(s_eval),)
    solution = solver.solve(f, t0, t1, y0, args, outputs)
    if s_eval is not None:
        (reports,) = solution.outputs
        solution = solution._replace(ys=reports.ys)
    return solution._replace(outputs=())


def error(solution, problem):
    return np.max(np.abs(solution.y1 - problem.y1))


@pytest.mark.parametrize("problem", problems.ALL.values(), ids=problems.ALL)
@pytest.mark.parametrize("name", kinds(ADAPTIVE))
def test_error_follows_the_tolerance(name, problem):
    # A method of order 3 takes hundreds of steps, and their errors add up.
    factor = 20 if name != "bosh3" else 200
    for tolerance in (1e-3, 1e-6 if name == "bosh3" else 1e-9):
        solution = solve(accurate(name, tolerance), problem)
        assert solution.status == 0
        assert solution.t == problem.t1
        assert error(solution, problem) < factor * tolerance


def trees(order):
    """Rooted trees of up to `order` nodes, as nested sorted tuples."""
    found = {1: [()]}
    for size in range(2, order + 1):
        found[size] = []
        for branches in range(1, size):
            smaller = [t for n in range(1, size) for t in found[n]]
            for tree in itertools.combinations_with_replacement(
                sorted(smaller, key=str), branches
            ):
                if nodes(tree) == size:
                    found[size].append(tree)
    return [tree for size in found.values() for tree in size]


def nodes(tree):
    return 1 + sum(nodes(branch) for branch in tree)


def density(tree):
    return nodes(tree) * np.prod([density(branch) for branch in tree])


def stage_weights(tree, a):
    """The elementary weight of each stage."""
    weights = np.ones(len(a))
    for branch in tree:
        weights = weights * (a @ stage_weights(branch, a))
    return weights


@pytest.mark.parametrize("name", NATIVE)
def test_order_conditions(name):
    # Hairer, Norsett, Wanner I, section II.2: sum b Phi(tree) = 1 / density.
    tableau = solvers.ALL[name].tableau
    stages = len(tableau.b)
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = [float(x) for x in row]
    b = np.array(tableau.b, "float64")
    assert len(trees(5)) == 17

    def defect(b, order):
        return max(
            abs(b @ stage_weights(tree, a) - 1 / density(tree))
            for tree in trees(order)
        )

    assert defect(b, tableau.order) < 1e-13
    assert defect(b, tableau.order + 1) > 1e-4
    if tableau.b_error is not None:
        b_hat = b - np.array(tableau.b_error, "float64")
        assert defect(b_hat, tableau.order - 1) < 1e-13
        assert defect(b_hat, tableau.order) > 1e-4


def test_a_wrong_tableau_is_refused():
    with pytest.raises(ValueError, match="Received"):
        Tableau(order=2, c=(0, 0.5), a=((), (0.4,)), b=(0, 1))
    with pytest.raises(ValueError, match="Received"):
        Tableau(order=2, c=(0, 0.5), a=((), (0.5,)), b=(0.1, 1))


@pytest.mark.parametrize("name", kinds(NATIVE))
def test_the_error_falls_with_the_order(name):
    class FixedStep(FixedRungeKutta):
        tableau = solvers.ALL[name].tableau

    problem = problems.forced_decay()
    num_steps = np.array([16, 28, 48])
    errors = [error(solve(FixedStep(n), problem), problem) for n in num_steps]
    slope = -np.polyfit(np.log(num_steps), np.log(errors), 1)[0]
    assert abs(slope - FixedStep.tableau.order) < 0.3
    # The last step ends at t1; t_eval between the steps is as good.
    t_eval = np.linspace(problem.t0, problem.t1, 7)
    solution = solve(FixedStep(48), problem, t_eval=t_eval)
    exact = np.stack([problem.exact(t) for t in t_eval])
    assert np.max(np.abs(solution.ys - exact)) < 10 * errors[-1] + 2e-7


@slow_on("jax")
def test_an_adaptive_method_need_not_be_first_same_as_last():
    class HeunEuler(AdaptiveRungeKutta):
        tableau = Tableau(
            order=2, c=(0, 1), a=((), (1,)), b=(0.5, 0.5), b_error=(-0.5, 0.5)
        )

    problem = problems.forced_decay()
    calls = []

    def f(t, y, params):
        calls.append(1)
        return problem.f(t, y, params)

    solver = HeunEuler(rtol=1e-5, atol=1e-5)
    with untraced():
        solution = solve(solver, problem._replace(f=f))
    assert error(solution, problem) < 1e-3
    # As many as said; the first step is as well chosen as with a known slope.
    assert solution.num_evals == len(calls) == 2 + 2 * solution.num_steps
    assert solution.num_steps - solution.num_accepted < 5


@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_compiled_and_eager_solves_agree(name, how):
    problem = problems.rotation()
    solver = accurate(name, 1e-5)
    t_eval = [0.0, 1.5, 2.9]
    eager = solve(solver, problem, "float32", t_eval=t_eval)
    other = solve(solver, problem, "float32", compilations()[how], t_eval)
    for a, b in ((eager.y1, other.y1), (eager.ys, other.ys)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    # Compilers round otherwise, and a step may just fail or pass.
    assert abs(other.num_steps - eager.num_steps) <= 1


@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_time_stays_inside_the_interval_and_evaluations_are_counted(name):
    for t0, t1 in ((0.3, 1.7), (1.7, 0.3), (-2.0, 5.0), (0.0, 1e-12)):
        times = []

        def f(t, y, args, times=times):
            times.append(float(t))
            return -y * problems.cos(t)

        solver = accurate(name, 1e-4)
        with untraced():
            solution = numpy(solver.solve(f, t0, t1, ops.ones((2, 3))))
        low, high = np.float32(min(t0, t1)), np.float32(max(t0, t1))
        assert low <= min(times) and max(times) <= high
        assert solution.num_evals == len(times)
        assert solution.num_accepted <= solution.num_steps
        y1 = np.exp(np.sin(t0) - np.sin(t1))
        rtol = 0.2 if name == "euler" else 1e-2
        np.testing.assert_allclose(solution.y1, y1 * np.ones((2, 3)), rtol=rtol)


@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_the_answer_does_not_depend_on_where_time_starts(name):
    solver = solvers.get(name)
    here = solve(solver, problems.exponential(0.0, 1.0), "float32")
    there = solve(solver, problems.exponential(1e6, 1e6 + 1), "float32")
    np.testing.assert_array_equal(here.y1, there.y1)


@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_state_may_be_a_structure(name):
    solution = accurate(name, 1e-6).solve(
        lambda t, y, args: {"a": y["b"][0], "b": (-y["a"],)},
        0.0,
        1.0,
        {"a": ops.zeros((2,)), "b": (ops.ones((2,)),)},
    )
    y1 = numpy(solution.y1)
    rtol = 1e-2 if name == "euler" else 1e-4
    np.testing.assert_allclose(y1["a"], [np.sin(1)] * 2, rtol=rtol)
    np.testing.assert_allclose(y1["b"][0], [np.cos(1)] * 2, rtol=rtol)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_easy_solve_takes_few_evaluations(name):
    # The first step is chosen, not tried: TFP alone starts from 1e-3.
    solution = solve(solvers.get(name, atol=1e-3), problems.forced(0.0, 0.1))
    assert solution.num_evals <= 14
    given = solvers.get(name, atol=1e-3, first_step=1e-3)
    again = solve(given, problems.forced(0.0, 0.1))
    assert again.num_evals > solution.num_evals


@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_an_interval_of_no_length_changes_nothing(name):
    y0 = ops.ones((2, 3))
    t = ops.convert_to_tensor(0.5)
    solution = solvers.get(name).solve(lambda t, y, args: -y, t, t, y0)
    assert numpy(solution.success)
    np.testing.assert_array_equal(numpy(solution.y1), np.ones((2, 3)))


@pytest.mark.parametrize("t0, t1", [(0.0, 2.0), (1.5, -0.5)])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_reports_cost_little_and_are_as_exact_as_the_end(name, t0, t1):
    for tolerance in (1e-3, 1e-5):
        problem = problems.forced_decay(t0, t1)
        solver = accurate(name, tolerance)
        t_eval = np.linspace(t0, t1, 100)
        plain = solve(solver, problem)
        solution = solve(solver, problem, t_eval=t_eval)
        assert solution.num_evals <= 1.2 * plain.num_evals
        exact = np.stack([problem.exact(t) for t in t_eval])
        bound = max(10 * tolerance, 1.5 * error(plain, problem))
        assert np.max(np.abs(solution.ys - exact)) < bound
        np.testing.assert_allclose(solution.ys[0], problem.y0, atol=1e-12)
        np.testing.assert_allclose(solution.ys[-1], solution.y1, rtol=1e-9)


@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_a_time_outside_is_reported_as_nan(name):
    problem = problems.rotation()
    t_eval = [-0.1, 0.0, 1.0, 3.0, 3.1]
    solution = solve(solvers.get(name), problem, "float32", t_eval=t_eval)
    finite = np.isfinite(solution.ys).all(axis=(1, 2))
    assert finite.tolist() == [False, True, True, True, False]


def program_size(f, *args):
    """How many operations the backend compiles."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.make_jaxpr(f)(*args)).count(" = ")
    import tensorflow as tf

    graph = tf.function(f).get_concrete_function(*args).graph.as_graph_def()
    bodies = [function.node_def for function in graph.library.function]
    return sum(map(len, bodies)) + len(graph.node)


@pytest.mark.skipif(not COMPILED, reason="PyTorch compiles nothing")
@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_what_is_compiled_does_not_grow_with_the_number_of_reports(name):
    def size(reports):
        t_eval = ops.convert_to_tensor(np.linspace(0, 1, reports), "float32")
        return program_size(
            lambda y0: (
                with_reports(
                    solvers.get(name),
                    lambda t, y, args: -y,
                    0.0,
                    1.0,
                    y0,
                    s_eval=t_eval,
                ).ys
            ),
            ops.ones((2, 3)),
        )

    # The shapes of constants make a difference of one or two.
    assert abs(size(20) - size(300)) <= 2


@slow_on("jax")
@pytest.mark.parametrize(
    "name, how",
    slow_unless(
        lambda name, how: how == list(compilations())[-1],
        [(name, how) for name in PER_SAMPLE for how in compilations()],
    ),
)
def test_samples_step_for_themselves(name, how):
    rates = ops.convert_to_tensor([[1.0], [3.0], [9.0], [27.0]], "float32")
    solver = solvers.get(name, rtol=1e-4, atol=1e-4, per_sample=True)
    t_eval = ops.convert_to_tensor([0.1, 0.5, 2.0], "float32")

    def run(y0, rates):
        return with_reports(
            solver,
            lambda t, y, rates: -rates * (y - problems.cos(t)),
            0.0,
            2.0,
            y0,
            rates,
            t_eval,
        )

    run = compilations()[how](run)
    together = numpy(run(ops.ones((4, 1)), rates))
    assert not together.status.any()
    assert (np.diff(together.num_steps) > 0).all()
    for i in range(4):
        alone = numpy(run(ops.ones((1, 1)), rates[i : i + 1]))
        np.testing.assert_allclose(together.y1[i], alone.y1[0], atol=1e-6)
        np.testing.assert_allclose(together.ys[:, i], alone.ys[:, 0], atol=1e-6)
        assert together.num_steps[i] == alone.num_steps[0]
        assert together.num_evals[i] == alone.num_evals[0]


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_one_failing_sample_leaves_the_others_alone(name):
    # y' = y^2 from 1 / 2, 2 and NaN: poles at 2, 1 / 2 and none.
    y0 = ops.convert_to_tensor([[0.5], [2.0], [0.25], [np.nan]], "float32")
    solver = solvers.get(name, rtol=1e-5, atol=1e-5, per_sample=True)
    solution = numpy(solver.solve(lambda t, y, _: y * y, 0.0, 1.0, y0))
    assert (solution.status == 0).tolist() == [True, False, True, False]
    np.testing.assert_allclose(solution.y1[[0, 2], 0], [1, 1 / 3], rtol=1e-4)
    assert np.isnan(solution.y1[[1, 3]]).all()
    np.testing.assert_allclose(solution.t, [1, 0.5, 1, 0], rtol=1e-3)


@pytest.mark.parametrize("name", kinds(SOLVERS))
def test_config_round_trip(name):
    given = {
        "rtol": 1e-4,
        "atol": 1e-5,
        "max_steps": 7,
        "first_step": 0.5,
        "per_sample": True,
        "num_steps": 3,
    }
    known = solvers.get(name).get_config()
    given = {key: value for key, value in given.items() if key in known}
    solver = solvers.get(name, **given)
    again = solvers.get(keras.saving.serialize_keras_object(solver))
    assert type(again) is type(solver)
    assert again.get_config() == solver.get_config() == given

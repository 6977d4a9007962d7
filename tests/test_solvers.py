"""Every solver against exact solutions."""

import keras
import numpy as np
import problems
import pytest
from helpers import compilations
from keras import ops

from keras_node import solvers


def solve(solver, problem, dtype="float64", wrap=lambda f: f):
    params = ops.convert_to_tensor(problem.params, dtype)
    y0 = ops.convert_to_tensor(problem.y0, dtype)
    return wrap(
        lambda y0: solver.solve(
            lambda t, y: problem.f(t, y, params), problem.t0, problem.t1, y0
        )
    )(y0)


def error(solution, problem):
    y1 = ops.convert_to_numpy(solution.y1)
    return np.max(np.abs(y1 - problem.y1))


@pytest.mark.parametrize("problem", problems.ALL.values(), ids=problems.ALL)
@pytest.mark.parametrize("name", solvers.ALL)
def test_error_follows_the_tolerance(name, problem):
    for tolerance in (1e-3, 1e-6, 1e-9):
        solver = solvers.get(name, rtol=tolerance, atol=tolerance)
        solution = solve(solver, problem)
        assert bool(solution.success)
        assert float(solution.t) == problem.t1
        assert error(solution, problem) < 20 * tolerance


@pytest.mark.parametrize("how", compilations())
@pytest.mark.parametrize("name", solvers.ALL)
def test_compiled_and_eager_solves_agree(name, how):
    problem = problems.rotation()
    solver = solvers.get(name, rtol=1e-5, atol=1e-5)
    eager = solve(solver, problem, "float32")
    other = solve(solver, problem, "float32", compilations()[how])
    np.testing.assert_allclose(other.y1, eager.y1, rtol=2e-5, atol=2e-5)
    assert int(other.num_steps) == int(eager.num_steps)
    assert error(other, problem) < 1e-3


@pytest.mark.parametrize("name", solvers.ALL)
def test_time_stays_inside_the_interval_and_is_counted(name):
    for t0, t1 in ((0.3, 1.7), (1.7, 0.3), (-2.0, 5.0), (0.0, 1e-12)):
        times = []

        def f(t, y, times=times):
            times.append(float(t))
            return -y * ops.cos(t)

        y0 = ops.ones((2, 3))
        solution = solvers.get(name).solve(f, t0, t1, y0)
        low, high = np.float32(min(t0, t1)), np.float32(max(t0, t1))
        assert low <= min(times) and max(times) <= high
        assert int(solution.num_evals) == len(times)
        assert int(solution.num_accepted) <= int(solution.num_steps)
        y1 = np.exp(np.sin(t0) - np.sin(t1))
        np.testing.assert_allclose(solution.y1, y1 * np.ones((2, 3)), rtol=3e-3)


@pytest.mark.parametrize("name", solvers.ALL)
def test_the_answer_does_not_depend_on_where_time_starts(name):
    solver = solvers.get(name)
    here = solve(solver, problems.exponential(0.0, 1.0), "float32")
    there = solve(solver, problems.exponential(1e6, 1e6 + 1), "float32")
    np.testing.assert_array_equal(here.y1, there.y1)


@pytest.mark.parametrize("name", solvers.ALL)
def test_state_may_be_a_structure(name):
    solution = solvers.get(name, rtol=1e-6).solve(
        lambda t, y: {"a": y["b"][0], "b": (-y["a"],)},
        0.0,
        1.0,
        {"a": ops.zeros((2,)), "b": (ops.ones((2,)),)},
    )
    np.testing.assert_allclose(solution.y1["a"], [np.sin(1)] * 2, rtol=1e-5)
    np.testing.assert_allclose(solution.y1["b"][0], [np.cos(1)] * 2, rtol=1e-5)


@pytest.mark.parametrize("name", solvers.ALL)
def test_an_easy_solve_takes_few_evaluations(name):
    # The first step is chosen, not tried: TFP alone starts from 1e-3.
    solution = solve(solvers.get(name, atol=1e-3), problems.forced(0.0, 0.1))
    assert int(solution.num_evals) <= 14
    given = solvers.get(name, atol=1e-3, first_step=1e-3)
    assert int(solve(given, problems.forced(0.0, 0.1)).num_evals) > 14


@pytest.mark.parametrize("name", solvers.ALL)
def test_config_round_trip(name):
    solver = solvers.get(
        name, rtol=1e-4, atol=1e-5, max_steps=7, first_step=0.5
    )
    config = keras.saving.serialize_keras_object(solver)
    again = solvers.get(config)
    assert type(again) is type(solver)
    assert again.get_config() == solver.get_config()
    assert again.get_config()["max_steps"] == 7


@pytest.mark.parametrize("name", solvers.ALL)
@pytest.mark.parametrize(
    "argument, values",
    {
        "rtol": (0, -1e-3, float("nan"), float("inf"), "1e-3", None, True),
        "atol": (0.0, -1.0, float("nan"), [1e-3]),
        "max_steps": (0, -1, 1.5, "many", None, True),
        "first_step": (0, -0.1, float("nan"), float("inf"), "auto"),
    }.items(),
)
def test_bad_arguments(name, argument, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{argument}`.*Received"):
            solvers.ALL[name](**{argument: value})


def test_unknown_solvers_are_refused_with_the_known_ones_listed():
    for bad in ("euler5", 3, None, object, solvers.DormandPrince):
        with pytest.raises(ValueError, match="dormand_prince.*Received"):
            solvers.get(bad)
    with pytest.raises(ValueError, match="`rtol`.*Received"):
        solvers.get(solvers.DormandPrince(), rtol=1e-3)

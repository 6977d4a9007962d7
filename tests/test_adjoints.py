"""Every adjoint against exact gradients."""

import numpy as np
import problems
import pytest
from helpers import compilations
from keras import ops

from keras_node import adjoints
from keras_node import backend
from keras_node import solvers


def gradients(adjoint, solver, problem, dtype="float64", wrap=lambda f: f):
    """The solution and the gradients of the sum of its final state."""

    def run(y0, params):
        return backend.vjp(
            lambda y0, params: (
                adjoint.integrate(
                    solver,
                    lambda t, y, params, frozen: problem.f(t, y, params),
                    problem.t0,
                    problem.t1,
                    y0,
                    params,
                ).y1
            ),
            (y0, params),
            ops.ones_like(y0),
        )

    return wrap(run)(
        ops.convert_to_tensor(problem.y0, dtype),
        ops.convert_to_tensor(problem.params, dtype),
    )


@pytest.mark.parametrize("problem", problems.ALL.values(), ids=problems.ALL)
@pytest.mark.parametrize("name", adjoints.ALL)
def test_gradients_follow_the_tolerance(name, problem):
    for tolerance in (1e-3, 1e-6, 1e-9):
        solver = solvers.DormandPrince(rtol=tolerance, atol=tolerance)
        y1, (adj_y0, adj_params) = gradients(
            adjoints.get(name), solver, problem
        )
        bound = 50 * tolerance
        np.testing.assert_allclose(y1, problem.y1, rtol=0, atol=bound)
        np.testing.assert_allclose(
            adj_y0, problem.adj_y0, rtol=bound, atol=bound
        )
        np.testing.assert_allclose(
            adj_params, problem.adj_params, rtol=bound, atol=bound
        )


@pytest.mark.parametrize("how", compilations())
@pytest.mark.parametrize("name", adjoints.ALL)
def test_compiled_and_eager_gradients_agree(name, how):
    problem = problems.matrix_exponential()
    solver = solvers.DormandPrince(rtol=1e-5, atol=1e-5)
    adjoint = adjoints.get(name)
    eager = gradients(adjoint, solver, problem, "float32")
    other = gradients(adjoint, solver, problem, "float32", compilations()[how])
    for a, b in zip(eager[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", adjoints.ALL)
def test_an_unused_parameter_gets_zeros(name):
    y1, (_, adj_params) = backend.vjp(
        lambda y0, params: (
            adjoints.get(name)
            .integrate(
                solvers.get("dormand_prince"),
                lambda t, y, params, frozen: params[0] * y,
                0.0,
                1.0,
                y0,
                params,
            )
            .y1
        ),
        (ops.ones((2, 3)), [ops.ones((3,)), ops.ones((5,))]),
        ops.ones((2, 3)),
    )
    np.testing.assert_array_equal(adj_params[1], np.zeros(5))
    np.testing.assert_allclose(adj_params[0], 2 * np.exp([1.0] * 3), rtol=3e-3)


@pytest.mark.parametrize("how", compilations())
def test_a_failed_backward_solve_gives_nan(how):
    # Stable forwards; backwards from y1 the solution has a pole.
    y0 = np.ones((1, 1))
    problem = problems.Problem(
        lambda t, y, p: p * y**3, 0.0, 1.0, y0, np.array([-50.0]), *[None] * 3
    )
    solver = solvers.DormandPrince(rtol=1e-2, atol=1e-2)
    y1, grads = gradients(
        adjoints.BacksolveAdjoint(),
        solver,
        problem,
        "float32",
        compilations()[how],
    )
    assert np.isfinite(y1).all()
    assert all(np.isnan(g).all() for g in grads)
    # Tighter tolerances follow the way back.
    tight = solvers.DormandPrince(rtol=1e-7, atol=1e-7)
    y1, (adj_y0, _) = gradients(adjoints.BacksolveAdjoint(), tight, problem)
    np.testing.assert_allclose(adj_y0, [[101**-1.5]], rtol=1e-2)


def test_the_backward_solver_may_differ():
    problem = problems.rotation()
    loose = solvers.DormandPrince(rtol=1e-2, atol=1e-2)
    tight = solvers.DormandPrince(rtol=1e-9, atol=1e-9)
    adjoint = adjoints.BacksolveAdjoint(solver=tight)
    _, (exact, _) = gradients(adjoint, loose, problem)
    np.testing.assert_allclose(exact, problem.adj_y0, rtol=0, atol=1e-7)
    _, (rough, _) = gradients(adjoints.BacksolveAdjoint(), loose, problem)
    assert np.max(np.abs(rough - problem.adj_y0)) > 1e-5
    again = adjoints.get(
        {
            "class_name": "BacksolveAdjoint",
            "registered_name": "keras_node>BacksolveAdjoint",
            "module": "keras_node",
            "config": adjoint.get_config(),
        }
    )
    assert again.solver.get_config() == tight.get_config()


def test_unknown_adjoints_are_refused_with_the_known_ones_listed():
    for bad in ("bptt", 3, None, solvers.DormandPrince()):
        with pytest.raises(ValueError, match="backsolve.*Received"):
            adjoints.get(bad)
    with pytest.raises(ValueError, match="`solver`.*Received"):
        adjoints.BacksolveAdjoint(solver="dormand_prince")

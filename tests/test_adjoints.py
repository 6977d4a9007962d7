"""Every adjoint against exact gradients, with every solver."""

import itertools

import keras
import numpy as np
import problems
import pytest
from helpers import ADAPTIVE
from helpers import ADJOINTS
from helpers import COMPILED
from helpers import PAIRS
from helpers import PER_SAMPLE
from helpers import SOLVERS
from helpers import accurate
from helpers import compilations
from helpers import elapsed
from helpers import is_tested
from helpers import kinds
from helpers import numpy
from helpers import slow
from helpers import slow_on
from helpers import slow_unless
from helpers import untraced
from keras import ops

from keras_node import SolverError
from keras_node import adjoints
from keras_node import backend
from keras_node import solvers
from keras_node.integration.outputs import Record
from keras_node.solvers.runge_kutta import FixedRungeKutta

ON_TORCH = keras.backend.backend() == "torch"
ALONG = [name for name in adjoints.ALL if adjoints.get(name).needs_steps]


def gradients(
    adjoint, solver, problem, dtype="float64", wrap=lambda f: f, t_eval=None
):
    """The sum of the states returned, and its gradients."""
    s_eval = elapsed(problem, t_eval, dtype)

    def integrate(y0, params):
        solution = adjoint.integrate(
            solver,
            lambda t, y, params, frozen: problem.f(t, y, params),
            problem.t0,
            problem.t1,
            y0,
            params,
            s_eval=s_eval,
        )
        return solution.y1 if t_eval is None else ops.sum(solution.ys, axis=0)

    def run(y0, params):
        return backend.vjp(integrate, (y0, params), ops.ones_like(y0))

    y0 = ops.convert_to_tensor(problem.y0, dtype)
    params = ops.convert_to_tensor(problem.params, dtype)
    return numpy(wrap(run)(y0, params))


# Each problem with some adjoint, and each adjoint with some problems.
PROBLEMS = slow_unless(
    lambda pair, name: (
        ADJOINTS.index(pair) == list(problems.ALL).index(name) % len(ADJOINTS)
        or name in ("matrix exponential", "forced backwards in time")
    ),
    list(itertools.product(ADJOINTS, problems.ALL)),
)


@pytest.mark.parametrize("pair, problem", PROBLEMS)
def test_gradients_follow_the_tolerance(pair, problem):
    (solver, adjoint), problem = pair, problems.ALL[problem]
    tolerance = 1e-6
    y1, (adj_y0, adj_params) = gradients(
        adjoints.get(adjoint), accurate(solver, tolerance), problem
    )
    bound = 50 * tolerance
    np.testing.assert_allclose(y1, problem.y1, rtol=0, atol=bound)
    for ours, exact in (
        (adj_y0, problem.adj_y0),
        (adj_params, problem.adj_params),
    ):
        np.testing.assert_allclose(ours, exact, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    "name, adjoint",
    kinds([(name, "discrete") for name in SOLVERS])
    + [("tsit5", "interpolating"), ("tsit5", "gauss")]
    + [slow("bosh3", "interpolating"), slow("bosh3", "gauss")],
)
def test_the_gradients_error_falls_with_the_order(name, adjoint):
    class FixedStep(FixedRungeKutta):
        tableau = solvers.ALL[name].tableau

    problem = problems.rotation(0.0, 1.0)
    num_steps = np.array([12, 18, 27])
    errors = []
    for n in num_steps:
        _, (adj_y0, adj_params) = gradients(
            adjoints.get(adjoint), FixedStep(n), problem
        )
        errors.append(np.max(np.abs(adj_params - problem.adj_params)))
    slope = -np.polyfit(np.log(num_steps), np.log(errors), 1)[0]
    assert abs(slope - FixedStep.tableau.order) < 0.4


def unrolled(solver, problem, steps, y0, params):
    """The same steps as a plain expression: for automatic differentiation."""
    y = y0
    stepper = solver.stepper(dense=False, chained=False)
    for t, dt in steps:
        y = stepper.step(
            problem.f,
            ops.convert_to_tensor(t, "float64"),
            ops.convert_to_tensor(dt, "float64"),
            y,
            (),
            params,
        ).y1
    return y


@pytest.mark.parametrize("checkpoints", [6, 100])
@pytest.mark.parametrize(
    "name", kinds([s for s, a in PAIRS if a == "discrete"])
)
def test_discrete_gradients_are_those_of_the_steps(name, checkpoints):
    problem = problems.forced_decay()
    solver = solvers.get(name)
    if name in ADAPTIVE:
        # The first step is far too long: some are rejected.
        solver = solvers.get(name, rtol=1e-6, atol=1e-6, first_step=1.0)
    y0 = ops.convert_to_tensor(problem.y0, "float64")
    params = ops.convert_to_tensor(problem.params, "float64")
    (path,) = solver.solve(
        problem.f, 0.0, problem.t1, y0, params, (Record(4096, 8),)
    ).outputs
    count = int(path.num_steps)
    indices = ops.arange(0, count, dtype="int32")
    steps = [numpy(path.step(indices[i])) for i in range(count)]
    assert count >= 7
    np.testing.assert_allclose(sum(dt for _, dt in steps), problem.t1)

    exact, exact_gradients = backend.vjp(
        lambda y0, params: unrolled(solver, problem, steps, y0, params),
        (y0, params),
        ops.ones_like(y0),
    )
    y1, ours = gradients(adjoints.DiscreteAdjoint(checkpoints), solver, problem)
    np.testing.assert_allclose(y1, numpy(exact), rtol=1e-12)
    for a, b in zip(ours, numpy(exact_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


@slow_on("jax")
@pytest.mark.parametrize(
    "checkpoints, keep_graphs",
    [slow(2, 0), (6, 0) if ON_TORCH else slow(6, 0), (100, 0)]
    # Elsewhere nothing is kept.
    + ([(6, 8), (6, 100)] if ON_TORCH else []),
)
def test_the_discrete_adjoint_evaluates_no_more_than_it_promises(
    checkpoints, keep_graphs
):
    calls = []
    problem = problems.rotation(0.0, 3.0)
    solver = solvers.Tsit5(rtol=1e-7, atol=1e-7)

    def f(t, y, params):
        calls.append(1)
        return problem.f(t, y, params)

    with untraced():
        solution = solver.solve(
            lambda t, y, _: problem.f(t, y, problem.params),
            0.0,
            3.0,
            ops.convert_to_tensor(problem.y0, "float64"),
        )
        steps, forward = int(solution.num_accepted), int(solution.num_evals)
        gradients(
            adjoints.DiscreteAdjoint(checkpoints, keep_graphs),
            solver,
            problem._replace(f=f),
        )
    backward = len(calls) - forward
    if keep_graphs and keras.backend.backend() == "torch":
        # The first slope of a step that may be kept is evaluated again.
        tried = int(solution.num_steps)
        if keep_graphs >= steps:
            assert backward == tried
        else:
            assert backward <= tried + 12 * (steps - keep_graphs)
    elif checkpoints >= steps:
        assert backward == 6 * steps
    else:
        assert 6 * steps < backward <= 12 * steps


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch would have dropped it"
)
def test_a_second_derivative_is_refused():
    import torch

    y0 = torch.ones((2, 3), requires_grad=True)
    solution = adjoints.DiscreteAdjoint().integrate(
        solvers.RK4(), lambda t, y, a, frozen: a * y, 0.0, 1.0, y0, ops.ones(3)
    )
    loss = ops.sum(solution.y1**3)
    (slope,) = torch.autograd.grad(loss, [y0], create_graph=True)
    np.testing.assert_allclose(numpy(slope), 3 * np.exp(3), rtol=1e-3)
    with pytest.raises(NotImplementedError, match="once more"):
        torch.autograd.grad(ops.sum(slope**2 + y0), [y0])


@pytest.mark.parametrize("how", COMPILED)
def test_the_default_checkpoints_serve_ten_thousand_steps(how):
    _, (adj_y0, adj_params) = gradients(
        adjoints.DiscreteAdjoint(),
        solvers.RK4(num_steps=10_000),
        problems.rotation(),
        wrap=compilations()[how],
    )
    problem = problems.rotation()
    np.testing.assert_allclose(adj_y0, problem.adj_y0, atol=1e-10)
    np.testing.assert_allclose(adj_params, problem.adj_params, atol=1e-10)


@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(
        lambda *pair: (
            pair in ADJOINTS or (is_tested(pair[0]) and pair[1] == "discrete")
        ),
        PAIRS,
    ),
)
def test_gradients_flow_through_every_state_reported(solver, adjoint):
    # y = exp(r (t - t0)) y0, with both ends, a repeated and two close times.
    t0, t1 = 1.5, 0.5
    problem = problems.exponential(t0, t1)
    t_eval = t0 + (t1 - t0) * np.array([0, 0.3, 0.301, 0.7, 0.7, 1.0])
    tolerance = 1e-7 if solver != "bosh3" else 1e-5
    total, (adj_y0, adj_rate) = gradients(
        adjoints.get(adjoint),
        accurate(solver, tolerance),
        problem,
        t_eval=t_eval,
    )
    s = (t_eval - t0)[:, None]
    growth = np.exp(problem.params * s)
    rtol = {5: 1e-5, 4: 1e-5, 3: 1e-3, 2: 5e-3, 1: 0.1}
    rtol = rtol[solvers.ALL[solver].tableau.order]
    np.testing.assert_allclose(total, problem.y0 * growth.sum(0), rtol=rtol)
    np.testing.assert_allclose(
        adj_y0, np.ones((2, 1)) * growth.sum(0), rtol=rtol
    )
    np.testing.assert_allclose(
        adj_rate, problem.y0.sum(0) * (s * growth).sum(0), rtol=rtol
    )


@pytest.mark.parametrize(
    "name, adjoint",
    slow_unless(
        lambda name, _: name == "tsit5",
        list(itertools.product(PER_SAMPLE, ALONG)),
    ),
)
def test_gradients_of_samples_that_step_for_themselves(name, adjoint):
    rates = np.array([[-1.0], [-4.0], [2.0]])
    speed = ops.convert_to_tensor(rates, "float64")
    y0 = np.array([[1.0], [2.0], [-0.5]])
    t_eval = np.array([0.0, 0.3, 1.0])
    growth = np.exp(rates * t_eval)
    problem = problems.Problem(
        lambda t, y, p: p * speed * y, 0.0, 1.0, y0, np.ones(1), *[None] * 3
    )
    _, (adj_y0, adj_p) = gradients(
        adjoints.ALL[adjoint](checkpoints=6),
        solvers.get(name, rtol=1e-7, atol=1e-7, per_sample=True),
        problem,
        t_eval=t_eval,
    )
    np.testing.assert_allclose(adj_y0, growth.sum(1, keepdims=True), rtol=1e-4)
    exact = (y0 * rates * growth * t_eval).sum()
    np.testing.assert_allclose(adj_p, [exact], rtol=1e-4)


@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(lambda *pair: pair == ADJOINTS[-1], ADJOINTS),
)
def test_compiled_and_eager_gradients_agree(solver, adjoint, how):
    problem = problems.matrix_exponential()
    eager, other = (
        gradients(
            adjoints.get(adjoint),
            accurate(solver, 1e-5),
            problem,
            "float32",
            wrap,
            t_eval=[0.2, 1.0],
        )[1]
        for wrap in (compilations()["eager"], compilations()[how])
    )
    for a, b in zip(eager, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(lambda *pair: pair[1] in ("discrete", "gauss"), ADJOINTS),
)
def test_an_unused_parameter_gets_zeros(solver, adjoint):
    _, (_, adj_params) = backend.vjp(
        lambda y0, params: (
            adjoints.get(adjoint)
            .integrate(
                solvers.get(solver),
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
    used, unused = numpy(adj_params)
    np.testing.assert_array_equal(unused, np.zeros(5))
    np.testing.assert_allclose(used, 2 * np.exp([1.0] * 3), rtol=0.2)


def stiff_cubic():
    """Stable forwards; backwards from `y1` the solution has a pole."""
    y0 = np.ones((1, 1))
    return problems.Problem(
        lambda t, y, p: p * y**3, 0.0, 1.0, y0, np.array([-50.0]), *[None] * 3
    )


def stiff_linear():
    """Decay at rates 1 and 40: traced back, an error grows by exp(40)."""
    return problems.linear([[-20.5, 19.5], [19.5, -20.5]])


@pytest.mark.parametrize("how", compilations())
@pytest.mark.parametrize("problem", [stiff_cubic(), stiff_linear()])
@pytest.mark.parametrize("name", ["dormand_prince", "tsit5"])
def test_a_failed_backward_solve_gives_nan_or_says_so(name, problem, how):
    solver = solvers.get(name, rtol=1e-2, atol=1e-2)
    arguments = (
        adjoints.BacksolveAdjoint(),
        solver,
        problem,
        "float32",
        compilations()[how],
    )
    if how == "eager":
        with pytest.raises(SolverError, match="backward solve.*discrete"):
            gradients(*arguments)
        return
    y1, found = gradients(*arguments)
    assert np.isfinite(y1).all()
    assert all(np.isnan(g).all() for g in found)


@pytest.mark.parametrize("adjoint", ALONG)
def test_where_backsolve_fails_others_do_not(adjoint):
    problem = stiff_linear()
    solver = solvers.Tsit5(rtol=1e-4, atol=1e-4)
    _, (adj_y0, adj_params) = gradients(
        adjoints.get(adjoint), solver, problem, "float32"
    )
    np.testing.assert_allclose(adj_y0, problem.adj_y0, atol=1e-3)
    np.testing.assert_allclose(adj_params, problem.adj_params, atol=1e-3)


@pytest.mark.parametrize("adjoint", adjoints.ALL)
def test_the_scale_of_the_loss_is_of_no_account(adjoint):
    # Solved with an error below 1 allowed, a gradient of 1e-12 is not 0.
    solver = solvers.Tsit5(rtol=1e-3, atol=1e-3)
    problem = problems.exponential()
    found = {}
    for scale in (1.0, 2.0**-40):
        args = (
            ops.convert_to_tensor(problem.y0, "float32"),
            ops.convert_to_tensor(problem.params, "float32"),
        )
        _, found[scale] = backend.vjp(
            lambda y0, params, scale=scale: (
                scale
                * adjoints.get(adjoint)
                .integrate(
                    solver,
                    lambda t, y, params, frozen: params * y,
                    0.0,
                    1.0,
                    y0,
                    params,
                )
                .y1
            ),
            args,
            ops.ones_like(args[0]),
        )
    for one, small in zip(*map(numpy, found.values()), strict=True):
        np.testing.assert_array_equal(one * 2.0**-40, small)


@pytest.mark.parametrize(
    "name, adjoint",
    slow_unless(
        lambda *pair: pair in ADJOINTS,
        [
            (name, adjoint)
            for name, adjoint in PAIRS
            if name in ADAPTIVE and adjoint != "discrete"
        ],
    )
    + [("dormand_prince", "interpolating")],
)
def test_the_backward_solver_may_differ(name, adjoint):
    # The adjoint equation of a rotation depends on nothing but the time.
    problem = problems.rotation()
    forward = name if adjoint == "backsolve" else "tsit5"
    loose = solvers.get(forward, rtol=1e-2, atol=1e-2)
    tight = accurate(name, 1e-7)
    rough, adjoint = adjoints.get(adjoint), adjoints.ALL[adjoint](solver=tight)
    _, (exact, _) = gradients(adjoint, loose, problem)
    np.testing.assert_allclose(exact, problem.adj_y0, rtol=0, atol=1e-3)
    _, (rough, _) = gradients(rough, loose, problem)
    error = np.max(np.abs(rough - problem.adj_y0))
    assert error > 10 * np.max(np.abs(exact - problem.adj_y0))
    again = adjoints.get(keras.saving.serialize_keras_object(adjoint))
    assert again.solver.get_config() == tight.get_config()


@pytest.mark.parametrize("adjoint", ["backsolve", "interpolating", "gauss"])
def test_the_error_of_the_parameters_gradient_takes_no_steps(adjoint):
    # Its rms is a million times that of the state: the seminorm looks past it.
    counts = {}
    for size in (1.0, 1e6):
        calls = counts[size] = []

        def f(t, y, params, frozen, calls=calls, size=size):
            calls.append(1)
            return -y + size * params

        with untraced():
            backend.vjp(
                lambda y0, params, f=f: (
                    adjoints.get(adjoint)
                    .integrate(solvers.Tsit5(), f, 0.0, 1.0, y0, params)
                    .y1
                ),
                (ops.zeros((2, 3)), ops.zeros((3,))),
                ops.ones((2, 3)),
            )
    assert len(counts[1.0]) == len(counts[1e6])

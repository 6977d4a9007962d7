"""How exact the gradients are, and how often each evaluates `f`.

Solves five problems at five tolerances with each adjoint, with torchdiffeq and
with diffrax, by the same method where they have it, and compares the gradient
with that of a solve at tolerance 1e-13 in float64. Every contestant gets the
same functions and computes on the CPU. Errors are geometric means over several
initial states, so that a lucky one does not decide.

    KERAS_BACKEND=torch python tests/benchmarks/gradients.py

Needs the extras `benchmarks`, `jax` and `torch`. On other backends than
PyTorch evaluations of `f` by `keras_node` are not counted.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import importlib
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
import torchdiffeq
from keras import ops

from keras_node import adjoints
from keras_node import backend
from keras_node import solvers

jax.config.update("jax_enable_x64", True)

BACKEND = keras.backend.backend()
MODULES = {"jax": "jax.numpy"}


class Problem(NamedTuple):
    """`dy/dt = f(xp, t, y, *params)`; the loss is half the square of `y1`."""

    f: Callable  # `xp` is a framework, by the names of NumPy
    t1: float
    y0: np.ndarray
    params: list

    def starts(self, count: int) -> list:
        """Initial states, `y0` times something between 0.8 and 1.25 each."""
        rng = np.random.default_rng(1)
        shape = (count, *self.y0.shape)
        return list(self.y0 * 1.25 ** rng.uniform(-1, 1, shape))


def tutorial() -> Problem:
    """The network of the Lux.jl tutorial, on a batch of 128."""
    rng = np.random.default_rng(0)

    def dense(rows, columns):
        limit = (6 / (rows + columns)) ** 0.5
        return rng.uniform(-limit, limit, size=(rows, columns))

    def f(xp, t, y, *weights):
        for w in weights:
            y = xp.tanh(y @ w)
        return y

    weights = [dense(20, 10), dense(10, 10), dense(10, 20)]
    return Problem(f, 1.0, np.tanh(rng.normal(size=(128, 20))), weights)


def linear(matrix: list, t1: float) -> Problem:
    y0 = np.array([[1.0, 0.5], [-0.5, 2.0]])
    return Problem(lambda xp, t, y, a: y @ a, t1, y0, [np.array(matrix)])


PROBLEMS = {
    "network": tutorial(),
    "oscillator": linear([[0.0, 1.0], [-1.0, 0.0]], 10.0),
    # Eigenvalues -1 and -50: backwards in time, errors grow by exp(50).
    "decay": linear([[-25.5, 24.5], [24.5, -25.5]], 1.0),
    "forced": Problem(
        lambda xp, t, y, p, q: p * (xp.cos(5 * t) * q - y),
        3.0,
        np.array([[1.0, -0.5]]),
        [np.array([2.0, 1.0]), np.array([1.0, 2.0])],
    ),
    "spiral": Problem(
        lambda xp, t, y, a: y**3 @ a,
        10.0,
        np.array([[2.0, 0.2]]),
        [np.array([[-0.1, 2.0], [-2.0, -0.1]])],
    ),
}


class Result(NamedTuple):
    y1: np.ndarray
    gradient: list
    forward: float = np.nan  # evaluations of f
    backward: float = np.nan


class Counted:
    """A right-hand side that counts its evaluations."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, *args):
        self.calls += 1
        return self.f(*args)

    def since_last(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


# Each contestant gets a problem, initial states, the tolerance and the dtype,
# and yields a result for each initial state.


def ours(name, adjoint, problem, starts, tolerance, dtype, **kwargs):
    xp = importlib.import_module(MODULES.get(BACKEND, BACKEND))
    f = Counted(functools.partial(problem.f, xp))
    solver = solvers.get(name, rtol=tolerance, atol=tolerance, **kwargs)
    forward = 0

    def integrate(y0, params):
        nonlocal forward
        y1 = adjoints.get(adjoint).integrate(
            solver,
            lambda t, y, params, frozen: f(t, y, *params),
            0.0,
            problem.t1,
            y0,
            params,
        )[0]
        forward = f.since_last()
        return y1, 0.5 * ops.sum(y1 * y1)

    def run(y0, *params):
        args = (y0, list(params))
        (y1, _), (adj_y0, adj_params) = backend.vjp(
            integrate, args, (ops.zeros_like(y0), ops.ones((), dtype))
        )
        return y1, adj_y0, *adj_params

    if BACKEND == "jax":
        run = jax.jit(run)
    if BACKEND == "tensorflow":
        run = xp.function(run)
    for y0 in starts:
        args = [ops.convert_to_tensor(x, dtype) for x in (y0, *problem.params)]
        y1, *gradient = map(ops.convert_to_numpy, run(*args))
        result = Result(y1, gradient)
        if BACKEND == "torch":
            result = Result(y1, gradient, forward, f.since_last())
        yield result


def with_torchdiffeq(odeint, problem, starts, tolerance, dtype):
    f = Counted(problem.f)

    class Field(torch.nn.Module):
        def __init__(self, params):
            super().__init__()
            self.params = torch.nn.ParameterList(params)

        def forward(self, t, y):
            return f(torch, t, y, *self.params)

    for y0 in starts:
        y0, *params = (
            torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True)
            for x in (y0, *problem.params)
        )
        field = Field(params)
        times = torch.tensor([0.0, problem.t1], dtype=y0.dtype)
        y1 = odeint(
            field, y0, times, rtol=tolerance, atol=tolerance, method="dopri5"
        )[-1]
        forward = f.since_last()
        inputs = [y0, *field.params]
        gradient = torch.autograd.grad(0.5 * torch.sum(y1 * y1), inputs)
        yield Result(
            y1.detach().numpy(),
            [g.numpy() for g in gradient],
            forward,
            f.since_last(),
        )


def with_diffrax(name, adjoint, problem, starts, tolerance, dtype):
    counted = Counted(lambda: None)

    def f(t, y, params):
        jax.debug.callback(counted)
        return problem.f(jnp, t, y, *params)

    def loss(args):
        y0, params = args
        # Times of the state's dtype, as everyone else has them.
        t0, t1 = jnp.zeros((), dtype), jnp.asarray(problem.t1, dtype)
        y1 = diffrax.diffeqsolve(
            diffrax.ODETerm(f),
            getattr(diffrax, name.capitalize())(),
            t0,
            t1,
            None,
            y0,
            params,
            adjoint=adjoint,
            stepsize_controller=diffrax.PIDController(
                rtol=tolerance, atol=tolerance
            ),
            max_steps=4096,
        ).ys[0]
        return 0.5 * jnp.sum(y1 * y1), y1

    def run(function, args):
        out = jax.block_until_ready(function(args))
        jax.effects_barrier()
        return out, counted.since_last()

    value, gradient = jax.jit(loss), jax.jit(jax.grad(loss, has_aux=True))
    for y0 in starts:
        args = jax.tree.map(
            lambda x: jnp.asarray(x, dtype), (y0, problem.params)
        )
        _, forward = run(value, args)
        (found, y1), both = run(gradient, args)
        yield Result(
            np.asarray(y1),
            [np.asarray(g) for g in jax.tree.leaves(found)],
            forward,
            both - forward,
        )


def contestants(solver):
    """Ours and the peers, by name."""
    partial = functools.partial
    mine = {name: partial(ours, solver, name) for name in adjoints.ALL}
    peers = {
        "torchdiffeq odeint": partial(with_torchdiffeq, torchdiffeq.odeint),
        "torchdiffeq odeint_adjoint": partial(
            with_torchdiffeq, torchdiffeq.odeint_adjoint
        ),
        "diffrax RecursiveCheckpoint": partial(
            with_diffrax, solver, diffrax.RecursiveCheckpointAdjoint()
        ),
        "diffrax Backsolve": partial(
            with_diffrax, solver, diffrax.BacksolveAdjoint()
        ),
    }
    return mine, peers


def error(found: Any, exact: Any) -> float:
    """Of several arrays together, relative, in the Euclidean norm."""
    found, exact = (
        np.concatenate([np.ravel(x) for x in arrays]).astype("float64")
        for arrays in (found, exact)
    )
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def measure(mine, peers, problem, starts, tolerance, dtype, truth):
    """Prints the rows of one problem.

    Returns for each contestant its error in units of the best peer's, and in
    units of its forward error; each error is the geometric mean over the
    initial states.
    """
    errors = {}
    for who, run in (mine | peers).items():
        try:
            results = list(run(problem, starts, tolerance, dtype))
        except RuntimeError as failure:  # a SolverError, or a peer's own
            print(f"    {who:28s} {type(failure).__name__}")
            errors[who] = np.nan, np.nan
            continue
        pairs = list(zip(results, truth, strict=True))
        forward = [error([r.y1], [exact.y1]) for r, exact in pairs]
        gradient = [error(r.gradient, exact.gradient) for r, exact in pairs]
        forward, gradient = (
            np.exp(np.mean(np.log(x))) for x in (forward, gradient)
        )
        errors[who] = forward, gradient
        print(
            f"    {who:28s} {gradient:9.1e} {forward:9.1e} "
            f"{np.mean([r.forward for r in results]):9.0f} "
            f"{np.mean([r.backward for r in results]):9.0f}",
            flush=True,
        )
    best = np.nanmin([errors[who][1] for who in peers])
    return {
        who: (gradient / best, gradient / forward)
        for who, (forward, gradient) in errors.items()
    }


def summary(ratios, column):
    """A table of all contestants: how far off, and how often by how much."""
    print(
        "\n| | median | at most 2 | at worst | failed |\n|---|---|---|---|---|"
    )
    for who, rows in ratios.items():
        values = np.array([row[column] for row in rows])
        found, count = values[np.isfinite(values)], len(values)
        cells = [" ", f"0 of {count}", " "]
        if found.size:
            cells[0] = f"{np.median(found):.2g}"
            cells[1] = f"{np.sum(found <= 2)} of {count}"
            cells[2] = f"{np.max(found):.2g}"
        print(f"| {who} | {' | '.join(cells)} | {count - found.size} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--solver", choices=["dopri5", "tsit5"], default="dopri5")
    add("--problem", choices=PROBLEMS, help="one of the problems only")
    add("--starts", type=int, default=5, help="initial states of each problem")
    add("--dtype", choices=["float32", "float64"], help="one of the two only")
    args = parser.parse_args()
    mine, peers = contestants(args.solver)
    ratios = {who: [] for who in mine | peers}
    for name, problem in PROBLEMS.items():
        if args.problem not in (None, name):
            continue
        starts = problem.starts(args.starts)
        exact = ours(
            "dopri5",
            "discrete",
            problem,
            starts,
            1e-13,
            "float64",
            max_steps=100_000,
        )
        truth = list(exact)
        for dtype in ("float32", "float64"):
            if args.dtype not in (None, dtype):
                continue
            for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
                case = f"{name}, {dtype}, rtol = atol = {tolerance:.0e}"
                print(f"\n{case}")
                print(f"    {'':28s}  gradient   forward  f forward f backward")
                rows = measure(
                    mine, peers, problem, starts, tolerance, dtype, truth
                )
                for who, row in rows.items():
                    ratios[who].append(row)
    print("\nThe error of the gradient in units of the best peer's:")
    summary(ratios, 0)
    print("\nThe error of the gradient in units of the forward error:")
    summary(ratios, 1)


if __name__ == "__main__":
    main()

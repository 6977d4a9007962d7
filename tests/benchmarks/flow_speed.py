"""Seconds of a training step of a flow, side by side with hand-written ones.

    KERAS_BACKEND=jax python tests/benchmarks/flow_speed.py

A step is the loss by maximum likelihood, and its gradient by all weights. The
peers are what one would write with diffrax on JAX, after the flow among its
examples, and with torchdiffeq on PyTorch, after FFJORD. On TensorFlow there is
no peer. All get the same network, weights, batch, tolerances and probes, and
their losses and gradients must agree. They take turns, in several rounds. A
ratio is their time over ours by the same method in one round. The table has the
median over the rounds, the spread, and the evaluations of `f` in a forward
solve.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from contestants import differentiated
from contestants import first
from keras import ops
from works import Framework
from works import dense_params
from works import random

import keras_node

BACKEND = keras.backend.backend()
AGREE = 3e-4  # so far losses and gradients may differ, relative


class Work(NamedTuple):
    """A batch, the weights, and how the divergence is computed."""

    x: np.ndarray
    params: list  # of the network, kernels and biases in turn
    probes: np.ndarray | None  # None for the exact divergence
    tolerance: float

    @property
    def dim(self) -> int:
        return self.x.shape[1]


def work(
    dim: int, scale: float, hutchinson: bool, batch: int, tolerance: float
) -> Work:
    """Makes a work whose weights are `scale` times as large as at the start.

    A flow that has been trained takes more steps than a new one, too.
    """
    params = [scale * p for p in dense_params(dim + 1, 64, 64, 64, dim)]
    signs = np.sign(random(batch, dim, seed=9))
    probes = signs if hutchinson else None
    return Work(random(batch, dim, seed=8), params, probes, tolerance)


# By what is in the table: the dimensions, the scale of the weights, and
# whether the divergence is Hutchinson's estimate by one probe.
WORKS = {
    "exact, 2 dimensions": (2, 2.0, False),
    "Hutchinson, 16 dimensions": (16, 1.5, True),
}


def perceptron(xp: Framework, t: Any, x: Any, params: list) -> Any:
    """The network of the peers; `x` may be a batch on PyTorch only."""
    if xp.name == "torch":
        torch = xp.module
        y = torch.cat([t.expand(len(x), 1), x], dim=1)
        affine = torch.addmm  # in one operation, as `nn.Linear` does it
    else:
        y = xp.module.concatenate([t[None], x])

        def affine(bias, y, kernel):
            return y @ kernel + bias

    *hidden, last = zip(params[::2], params[1::2], strict=True)
    for kernel, bias in hidden:
        y = xp.tanh(affine(bias, y, kernel))
    kernel, bias = last
    return affine(bias, y, kernel)


def likelihood_loss(xp: Framework, z: Any, log_det: Any) -> Any:
    """The mean negative log-density of a batch that has arrived at `z`."""
    log_base = -0.5 * ((z * z).sum(1) + z.shape[1] * math.log(2 * math.pi))
    return -xp.mean(log_base + log_det)


# The contestants. Each takes a work and returns a step, a function that
# returns the loss and the gradient, and a function that tells the evaluations.


def ours(work: Work, solver: str, jit: bool = True) -> tuple:
    flow = keras_node.ContinuousFlow(
        [
            keras.layers.Concatenate(),
            *(keras.layers.Dense(64, "tanh") for _ in range(3)),
            keras.layers.Dense(work.dim),
        ],
        divergence="exact" if work.probes is None else "hutchinson",
        solver=solver,
        rtol=work.tolerance,
        atol=work.tolerance,
    )
    flow.compile()
    flow.build(work.x.shape)
    flow.dynamics.set_weights(work.params)
    x = ops.convert_to_tensor(work.x)
    if work.probes is not None:
        # Those of the peers. Drawing them takes no time to speak of.
        probes = ops.convert_to_tensor(work.probes[None])
        flow.transport._probes = lambda y: probes
    variables = [v.value for v in flow.trainable_variables]

    def evaluations():
        return str(int(flow.transport.solve(x).num_evals))

    def loss_of(arrived):
        return flow.compute_loss(x, y_pred=arrived)

    if BACKEND == "jax":
        fixed = [v.value for v in flow.non_trainable_variables]

        def loss(params, x):
            arrived, _ = flow.stateless_call(params, fixed, x, training=True)
            return loss_of(arrived)

        return differentiated("jax", loss, variables, x, True), evaluations
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit, autograph=False)
        def graph(x):
            with tf.GradientTape() as tape:
                loss = loss_of(flow(x, training=True))
            return loss, tape.gradient(loss, variables)

        return functools.partial(graph, x), evaluations
    import torch

    def step():
        loss = loss_of(flow(x, training=True))
        return loss, torch.autograd.grad(loss, variables)

    return step, evaluations


def with_diffrax(
    work: Work, solver: str, batched: bool, x_alone: bool = False
) -> tuple:
    """A flow by diffrax, of each sample by itself or with steps of all.

    If `x_alone`, errors are judged by `x` and not by its log-determinant.
    """
    import diffrax
    import jax
    import jax.numpy as jnp
    import optimistix

    xp = Framework("jax")
    x, params = xp.array(work.x), list(map(xp.array, work.params))
    exact = work.probes is None
    probes = jnp.zeros_like(x) if exact else xp.array(work.probes)

    def norm(state):
        return optimistix.rms_norm(state[0] if x_alone else state)

    controller = diffrax.PIDController(
        rtol=work.tolerance,
        atol=work.tolerance,
        norm=norm,
    )
    calls = 0

    def called():
        nonlocal calls
        calls += 1

    def slopes(t, x, probe, params, counts):
        """The slope of one sample, and its divergence."""
        if counts:
            jax.debug.callback(called)
        dx, pullback = jax.vjp(lambda x: perceptron(xp, t, x, params), x)
        if exact:
            (jacobian,) = jax.vmap(pullback)(jnp.eye(len(x)))
            return dx, jnp.trace(jacobian)
        (row,) = pullback(probe)
        return dx, row @ probe

    def integrate(x, probe, params, counts):
        def field(t, state, args):
            probe, params = args
            if not batched:
                return slopes(t, state[0], probe, params, counts)
            each = functools.partial(slopes, params=params, counts=counts)
            return jax.vmap(each, (None, 0, 0))(t, state[0], probe)

        z, log_det = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            getattr(diffrax, solver.capitalize())(),
            0.0,
            1.0,
            None,
            (x, jnp.zeros(x.shape[:-1])),
            (probe, params),
            stepsize_controller=controller,
        ).ys
        return z[0], log_det[0]

    def solve(params, x, counts=False):
        def run(x, probe):
            return integrate(x, probe, params, counts)

        return (run if batched else jax.vmap(run))(x, probes)

    def loss(params, x):
        return likelihood_loss(xp, *solve(params, x))

    def evaluations():
        counting = jax.jit(functools.partial(solve, counts=True))
        jax.block_until_ready(counting(params, x))
        jax.effects_barrier()
        # One call is for all samples, which go on until the last has arrived.
        return str(calls)

    return differentiated("jax", loss, params, x, True), evaluations


def with_torchdiffeq(work: Work, name: str, x_alone: bool = False) -> tuple:
    """A flow by torchdiffeq's function of this name, all samples in one solve.

    If `x_alone`, errors are judged by `x` and not by its log-determinant.
    """
    import torch
    import torchdiffeq

    xp = Framework("torch")
    x, params = xp.array(work.x), list(map(xp.array, work.params))
    probes = None if work.probes is None else xp.array(work.probes)

    class Field(torch.nn.Module):
        def __init__(self, params):
            super().__init__()
            self.values, self.calls = params, 0

        def forward(self, t, state):
            self.calls += 1
            with torch.enable_grad():
                x = state[0].requires_grad_()
                dx = perceptron(xp, t, x, self.values)
                return dx, self.divergence(x, dx)

        def divergence(self, x, dx):
            grad = functools.partial(torch.autograd.grad, create_graph=True)
            if probes is not None:
                (row,) = grad(dx, x, probes)
                return (row * probes).sum(1)
            return sum(
                grad(dx[:, i].sum(), x)[0][:, i] for i in range(x.shape[1])
            )

    def solve(field, x):
        options = {}
        if x_alone:
            options["norm"] = lambda state: state[0].square().mean().sqrt()
        more = {}
        if name == "odeint_adjoint":
            more["adjoint_params"] = tuple(field.values)
        z, log_det = getattr(torchdiffeq, name)(
            field,
            (x.detach(), x.new_zeros(len(x))),
            x.new_tensor([0.0, 1.0]),
            rtol=work.tolerance,
            atol=work.tolerance,
            method="dopri5",
            options=options,
            **more,
        )
        return z[-1], log_det[-1]

    def loss(params, x):
        return likelihood_loss(xp, *solve(Field(params), x))

    def evaluations():
        field = Field([p.detach().requires_grad_() for p in params])
        value = likelihood_loss(xp, *solve(field, x))
        forward = field.calls
        torch.autograd.grad(value, field.values)
        backward = field.calls - forward
        return f"{forward} + {backward} back" if backward else str(forward)

    return differentiated("torch", loss, params, x, True), evaluations


CONTESTANTS = {
    "jax": {
        "ours, tsit5": (ours, "tsit5"),
        "diffrax, tsit5, `vmap` of samples": (with_diffrax, "tsit5", False),
        "diffrax, tsit5, batched": (with_diffrax, "tsit5", True),
        "diffrax, tsit5, batched, errors of `x` alone": (
            with_diffrax,
            "tsit5",
            True,
            True,
        ),
        "ours, dopri5": (ours, "dopri5"),
        "diffrax, dopri5, batched": (with_diffrax, "dopri5", True),
    },
    "torch": {
        "ours, tsit5": (ours, "tsit5"),
        "ours, dopri5": (ours, "dopri5"),
        "torchdiffeq, dopri5, `odeint`": (with_torchdiffeq, "odeint"),
        "torchdiffeq, dopri5, `odeint`, errors of `x` alone": (
            with_torchdiffeq,
            "odeint",
            True,
        ),
        "torchdiffeq, dopri5, `odeint_adjoint`": (
            with_torchdiffeq,
            "odeint_adjoint",
        ),
    },
    "tensorflow": {
        "ours, tsit5, `jit_compile=True`": (ours, "tsit5", True),
        "ours, tsit5, `jit_compile=False`": (ours, "tsit5", False),
    },
}


class Entry:
    """A contestant at work: its step, and the seconds of each round."""

    def __init__(self, name: str, work: Work, make: Callable, *options: Any):
        self.name, self.times = name, []
        self.step, evaluations = make(work, *options)
        loss, gradient = self.step()
        self.loss = first(loss)
        self.gradient = np.concatenate(
            [np.ravel(ops.convert_to_numpy(g)) for g in gradient]
        )
        self.evaluations = evaluations()
        # Ours are recorded on PyTorch after some 30 calls.
        for _ in range(40 if make is ours and BACKEND == "torch" else 2):
            self.step()

    def time(self, seconds: float) -> None:
        times = []
        while sum(times) < seconds:
            start = time.perf_counter()
            first(self.step())
            times.append(time.perf_counter() - start)
        self.times.append(statistics.median(times))

    def difference(self, other: "Entry") -> float:
        """How far the loss or the gradient is from that of another."""
        norm = np.linalg.norm
        return max(
            abs(self.loss - other.loss) / abs(other.loss),
            norm(self.gradient - other.gradient) / norm(other.gradient),
        )


def compete(title: str, work: Work, args: argparse.Namespace) -> None:
    """Lets all take turns, and prints their table."""
    entries = [
        Entry(name, work, *make)
        for name, make in CONTESTANTS[BACKEND].items()
        if args.only in name or name.startswith("ours")
    ]
    reference = entries[0]
    for entry in entries:
        far = entry.difference(reference)
        assert far < AGREE, f"{entry.name}: {far:.1e} from {reference.name}"
    for _ in range(args.rounds):
        for entry in entries:
            entry.time(args.seconds)
    print(f"| {title} | ms | theirs / ours | spread | `f` | loss | differs |")
    print("|---" * 7 + "|")
    for entry in entries:
        # Ours by the same method.
        method = entry.name.split(", ")[1]
        mine = next(x for x in entries if x.name.startswith(f"ours, {method}"))
        ratios = [x / y for x, y in zip(entry.times, mine.times, strict=True)]
        print(
            f"| {entry.name} | {1e3 * statistics.median(entry.times):.3g} "
            f"| {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {entry.evaluations} "
            f"| {entry.loss:.5f} | {entry.difference(reference):.0e} |"
        )
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--works", nargs="*", choices=WORKS, default=WORKS)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--only", default="", help="contestants with this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    print(f"{BACKEND}, a batch of {args.batch}\n")
    for title in args.works:
        compete(title, work(*WORKS[title], args.batch, args.tolerance), args)


if __name__ == "__main__":
    main()

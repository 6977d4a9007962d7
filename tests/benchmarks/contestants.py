"""One step of a work by one contestant, in a process of its own.

    python contestants.py WORK CONTESTANT

builds the step, runs it once (that compiles it), prints what came out as a
line of JSON, warms up, and then, for each line that it reads, runs it for a
while and prints the seconds of a step. `speed.py` talks to several of these in
turn. The memory is what the process grew by, on JAX what XLA reserves.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from works import WORKS
from works import Framework
from works import Work
from works import at_shared_times
from works import at_union

# The framework of a contestant, and whether XLA compiles it.
WAYS = {
    "jax": ("jax", True),
    "tf": ("tensorflow", False),
    "tf-jit": ("tensorflow", True),
    "torch": ("torch", False),
    "torch-compile": ("torch", True),
}

# The ways of `works.oscillators` to report, beside that of `ODEBlock` itself.
REPORTS = {"union": at_union, "shared": at_shared_times}


# The contestants. Each takes a work and returns a step, a function that
# returns the loss and, if the work has one, the gradient; and a function that
# counts the evaluations of `f` in a forward solve.


def differentiated(
    way: str, loss: Callable, params: list, x: Any, gradient: bool
) -> Callable:
    """A step of `loss(params, x)`, compiled as the way has it."""
    name, jit = WAYS[way]
    if name == "jax":
        import jax

        function = jax.jit(jax.value_and_grad(loss) if gradient else loss)

        def step():
            if step.compiled is None:
                step.compiled = function.lower(params, x).compile()
            return jax.block_until_ready(step.compiled(params, x))

        step.compiled = None
        return step
    if name == "tensorflow":
        import tensorflow as tf

        # What is constant would be computed once, in compiling.
        variables = list(map(tf.Variable, params))
        inputs = tf.nest.map_structure(tf.Variable, x)

        @tf.function(jit_compile=jit, autograph=False)
        def step():
            x = tf.nest.map_structure(tf.convert_to_tensor, inputs)
            if not gradient:
                return loss(variables, x)
            with tf.GradientTape() as tape:
                values = list(map(tf.convert_to_tensor, variables))
                value = loss(values, x)
            return value, tape.gradient(value, variables)

        return step
    import torch

    params = [p.detach().requires_grad_(gradient) for p in params]
    loss = torch.compile(loss) if jit else loss

    def step():
        value = loss(params, x)
        if gradient:
            return value, torch.autograd.grad(value, params)
        return value

    return step


def given(work: Work) -> list[np.ndarray]:
    """Lists what a step gets: the inputs, and the times of each sample."""
    return [work.inputs] if work.times is None else [work.inputs, work.times]


def of_ours(work, way, solver, adjoint):
    from keras import ops

    from keras_node import solvers

    name, jit = WAYS[way]
    solver, *option = solver.split("+")
    kwargs = {"rtol": work.tolerance, "atol": work.tolerance}
    if option == ["per_sample"]:
        kwargs["per_sample"] = True
    elif option and option[0].isdigit():
        kwargs = {"num_steps": int(option[0])}
    arguments = {"solver": solvers.get(solver, **kwargs), "adjoint": adjoint}
    if option and option[0] in REPORTS:
        arguments["report"] = REPORTS[option[0]]
    if work.num_times and work.times is None:
        arguments["t_eval"] = np.linspace(0, work.t1, work.num_times)
    if work.t1 != 1:
        arguments["t_span"] = (0.0, work.t1)
    model = work.model(**arguments)
    model.set_weights(work.keras_weights)
    inputs = list(map(ops.convert_to_tensor, given(work)))
    x = inputs if len(inputs) > 1 else inputs[0]
    block = model.get_layer("ode")
    xp = Framework(name)

    def count():
        start, *times = inputs
        params = list(map(xp.array, work.params))
        y0 = work.before(xp, start, params)
        num_evals = block.solve(y0, *times).num_evals
        return int(np.max(ops.convert_to_numpy(num_evals)))

    if name == "jax":
        fixed = [v.value for v in model.non_trainable_variables]
        params = [v.value for v in model.trainable_variables]

        def loss(params, x):
            y, _ = model.stateless_call(params, fixed, x, training=True)
            return work.keras_loss(y)

        return differentiated(way, loss, params, x, work.gradient), count
    if name == "tensorflow":
        import tensorflow as tf

        variables = [v.value for v in model.trainable_variables]

        @tf.function(jit_compile=jit, autograph=False)
        def step(x):
            if not work.gradient:
                return work.keras_loss(model(x))
            with tf.GradientTape() as tape:
                loss = work.keras_loss(model(x, training=True))
            return loss, tape.gradient(loss, variables)

        return lambda: step(x), count
    import torch

    variables = [v.value for v in model.trainable_variables]

    def step():
        if not work.gradient:
            with torch.no_grad():
                return work.keras_loss(model(x))
        loss = work.keras_loss(model(x, training=True))
        return loss, torch.autograd.grad(loss, variables)

    return step, count


def of_fit(work, way, inner):
    """An epoch of `fit`, 100 steps of 128 digits, as the README has it."""
    import keras
    import tensorflow as tf

    _, jit = WAYS[way]
    solver = "tsit5" if inner == "dense" else inner
    model = work.model(solver=solver, adjoint="discrete", rtol=1e-3, atol=1e-3)
    model.set_weights(work.keras_weights)
    ode = model.get_layer("ode")
    if inner == "dense":
        below, above = model.layers[0], model.layers[-1]
        layers = [below, *ode.dynamics.layers, above]
        model = keras.Sequential([keras.Input((784,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Steps of no length: trained on, a network may need more evaluations.
    adam = keras.optimizers.Adam(learning_rate=0.0)
    model.compile(adam, loss, jit_compile=jit, steps_per_execution=10)
    x = np.tile(work.inputs, (100, 1))
    y = np.tile(np.arange(128) % 10, 100)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    data = data.batch(128, drop_remainder=True).cache().prefetch(2)

    def step():
        return model.fit(data, shuffle=False, verbose=0).history["loss"][-1]

    def count():
        if inner == "dense":
            return 1
        return int(ode.solve(model.layers[0](work.inputs)).num_evals)

    return step, count


def of_peer(work, way, integrate, count):
    """`integrate(y0, params)` returns the state, or the states at the times.

    It also gets the times of each sample, if there are such.
    """
    xp = Framework(WAYS[way][0])
    inputs = list(map(xp.array, given(work)))
    params = list(map(xp.array, work.params))

    def loss(params, inputs):
        x, *times = inputs
        y = integrate(xp, work.before(xp, x, params), params, *times)
        return work.loss(xp, y, params)

    step = differentiated(way, loss, params, inputs, work.gradient)
    x, *times = inputs
    return step, functools.partial(
        count, xp, work.before(xp, x, params), params, *times
    )


def of_diffrax(work, way, solver, adjoint):
    import diffrax
    import jax
    import jax.numpy as jnp

    calls = 0

    def called():
        nonlocal calls
        calls += 1

    def integrate(xp, y0, params, times=None, field=work.field):
        if times is not None and len(times.shape) > 1:
            return jax.vmap(
                lambda y0, ts: integrate(xp, y0, params, ts, field)
            )(y0, times)
        if work.num_times and times is None:
            times = jnp.linspace(0.0, work.t1, work.num_times)
        saveat = {"t1": True} if times is None else {"ts": times}
        kind = getattr(diffrax, adjoint)
        ys = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(xp, t, y, args)),
            getattr(diffrax, solver.capitalize())(),
            0.0,
            work.t1,
            None,
            y0,
            params,
            saveat=diffrax.SaveAt(**saveat),
            adjoint=kind(),
            stepsize_controller=diffrax.PIDController(
                rtol=work.tolerance, atol=work.tolerance
            ),
            max_steps=4096,
        ).ys
        return ys if work.num_times else ys[0]

    def count(xp, y0, params, *times):
        def counting(xp, t, y, args):
            jax.debug.callback(called)
            return work.field(xp, t, y, args)

        solve = functools.partial(integrate, xp, field=counting)
        jax.block_until_ready(jax.jit(solve)(y0, params, *times))
        jax.effects_barrier()
        return calls

    return of_peer(work, way, integrate, count)


def of_torchdiffeq(work, way, solver, adjoint):
    import torch
    import torchdiffeq

    class Field(torch.nn.Module):
        def __init__(self, xp, params):
            super().__init__()
            self.xp, self.values, self.calls = xp, params, 0

        def forward(self, t, y):
            self.calls += 1
            return work.field(self.xp, t, y, self.values)

    def solve(field, y0):
        times = torch.linspace(0, work.t1, work.num_times or 2)
        options = {"rtol": work.tolerance, "atol": work.tolerance}
        odeint = getattr(torchdiffeq, adjoint)
        if adjoint == "odeint_adjoint":
            options["adjoint_params"] = tuple(field.values)
        ys = odeint(field, y0, times, method=solver, **options)
        return ys if work.num_times else ys[-1]

    def count(xp, y0, params):
        field = Field(xp, params)
        solve(field, y0)
        return field.calls

    return of_peer(
        work,
        way,
        lambda xp, y0, params: solve(Field(xp, params), y0),
        count,
    )


def of_torchode(work, way, solver, adjoint):
    import torch
    import torchode

    def solve(xp, y0, params, times=None):
        term = torchode.ODETerm(lambda t, y: work.field(xp, t, y, params))
        method = torchode.interface.METHODS[solver](term=term)
        controller = torchode.IntegralController(
            work.tolerance, work.tolerance, term=term
        )
        adjoint = torchode.AutoDiffAdjoint(method, controller)
        if times is None:
            times = torch.linspace(0, work.t1, work.num_times or 2)
            times = times.expand(len(y0), -1)
        start, end = torch.tensor([[0.0], [work.t1]]).expand(-1, len(y0))
        problem = torchode.InitialValueProblem(y0, start, end, times)
        return adjoint.solve(problem, term)

    def count(xp, y0, params, *times):
        solution = solve(xp, y0, params, *times)
        return int(solution.stats["n_f_evals"].max())

    return of_peer(work, way, lambda *args: solve(*args).ys, count)


def of_tfp(work, way, solver, adjoint):
    import tensorflow as tf
    from tensorflow_probability.python.math import ode

    times = [work.t1]
    if work.num_times:
        times = np.linspace(0, work.t1, work.num_times).tolist()

    def solve(xp, y0, params):
        names = [f"p{i}" for i in range(len(params))]

        def field(t, y, **constants):
            return work.field(xp, t, y, [constants[n] for n in names])

        return ode.DormandPrince(
            rtol=work.tolerance, atol=work.tolerance
        ).solve(
            field,
            0.0,
            y0,
            solution_times=tf.constant(times, tf.float32),
            constants=dict(zip(names, params, strict=True)),
        )

    def count(xp, y0, params):
        # It leaves out the first one.
        diagnostics = solve(xp, y0, params).diagnostics
        return int(diagnostics.num_ode_fn_evaluations) + 1

    def integrate(xp, y0, params):
        states = solve(xp, y0, params).states
        return states if work.num_times else states[-1]

    return of_peer(work, way, integrate, count)


def of_floor(work, way, forward, backward):
    """`f`, and its derivative, as often as ours: no solver at all."""
    forward, backward = int(forward), int(backward)
    xp = Framework(WAYS[way][0])

    def evaluate(y, params):
        return work.field(xp, 0.0, y, params)

    def chain(y0, params):
        y = y0
        for _ in range(forward):
            y = y + 0.01 * evaluate(y, params)
        return y

    x, params = xp.array(work.inputs), list(map(xp.array, work.params))
    # The cotangent of the state goes back through `backward` derivatives, each
    # taken where a solver would: the chain rule of a chain of that length,
    # beside a chain of `forward` that nothing is kept of.
    if xp.name == "jax":
        import jax

        stop = jax.lax.stop_gradient
    elif xp.name == "tensorflow":
        stop = xp.module.stop_gradient
    else:

        def stop(y):
            return y.detach()

    def loss(params, x):
        y0 = work.before(xp, x, params)
        end = stop(chain(stop(y0), [stop(p) for p in params]))
        y = y0
        for _ in range(backward):
            y = y + 0.01 * evaluate(y, params)
        return work.loss(xp, y + 0 * end, params)

    step = differentiated(way, loss, params, x, work.gradient)
    return step, lambda: forward


MAKERS = {
    "ours": of_ours,
    "diffrax": of_diffrax,
    "torchdiffeq": of_torchdiffeq,
    "torchode": of_torchode,
    "tfp": of_tfp,
    "floor": of_floor,
    "fit": of_fit,
}


def first(result: Any) -> float:
    value = result[0] if isinstance(result, tuple) else result
    return float(value.detach() if hasattr(value, "detach") else value)


def serve(work_name: str, contestant: str) -> None:
    library, way, *choice = contestant.split()
    framework, _ = WAYS[way]
    os.environ["KERAS_BACKEND"] = framework
    name, *numbers = work_name.split(":")
    work = WORKS[name](framework, *map(int, numbers))
    before = peak()
    step, count = MAKERS[library](work, way, *choice)
    start = time.perf_counter()
    loss = first(step())
    compiled = time.perf_counter() - start
    step()
    grown = peak() - before
    if hasattr(step, "compiled"):
        # XLA says what it reserves, whatever else the process holds.
        grown = step.compiled.memory_analysis().temp_size_in_bytes / 1e6
    report = {"loss": loss, "compile": compiled, "MB": grown, "evals": count()}
    start = time.perf_counter()
    for _ in range(100):  # PyTorch's networks are recorded by then
        if time.perf_counter() - start > 5:
            break
        step()
    print(json.dumps(report), flush=True)
    for line in sys.stdin:
        budget, times = float(line), []
        while sum(times) < budget:
            start = time.perf_counter()
            first(step())
            times.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(times)), flush=True)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    serve(*sys.argv[1:])

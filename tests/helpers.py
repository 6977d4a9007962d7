"""What the tests share."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from keras import tree

from keras_node import adjoints
from keras_node import solvers

# Those for states of every kind: the others have tests of their own.
SOLVERS = [name for name, cls in solvers.ALL.items() if cls.any_state]
ADAPTIVE = [name for name in solvers.ALL if hasattr(solvers.get(name), "rtol")]
PER_SAMPLE = [
    name for name in ADAPTIVE if "per_sample" in solvers.get(name).get_config()
]
# Every solver with every adjoint that it can go with.
PAIRS = [
    (solver, adjoint)
    for solver in SOLVERS
    for adjoint in adjoints.ALL
    if solvers.get(solver).keeps_steps or not adjoints.get(adjoint).needs_steps
]
# Every adjoint once: for what takes long to compile.
ADJOINTS = [("dormand_prince", "backsolve")]
ADJOINTS += [("tsit5", name) for name in adjoints.ALL]
# And every solver once.
COVER = ADJOINTS + [
    (name, "discrete") for name, _ in PAIRS if name not in dict(ADJOINTS)
]
COVER = list(dict.fromkeys(COVER))


def slow(*arguments: Any) -> Any:
    """A case for the slow group."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


def slow_unless(fast: Callable, cases: list) -> list:
    """All cases, those that are not `fast` in the slow group."""
    return [case if fast(*case) else slow(*case) for case in cases]


def is_tested(name: str) -> bool:
    """Tells whether the tests of all solvers run this one.

    Where each is compiled, they run one of each kind: the code of the others is
    that of PyTorch, too.
    """
    of_its_kind = name in ("dormand_prince", "tsit5", "rk4")
    return of_its_kind or keras.backend.backend() == "torch"


def kinds(cases: list) -> list:
    """All cases; those of a solver that is not tested are in the slow group.

    A case is the name of a solver, or a tuple that begins with it.
    """
    found = []
    for case in cases:
        arguments = case if isinstance(case, tuple) else (case,)
        found.append(case if is_tested(arguments[0]) else slow(*arguments))
    return found


def slow_on(*names: str) -> Callable:
    """Puts a test that compiles much into the slow group on these backends."""
    slow = keras.backend.backend() in names
    return pytest.mark.slow if slow else lambda test: test


# What `compile(jit_compile=)` is in use, and where `fit` is no eager call.
JITS = {
    "tensorflow": (False, True),
    "jax": (True,),
    # PyTorch compiles by means of C++.
    "torch": (False, True) if shutil.which("g++") else (False,),
}[keras.backend.backend()]
COMPILED_FIT = [
    jit for jit in JITS if jit or keras.backend.backend() != "torch"
]


def accurate(name: str, tolerance: float = 1e-8, **kwargs: Any):
    """The solver of that name, as exact as a tolerance or many steps."""
    if name in ADAPTIVE:
        return solvers.get(name, rtol=tolerance, atol=tolerance, **kwargs)
    return solvers.get(name, num_steps=60)


def untraced() -> contextlib.AbstractContextManager:
    """Where a Python function sees values in each turn of a loop."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.disable_jit()
    return contextlib.nullcontext()


def compilations() -> dict[str, Callable]:
    """Every way in which the backend can run a function, by name."""
    ways = {"eager": lambda f: f}
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Keras converts no Python either; it takes longer than the rest.
        ways["graph"] = functools.partial(tf.function, autograph=False)
        ways["xla"] = functools.partial(ways["graph"], jit_compile=True)
    if keras.backend.backend() == "jax":
        import jax

        ways["jit"] = jax.jit
    return ways


COMPILED = [how for how in compilations() if how != "eager"]


def elapsed(problem: Any, t_eval: Any, dtype: str) -> Any:
    """The times since `t0`, as solvers want them; `None` if there are none."""
    if t_eval is None:
        return None
    sign = np.sign(problem.t1 - problem.t0)
    s_eval = sign * (np.asarray(t_eval) - problem.t0)
    return ops.convert_to_tensor(s_eval, dtype)


def numpy(structure: Any) -> Any:
    return tree.map_structure(ops.convert_to_numpy, structure)


def run_python(code: str, limit: float = 120, backend: str = "") -> str:
    """Runs `code` in a process of its own and returns what it prints.

    A process that takes longer than `limit` seconds is killed and fails the
    test, and so are those that it started: a hang is a failure like any other.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["KERAS_BACKEND"] = backend or keras.backend.backend()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parent,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, out + errors[-4000:]
    return out

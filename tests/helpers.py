"""What the tests share: compiled calls and processes under a time limit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras


def compilations() -> dict[str, Callable]:
    """Every way in which the backend can run a function, by name."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return {
            "eager": lambda f: f,
            "graph": tf.function,
            "xla": lambda f: tf.function(f, jit_compile=True),
        }
    raise NotImplementedError(keras.backend.backend())


def run_python(code: str, limit: float = 120) -> str:
    """Runs `code` in a process of its own and returns what it prints.

    A process that takes longer than `limit` seconds is killed and fails the
    test: a hang is a failure like any other.
    """
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=limit,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parent,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout

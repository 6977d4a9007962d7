"""Quiet, deterministic test runs."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch's threads stall where anything else runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the tests take is the time to compile, not to run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)

import keras
import pytest

if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)

"""Quiet, deterministic test runs."""

import os
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch's threads stall where anything else runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the tests take is the time to compile, not to run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

import hypothesis
import keras
import pytest

# Where each is compiled, fewer of them.
hypothesis.settings.register_profile(
    "ci",
    max_examples=6 if keras.backend.backend() == "torch" else 2,
    deadline=None,
    derandomize=True,
    database=None,
)
hypothesis.settings.register_profile("long", max_examples=180, deadline=None)
hypothesis.settings.load_profile("ci")

# On a GPU, float32 is to be float32 outside of the blocks too.
if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "float32")
elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
else:
    import torch

    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Counts what `test_adversarial.py` found."""
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
        if "test_adversarial.py" in report.nodeid
    ]
    if not reports:
        return
    verdicts = Counter(
        dict(report.user_properties).get("verdict", "right")
        for report in reports
        if report.passed
    )
    failed = [report for report in reports if report.failed]
    # A test that takes too long ends its process.
    hangs = sum("crashed" in str(report.longrepr) for report in failed)
    found = ", ".join(f"{count} {name}" for name, count in verdicts.items())
    terminalreporter.section("hard problems")
    terminalreporter.line(
        f"{keras.backend.backend()}: {len(reports)} runs, {hangs} hangs, "
        f"{len(failed) - hangs} lies; {found}"
    )

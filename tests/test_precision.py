"""Dynamics less precise than the state: no work for what they cannot tell."""

import warnings

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import slow_on
from keras import layers
from keras import ops

import keras_node
from keras_node import backend
from keras_node import solvers
from keras_node.dynamics import precision

x = np.random.default_rng(0).normal(size=(32, 20)).astype("float32")


def block(dtype, solver, adjoint="discrete"):
    keras.utils.set_random_seed(0)
    dynamics = [
        layers.Dense(10, "tanh", dtype=dtype),
        layers.Dense(10, "tanh", dtype=dtype),
        layers.Dense(20, dtype=dtype),
    ]
    made = keras_node.ODEBlock(dynamics, solver=solver, adjoint=adjoint)
    made.build(x.shape)
    return made


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(precision, "_warned", True)


def counted(made):
    solution = made.solve(x)
    assert np.all(numpy(solution.success))
    return float(np.mean(numpy(solution.num_evals))), numpy(solution.y1)


@slow_on("jax", "tensorflow")
@pytest.mark.parametrize("name", ["tsit5", "tsit5 per sample", "dopri5"])
def test_half_precision_takes_the_steps_of_float32(name):
    name, *per_sample = name.split(maxsplit=1)
    options = {"per_sample": True} if per_sample else {}
    exact = counted(block("float32", solvers.get(name, rtol=1e-6)))[1]
    for rtol in (1e-3, 1e-5):
        solver = solvers.get(name, rtol=rtol, **options)
        evals, _ = counted(block("float32", solver))
        for dtype, reach in (("mixed_bfloat16", 1e-2), ("mixed_float16", 2e-3)):
            half, y = counted(block(dtype, solver))
            assert half <= 1.5 * evals
            np.testing.assert_allclose(y, exact, atol=4 * reach, rtol=reach)


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "bosh3"])
def test_a_step_that_is_far_too_long_is_no_rounding(name):
    """Rotation by 9 radians, in steps that are unstable from 3 on."""
    kernel = np.array([[0.0, 3.0], [-3.0, 0.0]])
    y0 = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    c, s = np.cos(9), np.sin(9)
    exact = y0 @ np.array([[c, s], [-s, c]])
    for dtype, reach in (("mixed_bfloat16", 0.5), ("mixed_float16", 0.3)):
        dense = layers.Dense(2, use_bias=False, dtype=dtype)
        for rtol in (1e-2, 1e-4):
            solver = solvers.get(name, rtol=rtol)
            made = keras_node.ODEBlock(dense, (0.0, 3.0), solver=solver)
            made.build((None, 2))
            dense.set_weights([kernel])
            np.testing.assert_allclose(numpy(made(y0)), exact, atol=reach)


def test_half_precision_is_no_dearer_by_the_default_pair():
    for rtol in (1e-2, 1e-4):
        solver = solvers.get("dormand_prince", rtol=rtol)
        evals, y = counted(block("float32", solver, "backsolve"))
        half, z = counted(block("mixed_float16", solver, "backsolve"))
        assert half <= 1.5 * evals
        np.testing.assert_allclose(z, y, atol=1e-2)


class Coarse(layers.Layer):
    """y' = rate y, the slope to 10 bits of mantissa, as TF32 has."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, y):
        return self.rate * ops.cast(ops.cast(y, "float16"), "float32")


@pytest.mark.parametrize("rate, gain", [(-1.0, 3), (-30.0, 1)])
def test_tf32_is_followed_and_wrong_steps_rejected(rate, gain, monkeypatch):
    def solved(rtol):
        made = keras_node.ODEBlock(Coarse(rate), solver=solvers.Tsit5(rtol))
        return made.solve(np.ones((4, 3), "float32"))

    dear = int(numpy(solved(1e-6).num_evals))
    monkeypatch.setattr(backend, "eps_of_products", lambda: 2.0**-10)
    cheap = solved(1e-6)
    assert gain * int(numpy(cheap.num_evals)) <= dear
    # The fast decay is stable only while its steps are short.
    np.testing.assert_allclose(numpy(cheap.y1), np.exp(rate), atol=4e-3)


def test_the_precision_is_the_coarsest_of_what_computes():
    def eps(*inner):
        return precision.of_layer(keras.Sequential([*inner]))

    single = layers.Dense(4, dtype="float32")
    assert eps(layers.Dense(4, dtype="float64")) == 0
    assert eps(single) == backend.eps_of_products() == 2.0**-23
    half = layers.Dense(4, dtype="mixed_float16")
    assert eps(single, half) == 2.0**-10
    assert eps(half, layers.Dense(4, dtype="mixed_bfloat16")) == 2.0**-7
    # A `Sequential` hands on what it is given.
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert eps(single) == 2.0**-23
    finally:
        keras.config.set_dtype_policy(before)


def test_a_tolerance_below_the_precision_is_said_once(monkeypatch):
    def said(dtype, rtol):
        monkeypatch.setattr(precision, "_warned", False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                block(dtype, solvers.Tsit5(rtol))
        return [str(w.message) for w in caught if "rtol" in str(w.message)]

    assert not said("float32", 1e-9)
    assert not said("mixed_float16", 1e-3)
    (message,) = said("mixed_float16", 1e-4)
    assert 'dtype="float32"' in message
    assert len(said("mixed_bfloat16", 1e-3)) == 1
    monkeypatch.setattr(backend, "eps_of_products", lambda: 2.0**-10)
    assert len(said("float32", 1e-4)) == 1


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone")
def test_jax_computes_products_in_full_unless_told_otherwise():
    import jax

    made = block("float32", "tsit5")

    def products(precision):
        with jax.default_matmul_precision(precision):
            gradient = jax.grad(lambda y: ops.sum(made(y)))
            lines = str(jax.make_jaxpr(gradient)(x)).split("dot_general[")[1:]
        assert lines
        return {
            line.split("precision=")[1].split("preferred")[0].strip()
            for line in lines
        }

    assert products(None) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    (chosen,) = products("default")
    assert "HIGHEST" not in chosen


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch alone")
def test_torch_convolves_in_full_in_a_solve_and_its_gradient(monkeypatch):
    import torch

    seen = []
    conv = torch.backends.cudnn.conv
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    class Watched(layers.Layer):
        def call(self, y):
            seen.append(("forward", conv.fp32_precision))
            if torch.is_grad_enabled() and y.requires_grad:
                y.register_hook(
                    lambda g: seen.append(("backward", conv.fp32_precision))
                )
            return -y

    y = torch.ones((2, 3), requires_grad=True)
    before = conv.fp32_precision
    made = keras_node.ODEBlock(Watched(), solver="tsit5", adjoint="discrete")
    made.build((2, 3))
    seen.clear()  # what building has seen
    torch.sum(made.solve(y).y1).backward()
    assert set(seen) == {("forward", "ieee"), ("backward", "ieee")}
    assert conv.fp32_precision == before


def test_a_list_of_layers_does_not_round_float64():
    y, u = (ops.convert_to_tensor([[v]], "float64") for v in (1.0, 1 - 1e-12))
    made = keras_node.ODEBlock(
        [layers.Subtract(dtype="float64")], solver="euler", dtype="float64"
    )
    moved = numpy(made([y, u]) - y)
    np.testing.assert_allclose(moved, (1.1**10 - 1) * 1e-12, rtol=1e-2)

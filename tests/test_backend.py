"""The derivatives of the backend against hand-written ones."""

import keras
import numpy as np
import pytest
from helpers import COMPILED
from helpers import compilations
from helpers import numpy
from helpers import slow
from keras import layers
from keras import ops
from keras import tree
from scipy.linalg import expm
from scipy.linalg import expm_frechet

import keras_node
from keras_node import backend
from keras_node.dynamics import makeup


def test_vjp_pulls_back_through_structures():
    x = ops.convert_to_tensor([[1.0, 2.0]], "float32")
    p = {
        "w": ops.convert_to_tensor([3.0, 4.0], "float32"),
        "unused": ops.ones((3,)),
    }
    out, (adj_x, adj_p) = backend.vjp(
        lambda x, p: {"y": p["w"] * x**2, "z": ops.sum(x)},
        (x, p),
        {
            "y": ops.convert_to_tensor([[1.0, 10.0]], "float32"),
            "z": ops.ones(()),
        },
    )
    out, adj_x, adj_p = numpy((out, adj_x, adj_p))
    np.testing.assert_allclose(out["y"], [[3, 16]])
    np.testing.assert_allclose(adj_x, [[2 * 3 + 1, 10 * 2 * 4 * 2 + 1]])
    np.testing.assert_allclose(adj_p["w"], [1, 10 * 4])
    np.testing.assert_array_equal(adj_p["unused"], np.zeros(3))


@pytest.mark.parametrize("how", compilations())
def test_custom_vjp_uses_the_gradient_given(how):
    def forward(args, constants, keeps):
        x, (y,) = args
        outputs = {"sum": x + constants["c"] * y, "count": ops.size(x)}
        return outputs, (x, constants)

    def backward(residuals, cotangent):
        x, constants = residuals
        return 100 * cotangent["sum"], (x * constants["c"],)

    function = backend.custom_vjp(forward, backward)
    constants = {"c": ops.convert_to_tensor(2.0), "seed": ops.arange(3)}

    def run(x, y):
        return backend.vjp(
            lambda x, y: function((x, (y,)), constants)["sum"],
            (x, y),
            ops.ones_like(x),
        )

    out, (adj_x, adj_y) = numpy(
        compilations()[how](run)(
            ops.convert_to_tensor([1.0, 2.0]), ops.convert_to_tensor([5.0, 6.0])
        )
    )
    np.testing.assert_allclose(out, [11, 14])
    np.testing.assert_allclose(adj_x, [100, 100])
    np.testing.assert_allclose(adj_y, [2, 4])


@pytest.mark.parametrize(
    "how, solver, adjoint",
    [
        *((how, "rk4", "discrete") for how in ["eager", *COMPILED[:1]]),
        *((how, "tsit5", "backsolve") for how in COMPILED[:1]),
        *(slow(how, "dormand_prince", "backsolve") for how in COMPILED[:1]),
        *(slow(how, "tsit5", "discrete") for how in COMPILED[:1]),
    ],
)
def test_gradients_pass_through_loops_and_branches(how, solver, adjoint):
    # y' = y K turns the state by 0.2, five times.
    made = keras_node.ODEBlock(
        layers.Dot(1, name="y_times_k"), solver=solver, adjoint=adjoint
    )
    kernel = np.array([[0.0, 0.2], [-0.2, 0.0]], "float32")

    def run(y, kernel):
        def block(y):
            each = ops.broadcast_to(kernel, (*ops.shape(y)[:1], 2, 2))
            return made([y, each])

        y, _ = ops.scan(lambda y, _: (block(y), y), y, ops.arange(2))
        y = ops.map(lambda row: block(row[None])[0], y)
        yes = ops.sum(y) > -100.0
        y = ops.cond(
            yes, lambda: ops.cond(yes, lambda: block(y), lambda: y), lambda: y
        )
        index = ops.cast(yes, "int32")
        return ops.switch(index, [lambda y: y, lambda y: block(y)], y)

    x = np.array([[1.0, 2.0], [-3.0, 4.0], [0.5, 0.0]], "float32")
    c = x[::-1] + 1
    out, (adj, adj_kernel) = numpy(
        backend.vjp(
            compilations()[how](run),
            (ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)),
            ops.convert_to_tensor(c),
        )
    )
    turn, by_kernel = expm(5 * kernel), np.empty((2, 2))
    for place in np.ndindex(2, 2):
        unit = np.zeros((2, 2))
        unit[place] = 5
        by_kernel[place] = np.sum(c * (x @ expm_frechet(5 * kernel, unit)[1]))
    np.testing.assert_allclose(out, x @ turn, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(adj, c @ turn.T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(adj_kernel, by_kernel, rtol=3e-3)


@pytest.mark.parametrize("how", compilations())
def test_a_value_is_known_unless_it_is_compiled(how):
    seen = []

    def run(x):
        seen.append(backend.value(x + 1))
        return x * x

    def gradient(x):
        return backend.vjp(run, (x,), ops.ones(()))

    compilations()[how](gradient)(ops.ones(()))
    assert seen == ([2.0] if how == "eager" else [None])


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="compiled, all of it is"
)
def test_what_is_recorded_does_what_the_network_does():
    from keras_node.backend.torch import capture

    class Gain(layers.Layer):
        factor = 1.0

        def call(self, x):
            return self.factor * x

    def solved(block):
        return numpy(block(x))

    def recorded(layer):
        """How many solves of this layer's there are graphs of."""
        known = makeup._identities.get(layer, {}).values()
        return sum(
            callable(graph)
            for key, graph in capture._graphs.items()
            if any(identity in tree.flatten(key) for identity in known)
        )

    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    dense = layers.Dense(4, activation="tanh")
    norm = layers.LayerNormalization()
    network = keras.Sequential([dense, norm])
    block = keras_node.ODEBlock(network, solver="rk4")
    first = solved(block)
    for _ in range(capture._CALLS_BEFORE + 1):
        again = solved(block)
    # The start of a solve and a step.
    assert recorded(network) == 2
    np.testing.assert_array_equal(again, first)
    # What changes in the network, changes: values, functions, dtypes, shapes.
    dense.kernel.assign(2 * dense.kernel)
    second = solved(block)
    assert np.abs(second - first).max() > 1e-2
    dense.activation = keras.activations.sigmoid
    assert np.abs(solved(block) - second).max() > 1e-2
    third = solved(block)
    norm.epsilon = 1.0
    assert np.abs(solved(block) - third).max() > 1e-2
    assert block(np.concatenate([x, x])).shape == (6, 4)
    # A layer of a user's is not recorded: who knows what it reads.
    gain = Gain()
    block = keras_node.ODEBlock([gain, layers.Dense(4)], solver="rk4")
    for _ in range(capture._CALLS_BEFORE + 1):
        first = solved(block)
    gain.factor = -1.0
    assert np.abs(solved(block) - first).max() > 1e-2
    assert recorded(block.dynamics) == 0


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="XLA's layouts, on JAX"
)
@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv1D(3, 3, strides=2), (2, 9, 4)),
        (layers.Conv2D(3, 3, padding="same", dilation_rate=2), (2, 8, 7, 4)),
        (layers.Conv2D(4, 3, groups=2), (2, 8, 7, 4)),
        (layers.Conv2D(3, 2, data_format="channels_first"), (2, 4, 6, 5)),
        (layers.Conv3D(3, 2), (2, 4, 5, 3, 2)),
        (layers.DepthwiseConv2D(3, strides=2), (2, 8, 7, 4)),
        (layers.SeparableConv2D(3, 3), (2, 8, 7, 4)),
        (layers.Conv2DTranspose(3, 3, strides=2), (2, 5, 4, 4)),
    ],
)
def test_gradients_of_convolutions_are_those_of_jax(layer, shape):
    import jax

    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer(x)
    weights = [v.value for v in layer.trainable_variables]

    def f(x, weights):
        return layer.stateless_call(weights, [], x)[0]

    out, pullback = jax.vjp(f, x, weights)
    ours = jax.jit(lambda *args: backend.vjp(f, args, out))(x, weights)[1]
    for a, b in zip(
        jax.tree.leaves(ours), jax.tree.leaves(pullback(out)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch's compiler"
)
def test_the_compiler_leaves_the_solve_out():
    import torch

    programs = []

    def keep(program, inputs):
        programs.append(program)
        return program.forward

    block = keras_node.ODEBlock(
        layers.Dense(2), solver="tsit5", adjoint="discrete"
    )
    block.build((None, 2))
    x = torch.ones((3, 2), requires_grad=True)

    @torch.compile(backend=keep)
    def step():
        block(2.0 * x).sum().backward()

    step()
    compiled, x.grad = x.grad, None
    block(2.0 * x).sum().backward()
    np.testing.assert_array_equal(numpy(compiled), numpy(x.grad))
    assert len(programs) < 10, len(programs)  # not one for each operation

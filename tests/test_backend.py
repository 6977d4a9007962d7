"""The derivatives of the backend against hand-written ones."""

import numpy as np
import pytest
from helpers import compilations
from helpers import numpy
from keras import ops

from keras_node import backend


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
    def forward(args, constants):
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


@pytest.mark.parametrize("how", compilations())
def test_scatter_writes_rows(how):
    def run(buffer):
        buffer = buffer + 1  # one of its own, to be written into
        indices = ops.convert_to_tensor([[2], [0]], "int32")
        return backend.scatter(buffer, indices, 5 * ops.ones((2, 2)))

    out = numpy(compilations()[how](run)(ops.zeros((3, 2))))
    np.testing.assert_array_equal(out, [[5, 5], [1, 1], [5, 5]])

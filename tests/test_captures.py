"""What dynamics read besides their arguments: by an attribute, a closure, from
a layer outside; randomness and state that are not the block's.
"""

import logging

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import compilations
from helpers import numpy
from helpers import slow_unless
from keras import layers
from keras import ops

import keras_node
from keras_node import adjoints
from keras_node import backend
from keras_node.dynamics import makeup

BACKEND = keras.backend.backend()


def tight(solver, adjoint, dynamics, **kwargs):
    return keras_node.ODEBlock(
        dynamics, solver=solver, adjoint=adjoint, rtol=1e-5, atol=1e-7, **kwargs
    )


def derivatives(f, *args):
    """The derivative of a function by each of its arguments, in float64."""
    h = 1e-6
    return [
        (
            f(*args[:i], x + h, *args[i + 1 :])
            - f(*args[:i], x - h, *args[i + 1 :])
        )
        / (2 * h)
        for i, x in enumerate(args)
    ]


class Reads(layers.Layer):
    """`y' = u - a k y`: of these, `k` alone is a weight of the layer."""

    def __init__(self, a):
        super().__init__()
        self.outside = {"a": lambda: a}  # neither of them is seen by Keras
        self.u = 0.0

    def build(self, _):
        self.k = self.add_weight(shape=(), initializer="ones")

    def call(self, y):
        return self.u - self.outside["a"]() * self.k * y


@pytest.mark.parametrize("how", [*compilations()][::2])
@pytest.mark.parametrize("solver, adjoint", ADJOINTS)
def test_what_dynamics_read_has_its_gradient(solver, adjoint, how):
    a = keras.Variable(0.0)
    reads = Reads(a)
    block = tight(solver, adjoint, reads)
    block.build((None, 1))

    def end(w, a_value, k_value, y0):
        mapping = [(a, a_value), (reads.k, k_value)]
        with keras.StatelessScope(mapping):
            reads.u = 2 * ops.tanh(w)
            return ops.sum(block(y0))

    def exact(w, a, k, y0):
        rest = 2 * np.tanh(w) / (a * k)
        return rest + (y0 - rest) * np.exp(-a * k)

    def run(*args):
        return backend.vjp(end, args, ops.ones(()))

    point = (0.4, 1.3, 0.8, 2.0)
    args = [ops.convert_to_tensor(x, "float32") for x in point[:3]]
    args.append(ops.full((1, 1), point[3]))
    value, gradients = numpy(compilations()[how](run)(*args))
    np.testing.assert_allclose(value, exact(*point), rtol=2e-5)
    found = [np.ravel(x)[0] for x in gradients]
    np.testing.assert_allclose(found, derivatives(exact, *point), rtol=2e-3)


@pytest.mark.parametrize("solver, adjoint", ADJOINTS)
def test_one_tensor_may_be_in_several_places(solver, adjoint):
    class Product(layers.Layer):
        def call(self, inputs):
            y, u, v = inputs
            return u * v - y

    block = tight(solver, adjoint, Product())
    places = {
        "itself": lambda u: u,
        "reshaped": lambda u: ops.reshape(u, ops.shape(u)),
        "copied": lambda u: u + 0.0,
    }
    # y1 = u^2 + (u - u^2) / e at u = 3/2.
    truth = 3 + (1 - 3) / np.e
    for name, other in places.items():
        _, (adj_u,) = backend.vjp(
            lambda u, other=other: block([u, other(u), other(u)]),
            (ops.full((1, 1), 1.5),),
            ops.ones((1, 1)),
        )
        np.testing.assert_allclose(numpy(adj_u), truth, 1e-4, err_msg=name)


def test_a_layer_outside_learns_through_the_dynamics():
    """`y' = 1 - s y`, with `s` the kernel of a layer that is held by a list."""
    outside = layers.Dense(1, use_bias=False, kernel_initializer="ones")

    class Calls(layers.Layer):
        def __init__(self):
            super().__init__()
            self.call_it = [lambda y: outside(y)]

        def call(self, y):
            return 1 - self.call_it[0](y)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.outside = outside
            self.block = tight("tsit5", "discrete", Calls())

        def call(self, x):
            return self.block(x)

    model = Model()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    start, target = np.zeros((8, 1)), np.full((8, 1), 0.8)
    model.fit(start, target, epochs=60, batch_size=8, verbose=0)
    (s,) = np.ravel(numpy(outside.kernel.value))
    np.testing.assert_allclose((1 - np.exp(-s)) / s, 0.8, rtol=1e-3)


class Draws(layers.Layer):
    """`y'` is 0 or 2, as a dropout that is always on has it."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout

    def call(self, y):
        return self.dropout(ops.ones_like(y), training=True)


def functional():
    inputs = keras.Input((64,))
    outputs = layers.Dropout(0.5)(0 * inputs + 1, training=True)
    return keras.Model(inputs, outputs)


def from_global_seed():
    class Mask(layers.Layer):
        def call(self, y):
            chosen = keras.random.uniform(ops.shape(y)) < 0.5
            return 2 * ops.cast(chosen, y.dtype)

    return Mask()


ALWAYS_ON = {
    "Dropout": lambda: Draws(layers.Dropout(0.5)),
    "Dropout with a seed": lambda: Draws(layers.Dropout(0.5, seed=1)),
    "functional": functional,
}
if BACKEND != "jax":  # Keras itself refuses to draw without a seed there
    ALWAYS_ON["keras.random"] = from_global_seed


@pytest.mark.parametrize("name", ALWAYS_ON)
def test_what_is_always_random_is_drawn_once_a_call(name):
    x = ops.zeros((4, 64))
    for solver in ("rk4", "tsit5", "dormand_prince"):
        block = keras_node.ODEBlock(ALWAYS_ON[name](), solver=solver)
        calls = [{}] if name == "functional" else [{}, {"training": False}]
        for kwargs in calls:
            first, second = (numpy(block(x, **kwargs)) for _ in range(2))
            for drawn in (first, second):
                assert np.all(np.isclose(drawn, 0) | np.isclose(drawn, 2))
                assert 0.2 < np.mean(drawn > 1) < 0.8
            assert not np.array_equal(first, second)
        assert int(block.solve(x).num_evals) <= 50


def test_a_functional_model_keeps_the_flags_of_its_layers():
    block = keras_node.ODEBlock(functional(), solver="rk4")
    x = ops.zeros((4, 64))
    assert set(np.unique(np.round(numpy(block(x)), 4))) == {0.0, 2.0}
    # As outside of a block, a flag at the call goes before.
    np.testing.assert_allclose(numpy(block(x, training=False)), 1, rtol=1e-5)


class Assigns(layers.Layer):
    """`y' = -k y`, and `k` is halved by each call."""

    def build(self, _):
        self.k = self.add_weight(shape=(), initializer="ones")

    def call(self, y):
        slope = -self.k * y
        self.k.assign(0.5 * self.k)
        return slope


@pytest.mark.parametrize("adjoint", adjoints.ALL)
def test_a_layer_may_assign_to_its_weights_in_a_call(adjoint):
    inner = Assigns()
    block = tight("tsit5", adjoint, inner)
    block.build((None, 1))
    x = ops.ones((1, 1))

    def twice(k, x):
        inner.k.assign(k)
        with keras.StatelessScope([(inner.k, k)]):
            return ops.sum(block(x))

    k = ops.ones(())
    _, (adj_k, _) = backend.vjp(twice, (k, x), ops.ones(()))
    np.testing.assert_allclose(numpy(adj_k), -np.exp(-1), rtol=2e-3)
    inner.k.assign(1.0)
    decays = [np.ravel(numpy(block(x)))[0] for _ in range(3)]
    expected = np.exp([-1, -0.5, -0.25])
    np.testing.assert_allclose(decays, expected, rtol=1e-4)


def test_a_key_sees_all_that_a_config_says():
    """What is recorded for one state of a layer must not serve another."""
    made = [
        layers.Conv2D(3, 3),
        layers.UpSampling2D(2),
        layers.ZeroPadding2D(1),
        layers.MaxPooling2D(2),
        layers.LayerNormalization(),
        layers.Rescaling([1.0, 2.0]),
        layers.Reshape((2, 2)),
        layers.Concatenate(),
        layers.LeakyReLU(),
        layers.Dense(3, "tanh"),
    ]
    for layer in made:
        for key, value in layer.get_config().items():
            if not hasattr(layer, key) or key in ("name", "dtype"):
                continue
            old = getattr(layer, key)
            if key.endswith(("initializer", "regularizer", "constraint")):
                continue  # they have no part in a call
            before = makeup.identity(layer)
            assert before is makeup.identity(layer)
            changed = not old if isinstance(old, bool) else (7, 7)
            setattr(layer, key, keras.ops.relu if callable(old) else changed)
            assert makeup.identity(layer) is not before, (layer, key, value)
            setattr(layer, key, old)


def with_compilations(run):
    """What `run()` returns, and what JAX compiled meanwhile."""
    import jax

    compiled = []

    class Count(logging.Handler):
        def emit(self, record):
            if "Finished XLA compilation" in record.getMessage():
                compiled.append(record.getMessage())

    logger, handler = logging.getLogger("jax._src.dispatch"), Count()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            return run(), compiled
    finally:
        logger.removeHandler(handler)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX compiles loops by object")
def test_an_eager_call_of_a_block_in_a_block_is_compiled_once():
    class Flows(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras_node.ODEBlock(layers.Dense(2), solver="euler")

        def call(self, y):
            return self.inner(y) - y

    block = keras_node.ODEBlock(Flows(), solver="euler")
    x = ops.ones((3, 2))
    first, compiled = with_compilations(lambda: numpy(block(x)))
    assert compiled
    again, compiled = with_compilations(lambda: numpy(block(x)))
    assert not compiled
    np.testing.assert_array_equal(again, first)
    # The inner solver tells two programs apart.
    block.dynamics.inner.solver = keras_node.solvers.Euler(num_steps=1)
    assert np.abs(numpy(block(x)) - first).max() > 1e-3


@pytest.mark.skipif(BACKEND != "jax", reason="JAX compiles loops by object")
@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(lambda *pair: pair == ADJOINTS[2], ADJOINTS),
)
def test_an_eager_call_is_compiled_once(solver, adjoint):
    import jax

    class Rate(layers.Layer):
        rate = 1.0

        def call(self, y):
            return -self.rate * ops.tanh(y)

    x = ops.ones((3, 2))
    for dynamics in ([layers.Dense(4, "relu"), layers.Dense(2)], Rate()):
        block = keras_node.ODEBlock(
            dynamics, t_eval=[0.5, 1.0], solver=solver, adjoint=adjoint
        )

        def run(block=block):
            return numpy(jax.value_and_grad(lambda x: ops.sum(block(x)))(x))

        first = run()
        run()
        again, compiled = with_compilations(run)
        assert not compiled, compiled
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    # And still a layer that has changed is called as it is now.
    block.dynamics.rate = 2.0
    assert np.abs(run()[0] - first[0]) > 0.1


def test_an_eager_call_sees_that_its_context_is_longer():
    """The mean divides by a length, which is a number in a program."""
    y, u = keras.Input((2,)), keras.Input((None, 2))
    mean = layers.GlobalAveragePooling1D()(u)
    block = keras_node.ODEBlock(
        keras.Model([y, u], layers.Add()([y, mean])), solver="euler"
    )
    short, long = (
        numpy(block([ops.ones((3, 2)), ops.ones((3, size, 2))]))
        for size in (2, 5)
    )
    np.testing.assert_allclose(short, long, rtol=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="modules of PyTorch's")
@pytest.mark.parametrize("adjoint", adjoints.ALL)
def test_a_module_of_pytorch_trains(adjoint):
    """`y' = m(y)` with batch statistics, dropout and a bare parameter."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.constant_(self.linear.weight, -1.0)
            self.bare = torch.nn.Parameter(torch.ones(1))
            self.norm = torch.nn.BatchNorm1d(1, momentum=0.5)
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, y):
            noise = self.dropout(torch.ones(64, 1))
            self.norm(y)
            return self.bare * self.linear(y) + 0 * noise

    class Dynamics(layers.Layer):
        def __init__(self):
            super().__init__()
            self.net = Module()

        def call(self, y):
            return self.net(y)

    block = tight("tsit5", adjoint, Dynamics())
    module = block.dynamics.net.module
    block.build((64, 1))
    module.norm.reset_running_stats()
    y = block(torch.ones(64, 1), training=True)
    (y.sum() / 64).backward()
    for parameter in (module.linear.weight, module.bare):
        slope = float(parameter.grad) * float(parameter.detach())
        np.testing.assert_allclose(slope, -np.exp(-1), rtol=2e-3)
    # Its statistics have moved once, from 0 half way to the mean, 1.
    np.testing.assert_allclose(float(module.norm.running_mean), 0.5)
    assert int(module.norm.num_batches_tracked) == 1


@pytest.mark.skipif(BACKEND != "torch", reason="modules of PyTorch's")
def test_a_module_of_pytorch_may_be_the_dynamics():
    import torch

    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, -1.0)
    for made in (
        layers.TorchModuleWrapper(module),
        [layers.TorchModuleWrapper(module)],
    ):
        module.weight.grad = None
        block = tight("tsit5", "discrete", made)
        block(torch.ones(1, 1)).sum().backward()
        slope = -float(module.weight.grad)
        np.testing.assert_allclose(slope, -np.exp(-1), rtol=1e-3)
    wide = layers.TorchModuleWrapper(torch.nn.Linear(1, 2))
    with pytest.raises(ValueError, match=r"`dynamics`.*Received: "):
        keras_node.ODEBlock(wide)(torch.ones(1, 1))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="variables of TensorFlow's")
def test_a_variable_that_keras_does_not_know_is_refused():
    import tensorflow as tf

    class Bare(layers.Layer):
        def __init__(self):
            super().__init__()
            self.hidden = lambda: variable

        def call(self, y):
            return self.hidden() * y

    variable = tf.Variable(1.0, name="bare")
    with pytest.raises(ValueError, match=r"`dynamics`.*Received: .*bare"):
        keras_node.ODEBlock(Bare())(ops.ones((1, 1)))

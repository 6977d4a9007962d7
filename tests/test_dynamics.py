"""What dynamics can be made of: time, context, state, noise, half precision."""

import keras
import numpy as np
import pytest
from helpers import ADJOINTS
from helpers import COVER
from helpers import SOLVERS
from helpers import accurate
from helpers import kinds
from helpers import numpy
from helpers import slow
from helpers import slow_on
from helpers import slow_unless
from keras import layers
from keras import ops

import keras_node
from keras_node import adjoints
from keras_node import backend
from keras_node import solvers

ON_TORCH = keras.backend.backend() == "torch"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Linear(layers.Layer):
    """The sum of its inputs, each times a weight of its own."""

    def __init__(self, weights, **kwargs):
        super().__init__(**kwargs)
        self.factors = list(weights)

    def build(self, _):
        self.kernel = self.add_weight(
            shape=(len(self.factors),),
            initializer=lambda shape, dtype: ops.convert_to_tensor(
                self.factors, dtype
            ),
        )

    def call(self, inputs):
        inputs = inputs if isinstance(inputs, list) else [inputs]
        return sum(self.kernel[i] * x for i, x in enumerate(inputs))

    def get_config(self):
        return {**super().get_config(), "weights": self.factors}


def dense(weights):
    """The same of one layer of Keras, for states of width 1."""
    made = layers.Dense(1, use_bias=False)
    made.build((None, len(weights)))
    made.set_weights([np.array(weights)[:, None]])
    return made


def functional(weights):
    inputs = [keras.Input((1,)) for _ in weights]
    outputs = dense(weights)(layers.Concatenate()(inputs))
    return keras.Model(inputs, outputs)


FORMS = {
    "sequential": lambda w: keras.Sequential([layers.Concatenate(), dense(w)]),
    "list": lambda w: [layers.Concatenate(), dense(w)],
    "functional": functional,
    "subclassed": Linear,
}


def forced(y0, u, t0, t1, a, b, c):
    """The solution of y' = a t + b y + c u."""

    def particular(t):
        return -(a * t + a / b + c * u) / b

    return particular(t1) + (y0 - particular(t0)) * np.exp(b * (t1 - t0))


@pytest.mark.parametrize("form", [slow("sequential"), *list(FORMS)[1:]])
def test_dynamics_of_every_form_get_time_and_context(form, tmp_path):
    weights = (1.5, -0.8, 0.6)  # of t, y, u
    times = [0.0, -1.0, 0.5]
    block = keras_node.ODEBlock(
        FORMS[form](weights),
        t_span=(1.0, -1.0),
        t_eval=times,
        solver=solvers.RK4(num_steps=20),
        adjoint="discrete",
        time_dependent=True,
    )
    inputs = [keras.Input((1,)), keras.Input((1,))]
    model = keras.Model(inputs, block(inputs))
    assert model.output_shape == (None, 3, 1)
    y0, u = normal(5, 1), normal(5, 1, seed=1)
    exact = [forced(y0, u, 1.0, t, *weights) for t in times]
    found = model.predict([y0, u], verbose=0)
    np.testing.assert_allclose(found, np.stack(exact, axis=1), atol=2e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict([y0, u], verbose=0), found)
    model.compile("sgd", "mse")
    model.fit([y0, u], np.zeros((5, 3, 1)), verbose=0)
    assert not np.array_equal(model.get_weights()[0].ravel(), weights)


def test_time_has_the_shape_of_the_state_but_for_its_last_axis():
    class Time(layers.Layer):
        def call(self, inputs):
            t, y = inputs
            assert tuple(t.shape[1:]) == (*y.shape[1:-1], 1)
            return t + 0 * y

    for shape in ((3,), (2, 5), (2, 3, 4)):
        for per_sample in (False, True):
            solver = solvers.Tsit5(per_sample=per_sample)
            block = keras_node.ODEBlock(
                Time(), (1.0, 3.0), solver=solver, time_dependent=True
            )
            y1 = numpy(block(np.ones((6, *shape), "float32")))
            np.testing.assert_allclose(y1, np.full((6, *shape), 5), rtol=1e-5)


@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(lambda *pair: pair in ADJOINTS, COVER),
)
def test_gradients_flow_to_the_context(solver, adjoint):
    # y' = u - y, and so y1 = u + (y0 - u) / e.
    block = keras_node.ODEBlock(
        Linear((-1.0, 1.0)), solver=accurate(solver, 1e-5), adjoint=adjoint
    )
    y0, u, cotangent = map(ops.convert_to_tensor, normal(3, 6, 2))
    y1, (adj_y0, adj_u) = backend.vjp(
        lambda y0, u: block([y0, u]), (y0, u), cotangent
    )
    order = solvers.ALL[solver].tableau.order
    atol = {1: 2e-2, 2: 1e-3}.get(order, 1e-4)
    y0, u, cotangent = numpy((y0, u, cotangent))
    decay = np.exp(-1)
    expected = {
        "y1": (y1, u + (y0 - u) * decay),
        "adj_y0": (adj_y0, cotangent * decay),
        "adj_u": (adj_u, cotangent * (1 - decay)),
    }
    for name, (found, exact) in expected.items():
        np.testing.assert_allclose(numpy(found), exact, atol=atol, err_msg=name)


def test_context_may_be_labels_and_masks():
    """And what embeds them, inside or outside, learns."""

    class Dynamics(layers.Layer):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(3, 4)
            self.dense = layers.Dense(4, activation="tanh")

        def call(self, inputs):
            y, label, on = inputs
            y = self.dense(y) + self.embedding(label)
            return ops.where(on, y, ops.zeros_like(y))

    inputs = [
        keras.Input((4,)),
        keras.Input((), dtype="int32"),
        keras.Input((1,), dtype="bool"),
    ]
    block = keras_node.ODEBlock(Dynamics(), solver="heun", adjoint="gauss")
    model = keras.Model(inputs, block(inputs))
    model.compile(keras.optimizers.Adam(0.05), "mse")
    labels = np.arange(12) % 3
    on = (np.arange(12) < 6)[:, None]
    y0 = normal(12, 4)
    data = [y0, labels.astype("int32"), on]
    target = np.where(on, labels[:, None] - 1.0, 0) * np.ones(4)
    before = block.dynamics.embedding.get_weights()[0]
    losses = model.fit(data, target, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert np.all(before != block.dynamics.embedding.get_weights()[0])
    np.testing.assert_array_equal(model.predict(data, verbose=0)[6:], y0[6:])


def test_layers_of_time():
    t = np.full((2, 6, 6, 1), 0.5, "float32")
    t[1] = 2.0
    y = normal(2, 3, 3, 4)  # smaller than the state, after a stride
    made = keras_node.layers.ConcatTime()([t, y])
    np.testing.assert_array_equal(made[..., :4], y)
    np.testing.assert_array_equal(made[..., 4], t[:, :3, :3, 0])
    first = keras_node.layers.ConcatTime(axis=1)([t, y])
    assert first.shape == (2, 4, 3, 4)
    np.testing.assert_array_equal(first[:, 3, 0, 0], [0.5, 2.0])

    conv = layers.Conv2D(5, 3, strides=2, padding="same")
    squash = keras_node.layers.ConcatSquash(conv)
    out = numpy(squash([t, y]))
    plain = numpy(conv(y))
    assert out.shape == plain.shape == (2, 2, 2, 5)
    squash.set_weights([*normal(3, 5), *conv.get_weights()])
    scale, gate, shift = normal(3, 5)
    for i, time in enumerate((0.5, 2.0)):
        expected = plain[i] / (1 + np.exp(-scale * time - gate)) + shift * time
        np.testing.assert_allclose(
            numpy(squash([t, y]))[i], expected, rtol=1e-4, atol=1e-5
        )

    x = normal(2, 3, 4)
    for axis in (-1, -2, 1, 2):
        wide = numpy(keras_node.layers.Augment(2, axis=axis)(x))
        expected = np.concatenate(
            [x, np.zeros_like(np.take(x, [0, 0], axis))], axis
        )
        np.testing.assert_array_equal(wide, expected)


def test_layers_of_time_train_and_load(tmp_path):
    t, y = keras.Input((4, 4, 1)), keras.Input((4, 4, 3))
    x = keras_node.layers.ConcatTime()([t, y])
    x = layers.Conv2D(6, 3, 2, "same", activation="tanh")(x)
    x = keras_node.layers.ConcatTime()([t, x])
    x = layers.Conv2DTranspose(6, 3, 2, "same", activation="tanh")(x)
    x = keras_node.layers.ConcatSquash(layers.Conv2D(3, 3, padding="same"))(
        [t, x]
    )
    block = keras_node.ODEBlock(
        keras.Model([t, y], x), solver="euler", time_dependent=True
    )
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), keras_node.layers.Augment(1), block]
    )
    model.compile(keras.optimizers.Adam(0.02), "mse")
    x, y = normal(8, 4, 4, 2), normal(8, 4, 4, 3, seed=1)
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )


# Layers with a state of their own, or noise; how much of the state moves. On
# PyTorch that of a `Dropout` without a seed is not Keras's.
STATEFUL = {
    "dropout": (
        lambda: layers.Dropout(0.5),
        int(keras.backend.backend() != "torch"),
    ),
    "noise": (lambda: layers.GaussianNoise(0.5, seed=1), 1),
    "batch": (layers.BatchNormalization, 2),
    "spectral": (lambda: layers.SpectralNormalization(layers.Dense(32)), 1),
    "group": (lambda: layers.GroupNormalization(4), 0),
    "layer": (layers.LayerNormalization, 0),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_state_and_noise_stand_still_in_a_solve(name, tmp_path):
    make, moving = STATEFUL[name]
    inner = make()
    block = keras_node.ODEBlock(
        [
            layers.Dense(32, activation="tanh"),
            inner,
            layers.Dense(32, activation="tanh"),
        ],
        solver="tsit5",
        adjoint="discrete",
        rtol=1e-5,
        atol=1e-5,
        name="ode",
    )
    model = keras.Sequential([keras.Input((32,)), block])
    x = normal(16, 32)
    calm = int(block.solve(x).num_evals)
    before = [numpy(v.value) for v in inner.non_trainable_variables]
    noisy = block.solve(x, training=True)
    # One step more or less: other dynamics. Noise that moved would take dozens.
    assert abs(int(noisy.num_evals) - calm) <= max(0.1 * calm, 6)

    # Its state has moved once: as by one call of the network.
    after = [numpy(v.value) for v in inner.non_trainable_variables]
    changed = sum(
        not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
    )
    assert changed == moving
    if name in ("dropout", "noise"):
        again = block.solve(x, training=True)
        assert not np.array_equal(numpy(again.y1), numpy(noisy.y1))
    for variable, value in zip(
        inner.non_trainable_variables, before, strict=True
    ):
        variable.assign(value)
    if name != "spectral":  # it moves its kernel too
        block.dynamics(x, training=True)
        again = [numpy(v.value) for v in inner.non_trainable_variables]
        for a, b in zip(after, again, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

    # It is saved, and has no part in a prediction.
    expected = numpy(model(x))
    np.testing.assert_array_equal(numpy(model(x)), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), expected)


def test_losses_of_inner_layers_count_once_a_call():
    class Penalty(layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(ops.square(x)))
            return x

    arguments = {
        "activity_regularizer": "l1",
        "kernel_regularizer": "l2",
        "kernel_initializer": "zeros",
        "bias_initializer": "ones",
    }
    block = keras_node.ODEBlock(
        [Penalty(), layers.Dense(4, **arguments)],
        solver="euler",
        adjoint="discrete",
    )
    x = normal(6, 4)
    alone = layers.Dense(4, **arguments)
    alone(x)
    model = keras.Sequential([keras.Input((4,)), block])
    model.compile("sgd", "mse")
    y1 = numpy(block(x))
    np.testing.assert_allclose(y1, x + 1, rtol=1e-5)
    # Ones, for each sample and unit; newer Keras divides by the batch.
    penalty = numpy(sum(alone.losses))
    assert np.isclose(penalty, 0.01 * 4) or np.isclose(penalty, 0.01 * 4 * 6)
    expected = np.mean(x**2) + penalty
    loss = model.evaluate(x, y1, verbose=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    history = model.fit(x, y1, batch_size=6, verbose=0).history
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "solver, adjoint", [slow(*ADJOINTS[0]), ("tsit5", "discrete")]
)
def test_mixed_precision_trains_as_full_precision_does(solver, adjoint):
    before = keras.config.dtype_policy()
    x, u = normal(32, 4), normal(32, 2, seed=1)

    def trained(policy):
        keras.utils.set_random_seed(1)
        keras.config.set_dtype_policy(policy)
        try:
            block = keras_node.ODEBlock(
                [
                    layers.Concatenate(),
                    layers.Dense(16, activation="tanh"),
                    layers.Dense(4),
                ],
                solver=solver,
                adjoint=adjoint,
                time_dependent=True,
            )
            inputs = [keras.Input((4,)), keras.Input((2,))]
            whole = layers.Activation("linear", dtype="float32")
            model = keras.Model(inputs, whole(block(inputs)))
            model.compile(keras.optimizers.SGD(0.05), "mse")
        finally:
            keras.config.set_dtype_policy(before)
        losses = model.fit([x, u], -x, epochs=4, verbose=0).history["loss"]
        return model, block, losses

    _, _, exact = trained("float32")
    for policy, reach in (("mixed_bfloat16", 2e-2), ("mixed_float16", 2e-3)):
        model, block, losses = trained(policy)
        assert block.compute_dtype == policy.removeprefix("mixed_")
        assert {str(v.dtype) for v in model.trainable_variables} == {"float32"}
        np.testing.assert_allclose(losses, exact, rtol=reach)

    # A step whose gradients overflow is left out, and the scale halved.
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    weights = model.get_weights()
    scale = float(numpy(model.optimizer.dynamic_scale.value))
    model.fit([x, u], np.full_like(x, np.inf), verbose=0)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(numpy(model.optimizer.dynamic_scale.value)) == scale / 2


@pytest.mark.parametrize("solver", kinds(SOLVERS))
def test_kinetic_energy_is_the_integral_of_the_squared_slope(solver):
    # y' = -2 y, and so the energy of y0 is y0^2 (1 - e^-4); back in time, for
    # y' = 2 y, the same.
    per_sample = "per_sample" in solvers.get(solver).get_config()
    choices = [accurate(solver, 1e-5)]
    if per_sample:
        choices.append(accurate(solver, 1e-5, per_sample=True))
    x = normal(6, 2, 3)
    for chosen in choices:
        field, span = Linear((-2.0,)), (0.0, 1.0)
        if chosen.per_sample:
            field, span = Linear((2.0,)), (1.0, 0.0)
        plain = keras_node.ODEBlock(field, span, solver=chosen)
        block = keras_node.ODEBlock(
            field, span, solver=chosen, kinetic_regularizer=0.5
        )
        solution, without = numpy((block.solve(x), plain.solve(x)))
        exact = np.sum(x**2, axis=(1, 2)) * (1 - np.exp(-4))
        order = solvers.ALL[solver].tableau.order
        rtol = {1: 5e-2, 2: 2e-3}.get(order, 2e-4)
        np.testing.assert_allclose(solution.integral, exact, rtol=rtol)
        if solvers.get(solver).keeps_steps:
            # It has no say in the steps.
            np.testing.assert_array_equal(solution.y1, without.y1)
            np.testing.assert_array_equal(solution.num_evals, without.num_evals)


@pytest.mark.parametrize(
    "solver, adjoint",
    slow_unless(lambda *pair: pair[1] == "discrete", ADJOINTS),
)
def test_kinetic_regularizer_adds_the_energy_to_the_loss(solver, adjoint):
    # With y' = k y, energy E = x^2 k (e^2k - 1) / 2 and dE/dk by hand.
    k, factor, rate = -0.7, 0.3, 0.1
    block = keras_node.ODEBlock(
        Linear((k,)),
        solver=accurate(solver, 1e-5),
        adjoint=adjoint,
        kinetic_regularizer=factor,
        t_eval=[0.5, 1.0],
    )
    x = normal(8, 3)
    model = keras.Sequential([keras.Input((3,)), block])
    model.compile(keras.optimizers.SGD(rate), "mse")
    states = np.stack([x * np.exp(k * t) for t in (0.5, 1.0)], axis=1)
    size = np.mean(np.sum(x**2, axis=1))
    growth = np.exp(2 * k)
    energy = factor * size * k * (growth - 1) / 2
    loss = model.evaluate(x, states, verbose=0)
    np.testing.assert_allclose(loss, energy, rtol=1e-3)
    # Where the states are the targets, the energy alone moves the weight.
    model.fit(x, states, batch_size=8, verbose=0)
    slope = factor * size * ((growth - 1) / 2 + k * growth)
    moved = numpy(block.dynamics.kernel.value)[0]
    np.testing.assert_allclose(moved, k - rate * slope, rtol=1e-3)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="Keras tries no such device"
)
def test_nothing_is_solved_where_there_are_no_values():
    """Keras on PyTorch builds a model on the device "meta", if it can.

    Beside a state that has values, context from there would come out as
    whatever is in memory.
    """
    block = keras_node.ODEBlock(Linear((-1.0, 1.0)), solver="tsit5")
    state = ops.ones((8, 1))
    block([state, state])
    for inputs in ([state, state.to("meta")], [state.to("meta"), state]):
        with pytest.raises(ValueError, match="have values"):
            block.solve(inputs)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.ode = block

        def call(self, u):
            return self.ode([ops.ones((8, 1)), u])

    model = Model()
    model.compile("sgd", "mse")
    u = np.full((8, 1), 2.0, "float32")
    assert np.isfinite(model.evaluate(u, u, verbose=0))
    np.testing.assert_allclose(
        model.predict(u, verbose=0), 2 - np.exp([[-1]] * 8), rtol=1e-3
    )


@slow_on("jax")
def test_every_adjoint_takes_context_and_energy_where_samples_step_alone():
    for adjoint in adjoints.ALL:
        block = keras_node.ODEBlock(
            Linear((0.3, -1.0, 1.0)),
            solver=solvers.Tsit5(rtol=1e-5, atol=1e-5, per_sample=True),
            adjoint=adjoint,
            time_dependent=True,
            kinetic_regularizer=1.0,
        )
        y0, u = map(ops.convert_to_tensor, normal(2, 5, 2))
        energy, gradients = backend.vjp(
            lambda y0, u, block=block: block.solve([y0, u]).integral,
            (y0, u),
            ops.ones(5),
        )
        shift = 1e-2 * normal(5, 2, seed=3)
        near = numpy(block.solve([y0, numpy(u) + shift]).integral)
        far = numpy(block.solve([y0, numpy(u) - shift]).integral)
        np.testing.assert_allclose(
            np.sum(numpy(gradients[1]) * shift, axis=1),
            (near - far) / 2,
            rtol=1e-2,
            atol=1e-4,
            err_msg=adjoint,
        )


@slow_on("jax", "tensorflow")
def test_the_default_float_may_be_of_another_type():
    """Keras makes numbers of that type, and of integers int64 with float64."""
    x = normal(6, 4)
    keras.config.set_floatx("float64")
    try:
        for name, adjoint in [*ADJOINTS, ("rk4", "gauss")]:
            for dtype in ("float32", "float64"):
                block = keras_node.ODEBlock(
                    layers.Dense(4, activation="tanh", dtype=dtype),
                    t_eval=[0.5, 1.0],
                    solver=name,
                    adjoint=adjoint,
                    kinetic_regularizer=0.1,
                    dtype=dtype,
                )
                block.build((None, 4))

                def solve(y0, block=block):
                    solution = block.solve(y0)
                    return solution.ys, ops.sum(solution.integral)

                y0 = ops.convert_to_tensor(x, dtype)
                (ys, _), (adj_y0,) = backend.vjp(
                    solve,
                    (y0,),
                    (ops.ones((2, 6, 4), dtype), ops.ones((), dtype)),
                )
                assert keras.backend.standardize_dtype(ys.dtype) == dtype
                assert np.isfinite(numpy(adj_y0)).all()
    finally:
        keras.config.set_floatx("float32")


class Downhill(layers.Layer):
    """y' = -dV/dy, the derivative taken of V = w y^4 / 4 in each call."""

    def __init__(self, own):
        super().__init__()
        self.own = own  # whether by the framework itself

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, y):
        w = ops.convert_to_tensor(self.w)

        def potential(y):
            return ops.sum(w * y**4 / 4)

        return -(gradient if self.own else gradient_by_vjp)(potential, y)


def gradient_by_vjp(f, y):
    return backend.vjp(f, (y,), ops.ones(()))[1][0]


def gradient(f, y):
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(f)(y)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(y)
            value = f(y)
        return tape.gradient(value, y)
    import torch

    with torch.enable_grad():
        y = y if y.requires_grad else y.detach().requires_grad_()
        return torch.autograd.grad(f(y), y, create_graph=True)[0]


@pytest.mark.parametrize(
    "solver, adjoint, own",
    slow_unless(
        lambda solver, adjoint, own: adjoint == "discrete" or ON_TORCH,
        [(*pair, own) for pair in ADJOINTS for own in (True, False)],
    ),
)
def test_a_derivative_inside_dynamics_has_its_own_gradient(
    solver, adjoint, own
):
    y = np.array([[0.5, 1.0, 2.0]], "float32")
    solver = solvers.get(solver, rtol=1e-6, atol=1e-6)
    down = Downhill(own)
    block = keras_node.ODEBlock(down, solver=solver, adjoint=adjoint)
    block.build(y.shape)

    def solve(y, w):
        with keras.StatelessScope(state_mapping=[(down.w, w)]):
            return block(y)

    y1, (adj_y, adj_w) = numpy(
        backend.vjp(
            solve,
            (ops.convert_to_tensor(y), ops.ones(3)),
            ops.ones_like(y),
        )
    )
    # y(1) = y0 / sqrt(1 + 2 w y0^2)
    square = 1 + 2 * y**2
    np.testing.assert_allclose(y1, y * square**-0.5, rtol=1e-4)
    np.testing.assert_allclose(adj_y, square**-1.5, rtol=1e-3)
    np.testing.assert_allclose(adj_w, -(y**3 * square**-1.5)[0], rtol=1e-3)


@pytest.mark.parametrize("floatx", ["float32", slow("float64")])
def test_weights_in_float64_are_read_as_they_are(floatx):
    class Weight(layers.Layer):
        """y' = w."""

        def build(self, shape):
            self.w = self.add_weight(
                shape=(shape[-1],),
                initializer=lambda shape, dtype: ops.cast(
                    ops.convert_to_tensor(np.full(shape, 1 / 3)), dtype
                ),
            )

        def call(self, y):
            return ops.zeros_like(y) + self.w

    keras.config.set_floatx(floatx)
    try:
        for name, adjoint in [*ADJOINTS, ("euler", "discrete")]:
            block = keras_node.ODEBlock(
                Weight(dtype="float64"),
                solver=name,
                adjoint=adjoint,
                dtype="float64",
            )
            y = numpy(block(np.zeros((1, 2))))
            assert y.dtype == "float64"
            np.testing.assert_allclose(y, 1 / 3, rtol=1e-14, err_msg=name)
    finally:
        keras.config.set_floatx("float32")

"""The models that `speed.py` compares, for every framework and for Keras."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

DIGITS = Path(__file__).parents[2] / "examples/data/mnist-first-1500.npz"


class Work(NamedTuple):
    """A model with an ODE in it, for every framework."""

    inputs: np.ndarray
    params: list  # arrays
    keras_weights: list  # the same, as Keras has them
    before: Callable  # (xp, x, params) -> y0
    field: Callable  # (xp, t, y, params) -> dy/dt
    loss: Callable  # (xp, y1, params) -> scalar
    model: Callable  # (arguments of the block) -> a Keras model
    keras_loss: Callable  # what that returns -> the same scalar
    t1: float = 1.0
    tolerance: float = 1e-3
    num_times: int = 0  # reported, instead of the end alone
    times: np.ndarray | None = None  # of each sample, (batch, num_times)
    gradient: bool = True


# Frameworks, as far as they are needed here.


def of_jax():
    import jax
    import jax.numpy as jnp

    def group_norm(x, scale, shift, groups):
        n, h, w, c = x.shape
        x = x.reshape(n, h, w, groups, c // groups)
        mean = x.mean((1, 2, 4), keepdims=True)
        x = (x - mean) / jnp.sqrt(x.var((1, 2, 4), keepdims=True) + 1e-3)
        return x.reshape(n, h, w, c) * scale + shift

    def conv(x, kernel, bias):
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dims
        )
        return y + bias

    return dict(
        tanh=jnp.tanh,
        relu=jax.nn.relu,
        stack=functools.partial(jnp.stack, axis=-1),
        mean=jnp.mean,
        log_softmax=jax.nn.log_softmax,
        group_norm=group_norm,
        conv=conv,
    )


def of_tensorflow():
    import tensorflow as tf

    def group_norm(x, scale, shift, groups):
        n, h, w, c = x.shape
        x = tf.reshape(x, (n, h, w, groups, c // groups))
        mean, var = tf.nn.moments(x, (1, 2, 4), keepdims=True)
        x = (x - mean) * tf.math.rsqrt(var + 1e-3)
        return tf.reshape(x, (n, h, w, c)) * scale + shift

    return dict(
        tanh=tf.tanh,
        relu=tf.nn.relu,
        stack=functools.partial(tf.stack, axis=-1),
        mean=tf.reduce_mean,
        log_softmax=tf.nn.log_softmax,
        group_norm=group_norm,
        conv=lambda x, kernel, bias: tf.nn.conv2d(x, kernel, 1, "SAME") + bias,
    )


def of_torch():
    import torch
    from torch.nn import functional

    return dict(
        tanh=torch.tanh,
        relu=torch.relu,
        stack=functools.partial(torch.stack, dim=-1),
        mean=torch.mean,
        log_softmax=functools.partial(functional.log_softmax, dim=-1),
        # Channels come first, as everywhere in PyTorch.
        group_norm=lambda x, scale, shift, groups: functional.group_norm(
            x, groups, scale, shift, eps=1e-3
        ),
        conv=lambda x, kernel, bias: functional.conv2d(
            x, kernel, bias, padding=1
        ),
    )


class Framework:
    """`xp`: the few functions that the works are made of."""

    def __init__(self, name: str):
        self.name = name
        self.module = importlib.import_module(
            {"jax": "jax.numpy"}.get(name, name)
        )
        makers = {"jax": of_jax, "tensorflow": of_tensorflow, "torch": of_torch}
        vars(self).update(makers[name]())

    def array(self, x: np.ndarray) -> Any:
        x = np.ascontiguousarray(x, "float32")
        if self.name == "torch":
            return self.module.tensor(x)
        if self.name == "jax":
            return self.module.asarray(x)
        return self.module.constant(x)


# The works.


def random(*shape, scale=1.0, seed=0):
    numbers = np.random.default_rng(seed).normal(size=shape)
    return (scale * numbers).astype("float32")


def dense_params(*sizes):
    for i, (m, n) in enumerate(zip(sizes, sizes[1:], strict=False)):
        yield random(m, n, scale=(2 / (m + n)) ** 0.5, seed=i)
        yield np.zeros(n, "float32")


def perceptron(xp, y, params):
    for kernel, bias in zip(params[::2], params[1::2], strict=True):
        y = xp.tanh(y @ kernel + bias)
    return y


def tutorial(framework, batch=128, width=20, **changes) -> Work:
    """784-20, an ODE over 20-10-10-20, 20-10: the Lux.jl tutorial's network."""
    with np.load(DIGITS) as data:
        images = data["images"].reshape(-1, 784).astype("float32") / 255
    labels = np.arange(batch) % 10
    params = [
        *dense_params(784, width),
        *dense_params(width, 10, 10, width),
        *dense_params(width, 10),
    ]

    def loss(xp, y, params):
        kernel, bias = params[-2:]
        logs = xp.log_softmax(y @ kernel + bias)
        return -xp.mean(logs * xp.array(10 * np.eye(10)[labels]))

    def model(**arguments):
        import keras

        import keras_node

        return keras.Sequential(
            [
                keras.Input((784,)),
                keras.layers.Dense(width, "tanh"),
                keras_node.ODEBlock(
                    [
                        keras.layers.Dense(10, "tanh"),
                        keras.layers.Dense(10, "tanh"),
                        keras.layers.Dense(width, "tanh"),
                    ],
                    name="ode",
                    **arguments,
                ),
                keras.layers.Dense(10),
            ]
        )

    def keras_loss(y):
        from keras import ops

        targets = ops.convert_to_tensor(10 * np.eye(10, dtype="f")[labels])
        return -ops.mean(ops.log_softmax(y) * targets)

    return Work(
        inputs=images[np.arange(batch) % len(images)],
        params=params,
        before=lambda xp, x, params: perceptron(xp, x, params[:2]),
        field=lambda xp, t, y, params: perceptron(xp, y, params[2:-2]),
        loss=loss,
        keras_weights=params,
        model=model,
        keras_loss=keras_loss,
        **changes,
    )


def ode_net(framework) -> Work:
    """The block of Chen et al. for images, 64 filters on 7x7."""
    first = framework == "torch"
    y0 = random(128, 7, 7, 64)
    params = [np.ones(64, "f"), np.zeros(64, "f")] * 2
    params += [random(3, 3, 64, 64, scale=0.04, seed=i) for i in (1, 2)]
    params += [np.zeros(64, "f")] * 2
    order = [0, 1, 4, 6, 2, 3, 5, 7]  # as Keras has them
    if first:
        y0 = y0.transpose(0, 3, 1, 2)
        params = [p.transpose(3, 2, 0, 1) if p.ndim == 4 else p for p in params]

    def field(xp, t, y, params):
        scale1, shift1, scale2, shift2, kernel1, kernel2, bias1, bias2 = params
        y = xp.relu(xp.group_norm(y, scale1, shift1, 32))
        y = xp.conv(y, kernel1, bias1)
        y = xp.relu(xp.group_norm(y, scale2, shift2, 32))
        return xp.conv(y, kernel2, bias2)

    def model(**arguments):
        import keras

        import keras_node

        if first:
            keras.config.set_image_data_format("channels_first")
        axis = 1 if first else -1
        block = keras_node.ODEBlock(
            [
                layer
                for _ in range(2)
                for layer in (
                    keras.layers.GroupNormalization(32, axis=axis),
                    keras.layers.Activation("relu"),
                    keras.layers.Conv2D(64, 3, padding="same"),
                )
            ],
            name="ode",
            **arguments,
        )
        return keras.Sequential([keras.Input(y0.shape[1:]), block])

    def keras_weights():
        # Keras keeps kernels in one order whatever the images'.
        return [
            params[i].transpose(2, 3, 1, 0)
            if first and params[i].ndim == 4
            else params[i]
            for i in order
        ]

    return Work(
        inputs=y0,
        params=params,
        keras_weights=keras_weights(),
        before=lambda xp, x, params: x,
        field=field,
        loss=lambda xp, y, params: 0.5 * xp.mean(y * y),
        model=model,
        keras_loss=mean_square,
    )


def mean_square(y):
    from keras import ops

    return 0.5 * ops.mean(ops.square(y))


def van_der_pol(framework) -> Work:
    """256 oscillators, mu = 2, one cycle, 200 times: no gradient."""
    y0 = np.stack([np.linspace(1.0, 3.0, 256), np.zeros(256)], axis=-1)

    def field(xp, t, y, params):
        x, v = y[:, 0], y[:, 1]
        return xp.stack([v, 2.0 * (1 - x * x) * v - x])

    def model(**arguments):
        import keras

        import keras_node

        class VanDerPol(keras.layers.Layer):
            def call(self, y):
                x, v = y[:, 0], y[:, 1]
                return keras.ops.stack([v, 2.0 * (1 - x * x) * v - x], axis=-1)

        block = keras_node.ODEBlock(VanDerPol(), name="ode", **arguments)
        return keras.Sequential([keras.Input((2,)), block])

    return Work(
        inputs=y0.astype("float32"),
        params=[],
        keras_weights=[],
        before=lambda xp, x, params: x,
        field=field,
        loss=lambda xp, y, params: xp.mean(y * y),
        model=model,
        keras_loss=lambda y: 2 * mean_square(y),
        t1=7.63,  # the period for mu = 2
        tolerance=1e-5,
        num_times=200,
        gradient=False,
    )


def long_solve(framework) -> Work:
    """2,000 steps for a state of (128, 32): a fast rotation."""
    skew = random(32, 32)
    kernel = (skew - skew.T) / 2

    def model(**arguments):
        import keras

        import keras_node

        layer = keras.layers.Dense(32, use_bias=False)
        block = keras_node.ODEBlock(layer, name="ode", **arguments)
        return keras.Sequential([keras.Input((32,)), block])

    return Work(
        inputs=random(128, 32),
        params=[kernel],
        keras_weights=[kernel],
        before=lambda xp, x, params: x,
        field=lambda xp, t, y, params: y @ params[0],
        loss=lambda xp, y, params: 0.5 * xp.mean(y * y),
        model=model,
        keras_loss=mean_square,
        t1=100.0,
        tolerance=1e-6,
    )


# The ways to report oscillators of a batch: each at its own times, which takes
# all at the times of all where there are no others, or all at the same ones.


def at_own_times(block, y0, times):
    return block(y0, t_eval=times)


def at_union(block, y0, times):
    from keras import ops

    union = ops.sort(ops.reshape(times, (-1,)))
    ys = block(y0, t_eval=union)
    places = ops.searchsorted(union, ops.reshape(times, (-1,)))
    places = ops.reshape(places, (-1, times.shape[1], 1))
    return ops.take_along_axis(ys, places, axis=1)


def at_shared_times(block, y0, times):
    return block(y0, t_eval=np.linspace(0, 3, times.shape[1]))


def oscillators(framework, batch=256, num_times=20) -> Work:
    """2-16, an ODE over 16-32-32-16, 16-2 at 20 times of each sample.

    A batch of the data of diffrax's latent ODE: decaying oscillators, each seen
    at times of its own.
    """
    rng = np.random.default_rng(0)
    y0 = rng.normal(size=(batch, 1, 2))
    end = rng.uniform(2, 3, (batch, 1))
    times = np.sort(rng.uniform(0, end, (batch, num_times)))
    params = [
        *dense_params(2, 16),
        *dense_params(16, 32, 32, 16),
        *dense_params(16, 2),
    ]
    # dx/dt = 1.3 v - 0.1 x, dv/dt = -x - 0.1 v
    x, v = y0[..., 0], y0[..., 1]
    w = 1.3**0.5
    cos, sin = np.cos(w * times), np.sin(w * times)
    data = np.stack([x * cos + w * v * sin, v * cos - x / w * sin], axis=-1)
    data = (np.exp(-0.1 * times)[..., None] * data).astype("float32")

    def loss(xp, ys, params):
        kernel, bias = params[-2:]
        return xp.mean((ys @ kernel + bias - xp.array(data)) ** 2)

    def model(report=at_own_times, **arguments):
        import keras

        import keras_node

        x, times = keras.Input((2,)), keras.Input((num_times,))
        block = keras_node.ODEBlock(
            [
                keras.layers.Dense(32, "tanh"),
                keras.layers.Dense(32, "tanh"),
                keras.layers.Dense(16, "tanh"),
            ],
            name="ode",
            **arguments,
        )
        ys = report(block, keras.layers.Dense(16)(x), times)
        return keras.Model([x, times], keras.layers.Dense(2)(ys))

    def keras_loss(ys):
        from keras import ops

        return 2 * mean_square(ys - ops.convert_to_tensor(data))

    return Work(
        inputs=y0[:, 0].astype("float32"),
        params=params,
        keras_weights=params,
        before=lambda xp, x, params: x @ params[0] + params[1],
        field=lambda xp, t, y, params: perceptron(xp, y, params[2:-2]),
        loss=loss,
        model=model,
        keras_loss=keras_loss,
        t1=3.0,
        num_times=num_times,
        times=times.astype("float32"),
    )


WORKS = {
    "tutorial": tutorial,
    "forward": functools.partial(tutorial, gradient=False),
    "fit": tutorial,
    "conv": ode_net,
    "loop": van_der_pol,
    "long": long_solve,
    "times": oscillators,
}

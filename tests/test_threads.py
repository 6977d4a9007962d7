"""Many threads at once, as of a web server: each gets its own numbers."""

from helpers import run_python
from helpers import slow_on


@slow_on("jax")
def test_threads_get_the_right_numbers():
    run_python(
        """
import threading
from concurrent import futures

import keras, numpy as np
from helpers import compilations, numpy
from keras import layers, ops
import keras_node
from keras_node import backend, solvers

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    from keras_node.backend.torch import capture
    capture._CALLS_BEFORE = 2  # there is recording while others run

def rotating(speed, solver, adjoint):
    kernel = [[0.0, speed], [-speed, 0.0]]
    dense = layers.Dense(
        2,
        use_bias=False,
        kernel_initializer=lambda shape, dtype: ops.convert_to_tensor(kernel),
    )
    return keras_node.ODEBlock(dense, solver=solver, adjoint=adjoint)

def blocks():
    tight = {"rtol": 1e-4, "atol": 1e-4}
    per_sample = solvers.Tsit5(per_sample=True, **tight)
    return [
        rotating(0.5, solvers.DormandPrince(**tight), "backsolve"),
        rotating(1.0, solvers.RK4(10), "discrete"),
        rotating(1.5, per_sample, "discrete"),
        rotating(2.0, solvers.Tsit5(**tight), "discrete"),
    ]

def rotation(speed):
    c, s = np.cos(speed), np.sin(speed)
    return np.array([[c, s], [-s, c]])

def at_once(task, number=8):
    start = threading.Barrier(number)
    def run(i):
        x = np.random.default_rng(i).normal(size=(2 + i // 4, 2))
        start.wait()
        return task(i, x.astype("float32"))
    with futures.ThreadPoolExecutor(number) as pool:
        list(pool.map(run, range(number)))

# The first calls, which build and trace, and later ones.
shared = blocks()
way = "jit" if BACKEND == "jax" else "eager"
runs = [compilations()[way](lambda x, c, b=b: backend.vjp(b, (x,), c))
        for b in shared]

def gradients(i, x):
    turn, c = rotation(0.5 * (i % 4 + 1)), x[::-1] + 1
    for _ in range(2 if BACKEND == "tensorflow" else 8):
        y, (adj,) = numpy(runs[i % 4](*map(ops.convert_to_tensor, (x, c))))
        np.testing.assert_allclose(y, x @ turn, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(adj, c @ turn.T, rtol=1e-3, atol=1e-3)

# On JAX, no layer of Keras can be built by two threads that trace it.
if BACKEND == "jax":
    at_once(lambda i, x: shared[i % 4].build((None, 2)))
at_once(gradients)
assert [len(block.weights) for block in shared] == [1, 1, 1, 1]

# On JAX, Keras's `predict` takes the weights away from other threads.
def served():
    return [keras.Sequential([keras.Input((2,)), b]) for b in blocks()]

models = served()
models += served() if BACKEND == "jax" else models

def predict(i, x):
    for _ in range(4):
        y = models[i].predict(x, verbose=0)
        turn = rotation(0.5 * (i % 4 + 1))
        np.testing.assert_allclose(y, x @ turn, rtol=1e-3, atol=1e-3)

at_once(predict)

# One draw for a solve: y' = 0 or y' = 2 y, and nothing in between.
noisy = keras_node.ODEBlock(layers.Dropout(0.5), solver="rk4")

def draw(i, x):
    for _ in range(1 if BACKEND == "jax" else 4):
        y = numpy(noisy(np.ones((16, 4), "float32"), training=True))
        drawn = np.abs(np.log(y) / 2 - np.round(np.log(y) / 2))
        assert drawn.max() < 1e-3, y

at_once(draw, 2 if BACKEND == "jax" else 8)
""",
        limit=120,
    )

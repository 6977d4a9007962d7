"""Problems that break solvers, each with what is true of it.

They are elementwise in the state, so that a row that has no solution leaves
the others theirs, and written for `keras.ops` and NumPy alike.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from scipy.integrate import solve_ivp

from keras_node.integration.solution import Status
from keras_node.solvers.tableau import Tableau


class Case(NamedTuple):
    """`dy/dt = f(ops, t, y, p)`, with a scalar parameter `p = 1`."""

    f: Callable
    y0: Any  # the start; a list is one entry a row
    # The end, as a function of (y0, p): NaN where there is none, infinite where
    # it grows beyond all bounds.
    exact: Callable
    t_span: tuple = (0.0, 1.0)
    options: dict = {}  # noqa: RUF012
    # Not judged where f jumps with the state: no framework's derivative of f
    # sees the jump.
    has_gradient: bool = True
    # How much worse than elsewhere an error may be.
    slack: float = 1.0
    # Why an adaptive solver must give up, if that is certain.
    reason: Status = Status.SUCCESS
    # Where the dynamics must be a layer: makes it, and a function of (y0, p)
    # that returns what the block is called with.
    layer: Callable | None = None

    def start(self) -> np.ndarray:
        y0 = np.asarray(self.y0, "float32")
        return y0[:, None] if y0.ndim == 1 else y0

    def truth(self) -> "Answer":
        """The exact solution and its gradients."""
        return _answer(self.exact, self.start())

    def formula(self, tableau: Tableau, num_steps: int) -> "Answer":
        """What a method of fixed steps stands for, in float64."""

        def end(y, p):
            t0, t1 = self.t_span
            dt = (t1 - t0) / num_steps
            for step in range(num_steps):
                slopes = []
                for c, row in zip(tableau.c, tableau.a, strict=True):
                    stage = y + dt * sum(
                        float(a) * k for a, k in zip(row, slopes, strict=False)
                    )
                    t = t0 + (step + float(c)) * dt
                    slopes.append(self.f(np, t, stage, p))
                y = y + dt * sum(
                    float(b) * k for b, k in zip(tableau.b, slopes, strict=True)
                )
            return y

        return _answer(end, self.start())


class Answer(NamedTuple):
    """The end of a solve, and the gradients of the sum of its entries."""

    y1: np.ndarray
    adj_y0: np.ndarray
    adj_p: np.ndarray


@np.errstate(all="ignore")
def _answer(end: Callable, y0: np.ndarray) -> Answer:
    y0 = y0.astype("float64")
    y1 = end(y0, 1.0)
    # Differences, wide enough not to drown beside a huge end.
    h = 1e-6 * np.maximum(1, np.where(np.isfinite(y1), np.abs(y1), 0))
    adj_y0 = (end(y0 + h, 1.0) - end(y0 - h, 1.0)) / (2 * h)
    adj_p = (end(y0, 1 + 1e-6) - end(y0, 1 - 1e-6)) / 2e-6
    adj_y0, adj_p = (np.where(np.isinf(y1), y1, x) for x in (adj_y0, adj_p))
    return Answer(y1, adj_y0, np.sum(adj_p))


def _log(y0, p):
    """By SciPy; from below 1 the solution runs into 0, where it ends."""

    def end(y):
        if not y > 1:
            return np.nan
        return solve_ivp(
            lambda t, y: p * np.log(y), (0, 1), [y], "DOP853", rtol=1e-11,
            atol=1e-11,
        ).y[0, -1]  # fmt: skip

    return np.vectorize(end)(y0)


def _decay(y0, p):
    return y0 * np.exp(-p)


DECAY = Case(lambda ops, t, y, p: -p * y, [1.0, -0.5, 2.0], _decay)


class Layer(keras.layers.Layer):
    """Dynamics by a function of the layer and its inputs."""

    def __init__(self, function: Callable, **kwargs: Any):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(self, inputs)


def _with_context(function: Callable, places: int = 1, **kwargs: Any):
    """`dy/dt = function(y, p, ...)`, with `p` in so many places."""

    def made():
        layer = Layer(lambda self, inputs: function(*inputs), **kwargs)
        return layer, lambda y0, p: [y0] + places * [p[None, None]]

    return made


def _by_attribute():
    layer = Layer(lambda self, y: -self.rate * y)
    layer.rate = 1.0

    def inputs(y0, p):
        layer.rate = 1.0 * p
        return y0

    return layer, inputs


def _assigning():
    def halve(self, inputs):
        y, rate = inputs
        slope = -rate * self.count * y
        self.count.assign(0.5 * self.count)
        return slope

    layer = Layer(halve)
    layer.count = layer.add_weight(shape=(), initializer="ones")
    return layer, lambda y0, p: [y0, p[None, None]]


def _drawing():
    """`y' = -p d y`: `d` is drawn from a seed, 1 first, and then 2, 3, 1."""

    def draw(self, inputs):
        y, rate = inputs
        # Bits of the seed and no dropout: XLA draws others on TensorFlow.
        _, drawn = keras.ops.unstack(self.seed.next(), axis=0)
        drawn = keras.ops.cast(drawn, "int32") % 3 + 1
        return -rate * keras.ops.cast(drawn, y.dtype) * y

    layer = Layer(draw)
    layer.seed = keras.random.SeedGenerator(1)
    return layer, lambda y0, p: [y0, p[None, None]]


CASES = {
    "NaN in one row": DECAY._replace(
        y0=[1.0, np.nan, 0.5], reason=Status.NON_FINITE
    ),
    "infinity in one row": DECAY._replace(
        y0=[1.0, np.inf, 0.5],
        reason=Status.NON_FINITE,
        exact=lambda y0, p: _decay(np.where(np.isinf(y0), np.nan, y0), p),
    ),
    "the logarithm of a state that turns negative": Case(
        lambda ops, t, y, p: p * ops.log(y), [0.5, 3.0], _log
    ),
    "the square root of a state that falls to zero": Case(
        lambda ops, t, y, p: -p * ops.sqrt(y),
        [4.0, 0.25],
        lambda y0, p: np.maximum(np.sqrt(y0) - p, 0.0) ** 2,
        (0.0, 2.0),
    ),
    "an infinite derivative at the start": Case(
        lambda ops, t, y, p: p * ops.sqrt(y),
        [0.0, 1.0],
        # From 0 the constant is a solution; that it is one of many makes its
        # derivative infinite.
        lambda y0, p: np.where(
            np.abs(y0) < 1e-3,
            np.where(y0 == 0, 0, np.copysign(np.inf, y0)),
            (np.sqrt(y0) + p / 2) ** 2,
        ),
    ),
    "a pole": Case(
        lambda ops, t, y, p: p * y * y,
        [1.0, 0.25],
        lambda y0, p: np.where(y0 * p < 0.5, y0 / (1 - 2 * y0 * p), np.nan),
        (0.0, 2.0),
    ),
    "a pole at the very end": Case(
        lambda ops, t, y, p: p * y * y,
        [1.0, 0.25],
        lambda y0, p: np.where(y0 > 0.9, np.inf, y0 / (1 - y0 * p)),
    ),
    "decay at rate 1e6": Case(
        lambda ops, t, y, p: -1e6 * p * y,
        [1.0, -2.0],
        lambda y0, p: 0 * y0,
        options={"max_steps": 50},
        reason=Status.STEP_LIMIT,
    ),
    "a slope of 1e30": Case(
        lambda ops, t, y, p: 1e30 * p + 0 * y,
        [1.0, -2.0],
        lambda y0, p: y0 + 1e30 * p,
    ),
    "growth at rate 1e30": Case(
        lambda ops, t, y, p: 1e30 * p * y,
        [1.0, -2.0],
        lambda y0, p: np.nan * y0,
    ),
    "a slope of 1e-30": Case(
        lambda ops, t, y, p: 1e-30 * p + 0 * y,
        [0.0, -2.0],
        lambda y0, p: y0 + 1e-30 * p,
    ),
    "a first step that overflows": Case(
        lambda ops, t, y, p: -p * ops.sinh(y),
        [20.0, 1.0],
        lambda y0, p: 2 * np.arctanh(np.tanh(y0 / 2) * np.exp(-p)),
        options={"first_step": 1.0},
    ),
    "the square root of time": Case(
        lambda ops, t, y, p: p * ops.sqrt(t) + 0 * y,
        [1.0, -2.0],
        lambda y0, p: y0 + 2 / 3 * p,
    ),
    "no motion": Case(
        lambda ops, t, y, p: 0 * p * y, [1.0, 0.0], lambda y0, p: y0
    ),
    "a jump in time": Case(
        lambda ops, t, y, p: ops.where(t < 0.3037, p, -2 * p) + 0 * y,
        [1.0, -2.0],
        lambda y0, p: y0 - (2 - 3 * 0.3037) * p,
        # Where it lies between two stages the estimate of the error, that of
        # SciPy's RK45 too, sees as little as a hundredth of it.
        slack=5,
    ),
    "a jump with the state": Case(
        lambda ops, t, y, p: ops.where(y < 0.5, p, 2 * p) + 0 * y,
        [0.0, 1.0],
        lambda y0, p: np.where(y0 < 0.5, 1.5 + 2 * y0, y0 + 2),
        has_gradient=False,
        slack=5,
    ),
    "slopes that meet head-on": Case(
        lambda ops, t, y, p: -p * ops.sign(y),
        [1.0, -0.3],
        lambda y0, p: np.sign(y0) * np.maximum(np.abs(y0) - 2 * p, 0),
        (0.0, 2.0),
        options={"max_steps": 100},
        has_gradient=False,
    ),
    "an empty batch": DECAY._replace(y0=np.zeros((0, 3))),
    "one sample": DECAY._replace(y0=[[1.0, -0.5, 2.0]]),
    "4,096 samples": DECAY._replace(
        y0=np.random.default_rng(0).normal(size=(4096, 3))
    ),
    "a span of 1e-12": DECAY._replace(
        t_span=(0.0, 1e-12), exact=lambda y0, p: y0 - 1e-12 * p * y0
    ),
    "a span of 1e-12 far from zero": DECAY._replace(
        t_span=(1.0, 1.0 + 1e-12), exact=lambda y0, p: y0 - 1e-12 * p * y0
    ),
    "a span of 1e6": Case(
        lambda ops, t, y, p: -1e-6 * p * y, [1.0, -2.0], _decay, (0.0, 1e6)
    ),
    "decay over 1e6": DECAY._replace(
        t_span=(0.0, 1e6),
        exact=lambda y0, p: 0 * y0,
        options={"max_steps": 50},
        reason=Status.STEP_LIMIT,
    ),
    "tolerances below rounding": DECAY._replace(
        options={"rtol": 1e-12, "atol": 1e-14}
    ),
    "one step": DECAY._replace(
        options={"max_steps": 1, "num_steps": 1}, reason=Status.STEP_LIMIT
    ),
    "times far from zero": DECAY._replace(t_span=(1.7e9, 1.7e9 + 1)),
    "one tensor in two places": Case(
        lambda ops, t, y, p: -p * p * y,
        [1.0, -0.5, 2.0],
        lambda y0, p: y0 * np.exp(-(p**2)),
        layer=_with_context(lambda y, p, q: -p * q * y, places=2),
    ),
    "a tensor held by an attribute": DECAY._replace(layer=_by_attribute),
    "a weight that each call changes": DECAY._replace(layer=_assigning),
    "a draw at inference": DECAY._replace(layer=_drawing),
    "half precision": DECAY._replace(
        layer=_with_context(lambda y, p: -p * y, dtype="mixed_float16"),
        slack=10,  # it resolves 1e-3
    ),
    "a way back that fails": Case(
        lambda ops, t, y, p: -50 * p * y**3,
        [1.0, 0.5],
        lambda y0, p: y0 / np.sqrt(1 + 100 * p * y0**2),
    ),
    "a way back that goes astray": Case(
        lambda ops, t, y, p: -30 * p * y,
        [1.0, 0.5],
        lambda y0, p: y0 * np.exp(-30 * p),
    ),
}

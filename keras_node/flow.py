"""Continuous normalizing flow: densities by an ODE."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_node import checks
from keras_node import input_checks
from keras_node import pytree
from keras_node import solvers
from keras_node.adjoints.base import Adjoint
from keras_node.config import register
from keras_node.dynamics.carried import Penalties
from keras_node.integration.solver import Solver
from keras_node.layers.transport import Transport
from keras_node.types import Tensor

_DIVERGENCES = ("exact", "hutchinson")
_NOISES = ("rademacher", "gaussian")
_TOLERANCE = 1e-5


@register
class ContinuousFlow(keras.Model):
    """Model of a density: a neural ODE carries it to a simple one.

    Data at `t0` flow along `dx/dt = dynamics(t, x)` to `z` at `t1`, where they
    have the density `base`. The log-density of the data is

        log p(x) = log base(z) + log_det,
        log_det = integral from t0 to t1 of the divergence of dynamics

    `fit(x)` maximizes it, or `fit([x, condition])`. No loss is given to
    `compile`, and no target to `fit`. The loss is the negative log-density in
    nats, averaged over the batch. A data set yields `(x,)`,
    `([x, condition],)`, or, with weights, `(x, y, sample_weight)` with empty
    targets `y` of shape `(batch, 0)`.

    Args:
        dynamics: A Keras layer or model whose output has the shape of `x`, or
            a list of layers, which becomes a `keras.Sequential`. It is called
            with `[t, x]`, as in `ODEBlock`, or with `[t, x, condition]`. It
            must treat each sample by itself, and have second derivatives:
            `"tanh"` or `"softplus"`, but not `"relu"`.
        t_span: Pair of floats `(t0, t1)`. Defaults to `(0.0, 1.0)`.
        divergence: How training computes the divergence. `"exact"` takes one
            vector-Jacobian product for each entry of `x`. `"hutchinson"`
            takes `num_probes`, and is an unbiased estimate. The probes are
            drawn once per call and stay the same for a whole solve. Defaults
            to `"exact"`.
        num_probes: Int, the number of probes that are averaged. Defaults to
            `1`.
        noise: The distribution of the probes, `"rademacher"` or `"gaussian"`.
            The former has less variance. Defaults to `"rademacher"`.
        time_dependent: Boolean, whether `dynamics` is called with the time.
            Defaults to `True`.
        solver: A `keras_node.solvers.Solver` or its name. In training, the
            log-density does not affect its steps. Where the model is not
            training, its error is kept within the tolerances, too. Defaults
            to `"tsit5"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name. Defaults to
            `"discrete"`.
        rtol: Float, relative tolerance for a solver given by its name, or
            `None` for that solver's default. At a loose one, training may
            learn to gain by the errors of the log-density: the loss of
            `evaluate` then stays behind that of `fit`. Defaults to `1e-5`.
        atol: Float, absolute tolerance for a solver given by its name, or
            `None` for that solver's default. Defaults to `1e-5`.
        base: The density at `t1`: an object with a method `log_prob(z)` that
            returns a tensor of shape `(batch,)`, and a method `sample(shape)`
            that returns one of shape `(*shape, ...)`. A distribution of
            TensorFlow Probability serves on TensorFlow, and one of
            `torch.distributions` on PyTorch. A model is saved with its base
            only if Keras can serialize it. `None` stands for independent
            standard normal entries. Defaults to `None`.
        seed: Int or `None`, the seed of probes and samples. Defaults to
            `None`.
        kinetic_regularizer: Float, or `None` for 0. Factor of a penalty in
            training, the integral of `|dynamics(x)|^2`, summed over a sample
            and averaged over the batch. Defaults to `None`.
        jacobian_regularizer: Float, or `None` for 0. Factor of a penalty in
            training, the integral of the squared Frobenius norm of the
            Jacobian of `dynamics`. With `"hutchinson"` it is estimated by the
            same probes. Defaults to `None`.
        eval_divergence: How the divergence is computed where the model is not
            training: in a call, `evaluate`, `predict` and `log_prob`. For
            large images, `"exact"` takes too long. Defaults to `"exact"`.
        **kwargs: Base model keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Float tensor of shape `(batch, ...)`, or a list
            `[x, condition]`. Each row of the condition belongs to a sample.
        training: Boolean or `None`, passed on to `dynamics`. If it is `True`,
            the log-determinant is computed by `divergence`, else by
            `eval_divergence`.
        divergence: `"exact"` or `"hutchinson"`, to be used in this call, or
            `None`. Defaults to `None`.
        inverse: Boolean. If it is `True`, the inputs are `z`, and the flow
            runs from `t1` to `t0`. Defaults to `False`.

    Input shape:
        `(batch, ...)`, or a list of it and the shape of the condition.

    Output shape:
        A pair `(z, log_det)`, or `(x, log_det)` if `inverse`: the shape of the
        inputs, and `(batch,)`. Both are at least float32, whatever the dtype
        policy. `predict` returns the log-density alone, of shape `(batch,)`.

    Raises:
        ValueError: If an argument is not as described, if `dynamics` changes
            the shape of `x` or contains a trainable `BatchNormalization`, if
            `x` has integers, or if `fit` is given targets.
        keras_node.SolverError: If a solve fails in an eager call.

    Example:
    >>> flow = keras_node.ContinuousFlow(
    ...     [
    ...         keras.layers.Concatenate(),
    ...         keras.layers.Dense(16, "tanh"),
    ...         keras.layers.Dense(2),
    ...     ]
    ... )
    >>> flow.compile("adam")
    >>> history = flow.fit(np.random.normal(size=(64, 2)), verbose=0)
    >>> z, log_det = flow(np.ones((8, 2)))
    >>> tuple(z.shape), tuple(log_det.shape)
    ((8, 2), (8,))
    >>> tuple(flow.log_prob(np.ones((8, 2))).shape)
    (8,)
    >>> tuple(flow.sample(5).shape)
    (5, 2)

    Reference:
        - [Chen et al., 2018](https://arxiv.org/abs/1806.07366), section 4
        - [Grathwohl et al., 2019](https://arxiv.org/abs/1810.01367), FFJORD
        - [Finlay et al., 2020](https://arxiv.org/abs/2002.02798), for the
          regularizers
    """

    def __init__(
        self,
        dynamics: keras.layers.Layer | list,
        t_span: tuple[float, float] = (0.0, 1.0),
        divergence: str = "exact",
        num_probes: int = 1,
        noise: str = "rademacher",
        time_dependent: bool = True,
        solver: str | Solver = "tsit5",
        adjoint: str | Adjoint = "discrete",
        rtol: float | None = _TOLERANCE,
        atol: float | None = _TOLERANCE,
        base: Any = None,
        seed: int | None = None,
        kinetic_regularizer: float | None = None,
        jacobian_regularizer: float | None = None,
        eval_divergence: str = "exact",
        **kwargs: Any,
    ):
        super().__init__(**checks.layer_arguments(kwargs))
        self.autocast = False  # the block casts, and no further than float32
        self.divergence = checks.one_of("divergence", divergence, _DIVERGENCES)
        self.eval_divergence = checks.one_of(
            "eval_divergence", eval_divergence, _DIVERGENCES
        )
        self.num_probes = checks.positive_int("num_probes", num_probes)
        self.noise = checks.one_of("noise", noise, _NOISES)
        self.seed = None if seed is None else _seed("seed", seed)
        self.kinetic_regularizer = _factor(
            "kinetic_regularizer", kinetic_regularizer
        )
        self.jacobian_regularizer = _factor(
            "jacobian_regularizer", jacobian_regularizer
        )
        rtol, atol = _tolerances(solver, rtol, atol)
        self.transport = Transport(
            dynamics,
            self.num_probes,
            self.noise,
            self.seed,
            Penalties(
                self.kinetic_regularizer or 0.0,
                self.jacobian_regularizer or 0.0,
            ),
            t_span=t_span,
            solver=solver,
            adjoint=adjoint,
            rtol=rtol,
            atol=atol,
            time_dependent=time_dependent,
            name=self.name,
            dtype=self.dtype_policy,
        )
        self.base = _checked_base("base", base)
        self._density = self.base  # at `t1`
        self._event_shape: tuple = ()  # known when it is built

    @property
    def dynamics(self) -> keras.layers.Layer:
        """Network that the flow follows."""
        return self.transport.dynamics

    @property
    def t_span(self) -> tuple[float, float]:
        """Times `(t0, t1)` of the data and of the base."""
        return self.transport.t_span

    @property
    def time_dependent(self) -> bool:
        """Flag: `dynamics` is called with the time."""
        return self.transport.time_dependent

    @property
    def solver(self) -> Solver:
        """Solver of the flow."""
        return self.transport.solver

    @property
    def adjoint(self) -> Adjoint:
        """Adjoint that computes the gradients."""
        return self.transport.adjoint

    def build(self, inputs_shape: tuple | list) -> None:
        self.transport.build(inputs_shape)
        shape, *_ = input_checks.shapes("inputs", inputs_shape)
        self._event_shape = tuple(shape[1:])
        if self.base is None:
            seed = self.transport.seed_generator
            self._density = _StandardNormal(self._event_shape, seed)
        self.built = True

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        inverse: bool = False,
        divergence: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        if divergence is None:
            divergence = self.divergence if training else self.eval_divergence
        return self.transport(
            inputs,
            training=training,
            inverse=checks.boolean("inverse", inverse),
            divergence=checks.one_of("divergence", divergence, _DIVERGENCES),
        )

    def log_prob(
        self, x: Any, condition: Any = None, divergence: str | None = None
    ) -> Tensor:
        """Computes the log-density of samples, in nats.

        Args:
            x: Float tensor of shape `(batch, ...)`.
            condition: Tensor of shape `(batch, ...)`, if the flow has one.
            divergence: `"exact"` or `"hutchinson"`, or `None` for
                `eval_divergence`. Defaults to `None`.

        Returns:
            A tensor of shape `(batch,)`, differentiable. `predict` computes
            the same in batches, and compiled.
        """
        inputs = x if condition is None else [x, condition]
        return self._log_prob(*self(inputs, divergence=divergence))

    def sample(
        self, n: int, condition: Any = None, seed: int | None = None
    ) -> Tensor:
        """Draws samples.

        Args:
            n: Int, the number of samples.
            condition: Tensor of shape `(n, ...)` if the flow has one, or of
                shape `(1, ...)` for all samples.
            seed: Int, for the same samples in each call, or `None`.

        Returns:
            A tensor of shape `(n, ...)`.

        Raises:
            ValueError: If an argument is not as described, or if the flow has
                no shape yet, before its first call.
        """
        n = checks.positive_int("n", n)
        if not self.built:
            raise ValueError(
                "The shape of the samples is not known yet: `fit` the flow, "
                "call it, or `build` it. Received: a flow that is not built"
            )
        seeds = {} if seed is None else {"seed": _seed("seed", seed)}
        z = ops.convert_to_tensor(self._density.sample((n,), **seeds))
        if tuple(z.shape) != (n, *self._event_shape):
            raise ValueError(
                "`base` must have a method `sample` that returns a tensor of "
                f"shape {(n, *self._event_shape)} for the shape `({n},)`. "
                f"Received: {input_checks.described(z)}"
            )
        inputs = [z, *self._condition(condition, n)]
        return self.transport(
            inputs if len(inputs) > 1 else z, inverse=True, divergence=None
        )

    def _condition(self, condition: Any, n: int) -> list:
        """Checks the condition of `n` samples, and repeats a single one."""
        if condition is None:
            return []
        condition = ops.convert_to_tensor(condition)
        rows = condition.shape[0] if len(condition.shape) else 0
        if rows not in (1, n):
            raise ValueError(
                f"`condition` must be a tensor of shape `({n}, ...)`, or "
                "`(1, ...)` for the same condition for all samples. "
                f"Received: {input_checks.described(condition)}"
            )
        return [condition if rows == n else ops.repeat(condition, n, axis=0)]

    def _log_prob(self, z: Tensor, log_det: Tensor) -> Tensor:
        """Computes the log-density of the samples that have arrived at `z`."""
        density = ops.convert_to_tensor(self._density.log_prob(z))
        if len(density.shape) != 1:
            raise ValueError(
                "`base` must have a method `log_prob` that returns one value "
                "for each sample, a tensor of shape `(batch,)`. "
                f"Received: {input_checks.described(density)}"
            )
        return ops.cast(density, log_det.dtype) + log_det

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Computes the loss: the mean negative log-density, and penalties."""
        _no_targets("y", y)
        losses = -self._log_prob(*y_pred)
        if sample_weight is not None:
            weights = ops.reshape(sample_weight, (-1,))
            losses = losses * ops.cast(weights, losses.dtype)
        return ops.mean(losses) + sum(map(ops.sum, self.losses))

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        given = self._with_targets(super().fit, args, kwargs)
        return super().fit(*given.args, **given.kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        given = self._with_targets(super().evaluate, args, kwargs)
        return super().evaluate(*given.args, **given.kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        given = self._with_targets(super().train_on_batch, args, kwargs)
        return super().train_on_batch(*given.args, **given.kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        given = self._with_targets(super().test_on_batch, args, kwargs)
        return super().test_on_batch(*given.args, **given.kwargs)

    def _with_targets(
        self, method: Callable, args: tuple, kwargs: dict
    ) -> inspect.BoundArguments:
        """Adds empty targets to weights, which Keras drops without targets."""
        given = inspect.signature(method).bind(*args, **kwargs)
        if self._compile_loss is not None:
            _no_targets("loss", self.loss)
        _no_targets("y", given.arguments.get("y"))
        weights = given.arguments.get("sample_weight")
        if weights is not None and given.arguments.get("y") is None:
            given.arguments["y"] = np.zeros((len(weights), 0), "float32")
        return given

    def predict_step(self, *args: Any) -> Any:
        found = super().predict_step(*args)
        if keras.backend.backend() == "jax":
            outputs, state = found
            return self._log_prob(*outputs), state
        return self._log_prob(*found)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        if self.base is not None and not hasattr(self.base, "get_config"):
            raise ValueError(
                "A flow is saved with its `base`, which must have a method "
                "`get_config` and be registered with Keras. `save_weights` "
                f"does without. Received: base={self.base!r}"
            )
        return {
            **super().get_config(),
            "dynamics": serialize(self.dynamics),
            "t_span": list(self.t_span),
            "divergence": self.divergence,
            "num_probes": self.num_probes,
            "noise": self.noise,
            "time_dependent": self.time_dependent,
            "solver": serialize(self.solver),
            "adjoint": serialize(self.adjoint),
            "base": serialize(self.base),
            "seed": self.seed,
            "kinetic_regularizer": self.kinetic_regularizer,
            "jacobian_regularizer": self.jacobian_regularizer,
            "eval_divergence": self.eval_divergence,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict | None = None
    ) -> "ContinuousFlow":
        deserialize = keras.saving.deserialize_keras_object
        config = dict(config)
        for key in ("dynamics", "base"):
            config[key] = deserialize(config.get(key), custom_objects)
        return cls(**config)


class _StandardNormal:
    """Density of independent standard normal entries."""

    def __init__(self, shape: tuple, seed: keras.random.SeedGenerator):
        self._shape = shape
        self._seed = seed

    def log_prob(self, z: Tensor) -> Tensor:
        size = math.prod(self._shape)
        squares = pytree.sample_sums(ops.square(z))
        return -0.5 * (squares + size * math.log(2 * math.pi))

    def sample(self, shape: tuple, seed: int | None = None) -> Tensor:
        seed = self._seed if seed is None else seed
        return keras.random.normal((*shape, *self._shape), seed=seed)


def _no_targets(name: str, value: Any) -> None:
    """Refuses a loss, and targets unless they are empty."""
    if value is not None and 0 not in getattr(value, "shape", ())[1:]:
        raise ValueError(
            "A flow is fitted to `x` alone, by maximum likelihood: it takes no "
            "`loss` and no targets `y`. A condition goes with `x`, as "
            f"`[x, condition]`. Received: {name}={value!r}"
        )


def _tolerances(
    solver: Any, rtol: float | None, atol: float | None
) -> tuple[float | None, float | None]:
    """Drops default tolerances where the solver has its own, or none."""
    known = solvers.ALL.get(solver) if isinstance(solver, str) else None
    if known is not None and known.adaptive:
        return rtol, atol
    rtol, atol = [None if x == _TOLERANCE else x for x in (rtol, atol)]
    return rtol, atol


def _factor(name: str, value: float | None) -> float | None:
    return None if value is None else checks.non_negative(name, value)


def _seed(name: str, value: int) -> int:
    return checks.positive_int(name, value, or_zero=True)


def _checked_base(name: str, value: Any) -> Any:
    methods = ("log_prob", "sample")
    if value is None or all(callable(getattr(value, x, None)) for x in methods):
        return value
    raise ValueError(
        f"`{name}` must be `None`, or an object with the methods `log_prob` "
        f"and `sample`. Received: {name}={value!r}"
    )

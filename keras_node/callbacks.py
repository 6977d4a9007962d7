"""Callbacks that log what the solvers do during training."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_node.backend import _private
from keras_node.integration.solution import Solution
from keras_node.layers.counted import Counted

__all__ = ["SolverStats"]

_WARNING = (
    "{share:.1%} of the solves of `{name}` failed in epoch {epoch}: their "
    "result is NaN. `compile(run_eagerly=True)` on the batch in question says "
    "why; `keras.callbacks.TerminateOnNaN()` ends a training that has gone "
    "wrong. What helps as a rule: check the inputs for NaN and infinite "
    "values, loosen `rtol` and `atol`, raise `max_steps`, make `dynamics` "
    "smoother."
)


class SolverStats(keras.callbacks.Callback):
    """Callback that logs what the solver of each `ODEBlock` does per epoch.

    For a block named `ode`, it adds these entries to the logs of each epoch:

    - `ode_evals`: evaluations of the dynamics in a forward solve,
    - `ode_steps`: steps tried,
    - `ode_rejected`: steps rejected,
    - `ode_failed`: the share of solves that failed.

    Each is the mean over the calls of the block, and with a `per_sample`
    solver also over the samples. A call of a layer that solves more than once,
    such as `layers.ODERNN`, counts as one solve: all evaluations and steps are
    added. The entries of the validation are
    `val_ode_evals` and so on. The entries show in the progress bar when the
    epoch ends, in `History`, and in every callback after this one in the list
    (`CSVLogger`, `TensorBoard`). The first epoch in which a solve of a block
    failed ends with a warning. A second block of the same name is `ode_1`.

    This is a callback and not an argument of the layer, so that a model counts
    only while it is in use: `evaluate` returns the same as without it.

    Example:
    >>> block = keras_node.ODEBlock(
    ...     keras.layers.Dense(4), solver="tsit5", name="ode"
    ... )
    >>> model = keras.Sequential([keras.Input((4,)), block])
    >>> model.compile("adam", "mse")
    >>> history = model.fit(
    ...     np.ones((8, 4)),
    ...     np.ones((8, 4)),
    ...     callbacks=[keras_node.callbacks.SolverStats()],
    ...     verbose=0,
    ... ).history
    >>> sorted(history)
    ['loss', 'ode_evals', 'ode_failed', 'ode_rejected', 'ode_steps']
    >>> history["ode_failed"]
    [0.0]
    """

    def __init__(self):
        super().__init__()
        self._blocks = {}
        self._warned = set()
        self._training, self._validation = {}, {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._blocks = {}
        for layer in _private.layers_of(self.model):
            if isinstance(layer, Counted):
                layer.stats = _Counters()
                self._blocks[self._free_name(layer.name)] = layer
        self._recompile()

    def on_train_end(self, logs: dict | None = None) -> None:
        for block in self._blocks.values():
            block.stats = None
        self._blocks = {}
        self._recompile()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._read()

    def on_test_begin(self, logs: dict | None = None) -> None:
        self._training = self._read()

    def on_test_end(self, logs: dict | None = None) -> None:
        self._validation = self._read()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        found = self._read()
        if self._validation:
            found = self._training
            found |= {f"val_{k}": v for k, v in self._validation.items()}
            self._validation = {}
        if logs is not None:
            logs.update(found)
        for name in self._blocks:
            share = found[f"{name}_failed"]
            if share and name not in self._warned:
                self._warned.add(name)
                text = _WARNING.format(share=share, name=name, epoch=epoch + 1)
                warnings.warn(text, stacklevel=2)

    def _free_name(self, name: str) -> str:
        """Numbers the name if another block of the model has it already."""
        free, number = name, 0
        while free in self._blocks:
            number += 1
            free = f"{name}_{number}"
        return free

    def _recompile(self):
        """Recompiles, since counting is baked into the compiled step."""
        self.model.make_train_function(force=True)
        self.model.make_test_function(force=True)

    def _read(self) -> dict[str, float]:
        """Reads and resets the counters; the keys are the names in the logs."""
        return {
            f"{name}_{count}": value
            for name, block in self._blocks.items()
            for count, value in block.stats.read().items()
        }


class _Counters:
    """Running means of one block, which calls `update` with each `Solution`."""

    def __init__(self):
        # In full precision, also under a mixed policy.
        full = {"dtype": "float32", "trainable": False, "autocast": False}
        self._count = keras.Variable(0.0, **full)
        self._means = keras.Variable(np.zeros(4), **full)
        self.variables = [self._count, self._means]

    def update(self, solution: Solution) -> None:
        values = (
            solution.num_evals,
            solution.num_steps,
            solution.num_steps - solution.num_accepted,
            ops.logical_not(solution.success),
        )
        means = [ops.mean(ops.cast(value, "float32")) for value in values]
        count = self._count.value + 1
        change = (ops.stack(means) - self._means.value) / count
        self._count.assign(count)
        self._means.assign(self._means.value + change)

    def read(self) -> dict[str, float]:
        means = ops.convert_to_numpy(self._means.value).tolist()
        for variable in self.variables:
            variable.assign(ops.zeros_like(variable.value))
        return dict(
            zip(("evals", "steps", "rejected", "failed"), means, strict=True)
        )

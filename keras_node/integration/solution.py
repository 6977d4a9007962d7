"""The result of a solve, and the error of a solve that failed."""

import enum
import math
from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_node import backend
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor


class Status(enum.IntEnum):
    """Outcome of a solve."""

    SUCCESS = 0
    STEP_LIMIT = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3
    BACKSOLVE_DRIFT = 4


_REASONS = {
    Status.STEP_LIMIT: "the step limit `max_steps` was reached",
    Status.STEP_UNDERFLOW: (
        "the error tolerance asks for a step too small to advance time"
    ),
    Status.NON_FINITE: (
        "the state or its slope is NaN or infinite however small the step"
    ),
    Status.BACKSOLVE_DRIFT: (
        "the state traced back misses the one that the forward solve came "
        "from by more than its size"
    ),
}

_REMEDIES = (
    "What helps, in this order: check the inputs for NaN and infinite values; "
    "loosen `rtol` and `atol`; raise `max_steps`; make `dynamics` smoother or "
    "smaller (bounded activations, smaller weights); choose another solver."
)

_NO_GRADIENT = (
    "The backward pass of a solve that succeeded is NaN or infinite: the "
    "derivative of `dynamics` is, somewhere on the way, as that of `sqrt` is "
    "at 0. What helps: smoother `dynamics`; inputs that keep away from there."
)


class SolverError(RuntimeError):
    """Error of a solve that did not reach the end of `t_span`.

    Or of its gradient, if that is not finite.

    It is raised outside compiled code only. Compiled code cannot raise: there
    the result of a failed solve is NaN.
    """

    __module__ = "keras_node"  # where users find it


class Solution(NamedTuple):
    """Result of a solve.

    Where the solve failed, all its states are NaN. The time, the counters and
    the status are scalar tensors, or of shape `(batch,)` when each sample has
    its own steps. So are `t` and `elapsed` when each has its own interval.
    """

    y1: State  # the state at t1, with the structure of y0
    t: Scalar  # the time reached: t1, unless the solve failed
    elapsed: Scalar  # the time elapsed until then, exact also far from t = 0
    num_evals: Tensor  # calls of f
    num_steps: Tensor  # steps tried: accepted and rejected
    num_accepted: Tensor  # steps accepted
    status: Tensor  # a `Status`
    ys: State = ()  # the states at t_eval, (T, batch, ...) whatever its shape
    integral: Any = ()  # what was carried along, of each sample
    outputs: tuple = ()  # the results of the `outputs` of `Solver.solve`

    @property
    def success(self) -> Bool:
        """Boolean tensor: whether the solve reached `t1`."""
        return ops.equal(self.status, int(Status.SUCCESS))

    def failed(self) -> np.ndarray | None:
        """Finds the indices of failed solves; `None` in compiled code."""
        status = backend.value(self.status)
        return None if status is None else np.flatnonzero(status)

    def check_backward(
        self, forward: "Solution", remedies: str, t_span: tuple
    ) -> None:
        """Checks a backward solve, as `check` does, unless `forward` failed."""
        failed = forward.failed()
        if failed is None or failed.size:
            return
        if (
            backend.value(self.status) == Status.NON_FINITE
            and backend.value(self.num_accepted) == 0
        ):
            raise SolverError(_NO_GRADIENT)
        self.check("backward solve", remedies, t_span)

    def check_gradients(self, finite: Bool) -> None:
        """Raises `SolverError` if the gradients are not `finite`.

        It does not raise in compiled code, nor if the solve had failed.
        """
        failed = self.failed()
        if (
            failed is not None
            and not failed.size
            and is_concretely_false(finite)
        ):
            raise SolverError(_NO_GRADIENT)

    def check(
        self,
        name: str = "solve",
        remedies: str = _REMEDIES,
        t_span: tuple | None = None,
    ) -> None:
        """Raises `SolverError` if a solve failed, but not in compiled code."""
        failed = self.failed()
        if failed is None or not failed.size:
            return

        def first(x):
            return np.reshape(backend.value(x), -1)[failed[0]]

        who = f"The {name}"
        if len(self.status.shape):
            who = (
                f"The {name} of {failed.size} of {len(self.status)} samples "
                f"failed. That of sample {failed[0]}"
            )
        t = f"{first(self.t):.6g}"
        if t_span is not None:
            t = _time(t_span, float(first(self.elapsed)))
        raise SolverError(
            f"{who} stopped at t = {t} after "
            f"{first(self.num_steps)} steps ({first(self.num_accepted)} "
            f"accepted): {_REASONS[Status(first(self.status))]}. {remedies}"
        )


def _time(t_span: tuple, elapsed: float) -> str:
    """Formats the time after `elapsed`, precise enough for `t_span`.

    Where `t1` is the extent of a `Span`, it is a share of the span.
    """
    t0, t1 = t_span
    if not isinstance(t1, float):
        extent = float(np.max(backend.value(t1)))
        return f"t0 + {elapsed / extent:.6g} (t1 - t0)"
    larger = max(abs(t0), abs(t1)) / abs(t1 - t0)
    digits = min(6 + math.ceil(math.log10(max(larger, 1))), 17)
    return f"{t0 + math.copysign(elapsed, t1 - t0):.{digits}g}"


def is_concretely_false(condition: Bool) -> bool:
    """Tells whether a condition is false. Returns `False` in compiled code."""
    condition = backend.value(condition)
    return condition is not None and not condition

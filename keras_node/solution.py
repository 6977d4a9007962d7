"""What a solve returns, and how it says that it failed."""

import enum
import math
from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_node import backend


class Status(enum.IntEnum):
    """How a solve ended."""

    SUCCESS = 0
    STEP_LIMIT = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3
    ASTRAY = 4


_REASONS = {
    Status.STEP_LIMIT: "the step limit `max_steps` was reached",
    Status.STEP_UNDERFLOW: (
        "the error tolerance asks for a step too small to advance time"
    ),
    Status.NON_FINITE: (
        "the state or its slope is NaN or infinite however small the step"
    ),
    Status.ASTRAY: (
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
    """A solve did not reach the end of `t_span`.

    Raised outside compiled code only. Compiled code cannot raise: there the
    result of a failed solve is NaN.
    """

    __module__ = "keras_node"  # where users find it


class Solution(NamedTuple):
    """What a solve returns.

    Where the solve failed, all its states are NaN. The time, the counters and
    the status are scalar tensors, or of shape `(batch,)` when each sample
    steps for itself.
    """

    y1: Any  # the state at t1, of the structure of y0
    ys: Any  # the states at t_eval, (T, batch, ...); () if none were asked for
    t: Any  # the time reached: t1, unless the solve failed
    elapsed: Any  # from t0 until then; where t0 is far from 0, it tells more
    num_evals: Any  # calls of f
    num_steps: Any  # steps tried: accepted and rejected
    num_accepted: Any  # steps accepted
    status: Any  # a `Status`
    integral: Any = ()  # that of the integrand, if one was given
    trajectory: Any = ()  # the `Trajectory`, if it was asked for
    tape: Any = ()  # the one given, if any

    @property
    def success(self) -> Any:
        """Boolean tensor: whether the solve reached `t1`."""
        return ops.equal(self.status, int(Status.SUCCESS))

    def failed(self) -> np.ndarray | None:
        """Which solves failed: indices. `None` in compiled code."""
        status = backend.value(self.status)
        return None if status is None else np.flatnonzero(status)

    def check_backward(
        self, forward: "Solution", remedies: str, t_span: tuple
    ) -> None:
        """As `check`, for a backward solve; quiet if `forward` had failed."""
        failed = forward.failed()
        if failed is None or failed.size:
            return
        if (
            backend.value(self.status) == Status.NON_FINITE
            and backend.value(self.num_accepted) == 0
        ):
            raise SolverError(_NO_GRADIENT)
        self.check("backward solve", remedies, t_span)

    def check_gradients(self, finite: Any) -> None:
        """Raises `SolverError` if they are not `finite`, outside compiled code.

        Quiet if the solve had failed.
        """
        failed = self.failed()
        if failed is not None and not failed.size and known_false(finite):
            raise SolverError(_NO_GRADIENT)

    def check(
        self,
        name: str = "solve",
        remedies: str = _REMEDIES,
        t_span: tuple | None = None,
    ) -> None:
        """Raises `SolverError` if a solve failed, outside compiled code."""
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
    """The time after `elapsed`, in digits that tell times in `t_span` apart."""
    t0, t1 = t_span
    larger = max(abs(t0), abs(t1)) / abs(t1 - t0)
    digits = min(6 + math.ceil(math.log10(max(larger, 1))), 17)
    return f"{t0 + math.copysign(elapsed, t1 - t0):.{digits}g}"


def known_false(condition: Any) -> bool:
    """Whether it is known to be so; nothing is in compiled code."""
    condition = backend.value(condition)
    return condition is not None and not condition

"""What a solve is asked for, and what its loop over the steps carries."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_node import backend
from keras_node import structure
from keras_node.dense_output import DenseStep
from keras_node.interval import Interval
from keras_node.solution import Solution
from keras_node.solution import Status


class Task(NamedTuple):
    """What is asked of a solve, in elapsed time."""

    f: Callable
    span: Any
    norm: Callable
    eps: float  # that of `f`, if it is coarser than the state: or 0
    s_eval: Any  # the times to report, or None
    integrand: Callable | None

    @property
    def dense(self) -> bool:
        """Whether states inside the steps are wanted."""
        return self.s_eval is not None or self.integrand is not None


class State(NamedTuple):
    """What the loop carries. `(batch,)` where samples step for themselves."""

    t: Any  # the time elapsed since t0
    dt: Any  # the step to try next
    rejected: Any  # whether the step before was rejected
    y: Any
    slope: Any  # of y at t, where it is carried from step to step
    num_evals: Any
    num_steps: Any
    num_accepted: Any
    status: Any  # a `Status`; SUCCESS while the solve goes on
    going: Any  # whether there is more to do
    ys: Any  # (T + 1, batch, ...): the states reported; the last row is waste
    num_reported: Any
    integral: Any
    trajectory: Any

    @backend.recorded
    def solution(self, interval: Interval, per_sample: bool) -> Solution:
        """What a solve that has ended here returns."""
        finite = structure.all_finite(self.y, per_sample)
        ended = ops.logical_or(finite, self.status != Status.SUCCESS)
        status = self.status + status_if(
            ops.logical_not(ended), Status.NON_FINITE
        )
        success = ops.equal(status, int(Status.SUCCESS))
        trajectory = self.trajectory
        if trajectory:
            trajectory = trajectory._replace(num_reported=self.num_reported)
        return Solution(
            y1=structure.nan_unless(success, self.y),
            ys=self.ys,
            t=ops.where(success, interval.t1, interval.time(self.t)),
            elapsed=self.t,
            num_evals=self.num_evals,
            num_steps=self.num_steps,
            num_accepted=self.num_accepted,
            status=status,
            integral=structure.nan_unless(ops.all(success), self.integral),
            trajectory=trajectory,
        )


class Accepted(NamedTuple):
    """What the reports and the integral need to know of a step."""

    accept: Any
    dense: DenseStep
    y1: Any


def reason_to_end(
    t: Any, next_dt: Any, num_steps: Any, max_steps: int, finite: Any
) -> Any:
    """The `Status` of a solve that is not at its end, after a step."""
    spent = ops.where(num_steps >= max_steps, int(Status.STEP_LIMIT), 0)
    cause = ops.where(
        finite, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE)
    )
    return ops.cast(ops.where(t + next_dt <= t, cause, spent), "int32")


def status_if(condition: Any, status: Status) -> Any:
    # In int32, which not every `where` of two integers is.
    return int(status) * ops.cast(condition, "int32")


def goes_on(t: Any, span: Any, status: Any) -> Any:
    return ops.logical_and(t < span, ops.equal(status, 0))

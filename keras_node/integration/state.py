"""The state of the loop over the steps."""

from typing import NamedTuple

from keras import ops

from keras_node import pytree
from keras_node.integration.solution import Status
from keras_node.types import Bool
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class LoopState(NamedTuple):
    """State of a solve between two steps.

    All but `y` and `carry` are scalar tensors, or of shape `(batch,)` where
    each sample has its own steps.
    """

    t: Scalar  # the time elapsed since t0
    dt: Scalar  # the step to try next
    rejected: Bool  # whether the step before was rejected
    y: State
    carry: Tree  # the carry of the stepper
    num_evals: Tensor
    num_steps: Tensor
    num_accepted: Tensor
    status: Tensor  # a `Status`; SUCCESS while the solve goes on
    running: Bool  # whether the solve goes on


def reason_to_end(
    t: Scalar,
    next_dt: Scalar,
    num_steps: Tensor,
    max_steps: int,
    finite: Bool,
) -> Tensor:
    """Finds the `Status` after a step that does not reach the end."""
    spent = ops.where(num_steps >= max_steps, int(Status.STEP_LIMIT), 0)
    cause = ops.where(
        finite, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE)
    )
    return ops.cast(ops.where(t + next_dt <= t, cause, spent), "int32")


def status_at_end(y1: State, status: Tensor, per_sample: bool) -> Tensor:
    """Corrects the `Status` of a solve whose final state is not finite.

    No error estimate notices an overflow in the very last step.
    """
    finite = pytree.all_finite(y1, per_sample)
    ended = ops.logical_or(finite, status != Status.SUCCESS)
    return status + status_if(ops.logical_not(ended), Status.NON_FINITE)


def status_if(condition: Bool, status: Status) -> Tensor:
    """Returns `status` where the condition holds, SUCCESS elsewhere."""
    # A `where` of two integers is not int32 on every backend.
    return int(status) * ops.cast(condition, "int32")


def is_running(t: Scalar, span: Scalar, status: Tensor) -> Bool:
    """Tells whether a solve has neither arrived nor failed."""
    return ops.logical_and(t < span, ops.equal(status, 0))

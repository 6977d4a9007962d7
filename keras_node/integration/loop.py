"""The loop over the steps: propose, step, judge, commit, report."""

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.integration.controller import Controller
from keras_node.integration.interval import ElapsedField
from keras_node.integration.interval import Interval
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import Taken
from keras_node.integration.solution import Solution
from keras_node.integration.solution import Status
from keras_node.integration.state import LoopState
from keras_node.integration.state import is_running
from keras_node.integration.state import reason_to_end
from keras_node.integration.state import status_at_end
from keras_node.integration.state import status_if
from keras_node.integration.stepper import Stepper
from keras_node.integration.stepper import is_nothing
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


def integrate(
    stepper: Stepper,
    controller: Controller,
    f: RightHandSide,
    t0: Scalar,
    t1: Scalar,
    y0: State,
    args: Tree,
    outputs: tuple[Output, ...],
    jumps: Tensor | None = None,
) -> Solution:
    """Integrates `f` from `t0` to `t1`, as `Solver.solve` says."""
    interval = Interval.between(t0, t1, pytree.leaves(y0)[0].dtype)
    field = ElapsedField(f, interval, jumps)
    span = interval.span

    def advance(state, carries):
        state, taken = _advance(stepper, controller, field, args, span, state)
        if jumps is not None:
            state = _restart(stepper, field, args, state, taken)
        pairs = zip(outputs, carries, strict=True)
        return state, tuple(x.step(carry, taken) for x, carry in pairs)

    state = _start(stepper, controller, field, args, span, y0)
    state, carries = backend.while_loop(
        lambda state, carries: ops.any(state.running),
        advance,
        (state, tuple(x.init(state.t, y0) for x in outputs)),
    )
    solution = _finish(state, interval, controller.per_sample)
    pairs = zip(outputs, carries, strict=True)
    return solution._replace(
        outputs=tuple(x.result(carry, solution.success) for x, carry in pairs)
    )


@backend.jit
def _start(stepper, controller, f, args, span, y0):
    per_sample = controller.per_sample
    batch = ops.shape(pytree.leaves(y0)[0])[:1] if per_sample else ()
    count = ops.zeros(batch, dtype="int32")
    t = ops.zeros(batch, dtype=span.dtype)
    f = f.after(t)
    carry, num_evals = stepper.init(f, t, y0, args)
    finite = pytree.all_finite((y0, carry), per_sample)
    dt, more = controller.start(lambda s, y: f(s, y, args), y0, carry, span)
    # No step is short enough to leave a pole.
    status = count + status_if(ops.logical_not(finite), Status.NON_FINITE)
    return LoopState(
        t=t,
        dt=ops.cast(dt, t.dtype) + t,
        rejected=count > 0,
        y=y0,
        carry=carry,
        num_evals=count + num_evals + more,
        num_steps=count,
        num_accepted=count,
        status=status,
        running=is_running(t, span, status),
    )


@backend.jit
def _advance(stepper, controller, f, args, span, state):
    stop = f.next_stop(state.t)
    dt, last = controller.propose(state, stop)
    f = f.after(state.t)
    step = stepper.step(f, state.t, dt, state.y, state.carry, args)
    # Apart, as `f` may be one that cannot be captured. A pullback cannot, too.
    plain = step._replace(pullback=None)
    cuts = f.jumps is not None
    next_state, accept = _commit(
        controller, span, stop, cuts, state, dt, last, plain
    )
    return next_state, Taken(accept, state.t, dt, state.y, step)


@backend.jit
def _commit(controller, span, stop, cuts, state, dt, last, step):
    good, finite, next_dt = controller.judge(state, dt, step)
    # Keras casts numbers to `floatx`, and on PyTorch the result follows.
    next_dt = ops.cast(next_dt, dt.dtype)
    running = state.running
    accept = ops.logical_and(running, good)
    # The last step ends exactly at the end, and one before a jump at that.
    end = ops.where(last, stop, state.t + dt)
    t = ops.where(accept, end, state.t)
    if cuts:
        # A step that was cut short is no reason for a short one after it.
        cut = ops.logical_and(accept, dt < state.dt)
        next_dt = ops.where(cut, pytree.larger(next_dt, state.dt), next_dt)
    num_steps = state.num_steps + ops.cast(running, "int32")
    reason = reason_to_end(t, next_dt, num_steps, controller.max_steps, finite)
    status = ops.where(t < span, reason, int(Status.SUCCESS))
    status = ops.where(running, status, state.status)
    carry = state.carry
    if not is_nothing(carry):
        carry = pytree.where(accept, step.carry, carry)
    next_state = LoopState(
        t=t,
        dt=next_dt,
        rejected=ops.logical_not(accept),
        y=pytree.where(accept, step.y1, state.y),
        carry=carry,
        num_evals=state.num_evals + step.num_evals * ops.cast(running, "int32"),
        num_steps=num_steps,
        num_accepted=state.num_accepted + ops.cast(accept, "int32"),
        status=status,
        running=is_running(t, span, status),
    )
    return next_state, accept


def _restart(stepper, f, args, state, taken):
    """Takes the slope anew after a step that ended at a jump."""
    if is_nothing(state.carry):
        return state
    at_jump = ops.equal(state.t, f.next_stop(taken.t))
    landed = ops.logical_and(state.running, at_jump)

    def anew():
        return _init(stepper, f, state.t, state.y, args)

    def kept():
        return state.carry, ops.zeros((), "int32")

    carry, num_evals = ops.cond(ops.any(landed), anew, kept)
    return state._replace(
        carry=pytree.where(landed, carry, state.carry),
        num_evals=state.num_evals + num_evals * ops.cast(landed, "int32"),
    )


@backend.jit
def _init(stepper, f, t, y, args):
    carry, num_evals = stepper.init(f.after(t), t, y, args)
    return carry, ops.convert_to_tensor(num_evals, "int32")


@backend.jit
def _finish(state, interval, per_sample):
    status = status_at_end(state.y, state.status, per_sample)
    success = ops.equal(status, int(Status.SUCCESS))
    return Solution(
        y1=pytree.nan_unless(success, state.y),
        t=ops.where(success, interval.t1, interval.time(state.t)),
        elapsed=state.t,
        num_evals=state.num_evals,
        num_steps=state.num_steps,
        num_accepted=state.num_accepted,
        status=status,
    )

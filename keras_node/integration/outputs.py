"""Outputs of a solve beside its final state: objects that watch its steps."""

import abc
from typing import ClassVar
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.integration.record import Trajectory
from keras_node.integration.reports import Pages
from keras_node.integration.stepper import Step
from keras_node.integration.stepper import Stepper
from keras_node.types import Bool
from keras_node.types import RightHandSide
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Taken(NamedTuple):
    """Step that was tried: its start, its size and whether it was accepted."""

    accept: Bool
    t: Scalar
    dt: Scalar
    y: State
    step: Step


class Output(abc.ABC):
    """Observer of the steps of a solve, which computes a result from them.

    The carry of an output holds what it has computed so far. It is a structure
    of tensors, which goes around the loop with the state.
    """

    needs_dense: ClassVar[bool] = False

    def wrap(self, stepper: Stepper) -> Stepper:
        """Wraps the stepper, if the output needs more of each step."""
        return stepper

    @abc.abstractmethod
    def init(self, t: Scalar, y0: State) -> Tree:
        """Makes the first carry, at the time `t = 0` and the initial state."""

    @abc.abstractmethod
    def step(self, carry: Tree, taken: Taken) -> Tree:
        """Makes the next carry, after a step was tried."""

    @abc.abstractmethod
    def result(self, carry: Tree, success: Bool) -> Tree:
        """Makes the entry of `Solution.outputs`, after the last step."""


class Reports(NamedTuple):
    """States at the times of a `ReportAt`."""

    ys: State  # (T, batch, ...)
    num_reported: Tensor  # how many of the times were reached


class ReportAt(Output):
    """Output that reports the state at given times.

    Args:
        s_eval: Tensor of shape `(T,)`, or `(T, batch)` for times of each
            sample. The times elapsed since `t0`, `|t - t0|`, in ascending
            order. The report for a time outside the interval is NaN.
    """

    needs_dense = True

    def __init__(self, s_eval: Tensor):
        self.s_eval = s_eval

    def init(self, t: Scalar, y0: State) -> Pages:
        return Pages.empty(self.s_eval, t, y0)

    def step(self, carry: Pages, taken: Taken) -> Pages:
        return carry.write(taken.accept, taken.step.dense, taken.step.y1)

    def result(self, carry: Pages, success: Bool) -> Reports:
        size = ops.shape(self.s_eval)[0]
        return Reports(carry.states(size, success), carry.count)


class Integral(Output):
    """Output that integrates a function of time and state along the solution.

    It uses Gauss-Legendre quadrature inside each step. With `n` nodes the error
    falls as the power `2 n + 1` of the step. The number of nodes is chosen so
    that it falls faster than the error of the method.

    Args:
        f: The function, `f(s, y, args)` in elapsed time.
        start: The structure of tensors that the integral is added to.
        order: Int, the order of the method that takes the steps.
        args: A structure of tensors, handed to `f`.

    Reference:
        - Davis and Rabinowitz, "Methods of Numerical Integration", 2nd
          edition, section 2.7
    """

    needs_dense = True

    def __init__(
        self, f: RightHandSide, start: Tree, order: int, args: Tree = ()
    ):
        self.f = f
        self.start = start
        self.args = args
        self._size = order // 2 + 1

    def init(self, t: Scalar, y0: State) -> Tree:
        return self.start

    def step(self, carry: Tree, taken: Taken) -> Tree:
        dense = taken.step.dense
        nodes, weights = np.polynomial.legendre.leggauss(self._size)
        nodes = ops.convert_to_tensor((1 + nodes) / 2, dense.dt.dtype)
        weights = ops.convert_to_tensor(weights / 2, dense.dt.dtype)
        # Nothing is evaluated for a rejected step.
        num_evals = self._size * ops.cast(taken.accept, "int32")

        def add(i, integral):
            theta = ops.take(nodes, i)
            value = self.f(
                dense.t + theta * dense.dt, dense.at(theta), self.args
            )
            share = pytree.scale(dense.dt * ops.take(weights, i), value)
            return i + 1, pytree.add(integral, share)

        _, integral = backend.while_loop(
            lambda i, _: i < num_evals, add, (num_evals * 0, carry)
        )
        return integral

    def result(self, carry: Tree, success: Bool) -> Tree:
        return pytree.nan_unless(ops.all(success), carry)


class Record(Output):
    """Output that keeps the accepted steps: all times, some of the states.

    Args:
        max_steps: Int, the bound on the number of steps.
        checkpoints: Int, the number of states kept.
    """

    def __init__(self, max_steps: int, checkpoints: int):
        self.max_steps = max_steps
        self.checkpoints = checkpoints

    def init(self, t: Scalar, y0: State) -> Trajectory:
        return Trajectory.empty(t, y0, self.max_steps, self.checkpoints)

    def step(self, carry: Trajectory, taken: Taken) -> Trajectory:
        keep, dt = taken.accept, taken.dt
        if len(keep.shape):
            dt = ops.where(keep, dt, ops.zeros_like(dt))
            keep = ops.any(keep)
        return carry.write(keep, taken.t, dt, taken.y)

    def result(self, carry: Trajectory, success: Bool) -> Trajectory:
        return carry

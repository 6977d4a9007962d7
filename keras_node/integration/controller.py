"""Controllers, which choose the step sizes and judge the steps."""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_node import pytree
from keras_node.integration import step_size
from keras_node.integration.state import LoopState
from keras_node.integration.stepper import Step
from keras_node.integration.stepper import is_nothing
from keras_node.types import Bool
from keras_node.types import Norm
from keras_node.types import Scalar
from keras_node.types import State


class Verdict(NamedTuple):
    """Judgement of a step by a controller."""

    good: Bool  # whether its error is within the tolerances
    finite: Bool  # whether it can be judged: no NaN, no infinity
    next_dt: Scalar  # the size of the next step


class Controller(abc.ABC):
    """Policy for the steps of a solve.

    A controller is a value: equal controllers do the same.
    """

    max_steps: int
    per_sample: bool = False

    @abc.abstractmethod
    def start(
        self,
        f: Callable[[Scalar, State], State],
        y: State,
        slope: State,
        span: Scalar,
    ) -> tuple[Scalar, int]:
        """Chooses the first step.

        Args:
            f: The slope in elapsed time, `f(s, y)`.
            y: The initial state.
            slope: The slope of `y`, or `()` if it is not known.
            span: The length of the interval.

        Returns:
            The step size, and the number of calls of `f`.
        """

    @abc.abstractmethod
    def propose(self, state: LoopState, span: Scalar) -> tuple[Scalar, Bool]:
        """Fits the next step into the interval.

        Returns:
            The size of the step, and whether the step ends at `span`.
        """

    @abc.abstractmethod
    def judge(self, state: LoopState, dt: Scalar, step: Step) -> Verdict:
        """Judges a step of size `dt` from `state`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive(Controller):
    """Controller that bounds the error of each step: see `step_size`."""

    rtol: float
    atol: float
    max_steps: int
    first_step: float | None
    per_sample: bool
    order: int  # of the method
    error_weights: tuple  # see `Stepper`
    norm: Norm
    eps: float  # of the right-hand side, if coarser than the state's; else 0

    def __hash__(self) -> int:
        # Without the weights: fractions are slow to hash.
        return hash((self.rtol, self.atol, self.max_steps, self.norm))

    def start(
        self,
        f: Callable[[Scalar, State], State],
        y: State,
        slope: State,
        span: Scalar,
    ) -> tuple[Scalar, int]:
        if self.first_step is not None:
            return pytree.smaller(self.first_step, span), 0
        num_evals = 1
        if is_nothing(slope):
            slope, num_evals = f(ops.zeros_like(span), y), 2
        dt = step_size.initial_step(
            f,
            y,
            slope,
            span,
            self.order,
            self.rtol,
            self.atol,
            self.norm,
            self.eps,
        )
        return pytree.smaller(step_size.on_grid(dt), span), num_evals

    def propose(self, state: LoopState, span: Scalar) -> tuple[Scalar, Bool]:
        last = span - state.t <= state.dt
        dt = ops.where(last, span - state.t, state.dt)
        if self.per_sample:
            # Samples that have arrived take a step of length 0.
            dt = ops.where(state.running, dt, ops.zeros_like(dt))
        return dt, last

    def judge(self, state: LoopState, dt: Scalar, step: Step) -> Verdict:
        size = step_size.sizes(state.y, step.y1)

        def ratio_of(error):
            return step_size.error_ratio(
                error, size, self.rtol, self.atol, self.norm
            )

        ratio = ratio_of(step.error)
        floor = step_size.noise_floor(size, self.error_weights, ratio_of)
        if self.eps:
            noise = step_size.rounding(
                self.eps * dt, self.error_weights, step.slope
            )
            ratio, floor = step_size.unexplained(ratio, floor, ratio_of(noise))
        trusted = ops.where(ratio < floor, floor, ratio)  # NaN stays NaN
        next_dt = step_size.next_step(dt, trusted, self.order)
        # Just after a rejection a longer step would be rejected again:
        # Hairer, Norsett, Wanner I, section II.4.
        capped = pytree.smaller(next_dt, dt)
        next_dt = ops.where(state.rejected, capped, next_dt)
        next_dt = step_size.on_grid(next_dt)
        return Verdict(ratio <= 1, ops.isfinite(ratio), next_dt)


@dataclasses.dataclass(frozen=True)
class Fixed(Controller):
    """Controller that takes steps of equal length."""

    max_steps: int

    def start(
        self,
        f: Callable[[Scalar, State], State],
        y: State,
        slope: State,
        span: Scalar,
    ) -> tuple[Scalar, int]:
        return span / self.max_steps, 0

    def propose(self, state: LoopState, span: Scalar) -> tuple[Scalar, Bool]:
        last = state.num_steps + 1 >= self.max_steps
        return ops.where(last, span - state.t, state.dt), last

    def judge(self, state: LoopState, dt: Scalar, step: Step) -> Verdict:
        finite = pytree.all_finite(step.y1)
        # There is no shorter step to try.
        return Verdict(finite, finite, ops.where(finite, state.dt, 0.0))

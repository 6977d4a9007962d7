"""How a solver chooses its steps: adaptively, or of equal length."""

from typing import ClassVar

from keras_node import checks
from keras_node.integration.controller import Adaptive
from keras_node.integration.controller import Fixed
from keras_node.integration.solver import Solver
from keras_node.integration.stepper import Stepper
from keras_node.types import Norm


class AdaptiveSteps(Solver):
    """Solver that keeps the error of each step in bounds."""

    adaptive = True
    keeps_steps = True
    stops_at_jumps = True
    _config_keys: ClassVar[tuple[str, ...]] = (
        "rtol",
        "atol",
        "max_steps",
        "first_step",
        "per_sample",
    )

    def __init__(
        self,
        rtol: float = 1e-3,
        atol: float = 1e-6,
        max_steps: int = 4096,
        first_step: float | None = None,
        per_sample: bool = False,
    ):
        self.rtol = checks.positive_float("rtol", rtol)
        self.atol = checks.positive_float("atol", atol)
        self.max_steps = checks.positive_int("max_steps", max_steps)
        self.first_step = first_step
        if first_step is not None:
            self.first_step = checks.positive_float("first_step", first_step)
        self.per_sample = checks.boolean("per_sample", per_sample)

    def over_step(self) -> Solver:
        return self.shared().replace(first_step=checks.LARGEST)

    def controller(self, stepper: Stepper, norm: Norm, eps: float) -> Adaptive:
        return Adaptive(
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
            first_step=self.first_step,
            per_sample=self.per_sample,
            order=stepper.order,
            error_weights=stepper.error_weights,
            norm=norm,
            eps=eps,
        )


class FixedSteps(Solver):
    """Solver that takes steps of equal length."""

    keeps_steps = True
    _config_keys = ("num_steps",)

    def __init__(self, num_steps: int = 10):
        self.num_steps = checks.positive_int("num_steps", num_steps)
        self.max_steps = self.num_steps

    def over_step(self) -> Solver:
        return self.replace(num_steps=1)

    def controller(self, stepper: Stepper, norm: Norm, eps: float) -> Fixed:
        return Fixed(self.num_steps)

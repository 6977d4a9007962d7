"""How a Runge-Kutta method chooses its steps: by their error, or all equal."""

from keras import ops

from keras_node import checks
from keras_node import step_size
from keras_node import structure
from keras_node.interfaces import Solver
from keras_node.runge_kutta import RungeKutta


class AdaptiveRungeKutta(RungeKutta):
    """A Runge-Kutta method that keeps the error of each step in bounds."""

    adaptive = True
    _config_keys = ("rtol", "atol", "max_steps", "first_step", "per_sample")

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

    def over_step(self, span: float) -> Solver:
        config = self.together().get_config()
        return self.from_config({**config, "first_step": span})

    def _first_step(self, task, y, slope):
        if self.first_step is not None:
            return structure.smaller(self.first_step, task.span), 0
        dt = step_size.initial_step(
            task.f,
            y,
            slope,
            task.span,
            self.tableau.order,
            self.rtol,
            self.atol,
            task.norm,
            task.eps,
        )
        return structure.smaller(step_size.on_grid(dt), task.span), 1

    def _lands(self, state, span):
        return span - state.t <= state.dt

    def _judge(self, state, dt, step, norm, eps):
        b_error = self.tableau.b_error
        slopes = step.slopes[: len(b_error)]
        size = step_size.sizes(state.y, step.y1)

        def ratio_of(error):
            return step_size.error_ratio(
                error, size, self.rtol, self.atol, norm
            )

        ratio = ratio_of(structure.combine(dt, b_error, slopes))
        floor = step_size.noise_floor(size, b_error, ratio_of)
        if eps:
            noise = step_size.rounding(eps * dt, b_error, slopes[0])
            ratio, floor = step_size.unexplained(ratio, floor, ratio_of(noise))
        trusted = ops.where(ratio < floor, floor, ratio)  # a NaN stays one
        next_dt = step_size.next_step(dt, trusted, self.tableau.order)
        # Just after a rejection a longer step would be rejected again:
        # Hairer, Norsett, Wanner I, section II.4.
        capped = structure.smaller(next_dt, dt)
        next_dt = ops.where(state.rejected, capped, next_dt)
        next_dt = step_size.on_grid(next_dt)
        return ratio <= 1, ops.isfinite(ratio), next_dt


class FixedRungeKutta(RungeKutta):
    """A Runge-Kutta method with steps of equal length."""

    _config_keys = ("num_steps",)

    def __init__(self, num_steps: int = 10):
        self.num_steps = checks.positive_int("num_steps", num_steps)

    @property
    def max_steps(self) -> int:
        return self.num_steps

    def over_step(self, span: float) -> Solver:
        return type(self)(num_steps=1)

    def _first_step(self, task, y, slope):
        return task.span / self.num_steps, 0

    def _lands(self, state, span):
        return state.num_steps + 1 >= self.num_steps

    def _judge(self, state, dt, step, norm, eps):
        finite = structure.all_finite(step.y1)
        # There is no shorter step to try.
        return finite, finite, ops.where(finite, state.dt, 0.0)

"""The coefficients of a method. Each solver cites the source of its own."""

import dataclasses
import functools


@dataclasses.dataclass(frozen=True, eq=False)
class Tableau:
    """Coefficients of a Runge-Kutta method, in the letters of the textbooks.

    With stages `k_i = f(t + c_i dt, y + dt sum_j a_ij k_j)`, the step is
    `y1 = y + dt sum_i b_i k_i`. Its error is `dt sum_i b_error_i k_i`. The
    state at the fraction `theta` of the step is
    `y + dt sum_i k_i sum_m b_dense_im theta^(m + 1)`.

    Without `b_dense`, the state inside a step is the cubic Hermite interpolant
    of both ends and their slopes. In a method that is first same as last
    (`fsal`), the last stage is the slope at the end. In other methods, that
    slope is one more stage.
    """

    order: int
    c: tuple
    a: tuple
    b: tuple
    b_error: tuple | None = None
    b_dense: tuple = ()

    def __post_init__(self):
        rows = [sum(row) - c for row, c in zip(self.a, self.c, strict=True)]
        sums = [*rows, sum(self.b) - 1, sum(self.b_error or ())]
        if any(abs(x) > 1e-14 for x in sums):
            raise ValueError(f"Inconsistent coefficients. Received: {self}")
        if not self.b_dense:
            object.__setattr__(self, "b_dense", self._hermite())
        weights = self.b if self.fsal else (*self.b, 0)
        for row, b in zip(self.b_dense, weights, strict=True):
            if abs(sum(row) - b) > 1e-14:
                raise ValueError(f"Dense output misses y1. Received: {self}")

    @functools.cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is the slope at the end."""
        return self.c[-1] == 1 and (*self.a[-1], 0) == tuple(self.b)

    def _hermite(self) -> tuple:
        # y(theta) = y + (theta - 2 theta^2 + theta^3) dt f0
        #     + (3 theta^2 - 2 theta^3) (y1 - y) + (theta^3 - theta^2) dt f1
        weights = self.b if self.fsal else (*self.b, 0)
        first, *inner, last = [(0, 3 * b, -2 * b) for b in weights]
        first = (first[0] + 1, first[1] - 2, first[2] + 1)
        last = (last[0], last[1] - 1, last[2] + 1)
        return (first, *inner, last)

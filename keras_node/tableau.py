"""The coefficients of the methods; `solvers` names their sources."""

import dataclasses
import functools
from fractions import Fraction as Q


@dataclasses.dataclass(frozen=True)
class Tableau:
    """The coefficients of a method, in the letters of the textbooks.

    With stages `k_i = f(t + c_i dt, y + dt sum_j a_ij k_j)`, the step is
    `y1 = y + dt sum_i b_i k_i`, its error `dt sum_i b_error_i k_i`, and the
    state inside the step, at the fraction `theta` of it,
    `y + dt sum_i k_i sum_m b_dense_im theta^(m + 1)`.

    Without `b_dense` the state inside a step is the cubic Hermite interpolant
    of both ends and their slopes. The slope at the end is the last stage of a
    method that is first same as last (`fsal`); others get it as one more.
    """

    order: int
    c: tuple
    a: tuple
    b: tuple
    b_error: tuple | None = None
    b_dense: tuple | None = None

    def __post_init__(self):
        rows = [sum(row) - c for row, c in zip(self.a, self.c, strict=True)]
        sums = [*rows, sum(self.b) - 1, sum(self.b_error or ())]
        if any(abs(x) > 1e-14 for x in sums):
            raise ValueError(f"Inconsistent coefficients. Received: {self}")
        if self.b_dense is None:
            object.__setattr__(self, "b_dense", self._hermite())
        weights = self.b if self.fsal else (*self.b, 0)
        for row, b in zip(self.b_dense, weights, strict=True):
            if abs(sum(row) - b) > 1e-14:
                raise ValueError(f"Dense output misses y1. Received: {self}")

    @functools.cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the slope at the end of the step."""
        return self.c[-1] == 1 and (*self.a[-1], 0) == tuple(self.b)

    def _hermite(self) -> tuple:
        # y(theta) = y + (theta - 2 theta^2 + theta^3) dt f0
        #     + (3 theta^2 - 2 theta^3) (y1 - y) + (theta^3 - theta^2) dt f1
        weights = self.b if self.fsal else (*self.b, 0)
        first, *inner, last = [(0, 3 * b, -2 * b) for b in weights]
        first = (first[0] + 1, first[1] - 2, first[2] + 1)
        last = (last[0], last[1] - 1, last[2] + 1)
        return (first, *inner, last)


DOPRI5 = Tableau(
    order=5,
    c=(0, Q(1, 5), Q(3, 10), Q(4, 5), Q(8, 9), 1, 1),
    a=(
        (),
        (Q(1, 5),),
        (Q(3, 40), Q(9, 40)),
        (Q(44, 45), Q(-56, 15), Q(32, 9)),
        (
            Q(19372, 6561),
            Q(-25360, 2187),
            Q(64448, 6561),
            Q(-212, 729),
        ),
        (
            Q(9017, 3168),
            Q(-355, 33),
            Q(46732, 5247),
            Q(49, 176),
            Q(-5103, 18656),
        ),
        (
            Q(35, 384),
            0,
            Q(500, 1113),
            Q(125, 192),
            Q(-2187, 6784),
            Q(11, 84),
        ),
    ),
    b=(
        Q(35, 384),
        0,
        Q(500, 1113),
        Q(125, 192),
        Q(-2187, 6784),
        Q(11, 84),
        0,
    ),
    b_error=(
        Q(71, 57600),
        0,
        Q(-71, 16695),
        Q(71, 1920),
        Q(-17253, 339200),
        Q(22, 525),
        Q(-1, 40),
    ),
    b_dense=(
        (
            1,
            Q(-8048581381, 2820520608),
            Q(8663915743, 2820520608),
            Q(-12715105075, 11282082432),
        ),
        (0, 0, 0, 0),
        (
            0,
            Q(131558114200, 32700410799),
            Q(-68118460800, 10900136933),
            Q(87487479700, 32700410799),
        ),
        (
            0,
            Q(-1754552775, 470086768),
            Q(14199869525, 1410260304),
            Q(-10690763975, 1880347072),
        ),
        (
            0,
            Q(127303824393, 49829197408),
            Q(-318862633887, 49829197408),
            Q(701980252875, 199316789632),
        ),
        (
            0,
            Q(-282668133, 205662961),
            Q(2019193451, 616988883),
            Q(-1453857185, 822651844),
        ),
        (
            0,
            Q(40617522, 29380423),
            Q(-110615467, 29380423),
            Q(69997945, 29380423),
        ),
    ),
)

TSIT5 = Tableau(
    order=5,
    c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (
            5.325864828439257,
            -11.748883564062828,
            7.4955393428898365,
            -0.09249506636175525,
        ),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0,
    ),
    b_error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    b_dense=(
        (1, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0, 0.1317, -0.2234, 0.1017),
        (0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0, 1.5, -4, 2.5),
    ),
)

BOSH3 = Tableau(
    order=3,
    c=(0, Q(1, 2), Q(3, 4), 1),
    a=((), (Q(1, 2),), (0, Q(3, 4)), (Q(2, 9), Q(1, 3), Q(4, 9))),
    b=(Q(2, 9), Q(1, 3), Q(4, 9), 0),
    b_error=(Q(-5, 72), Q(1, 12), Q(1, 9), Q(-1, 8)),
)

EULER = Tableau(order=1, c=(0,), a=((),), b=(1,))

MIDPOINT = Tableau(order=2, c=(0, Q(1, 2)), a=((), (Q(1, 2),)), b=(0, 1))

HEUN = Tableau(order=2, c=(0, 1), a=((), (1,)), b=(Q(1, 2), Q(1, 2)))

RK4 = Tableau(
    order=4,
    c=(0, Q(1, 2), Q(1, 2), 1),
    a=((), (Q(1, 2),), (0, Q(1, 2)), (0, 0, 1)),
    b=(Q(1, 6), Q(1, 3), Q(1, 3), Q(1, 6)),
)

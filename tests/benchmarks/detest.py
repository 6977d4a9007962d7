"""The non-stiff DETEST problems: our solvers beside SciPy's.

Runs the 25 problems of Hull, Enright, Fellen and Sedgwick in float64 at three
tolerances and prints, for each, the evaluations of the right-hand side and the
error at the end against SciPy's DOP853 at 1e-13.

    KERAS_BACKEND=torch python tests/benchmarks/detest.py [--all]

Reference:
    - Hull, Enright, Fellen, Sedgwick, 1972, "Comparing numerical methods for
      ordinary differential equations", SIAM J. Numer. Anal. 9(4)
"""

import argparse

import keras
import numpy as np
from keras import ops
from scipy.integrate import solve_ivp

from keras_node import solvers

END = 20.0
TOLERANCES = (1e-3, 1e-6, 1e-9)


def a1(t, y):
    return -y


def a2(t, y):
    return -(y**3) / 2


def a3(t, y):
    return y * np.cos(t)


def a4(t, y):
    return y / 4 * (1 - y / 20)


def a5(t, y):
    return (y - t) / (y + t)


def b1(t, y):
    return np.array([2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])])


def b2(t, y):
    return np.array([-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]])


def b3(t, y):
    return np.array([-y[0], y[0] - y[1] ** 2, y[1] ** 2])


def b4(t, y):
    r = np.sqrt(y[0] ** 2 + y[1] ** 2)
    return np.array([-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r])


def b5(t, y):
    return np.array([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]])


def c1(t, y):
    dy = -y
    dy[1:] += y[:-1]
    dy[-1] = y[-2]
    return dy


def c2(t, y):
    rate = np.arange(1.0, 10.0)
    dy = np.zeros(10)
    dy[:-1] -= rate * y[:-1]
    dy[1:] += rate * y[:-1]
    return dy


def diffusion(t, y):
    dy = -2 * y
    dy[1:] += y[:-1]
    dy[:-1] += y[1:]
    return dy


# The outer planets: masses relative to the sun, gravity in units of the
# astronomical unit, the year of 100 days and the mass of the sun.
MASSES = np.array(
    [
        0.000954786104043,
        0.000285583733151,
        0.0000437273164546,
        0.0000517759138449,
        0.00000277777777778,
    ]
)
SUN = 1.00000597682
GRAVITY = 2.95912208286
PLANETS = np.array(
    [
        [3.42947415189, 3.35386959711, 1.35494901715],
        [6.64145542550, 5.97156957878, 2.18231499728],
        [11.2630437207, 14.6952576794, 6.27960525067],
        [-30.1552268759, 1.65699966404, 1.43785752721],
        [-21.1238353380, 28.4465098142, 15.3882659679],
    ]
)
PLANETS_SPEED = np.array(
    [
        [-0.557160570446, 0.505696783289, 0.230578543901],
        [-0.415570776342, 0.365682722812, 0.169143213293],
        [-0.325325669158, 0.189706021964, 0.0877265322780],
        [-0.0240476254170, -0.287659532608, -0.117219543175],
        [-0.176860753121, -0.216393453025, -0.0148647893090],
    ]
)


def c5(t, y):
    x, v = y.reshape(2, 5, 3)
    cubes = np.sum(x**2, axis=1, keepdims=True) ** 1.5
    masses = MASSES[:, None]
    force = -(SUN + masses) * x / cubes
    for j in range(5):
        for k in range(5):
            if k != j:
                apart = x[k] - x[j]
                pull = apart / np.sum(apart**2) ** 1.5 - x[k] / cubes[k]
                force[j] += MASSES[k] * pull
    return np.concatenate([v.ravel(), GRAVITY * force.ravel()])


def orbit(t, y):
    r = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return np.array([y[2], y[3], -y[0] / r, -y[1] / r])


def e1(t, y):
    s = t + 1
    return np.array([y[1], -(y[1] / s + (1 - 0.25 / s**2) * y[0])])


def e2(t, y):
    return np.array([y[1], (1 - y[0] ** 2) * y[1] - y[0]])


def e3(t, y):
    return np.array([y[1], y[0] ** 3 / 6 - y[0] + 2 * np.sin(2.78535 * t)])


def e4(t, y):
    return np.array([y[1], 0.032 - 0.4 * y[1] ** 2])


def e5(t, y):
    return np.array([y[1], np.sqrt(1 + y[1] ** 2) / (25 - t)])


def unit(size):
    return np.eye(size)[0]


PROBLEMS = {
    "A1": (a1, [1.0]),
    "A2": (a2, [1.0]),
    "A3": (a3, [1.0]),
    "A4": (a4, [1.0]),
    "A5": (a5, [4.0]),
    "B1": (b1, [1.0, 3.0]),
    "B2": (b2, [2.0, 0.0, 1.0]),
    "B3": (b3, [1.0, 0.0, 0.0]),
    "B4": (b4, [3.0, 0.0, 0.0]),
    "B5": (b5, [0.0, 1.0, 1.0]),
    "C1": (c1, unit(10)),
    "C2": (c2, unit(10)),
    "C3": (diffusion, unit(10)),
    "C4": (diffusion, unit(51)),
    "C5": (c5, np.concatenate([PLANETS.ravel(), PLANETS_SPEED.ravel()])),
}
for index, eccentricity in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1):
    speed = np.sqrt((1 + eccentricity) / (1 - eccentricity))
    PROBLEMS[f"D{index}"] = (orbit, [1 - eccentricity, 0.0, 0.0, speed])
PROBLEMS |= {
    "E1": (e1, [0.6713967071418030, 0.09540051444747446]),
    "E2": (e2, [2.0, 0.0]),
    "E3": (e3, [0.0, 0.0]),
    "E4": (e4, [30.0, 0.0]),
    "E5": (e5, [0.0, 0.0]),
}


def ours(name, f, y0, tolerance):
    def g(t, y, args):
        slope = f(float(t), ops.convert_to_numpy(y)[0].copy())
        return ops.convert_to_tensor(slope[None], "float64")

    solver = solvers.get(name, rtol=tolerance, atol=tolerance, max_steps=10**6)
    solution = solver.solve(
        g, 0.0, END, ops.convert_to_tensor(np.array([y0]), "float64")
    )
    return ops.convert_to_numpy(solution.y1)[0], int(solution.num_evals)


def scipys(name, f, y0, tolerance):
    result = solve_ivp(
        f, (0.0, END), y0, method=name, rtol=tolerance, atol=tolerance
    )
    return result.y[:, -1], result.nfev


def geometric_mean(x):
    return np.exp(np.mean(np.log(x)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="print each problem")
    args = parser.parse_args()
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_disable_jit", True)
    print("evaluations and errors; ratios to RK45 (SciPy)")
    totals = {}
    for tolerance in TOLERANCES:
        rows = []
        for problem, (f, y0) in PROBLEMS.items():
            exact = solve_ivp(
                f, (0.0, END), y0, method="DOP853", rtol=1e-13, atol=1e-13
            ).y[:, -1]
            row = []
            for run, name in (
                (scipys, "RK45"),
                (ours, "dopri5"),
                (ours, "tsit5"),
            ):
                y1, evals = run(name, f, np.array(y0), tolerance)
                row.append((evals, np.max(np.abs(y1 - exact))))
            rows.append(row)
            (rk_evals, rk_error), (d_evals, d_error), (t_evals, t_error) = row
            marks = "".join(
                mark
                for mark, bad in (
                    (" evaluations", d_evals > 1.2 * rk_evals),
                    (" error", d_error > 2 * rk_error),
                )
                if bad
            )
            if args.all or marks:
                print(
                    f"{tolerance:.0e} {problem}  RK45 {rk_evals:6d} "
                    f"{rk_error:.1e}   Dopri5 {d_evals:6d} {d_error:.1e} "
                    f"({d_evals / rk_evals:.2f}, {d_error / rk_error:.2f})   "
                    f"Tsit5 {t_evals:6d} {t_error:.1e}"
                    f"{'   <-' + marks if marks else ''}"
                )
        rows = np.array(rows)
        totals[tolerance] = rows
        print(
            f"{tolerance:.0e} sum of evaluations, geometric mean of errors:  "
            + "   ".join(
                f"{name} {rows[:, i, 0].sum():.0f} "
                f"{geometric_mean(rows[:, i, 1]):.2e}"
                for i, name in enumerate(("RK45", "Dopri5", "Tsit5"))
            ),
            flush=True,
        )
    every = np.concatenate(list(totals.values()))
    print(
        "all: "
        + "   ".join(
            f"{name} {every[:, i, 0].sum():.0f} "
            f"{geometric_mean(every[:, i, 1]):.2e}"
            for i, name in enumerate(("RK45", "Dopri5", "Tsit5"))
        )
    )


if __name__ == "__main__":
    main()

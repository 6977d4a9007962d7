"""Seconds of a training step, side by side with what one would take instead.

    python tests/benchmarks/speed.py            # all works
    python tests/benchmarks/speed.py --quick    # in under five minutes

Every contestant is a process of its own. They take turns, in several rounds,
so that what else the machine does falls on all of them; the table has the
median over the rounds and their spread. The loss and the evaluations of `f` in
a forward solve show that the work is the same. Then come the ratios that count,
and how a step grows. The results go to a JSON file and a picture, too.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ADJOINTS = ("backsolve", "discrete", "interpolating", "gauss")
WAYS = ("tf", "tf-jit", "jax", "torch")


def pairs(solvers, adjoints, ways=WAYS):
    return [
        f"ours {way} {solver} {adjoint}"
        for way in ways
        for solver in solvers
        for adjoint in adjoints
    ]


def floors(forward, backward, ways=WAYS):
    return [f"floor {way} {forward} {backward}" for way in ways]


def diffrax(*adjoints):
    return [
        f"diffrax jax {solver} {adjoint}Adjoint"
        for solver in ("tsit5", "dopri5")
        for adjoint in adjoints
    ]


TORCHDIFFEQ = [
    "torchdiffeq torch dopri5 odeint",
    "torchdiffeq torch dopri5 odeint_adjoint",
]
TFP = ["tfp tf dormand_prince own", "tfp tf-jit dormand_prince own"]

OTHERS = ("backsolve", "interpolating", "gauss")

# What is compared in each work, in heats: those of one take turns with each
# other. The first has all that counts, and is what `--quick` runs.
BOUTS = {
    "tutorial": [
        pairs(["tsit5"], ["discrete"])
        + pairs(["dormand_prince"], ["backsolve"], ("tf", "tf-jit"))
        + diffrax("RecursiveCheckpoint", "Backsolve")
        + TORCHDIFFEQ
        + TFP
        + floors(14, 12, ("tf-jit", "torch")),
        pairs(["tsit5"], OTHERS, ("jax", "torch"))
        + pairs(["dopri5"], ADJOINTS, ("jax", "torch"))
        + floors(14, 12, ("jax",)),
        pairs(["tsit5"], OTHERS, ("tf", "tf-jit"))
        + pairs(["dopri5"], ADJOINTS, ("tf-jit",)),
    ],
    "forward": [
        [],  # not in `--quick`
        pairs(["tsit5"], ["discrete"])
        + pairs(["dormand_prince"], ["backsolve"], ("tf", "tf-jit"))
        + diffrax("RecursiveCheckpoint")
        + TORCHDIFFEQ[:1]
        + TFP
        + floors(14, 0, ("tf-jit", "jax", "torch")),
    ],
    "fit": [
        [f"fit {way} {f}" for way in WAYS[:2] for f in ("tsit5", "dense")],
        [f"fit {way} bosh3" for way in WAYS[:2]],
    ],
    "conv": [
        pairs(["tsit5"], ["discrete"], ("tf", "jax", "torch")) + TORCHDIFFEQ,
        pairs(["tsit5"], OTHERS, ("tf", "torch"))
        + pairs(["dopri5"], ["discrete"], ("tf", "jax", "torch"))
        + floors(20, 18, ("tf", "torch"))
        + TFP[:1],
        pairs(["tsit5"], ["discrete"], ("tf-jit",))
        + diffrax("RecursiveCheckpoint", "Backsolve")[:2],
    ],
    "loop": [
        pairs(["tsit5"], ["discrete"], ("tf-jit", "jax"))
        + diffrax("Direct")[:1]
        + ["torchode torch tsit5 none"],
        pairs(["dopri5"], ["discrete"], ("tf-jit", "jax", "torch"))
        + pairs(["tsit5+per_sample"], ["discrete"])
        + pairs(["tsit5"], ["discrete"], ("tf", "torch"))
        + ["torchode torch dopri5 none"]
        + TORCHDIFFEQ[:1]
        + TFP,
    ],
    "long": [
        pairs(["tsit5"], ["discrete"], ("tf-jit", "jax"))
        + diffrax("RecursiveCheckpoint")[:1],
        pairs(["tsit5"], OTHERS, ("tf-jit", "jax"))
        + pairs(["dopri5"], ["discrete"], ("tf-jit", "jax"))
        + diffrax("Backsolve")[:1],
        pairs(["tsit5"], ["discrete"], ("torch",)) + TORCHDIFFEQ,
    ],
    "times": [
        pairs(["tsit5", "tsit5+shared", "tsit5+union"], ["discrete"])
        + diffrax("RecursiveCheckpoint")[:1]
        + ["torchode torch tsit5 none", "torchode torch-compile tsit5 none"],
    ],
}


# How the step of the tutorial's network grows: the sizes, and for each the
# work and the contestant.
GROWTH = {
    "batch": (
        (1, 16, 128, 1024, 4096, 16384),
        lambda n, way: (f"tutorial:{n}", f"ours {way} tsit5 discrete"),
    ),
    "width": (
        (16, 64, 256, 1024),
        lambda n, way: (f"tutorial:128:{n}", f"ours {way} tsit5 discrete"),
    ),
    "steps": (
        (10, 100, 1000),
        lambda n, way: ("tutorial", f"ours {way} rk4+{n} discrete"),
    ),
}


class Contestant:
    """A process that says what it computes, and then steps when told to."""

    def __init__(self, work, name):
        self.name, self.times = name, []
        command = [sys.executable, HERE / "contestants.py", work, name]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.report = self._answer()

    def step(self, seconds):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        answer = self._answer()
        if isinstance(answer, float):
            self.times.append(answer)
        else:
            self.report, self.times = answer, []

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        lines = self.process.stderr.read().strip().splitlines()
        return {"error": (lines or ["no answer"])[-1]}

    def result(self):
        if self.times:
            self.report["ms"] = 1e3 * statistics.median(self.times)
            self.report["low"] = 1e3 * min(self.times)
            self.report["high"] = 1e3 * max(self.times)
        return {"contestant": self.name, **self.report}


def compete(work, names, rounds, seconds):
    """Starts all, one after the other, and lets them take turns."""
    with contextlib.ExitStack() as stack:
        contestants = []
        for name in names:
            contestant = Contestant(work, name)
            stack.callback(contestant.process.kill)
            contestants.append(contestant)
        for _ in range(rounds):
            for contestant in contestants:
                if "error" not in contestant.report:
                    contestant.step(seconds)
        return [contestant.result() for contestant in contestants]


def table(work, results):
    rows = [
        "| " + work + " | ms | spread | compile s | MB | `f` | loss |",
        "|---" * 7 + "|",
    ]
    for r in sorted(results, key=lambda r: r.get("ms", 1e9)):
        if "error" in r:
            rows.append(f"| {r['contestant']} | {r['error'][:60]} | | | | | |")
            continue
        rows.append(
            f"| {r['contestant']} | {r['ms']:.3g} | {r['low']:.3g} to "
            f"{r['high']:.3g} | {r['compile']:.1f} | {r['MB']:.0f} | "
            f"{r['evals']} | {r['loss']:.5f} |"
        )
    return "\n".join(rows)


# What is to be reached: a work, ours, the best of these peers, and how many
# times as fast.
GOALS = [
    ("tutorial", "ours jax tsit5 discrete", "diffrax", 2.5),
    ("tutorial", "ours tf-jit tsit5 discrete", "diffrax", 1.8),
    ("tutorial", "ours tf-jit tsit5 discrete", "floor tf-jit", 1 / 1.15),
    ("tutorial", "ours tf-jit dormand_prince backsolve", "tfp tf-jit", 1),
    ("tutorial", "ours torch tsit5 discrete", "torchdiffeq", 2),
    ("tutorial", "ours torch tsit5 discrete", TORCHDIFFEQ[1], 4),
    ("fit", "fit tf-jit tsit5", "fit tf-jit dense", 1 / 2),
    ("conv", "ours torch tsit5 discrete", TORCHDIFFEQ[0], 1),
    ("conv", "ours tf tsit5 discrete", TORCHDIFFEQ[0], 1 / 1.2),
    ("loop", "ours jax tsit5 discrete", "diffrax", 1.5),
    ("loop", "ours jax tsit5 discrete", "torchode", 3),
    ("long", "ours jax tsit5 discrete", "diffrax jax tsit5 Rec", 1.5),
    ("long", "ours tf-jit tsit5 discrete", "diffrax jax tsit5 Rec", 1.5),
    ("times", "ours jax tsit5 discrete", "diffrax", 1),
    ("times", "ours tf-jit tsit5 discrete", "diffrax", 1),
    ("times", "ours jax tsit5 discrete", "torchode", 1),
    ("times", "ours torch tsit5 discrete", "torchode", 1),
    ("times", "ours jax tsit5 discrete", "ours jax tsit5+shared", 1 / 1.5),
    ("times", "ours tf-jit tsit5 discrete", "ours tf-jit tsit5+s", 1 / 1.5),
    ("times", "ours torch tsit5 discrete", "ours torch tsit5+shared", 1 / 1.5),
]


def grow(seconds):
    """Prints the curves, and the power of the last part of each."""
    curves = {}
    for name, (sizes, entry) in GROWTH.items():
        cells = [f"{n:,}" for n in sizes]
        print(f"| {name} | {' | '.join(cells)} | power |")
        print("|---" * (len(sizes) + 2) + "|")
        for way in WAYS[1:]:
            ms = []
            for n in sizes:
                work, contestant = entry(n, way)
                (result,) = compete(work, [contestant], 1, seconds)
                ms.append(result.get("ms", math.nan))
            power = math.log(ms[-1] / ms[-2]) / math.log(sizes[-1] / sizes[-2])
            cells = " | ".join(f"{x:.3g}" for x in ms)
            print(f"| {way} | {cells} | {power:.2f} |", flush=True)
            curves[f"{name} {way}"] = dict(zip(sizes, ms, strict=True))
        print()
    return curves


def goals(results):
    rows = ["| work | ours | against | goal | reached |", "|---" * 5 + "|"]
    found = {
        (work, r["contestant"]): r["ms"]
        for work, rs in results.items()
        for r in rs
        if "ms" in r
    }
    for work, ours, peer, goal in GOALS:
        peers = [
            ms
            for (its_work, name), ms in found.items()
            if its_work == work and name.startswith(peer)
        ]
        if (work, ours) in found and peers:
            ratio = min(peers) / found[work, ours]
            rows.append(
                f"| {work} | {ours} | {peer} | {goal:.2f} | {ratio:.2f} |"
            )
    return "\n".join(rows)


def available(name):
    library = name.split()[0]
    package = {"tfp": "tensorflow_probability"}.get(library, library)
    own = library in ("ours", "floor", "fit")
    return own or importlib.util.find_spec(package) is not None


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(results),
        1,
        figsize=(8, 1 + 0.22 * sum(map(len, results.values()))),
        height_ratios=[1 + len(rs) for rs in results.values()],
        layout="constrained",
        squeeze=False,
    )
    colors = {"ours": "tab:blue", "floor": "0.6", "fit": "tab:blue"}
    for axis, (work, rs) in zip(axes[:, 0], results.items(), strict=True):
        rs = sorted((r for r in rs if "ms" in r), key=lambda r: -r["ms"])
        names = [r["contestant"] for r in rs]
        values = [r["ms"] for r in rs]
        shades = [colors.get(n.split()[0], "tab:orange") for n in names]
        axis.barh(names, values, color=shades)
        axis.set(xscale="log", title=work)
        axis.tick_params("y", labelsize=7)
    axes[-1, 0].set_xlabel("milliseconds of a step")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--works", nargs="*", choices=BOUTS, default=BOUTS)
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--only", default="", help="contestants with this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--json", default="speed.json")
    parser.add_argument("--picture", default="speed.png")
    args = parser.parse_args()
    results = {}
    for work in args.works:
        found = []
        for heat in BOUTS[work][: 1 if args.quick else None]:
            names = [n for n in heat if args.only in n and available(n)]
            found += compete(work, names, args.rounds, args.seconds)
        if not found:
            continue
        results[work] = found
        print(table(work, found), end="\n\n", flush=True)
        Path(args.json).write_text(json.dumps(results, indent=1))
    if not results:
        parser.error("no contestant is left to run")
    print(goals(results), end="\n\n", flush=True)
    if not (args.quick or args.no_growth):
        found = {**results, "growth": grow(args.seconds)}
        Path(args.json).write_text(json.dumps(found, indent=1))
    draw(results, args.picture)


if __name__ == "__main__":
    main()

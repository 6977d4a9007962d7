"""What `kinetic_regularizer` does to the evaluations of trained dynamics.

A classifier of the 1,500 digits, trained from the same initial weights with
and without. Prints a Markdown table: accuracies on 1,350 digits to train and
150 to test, the kinetic energy of a solve, and the evaluations of `f` in a
forward solve of all test digits.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers
from keras import ops

import keras_node

DIGITS = Path(__file__).parents[2] / "examples/data/mnist-first-1500.npz"


def classifier(factor: float | None) -> keras.Model:
    block = keras_node.ODEBlock(
        [layers.Dense(64, "tanh"), layers.Dense(20)],
        solver="tsit5",
        adjoint="discrete",
        rtol=1e-4,
        atol=1e-4,
        kinetic_regularizer=factor,
        name="ode",
    )
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(20, "tanh", name="state"),
            block,
            layers.Dense(10, "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def measure(model: keras.Model, images: np.ndarray, tolerance: float):
    """The evaluations of a solve, and its mean energy."""
    ode = model.get_layer("ode")
    state = keras.Model(model.inputs, model.get_layer("state").output)
    block = keras_node.ODEBlock(
        ode.dynamics,
        solver=keras_node.solvers.Tsit5(rtol=tolerance, atol=tolerance),
        kinetic_regularizer=1.0,
    )
    solution = block.solve(state.predict(images, verbose=0))
    return int(solution.num_evals), float(ops.mean(solution.integral))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--factors", type=float, nargs="*", default=[0, 1e-3, 1e-2, 1e-1]
    )
    args = parser.parse_args()
    with np.load(DIGITS) as data:
        images, labels = data["images"].astype("float32") / 255, data["labels"]
    train, test = slice(None, 1350), slice(1350, None)
    tolerances = [1e-3, 1e-5, 1e-6]
    print("| factor | train | test | energy |", end="")
    print("".join(f" tol {tolerance:g} |" for tolerance in tolerances))
    print("|---|---|---|---|" + "---|" * len(tolerances))
    for factor in args.factors:
        keras.utils.set_random_seed(0)
        model = classifier(factor or None)
        model.fit(
            images[train],
            labels[train],
            batch_size=128,
            epochs=args.epochs,
            verbose=0,
        )
        accuracies = [
            model.evaluate(images[part], labels[part], verbose=0)[1]
            for part in (train, test)
        ]
        found = [measure(model, images[test], tol) for tol in tolerances]
        cells = [f"{factor:g}", *(f"{x:.1%}" for x in accuracies)]
        cells += [f"{found[0][1]:.3g}", *(f"{evals}" for evals, _ in found)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Trains a neural ODE on handwritten digits.

    python examples/mnist.py                      # 1,500 digits, in seconds
    python examples/mnist.py --dataset mnist      # all 70,000, downloaded

The network is the one of the Lux.jl tutorial "MNIST Classification using
Neural ODEs". Digits: Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np

import keras_node

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DIGITS = Path(__file__).parent / "data" / "mnist-first-1500.npz"


def parse_args():
    parser = argparse.ArgumentParser(
        description="Trains a neural ODE on handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=["digits", "mnist"], default="digits")
    add("--data-dir", help="where tensorflow_datasets has prepared MNIST")
    add("--epochs", type=int, default=9)
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=1e-3)
    add("--units", type=int, default=20, help="width of the state")
    add("--hidden", type=int, default=10, help="width of the dynamics")
    add("--solver", choices=keras_node.solvers.ALL, default="dormand_prince")
    add("--adjoint", choices=keras_node.adjoints.ALL, default="backsolve")
    add("--rtol", type=float, default=1e-3)
    add("--atol", type=float, default=1e-3)
    add("--jit", action="store_true", help="compile with XLA")
    add("--seed", type=int, default=0)
    add("--model", default="mnist.keras", help="file to save the model to")
    add("--picture", default="mnist.png", help="file for the curves")
    return parser.parse_args()


def load_digits():
    """The first 1,500 training digits: 1,350 to train and 150 to test."""
    with np.load(DIGITS) as data:
        images, labels = data["images"], data["labels"]
    return (images[:1350], labels[:1350]), (images[1350:], labels[1350:])


def load_mnist(data_dir):
    """All of MNIST: 60,000 digits to train and 10,000 to test."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    # Offline, ten attempts a file would take minutes to say so.
    downloader.MAX_RETRIES = 1
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        splits = tfds.load(
            "mnist",
            split=["train", "test"],
            data_dir=data_dir,
            download=data_dir is None,
            batch_size=-1,
            as_supervised=True,
        )
    except Exception as error:
        where = "download it" if data_dir is None else f"find it in {data_dir}"
        sys.exit(
            f"MNIST is not available: tensorflow_datasets could not {where} "
            f"({type(error).__name__}); name a folder that holds it prepared "
            "with --data-dir, or leave out --dataset to train on the digits "
            "that come with this example."
        )
    return tfds.as_numpy(splits)


def build_model(args):
    tolerances = {"rtol": args.rtol, "atol": args.atol}
    if "rtol" not in keras_node.solvers.get(args.solver).get_config():
        tolerances = {}  # a solver of fixed step
    inputs = keras.Input((28, 28))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(args.units, activation="tanh")(x)
    x = keras_node.ODEBlock(
        [
            keras.layers.Dense(args.hidden, activation="tanh"),
            keras.layers.Dense(args.hidden, activation="tanh"),
            keras.layers.Dense(args.units, activation="tanh"),
        ],
        t_span=(0.0, 1.0),
        solver=args.solver,
        adjoint=args.adjoint,
        **tolerances,
    )(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


class Report(keras.callbacks.Callback):
    """After each epoch, prints its seconds and both accuracies."""

    def __init__(self, train, test):
        super().__init__()
        self.train, self.test = train, test
        self.rows = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.start
        evaluate = self.model.evaluate
        loss, train = evaluate(*self.train, batch_size=512, verbose=0)
        test_loss, test = evaluate(*self.test, batch_size=512, verbose=0)
        self.rows.append((loss, test_loss, train, test))
        print(
            f"epoch {epoch + 1:2d}   {seconds:6.2f} s   "
            f"train {train:6.1%}   test {test:6.1%}",
            flush=True,
        )


def draw(rows, path):
    epochs = range(1, len(rows) + 1)
    loss, test_loss, train, test = zip(*rows, strict=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3), layout="constrained"
    )
    for axis, title, curves in (
        (left, "loss", (loss, test_loss)),
        (right, "accuracy", (train, test)),
    ):
        for label, curve in zip(("train", "test"), curves, strict=True):
            axis.plot(epochs, curve, "o-", ms=4, label=label)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    left.legend()
    figure.savefig(path, dpi=120)


def main():
    args = parse_args()
    keras.utils.set_random_seed(args.seed)
    if args.dataset == "mnist":
        train, test = load_mnist(args.data_dir)
    else:
        train, test = load_digits()
    train, test = (
        (images.reshape(-1, 28, 28).astype("float32") / 255, labels)
        for images, labels in (train, test)
    )

    try:
        model = build_model(args)
    except ValueError as error:  # such as a pair that does not go together
        sys.exit(str(error))
    model.summary()
    model.compile(
        optimizer=keras.optimizers.Adam(args.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=args.jit or "auto",
    )
    report = Report(train, test)
    model.fit(
        *train,
        batch_size=args.batch_size,
        epochs=args.epochs,
        callbacks=[report, keras.callbacks.TerminateOnNaN()],
        verbose=0,
    )

    model.save(args.model)
    loaded = keras.models.load_model(args.model)
    expected = model.predict(test[0], verbose=0)
    if not np.array_equal(loaded.predict(test[0], verbose=0), expected):
        sys.exit(f"The model loaded from {args.model} predicts otherwise.")
    print(f"{args.model} saved and loaded: equal predictions, bit for bit")
    draw(report.rows, args.picture)
    print(f"{args.picture} shows the curves")


if __name__ == "__main__":
    main()

"""Trains a neural ODE on handwritten digits.

    python examples/mnist.py                      # 1,500 digits, in seconds
    python examples/mnist.py --dataset mnist      # all 70,000, downloaded
    python examples/mnist.py --compare            # every adjoint, side by side

The network is the one of the Lux.jl tutorial "MNIST Classification using
Neural ODEs". Digits: Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.
"""

import argparse
import contextlib
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

if keras.backend.backend() == "jax":
    import jax

DYNAMICS = ("list", "functional", "subclassed")
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
    add("--dynamics", choices=DYNAMICS, default="list", help="form of the ODE")
    add("--rtol", type=float, default=1e-3)
    add("--atol", type=float, default=1e-3)
    add("--jit", action="store_true", help="compile with XLA")
    add("--compare", action="store_true", help="train with every adjoint")
    add("--seed", type=int, default=0)
    add("--model", default="mnist.keras", help="file to save the model to")
    add(
        "--picture",
        help="file for the curves (default: mnist.png, compare.png)",
    )
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


@keras.saving.register_keras_serializable(package="examples")
class Dynamics(keras.Model):
    """The right-hand side as a subclassed model."""

    def __init__(self, widths, **kwargs):
        super().__init__(**kwargs)
        self.widths = widths
        self.stack = [keras.layers.Dense(n, activation="tanh") for n in widths]

    def call(self, y):
        for layer in self.stack:
            y = layer(y)
        return y

    def get_config(self):
        return {**super().get_config(), "widths": self.widths}


def build_dynamics(args):
    """One network, in one of the forms that an `ODEBlock` takes."""
    widths = [args.hidden, args.hidden, args.units]
    if args.dynamics == "subclassed":
        return Dynamics(widths)
    layers = [keras.layers.Dense(n, activation="tanh") for n in widths]
    if args.dynamics == "list":
        return layers
    inputs = y = keras.Input((args.units,))
    for layer in layers:
        y = layer(y)
    return keras.Model(inputs, y)


def build_model(args, dynamics, **kwargs):
    tolerances = {"rtol": args.rtol, "atol": args.atol}
    if "rtol" not in keras_node.solvers.get(args.solver).get_config():
        tolerances = {}  # a solver of fixed step
    inputs = keras.Input((28, 28))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(args.units, activation="tanh")(x)
    x = keras_node.ODEBlock(
        dynamics,
        t_span=(0.0, 1.0),
        solver=args.solver,
        adjoint=args.adjoint,
        name="ode",
        **tolerances,
    )(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(args.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **kwargs,
    )
    return model


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
        self.rows.append((seconds, loss, test_loss, train, test))
        print(
            f"epoch {epoch + 1:2d}   {seconds:6.2f} s   "
            f"train {train:6.1%}   test {test:6.1%}",
            flush=True,
        )


def train(args, model, data):
    """Fits the model and returns a row for each epoch."""
    keras.utils.set_random_seed(args.seed)
    report = Report(*data)
    model.fit(
        *data[0],
        batch_size=args.batch_size,
        epochs=args.epochs,
        callbacks=[report, keras.callbacks.TerminateOnNaN()],
        verbose=0,
    )
    return report.rows


def draw(axes, rows, label="train", **style):
    """Draws loss, accuracy and seconds; dashed is what was not trained on."""
    epochs = range(1, len(rows) + 1)
    seconds, loss, test_loss, train, test = zip(*rows, strict=True)
    curves = ((loss, test_loss), (train, test), (seconds, ()))
    for axis, (solid, dashed) in zip(axes, curves, strict=True):
        (line,) = axis.plot(epochs, solid, label=label, **style)
        style["color"] = line.get_color()
        axis.plot(epochs[: len(dashed)], dashed, "--", **style)


@contextlib.contextmanager
def picture(path):
    """Axes for loss, accuracy and seconds, to be saved under `path`."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    titles = ("loss", "accuracy", "seconds per epoch")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    yield axes
    axes[0].set_ylim(bottom=0)
    axes[2].set_yscale("log")
    axes[0].plot([], [], "k--", label="test")
    axes[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    print(f"{path} shows the curves")


def learn(args, data):
    """Trains one model, saves it and loads it again."""
    try:
        model = build_model(
            args, build_dynamics(args), jit_compile=args.jit or "auto"
        )
    except ValueError as error:  # such as a pair that does not go together
        sys.exit(str(error))
    model.summary()
    rows = train(args, model, data)
    model.save(args.model)
    loaded = keras.models.load_model(args.model)
    images = data[1][0]
    expected = model.predict(images, verbose=0)
    if not np.array_equal(loaded.predict(images, verbose=0), expected):
        sys.exit(f"The model loaded from {args.model} predicts otherwise.")
    print(f"{args.model} saved and loaded: equal predictions, bit for bit")
    with picture(args.picture or "mnist.png") as axes:
        draw(axes, rows, marker="o", ms=4)


class Count(keras.layers.Layer):
    """Passes on what it gets, and counts how often."""

    calls = 0

    def call(self, x):
        if keras.backend.backend() == "jax":
            # JAX calls this once, and runs what it has seen.
            jax.debug.callback(self.count)
        else:  # where nothing is compiled, every evaluation is a call
            self.count()
        return x

    @staticmethod
    def count():
        Count.calls += 1


def evaluations(args, data):
    """How often a training step evaluates `f`: forward, and in all."""
    args = argparse.Namespace(**{**vars(args), "dynamics": "list"})
    dynamics = [Count(), *build_dynamics(args)]
    keras.utils.set_random_seed(args.seed)
    model = build_model(args, dynamics, run_eagerly=True, jit_compile=False)
    images, labels = (x[: args.batch_size] for x in data[0])
    model.train_on_batch(images, labels)  # builds what is not built yet
    counts = []
    for run in (model, lambda x: model.train_on_batch(x, labels)):
        Count.calls = 0
        run(images)
        if keras.backend.backend() == "jax":
            jax.effects_barrier()  # what is run later counts, too
        counts.append(Count.calls)
    return counts


def compare(args, data):
    """Trains the same model with every adjoint, from the same weights."""
    native = keras_node.solvers.get(args.solver).keeps_steps
    native = args.solver if native else "tsit5"
    pairs = [(native, adjoint) for adjoint in keras_node.adjoints.ALL]
    weights, table = None, []
    with picture(args.picture or "compare.png") as axes:
        for i, pair in enumerate([("dormand_prince", "backsolve"), *pairs]):
            args.solver, args.adjoint = pair
            print("\n{}, {}".format(*pair))
            keras.utils.set_random_seed(args.seed)
            model = build_model(
                args, build_dynamics(args), jit_compile=args.jit or "auto"
            )
            weights = weights or model.get_weights()
            model.set_weights(weights)
            rows = train(args, model, data)
            # The curves hardly differ: thick lines show below thin ones.
            draw(axes, rows, ", ".join(pair), lw=9 - 2 * i, alpha=0.8)
            forward, both = evaluations(args, data)
            table.append((pair, rows, forward, both - forward))
    print(
        "\n| solver, adjoint | first epoch | later epochs | train | test "
        "| `f` forward | backward |\n|---|---|---|---|---|---|---|"
    )
    for pair, rows, forward, backward in table:
        first, *later = [row[0] for row in rows]
        spread = f"{min(later):.2f} to {max(later):.2f} s" if later else ""
        *_, train_accuracy, test_accuracy = rows[-1]
        print(
            f"| {', '.join(pair)} | {first:.1f} s | {spread} "
            f"| {train_accuracy:.1%} | {test_accuracy:.1%} "
            f"| {forward} | {backward} |"
        )


def main():
    args = parse_args()
    keras.utils.set_random_seed(args.seed)
    if args.dataset == "mnist":
        data = load_mnist(args.data_dir)
    else:
        data = load_digits()
    data = [
        (images.reshape(-1, 28, 28).astype("float32") / 255, labels)
        for images, labels in data
    ]
    (compare if args.compare else learn)(args, data)


if __name__ == "__main__":
    main()

"""Trains a neural ODE on two devices, or in two processes, with TensorFlow.

    python examples/distributed_tensorflow.py               # two devices
    python examples/distributed_tensorflow.py --workers 2   # two processes

The CPU stands in for two devices: where there are GPUs, `MirroredStrategy()`
takes them all. On machines of their own, workers are told apart by TF_CONFIG.
"""

import argparse
import json
import multiprocessing
import os
import socket
import sys
import time
import zlib
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

import keras_node

DIGITS = Path(__file__).parent / "data" / "mnist-first-1500.npz"
BATCH = 500  # of all devices together


def load_digits():
    with np.load(DIGITS) as data:
        return data["images"].reshape(-1, 784) / np.float32(255), data["labels"]


def build_model(**options):
    inputs = keras.Input((784,))
    x = keras.layers.Dense(20, "tanh")(inputs)
    dynamics = [keras.layers.Dense(10, "tanh"), keras.layers.Dense(20, "tanh")]
    x = keras_node.ODEBlock(dynamics, **options)(x)
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax")(x))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def report(name, loss, weights):
    code = zlib.crc32(b"".join(np.asarray(w).tobytes() for w in weights))
    print(f"{name}: loss {loss:.4f}, weights {code:08x}", flush=True)


def mirrored(epochs=10, path=None, **options):
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, devices)
    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = build_model(**options)
    history = model.fit(*load_digits(), BATCH, epochs, shuffle=False).history
    copies = [
        strategy.experimental_local_results(v.value) for v in model.weights
    ]
    for i, weights in enumerate(zip(*copies, strict=True)):
        report(f"device {i}", history["loss"][-1], weights)
    if path:
        model.save(path)


def worker(epochs=10, path=None, **options):
    """One of the workers of TF_CONFIG. `fit` fails here with Keras 3.15."""
    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = build_model(**options)
        model.optimizer.build(model.trainable_variables)
    data = tf.data.Dataset.from_tensor_slices(load_digits()).batch(BATCH)
    data = strategy.experimental_distribute_dataset(data)

    @tf.function
    def train_step(batch):
        logs = strategy.run(model.train_step, args=(batch,))
        return strategy.reduce("MEAN", logs["loss"], axis=None)

    for _ in range(epochs):
        model.reset_metrics()
        for batch in data:
            loss = train_step(batch)
    index = strategy.cluster_resolver.task_id
    report(f"worker {index}", loss, model.get_weights())
    if path and index == 0:
        model.save(path)


def start(index, addresses, options):
    task = {"type": "worker", "index": index}
    config = {"cluster": {"worker": addresses}, "task": task}
    os.environ["TF_CONFIG"] = json.dumps(config)
    worker(**options)


def workers(number=2, **options):
    """All workers on this machine."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in servers]
    for server in servers:
        server.close()
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=start, args=(i, addresses, options), daemon=True)
        for i in range(number)
    ]
    for process in processes:
        process.start()
    # Where one fails, the others would wait for it for ever.
    while None in (codes := [p.exitcode for p in processes]) and not any(codes):
        time.sleep(0.1)
    sys.exit(any(codes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, help="so many processes")
    args = parser.parse_args()
    workers(args.workers) if args.workers else mirrored()

"""Trains a neural ODE in two processes with PyTorch.

    python examples/distributed_torch.py

With GPUs, give each process one of them, and take "nccl" instead of "gloo".
"""

import os
import socket
import zlib
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for each process

import keras
import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import TensorDataset

import keras_node

DIGITS = Path(__file__).parent / "data" / "mnist-first-1500.npz"
BATCH = 500  # of all workers together


def load_digits():
    with np.load(DIGITS) as data:
        return data["images"].reshape(-1, 784) / np.float32(255), data["labels"]


def build_model(solver="tsit5", adjoint="discrete", **options):
    inputs = keras.Input((784,))
    x = keras.layers.Dense(20, "tanh")(inputs)
    dynamics = [keras.layers.Dense(10, "tanh"), keras.layers.Dense(20, "tanh")]
    x = keras_node.ODEBlock(
        dynamics, solver=solver, adjoint=adjoint, **options
    )(x)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(x))


def train(model, workers, epochs):
    """Trains on this worker's part of the digits; returns the last loss."""
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()
    data = TensorDataset(*map(torch.from_numpy, load_digits()))
    sampler = DistributedSampler(data, shuffle=False)
    batches = DataLoader(data, BATCH // workers, sampler=sampler)
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = loss_fn(labels, parallel(images))
            loss.backward()
            optimizer.step()
    return loss.item()


def worker(rank, workers, port, epochs, path, options):
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=workers
    )
    keras.utils.set_random_seed(0)
    model = build_model(**options)
    loss = train(model, workers, epochs)
    code = zlib.crc32(b"".join(w.tobytes() for w in model.get_weights()))
    print(f"worker {rank}: loss {loss:.4f}, weights {code:08x}", flush=True)
    if path and rank == 0:
        model.save(path)
    # Only where no `DistributedDataParallel` is left: it may hang otherwise.
    distributed.destroy_process_group()


def main(workers=2, epochs=10, path=None, **options):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    args = (workers, port, epochs, path, options)
    torch.multiprocessing.spawn(worker, args, nprocs=workers)


if __name__ == "__main__":
    main()

"""The tensors that a PyTorch function reads besides its arguments."""

import contextlib
import threading
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from typing import Any

import optree
import torch
from torch.overrides import TorchFunctionMode

from keras_node.backend.hoisted import Hoisted
from keras_node.backend.hoisted import as_it_is
from keras_node.types import Tree

# Size of moving statistics and the like. In tensors up to this size the values
# tell whether they were written: not every operation counts up their version.
_SMALL = 2**16


def hoist(
    f: Callable, args: tuple, identity: Hashable, closed: bool
) -> Hoisted:
    if closed:
        return as_it_is(f, identity)
    args = optree.tree_map(torch.Tensor.detach, args)
    with _generators:
        start = _Generators(optree.tree_leaves(args)[0].device)
        with torch.enable_grad(), _Look(args) as look:
            out = f(*args)
        moved = start.have_moved()
    left = [x for x in _roots(out) if id(x) not in look.known]
    if left:
        raise ValueError(
            "`dynamics` must not read what depends on a trainable tensor in "
            "code that PyTorch cannot see into: hand it over as context, or "
            "make it a weight of `dynamics`. Received: tensors of shapes "
            f"{[tuple(x.shape) for x in left]}"
        )
    draws = start.again if moved else contextlib.nullcontext
    read, written = look.differentiable(), look.written()
    if not read and not written and draws is contextlib.nullcontext:
        return as_it_is(f, None)

    def evaluate(args, floats, others):
        # Each evaluation writes to copies of its own.
        others = [x.clone() for x in others]
        given = zip(read + written, floats + others, strict=True)
        with draws(), _Instead({id(x): (x, other) for x, other in given}):
            return f(*args)

    return Hoisted(evaluate, read, written, None)


class _Instead(TorchFunctionMode):
    """Mode that hands operations other tensors than they are called with.

    `others` maps the `id` of a tensor to the pair of it and its replacement.
    """

    def __init__(self, others: dict):
        super().__init__()
        self._others = others

    def __torch_function__(self, f, types, args=(), kwargs=None):
        args, kwargs = optree.tree_map(self._other, (args, kwargs or {}))
        return f(*args, **kwargs)

    def _other(self, x: Any) -> Any:
        return self._others.get(id(x), (x, x))[1]


class _Look(TorchFunctionMode):
    """Mode that notes the tensors from outside that operations read.

    Tensors with a gradient are detached: no graph of them need be kept.
    """

    def __init__(self, args: tuple):
        super().__init__()
        # Known tensors are kept alive, so that no other tensor gets their `id`.
        self.known = {id(x): x for x in optree.tree_leaves(args)}
        self._outside: dict[int, tuple] = {}

    def __torch_function__(self, f, types, args=(), kwargs=None):
        args, kwargs = optree.tree_map(self._noted, (args, kwargs or {}))
        out = f(*args, **kwargs)
        for x in optree.tree_leaves(out):
            if isinstance(x, torch.Tensor) and id(x) not in self._outside:
                self.known[id(x)] = x
        return out

    def _noted(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or id(x) in self.known:
            return x
        if id(x) not in self._outside:
            with torch._C.DisableTorchFunction():
                start = x.detach()
                if not x.requires_grad and x.numel() <= _SMALL:
                    start = start.clone()
            self._outside[id(x)] = (x, start, x._version)
            if x.requires_grad:
                self.known[id(start)] = start
        x, start, _ = self._outside[id(x)]
        return start if x.requires_grad else x

    def differentiable(self) -> list:
        """Lists the tensors from outside that have a gradient."""
        return [x for x, *_ in self._outside.values() if x.requires_grad]

    def written(self) -> list:
        """Lists the other tensors from outside that were written."""
        return [
            x
            for x, start, version in self._outside.values()
            if not x.requires_grad
            and (x._version != version or not torch.equal(x, start))
        ]


def _roots(out: Tree) -> list:
    """Finds the tensors that the gradient of `out` accumulates in."""
    roots, seen = [], set()
    waiting = [x.grad_fn for x in optree.tree_leaves(out)]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            roots.append(node.variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return roots


# The generators belong to the whole process: one thread sets them at a time.
_generators = threading.RLock()


class _Generators:
    """Snapshot of the state of PyTorch's random generators.

    Keras's `Dropout` draws from them if it has no `seed=`.
    """

    def __init__(self, device: torch.device):
        self._modules = [torch]
        if device.type != "cpu":
            self._modules.append(torch.get_device_module(device))
        self._states = self._read()

    def _read(self) -> list:
        return [module.get_rng_state() for module in self._modules]

    def have_moved(self) -> bool:
        pairs = zip(self._read(), self._states, strict=True)
        return not all(torch.equal(a, b) for a, b in pairs)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Makes draws start from the snapshot, and restores the state after."""
        with _generators:
            outside = self._read()
            self._write(self._states)
            try:
                yield
            finally:
                self._write(outside)

    def _write(self, states: list) -> None:
        for module, state in zip(self._modules, states, strict=True):
            module.set_rng_state(state)

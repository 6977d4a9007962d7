"""Compiled programs that serve more than one eager call.

JAX compiles a loop whenever its functions are new objects, as they are in each
call of a block. Here a program is kept, under the identity of what it does.
"""

import collections
import itertools
import os
import threading
from collections.abc import Callable
from collections.abc import Hashable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from keras_node.types import Tree

# In the order of their last use.
_programs: collections.OrderedDict = collections.OrderedDict()
_PROGRAMS_AT_MOST = 64
_names: collections.OrderedDict = collections.OrderedDict()
_NAMES_AT_MOST = 1024
_numbers = itertools.count()
_SOLVE = "keras_node_solve_"
_lock = threading.Lock()
_JAX = os.path.dirname(jax.__file__)


def is_eager(args: Tree) -> bool:
    """Tells whether no tensor in `args` is being traced."""
    leaves = jax.tree.leaves(args)
    return not any(isinstance(x, jax.core.Tracer) for x in leaves)


def compiled(identity: Hashable, f: Callable) -> Callable:
    """Compiles `f`, or finds the program compiled for an equal `identity`.

    Functions of equal identity must do the same with arguments of the same
    shapes.
    """
    with _lock:
        program = _programs.pop(identity, None) or jax.jit(f)
        _programs[identity] = program
        if len(_programs) > _PROGRAMS_AT_MOST:
            _programs.popitem(last=False)
    return program


def name_of(identity: Hashable) -> str:
    """Finds the name that stands for a solve of this identity in a text."""
    with _lock:
        name = _names.pop(identity, None) or f"{_SOLVE}{next(_numbers)}"
        _names[identity] = name
        if len(_names) > _NAMES_AT_MOST:
            _names.popitem(last=False)
    return name


def text_of(program: ClosedJaxpr) -> str | None:
    """Returns the program as text, or `None` if the text is incomplete."""
    return str(program.jaxpr) if _says_all(program.jaxpr) else None


def _says_all(jaxpr: Any) -> bool:
    """Tells whether the text is complete: a user's derivative is not in it."""
    for equation in jaxpr.eqns:
        derivative = equation.params.get("jvp_jaxpr_fun")
        if derivative and _JAX not in _source(derivative):
            return False
        solve = equation.params.get("fwd_jaxpr_thunk")
        if solve and not _source(solve).startswith(_SOLVE):
            return False
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "eqns") and not _says_all(part):
                return False
    return True


def _source(function: Any) -> str:
    """Reads the name and the place of a function that JAX has wrapped."""
    info = getattr(function, "debug_info", None)
    return getattr(info, "func_src_info", None) or ""

"""Programs that serve more than one eager call.

A loop of JAX's is compiled whenever its functions are new objects, as they are
in each call of a block. Here the program is kept by what the functions do.
"""

import collections
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

# The one used last comes last.
_programs = collections.OrderedDict()
_PROGRAMS_AT_MOST = 64
_names = collections.OrderedDict()
_NAMES_AT_MOST = 1024
_numbers = itertools.count()
_SOLVE = "keras_node_solve_"
_lock = threading.Lock()
_JAX = os.path.dirname(jax.__file__)


def is_eager(args: Any) -> bool:
    """Whether nothing of it is being traced."""
    leaves = jax.tree.leaves(args)
    return not any(isinstance(x, jax.core.Tracer) for x in leaves)


def compiled(identity: Any, f: Callable) -> Callable:
    """The function `f`, compiled, or one of equal `identity` that was before.

    Functions of equal identity must do the same with arguments of the same
    shapes.
    """
    with _lock:
        program = _programs.pop(identity, None) or jax.jit(f)
        _programs[identity] = program
        if len(_programs) > _PROGRAMS_AT_MOST:
            _programs.popitem(last=False)
    return program


def name_of(identity: Any) -> str:
    """A name for the solve of that identity, by which a text tells it."""
    with _lock:
        name = _names.pop(identity, None) or f"{_SOLVE}{next(_numbers)}"
        _names[identity] = name
        if len(_names) > _NAMES_AT_MOST:
            _names.popitem(last=False)
    return name


def text_of(program: ClosedJaxpr) -> str | None:
    """The program as text, if that says all of what it does."""
    return str(program.jaxpr) if _says_all(program.jaxpr) else None


def _says_all(jaxpr: Any) -> bool:
    """Whether there is no derivative of a user's own, which is no text."""
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
    """The name of a function that JAX has wrapped, and where it is."""
    info = getattr(function, "debug_info", None)
    return getattr(info, "func_src_info", None) or ""

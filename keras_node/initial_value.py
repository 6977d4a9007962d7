"""A function and not a layer: `solve_ivp`."""

import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_node import backend
from keras_node import input_checks
from keras_node import pytree
from keras_node.adjoints.base import Adjoint
from keras_node.dynamics.function import FunctionDynamics
from keras_node.dynamics.vector_field import VectorField
from keras_node.integration.solution import Solution
from keras_node.integration.solver import Solver
from keras_node.problem import Problem
from keras_node.problem import check_jumps
from keras_node.problem import check_solver
from keras_node.problem import methods
from keras_node.problem import solve
from keras_node.times import given
from keras_node.times.elapsed import check
from keras_node.times.elapsed import start_of
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


@backend.uncompiled
def solve_ivp(
    fun: Callable,
    t_span: Any,
    y0: Tree,
    t_eval: Any = None,
    args: tuple = (),
    solver: str | Solver = "tsit5",
    adjoint: str | Adjoint = "discrete",
    rtol: float | None = None,
    atol: float | None = None,
    jump_times: Any = None,
) -> Solution:
    """Solves the initial value problem `dy/dt = fun(t, y)`, `y(t0) = y0`.

    It is used like `scipy.integrate.solve_ivp`, with `solver` in place of
    `method`, and without events. The states reported are `ys`, with the time
    first. The solution is differentiable in the framework's own way, eagerly
    and in compiled code: by `y0`, `args`, `t_span`, `t_eval` and by what `fun`
    reads beside its arguments, such as the weights of a Keras layer. A
    `tf.Variable` of your own must be in `args`.

    Args:
        fun: The right-hand side, a function `fun(t, y, *args)` of tensors. It
            returns the slope, in the structure of `y`, and must not write into
            `y`. `t` is a scalar, or of shape `(batch, 1, ...)` if samples have
            times of their own, of the rank of `y`, or of the highest rank in
            it.
        t_span: The interval `(t0, t1)`, or of shape `(batch, 2)` for an
            interval of each sample. `t1 < t0` integrates backwards. An empty
            interval returns its `y0`.
        y0: The initial state: a tensor, an array, a list of numbers, or a
            structure of tensors, such as a dict. All of it is cast to one
            dtype: float64 if a part is, else float32, also from half precision.
        t_eval: Times to report within `t_span`, of shape `(T,)`, or of shape
            `(batch, T)` for times of each sample; in any order. Defaults to
            `None`.
        args: Tuple of further arguments of `fun`: tensors, numbers or
            structures of them. Python integers stay what they are. Defaults to
            `()`.
        solver: A `keras_node.solvers.Solver` or its name.
            `"dormand_prince"` needs `adjoint="backsolve"`. Defaults to
            `"tsit5"`.
        adjoint: A `keras_node.adjoints.Adjoint` or its name. It computes the
            gradients. Defaults to `"discrete"`.
        rtol: Float, relative tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        atol: Float, absolute tolerance per step for a solver given by its
            name, or `None` for that solver's default. Defaults to `None`.
        jump_times: Times at which `fun` may jump, of shape `(J,)`, or of shape
            `(batch, J)` for times of each sample, as in a call of `ODEBlock`.
            Defaults to `None`.

    Returns:
        A `keras_node.Solution`. It holds the final state `y1`, with `t_eval`
        the states `ys` of shape `(T, *y.shape)`, the counters, and `success`.
        A failed solve does not raise: its states are NaN. `Solution.check`
        raises.

    Raises:
        ValueError: If an argument is not as described.

    Example:
    >>> def decay(t, y, rate):
    ...     return -rate * y
    >>> solution = keras_node.solve_ivp(
    ...     decay, (0.0, 2.0), [1.0, 2.0], t_eval=[0.5, 1.0], args=(0.5,)
    ... )
    >>> tuple(solution.y1.shape), tuple(solution.ys.shape)
    ((2,), (2, 2))
    """
    y0 = _as_state(y0)
    if not callable(fun):
        raise ValueError(
            f"`fun` must be a function `fun(t, y, *args)`. Received: fun={fun}"
        )
    if not isinstance(args, (tuple, list)):
        raise ValueError(
            "`args` must be a tuple, one with a comma if it has one item: "
            f"`args=(a,)`. Received: args={args!r}"
        )
    solver, adjoint = methods(solver, adjoint, rtol, atol)
    dtype = keras.backend.standardize_dtype(pytree.leaves(y0)[0].dtype)
    args = tree.map_structure(lambda x: _as_argument(x, dtype), tuple(args))
    batch = _batch(y0)
    span = given.span_of_call("t_span", t_span, batch)
    times, own = None, solver.per_sample or len(span.shape) > 1
    if t_eval is not None:
        times = given.of_call("t_eval", t_eval, batch)
        own = own or len(times.shape) > 1
        check("t_eval", t_eval, times, span, dtype, None)
        check_solver(solver, times, span)
    jumps = None
    if jump_times is not None:
        jumps = given.jumps_of_call("jump_times", jump_times, batch)
        check_jumps(solver)
        own = own or (jumps is not None and len(jumps.shape) > 1)
    if own:
        _check_has_batch(y0, batch)
    dynamics = FunctionDynamics(fun, args, own)
    tensors = [x for x in tree.flatten(args) if ops.is_tensor(x)]
    field = VectorField(dynamics, tensors, y0)
    problem = Problem(field, y0, span, fixed=False, times=times, jumps=jumps)
    solution = solve(problem, solver, adjoint)
    field.advance(start_of(span, dtype), y0)
    return solution


def _as_state(y0: Tree) -> State:
    """Makes float tensors of one dtype of an initial state."""
    if _is_numbers(y0):
        y0 = np.asarray(y0, keras.config.floatx())
    if not tree.flatten(y0):
        raise ValueError(f"`y0` must not be empty. Received: y0={y0!r}")
    y0 = tree.map_structure(_as_floats, y0)
    found = tree.flatten(y0)
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in found}
    # Half precision cannot hold a time step.
    dtype = "float64" if "float64" in dtypes else "float32"
    return tree.map_structure(lambda x: ops.cast(x, dtype), y0)


def _is_numbers(y0: Any) -> bool:
    """Tells whether a state is a number, or a list of numbers like SciPy's."""
    if isinstance(y0, (list, tuple)):
        return bool(y0) and all(map(_is_numbers, y0))
    return isinstance(y0, numbers.Real) and not isinstance(y0, bool)


def _as_floats(x: Any) -> Tensor:
    input_checks.not_symbolic("y0", x)
    try:
        x = ops.convert_to_tensor(x)
        if keras.backend.is_float_dtype(x.dtype):
            return x
    except Exception:  # each framework raises its own
        pass
    raise ValueError(
        "`y0` must hold tensors of real floats: cast integers, split complex "
        f"numbers. Received: y0={x!r}"
    )


def _as_argument(x: Any, dtype: str) -> Any:
    """Makes a tensor, but leaves whole numbers: they may be indices."""
    input_checks.not_symbolic("args", x)
    if isinstance(x, int):
        return x
    try:
        x = ops.convert_to_tensor(x, dtype if isinstance(x, float) else None)
        if keras.backend.standardize_dtype(x.dtype) != "string":
            return x
    except Exception:  # each framework raises its own
        pass
    raise ValueError(
        "`args` must hold tensors; let `fun` close over everything else. "
        f"Received: {x!r}"
    )


def _check_has_batch(y0: State, batch: int | None) -> None:
    if batch is None:
        raise ValueError(
            "`y0` must have a batch axis, of one size for all of its tensors, "
            "if samples have times or steps of their own. Received: shapes "
            f"{[tuple(x.shape) for x in pytree.leaves(y0)]}"
        )


def _batch(y0: State) -> int | None:
    """Finds the number of samples, if all parts of a state agree on it."""
    sizes = {tuple(x.shape)[:1] for x in pytree.leaves(y0)}
    return sizes.pop()[0] if len(sizes) == 1 and () not in sizes else None

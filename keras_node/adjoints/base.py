"""The contract of an adjoint."""

import abc
from collections.abc import Callable

from keras import ops

from keras_node import backend
from keras_node import pytree
from keras_node.adjoints.solve import Cotangent
from keras_node.adjoints.solve import Frozen
from keras_node.adjoints.solve import Given
from keras_node.adjoints.solve import Solve
from keras_node.adjoints.solve import split
from keras_node.config import Config
from keras_node.integration.outputs import Output
from keras_node.integration.outputs import ReportAt
from keras_node.integration.record import read_row
from keras_node.integration.solution import Solution
from keras_node.integration.solution import is_concretely_false
from keras_node.integration.solver import Solver
from keras_node.types import Norm
from keras_node.types import Scalar
from keras_node.types import State
from keras_node.types import Tensor
from keras_node.types import Tree


class Adjoint(Config, abc.ABC):
    """Method that computes the gradient of a solve.

    An adjoint that `needs_steps` goes with a solver that `keeps_steps`. One
    that `solves_others` lets the forward solver solve for another state than
    the forward one, and goes with a solver for `any_state`.
    """

    needs_steps: bool = True
    solves_others: bool = False

    def outputs(
        self, solver: Solver, jumps: Tensor | None
    ) -> tuple[Output, ...]:
        """Lists the outputs of the forward solve that `pullback` needs."""
        return ()

    @abc.abstractmethod
    def pullback(
        self, solve: Solve, cotangent: Cotangent
    ) -> tuple[State, Tree]:
        """Pulls a cotangent back through a solve.

        Returns:
            The cotangents `(adj_y0, adj_args)`; all are NaN where they cannot
            be computed.
        """

    def integrate(
        self,
        solver: Solver,
        f: Callable,
        t0: float,
        t1: Scalar,
        y0: State,
        args: Tree,
        frozen: Tree = (),
        s_eval: Tensor | None = None,
        norm: Norm | None = None,
        moves: bool = False,
        jumps: Tensor | None = None,
    ) -> Solution:
        """Solves `y(t0) = y0`, differentiable with respect to `y0` and `args`.

        Args:
            solver: A `Solver`.
            f: The right-hand side, `f(t, y, args, frozen)`.
            t0: Float, the initial time.
            t1: Float, the final time; or a tensor that no gradient flows to,
                the extent of a `Course`, with `t0 = 0.0`.
            y0: The initial state.
            args: Structure of tensors to differentiate by.
            frozen: Structure of tensors that no gradient flows to. Everything
                that `f` reads must be an argument: a framework may run the
                backward pass where the values in a closure are gone.
            s_eval: Times to report, as `ReportAt` takes them.
            norm: The norm of a state in the forward solve.
            moves: Boolean, whether a gradient flows to `s_eval`.
            jumps: Times at which `f` may jump, as `Solver.solve` takes them.
                No gradient flows to them.

        Returns:
            A `Solution`, differentiable in `y1` and `ys`.
        """
        reports, jump = s_eval is not None, jumps is not None
        known = isinstance(t1, float)

        def given(inputs, constants):
            y0, args, moving = inputs
            frozen, fixed, extent, stops = constants
            times = (moving if moves else fixed) if reports else None
            right, t_span = Frozen(f, frozen), (t0, t1 if known else extent)
            stops = stops if jump else None
            return Given(right, t_span, y0, args, times, stops)

        @backend.full_products()
        def forward(inputs, constants, keeps):
            problem = given(inputs, constants)
            outputs = (ReportAt(problem.s_eval),) if reports else ()
            if keeps:
                outputs += self.outputs(solver, problem.jumps)
            found = split(problem.solve(solver, outputs, norm), reports)
            return found[0], (inputs, constants, *found)

        @backend.full_products()
        def backward(residuals, cotangent):
            inputs, constants, *found = residuals
            solve = given(inputs, constants).solved(solver, *found)
            cotangent = Cotangent(cotangent.y1, cotangent.ys)
            gradients = self._scaled(solve, cotangent)
            return *gradients, _pull_times(solve, cotangent) if moves else ()

        span = t0, t1 if known else ()
        key = (self, solver, f, *span, reports, moves, norm, jump)
        times = s_eval if reports else ()
        moving, fixed = (times, ()) if moves else ((), times)
        constants = (frozen, fixed, () if known else t1, jumps if jump else ())
        function = backend.custom_vjp(forward, backward, key)
        return function((y0, args, moving), constants)

    def _scaled(self, solve: Solve, cotangent: Cotangent) -> tuple[State, Tree]:
        """Pulls back a cotangent of size 1, and scales the result.

        The adjoint equation is linear. Its error is judged relative to its
        size, so that the scale of the loss does not matter. With that scale,
        dynamics in half precision would overflow.
        """
        finite, scale, cotangent = _unit(cotangent)
        if is_concretely_false(finite):
            # The loss is to blame, not the backward solve.
            return pytree.full_like((solve.y0, solve.args), float("nan"))
        finite, gradients = _times(scale, self.pullback(solve, cotangent))
        solve.solution.check_gradients(finite)
        return gradients


@backend.jit
def _unit(cotangent):
    """Tells whether cotangents are finite, and divides them by their size."""
    return pytree.all_finite(cotangent), *pytree.unit(cotangent)


@backend.jit
def _times(scale, gradients):
    """Tells whether gradients are finite, and multiplies them by `scale`."""
    finite = pytree.all_finite(gradients)
    return finite, tuple(pytree.scale(scale, x) for x in gradients)


def _pull_times(solve: Solve, cotangent: Cotangent) -> Tensor:
    """Computes the cotangents of the times reported: `<adj_ys, dy/ds>`.

    The slope is taken where the state is, and not inside the steps: the
    gradient is that of the solution, whatever the adjoint.
    """
    s_eval: Tensor = solve.s_eval
    adj_times = backend.new_list(s_eval[0], ops.shape(s_eval)[0])

    def leaf_product(adj, slope):
        axes = tuple(range(len(s_eval.shape) - 1, len(adj.shape)))
        return ops.sum(adj * slope, axis=axes) if axes else adj * slope

    def pull(j, adj_times):
        y = read_row(solve.solution.ys, j)
        slope = solve.f(ops.take(s_eval, j, axis=0), y, solve.args)
        products = pytree.map_leaves(
            leaf_product, read_row(cotangent.adj_ys, j), slope
        )
        total = sum(pytree.leaves(products))
        return j + 1, backend.set_item(adj_times, j, total)

    _, adj_times = backend.while_loop(
        lambda j, _: j < ops.shape(s_eval)[0],
        pull,
        (ops.zeros((), "int32"), adj_times),
    )
    return backend.stack_list(adj_times, s_eval[0])

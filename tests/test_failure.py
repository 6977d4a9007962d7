"""A solve that cannot succeed ends soon and says so.

Each case runs in a process of its own under a time limit: a solver that spins
fails its test and leaves the others alone.
"""

import pytest
from helpers import ADJOINTS
from helpers import compilations
from helpers import run_python

# dynamics, initial state, and the reason that must be given
CASES = {
    "NaN in one sample, infinity in another": (
        "-y",
        "[[1.0], [nan], [inf]]",
        "NON_FINITE",
    ),
    "a pole": ("y ** 2", "[[1.0], [3.0]]", None),
    "log leaves its domain": ("ops.log(y) - 2", "[[1.0], [0.5]]", None),
    "too stiff for the limit": ("-1e6 * y", "[[1.0]]", "STEP_LIMIT"),
}

CODE = """
import numpy as np
from numpy import inf, nan
from keras import ops
from keras_node import adjoints, backend, solvers
from keras_node.solution import Status
from helpers import compilations, numpy

solver, adjoint = solvers.get({solver!r}), adjoints.get({adjoint!r})
if hasattr(solver, "rtol"):
    solver.max_steps = 40

for case, (dynamics, y0, reason) in {cases}.items():
    f = eval("lambda t, y, params, frozen: " + dynamics)

    def solve(y0):
        return adjoint.integrate(solver, f, 0.0, 2.0, y0, ())

    def run(y0):
        _, (gradient,) = backend.vjp(
            lambda y0: solve(y0).y1, (y0,), ops.ones_like(y0)
        )
        return solve(y0), gradient

    for how, wrap in compilations().items():
        print(case, how, flush=True)
        solution, gradient = wrap(run)(
            ops.convert_to_tensor(eval(y0), "float32")
        )
        solution, gradient = numpy((solution, gradient))
        assert np.isnan(solution.y1).all(), solution
        assert np.isnan(gradient).all(), gradient
        assert 0 <= solution.t < 2.0, solution
        assert solution.num_steps <= 40
        status = Status(int(solution.status))
        assert status != Status.SUCCESS
        if hasattr(solver, "rtol"):
            assert reason in (None, status.name), solution
"""


@pytest.mark.parametrize("solver, adjoint", [*ADJOINTS, ("rk4", "discrete")])
def test_failed_solves_return_nan(solver, adjoint):
    printed = run_python(
        CODE.format(solver=solver, adjoint=adjoint, cases=CASES), limit=200
    )
    assert len(printed.splitlines()) == len(CASES) * len(compilations())


def test_a_user_sees_nan_in_fit_and_an_error_in_eager_calls():
    run_python(
        """
import re, keras, numpy as np, keras_node, pytest
from helpers import numpy

class Square(keras.layers.Layer):
    def call(self, y):
        return y * y

block = keras_node.ODEBlock(Square(), t_span=(0.0, 1.0))
model = keras.Sequential([keras.Input((2,)), block, keras.layers.Dense(1)])
good, bad = np.full((4, 2), 0.5, "float32"), np.full((4, 2), 2.0, "float32")

with pytest.raises(keras_node.SolverError) as caught:
    block(bad)
message = str(caught.value)
assert re.search("t = 0.(5|4999)", message), message
assert "max_steps" in message, message
np.testing.assert_allclose(numpy(block(good)), 1.0, rtol=1e-2)

# Elsewhere `fit` and `predict` are eager calls.
compiled = {"tensorflow": (False, True), "jax": (True,), "torch": ()}
for jit in compiled[keras.backend.backend()]:
    model.compile("adam", "mse", jit_compile=jit)
    assert np.isnan(model.predict(bad, verbose=0)).all()
    assert np.isfinite(model.predict(good, verbose=0)).all()
    stop = keras.callbacks.TerminateOnNaN()
    before = model.get_weights()
    history = model.fit(bad, good[:, :1], epochs=5, callbacks=[stop], verbose=0)
    assert len(history.history["loss"]) == 1
    model.set_weights(before)

model.compile("adam", "mse", run_eagerly=True)
with pytest.raises(keras_node.SolverError, match="t = 0.(5|4999)"):
    model.fit(bad, good[:, :1], verbose=0)
""",
        limit=120,
    )

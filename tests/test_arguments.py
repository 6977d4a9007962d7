"""Bad arguments are refused, by name, with what was received."""

import inspect
import re
from fractions import Fraction

import keras
import numpy as np
import pytest
from helpers import numpy
from keras import layers
from keras import ops

import keras_node
from keras_node import ODEBlock
from keras_node import adjoints
from keras_node import solvers

NAN, INF = float("nan"), float("inf")

# What is bad for an argument, in whatever class. `None` is added where it is
# not the default.
NUMBERS = (0, -1e-3, NAN, INF, 1e-60, 1e39, 10**400, Fraction(1, 10**400))
NUMBERS += ("1e-3", b"1", True, 1j, [1e-3], np.array(1e-3), np.float64)
COUNTS = (0, -1, NAN, INF, 1.5, 3.0, 2**31, 10**400)
COUNTS += ("3", True, 3j, [3], np.array(3), int)
SPANS = ((0, 0), (0,), (0, 1, 2), (), 1.0, 1j, "01", ("a", "b"), (0, 1j))
SPANS += ((0, INF), (NAN, 1), (0, 1e39), (-1e308, 1e308), (0, 10**400))
SPANS += ((False, True), (None, 1), {0, 1}, {0: 1, 1: 2}, ((0, 0), (1, 1)))
SPANS += (np.array(1.0), np.ones((2, 1)), keras.KerasTensor((2,)))
TIMES = ([], [1.5], [-0.1], [NAN], [INF], [10**400], 0.5, [[0.5]], "half")
TIMES += (["0.5"], [None], [True], [0.5j], {0.5}, {0.5: 1}, [[0.1], [0.2, 0.3]])
TIMES += (object(), lambda: [0.5], np.zeros(0), np.zeros((1, 1)), np.array(0.5))
TIMES += (np.array([True]), np.array([1j]), np.array([0], "datetime64[s]"))
CONFIGS = (
    {},
    {"class_name": "Nothing", "config": {}},
    {"class_name": 3, "config": None},
    {"class_name": "keras_node>Tsit5", "config": {"rtol": -1}},
    {"class_name": "keras_node>Tsit5", "config": {"steps": 3}},
    {"class_name": "keras_node>GaussAdjoint", "config": 3},
    keras.saving.serialize_keras_object(keras.initializers.Zeros()),
)
OBJECTS = (3, 1j, True, "eulerish", [], ["tsit5"], np.ones(2), object, *CONFIGS)
NETWORKS = (*OBJECTS, np.tanh, [np.tanh], layers.Dense, solvers.Tsit5())
FLAGS = (0, 1, "yes", [True], np.array(True))
OPTIONS_OF_RNN = (
    "elapsed",
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
)
# What Keras finds by a name.
PARTS = (
    "activation",
    "recurrent_activation",
    "recurrent_initializer",
    "bias_initializer",
    "recurrent_regularizer",
    "bias_regularizer",
    "recurrent_constraint",
    "bias_constraint",
)
BAD = {
    "rtol": NUMBERS,
    "atol": NUMBERS,
    "first_step": NUMBERS,
    "max_steps": COUNTS,
    "num_steps": COUNTS,
    "checkpoints": COUNTS,
    "keep_graphs": COUNTS[1:],
    "per_sample": FLAGS,
    "time_dependent": FLAGS,
    "kinetic_regularizer": NUMBERS[1:],
    "jacobian_regularizer": NUMBERS[1:],
    "divergence": ("trace", "", 1, ["exact"]),
    "eval_divergence": ("trace", "", 1, ["exact"]),
    "noise": ("normal", "", 1, ["gaussian"]),
    "num_probes": COUNTS,
    "seed": COUNTS[1:],
    "base": (3, "normal", np.ones(2), object()),
    "method": ("cubic", "", 1, None, ["linear"]),
    "derivative": FLAGS,
    "interpolation": ("previous", "", 1, None, ["linear"]),
    "initial": NETWORKS,
    "dims": COUNTS,
    "units": COUNTS,
    "cell": (*OBJECTS, layers.GRUCell, layers.Dense(4), [layers.GRUCell(4)]),
    "evolve": ("Before", "", b"after", True, 1, ["before"], ("before",)),
    **dict.fromkeys(OPTIONS_OF_RNN, FLAGS),
    "use_bias": FLAGS,
    **dict.fromkeys(PARTS, ("no such", 3, object(), {"class_name": "No"})),
    "axis": (0, 1.0, NAN, "1", True, [1], np.array(1), int),
    "dynamics": NETWORKS,
    "layer": NETWORKS,
    "potential": NETWORKS,
    "t_span": SPANS,
    "t_eval": (*TIMES, keras.KerasTensor((2,))),
    "solver": (*OBJECTS, solvers.Tsit5, adjoints.BacksolveAdjoint()),
    "adjoint": (*OBJECTS, adjoints.DiscreteAdjoint, solvers.Tsit5()),
    "name": (3, "a/b"),
    "dtype": (3,),
    "trainable": (None, "yes"),
}
# What is bad in one class alone.
BAD_IN = {
    "ODEBlock": {"dtype": ("int32", "bool", "complex64")},
    "ContinuousFlow": {"dtype": ("int32", "bool", "complex64")},
    "ODERNN": {
        "dtype": ("int32", "bool", "complex64"),
        "cell": (layers.StackedRNNCells([layers.GRUCell(4)]),),
    },
    "CDEBlock": {
        "dtype": ("int32", "bool", "complex64"),
        "solver": ("euler", "rk4", "dormand_prince"),
    },
    "BacksolveAdjoint": {"solver": ("tsit5", solvers.Leapfrog())},
    "InterpolatingAdjoint": {"solver": ("tsit5", solvers.RK4())},
    "GaussAdjoint": {
        "solver": ("tsit5", solvers.RK4(), solvers.DormandPrince())
    },
}
# What is bad at a call.
X = np.ones((3, 4), "float32")


def _is_matrix(times):
    if isinstance(times, np.ndarray):
        return times.ndim == 2
    return isinstance(times, list) and times[:1] == [[0.5]]


def _has_any_times(times):
    """Tells whether times of jumps may be these: outside, NaN or none."""
    empty = isinstance(times, np.ndarray) and times.shape == (0,)
    return empty or str(times) in ("[]", "[1.5]", "[-0.1]", "[nan]", "[inf]")


INPUTS = (None, "x", 1.0, 1, object(), lambda: X, layers.Dense(4))
INPUTS += ([], {}, [X, X], (X, None), {"x": X}, [[1.0, 2.0]], np.float32(1))
INPUTS += tuple(X.astype(dtype) for dtype in ("int32", "bool", "complex64"))
BAD_AT_CALL = {
    "inputs": INPUTS,
    "t_eval": [times for times in TIMES if not _is_matrix(times)],
    "training": ("yes", "", 2, -1, 0.5, [], [True], {}, NAN, np.ones(2)),
    # Empty, or of each sample: both are good at a call.
    "t_span": [span for span in SPANS[1:-4] if span != ((0, 0), (1, 1))],
    "t_eval_mask": (True, "yes", [True], [[1, 0]], np.ones((3, 2)), NAN),
    "jump_times": [
        times
        for times in TIMES
        if not (_is_matrix(times) or _has_any_times(times))
    ],
}
# What is bad at a call of three samples, with times of each.
BAD_OF_EACH = [
    ("t_eval", {"t_eval": np.full((2, 2), 0.5)}),
    ("t_eval", {"t_eval": np.full((3, 0), 0.5)}),
    ("t_eval", {"t_eval": np.full((3, 2, 1), 0.5)}),
    ("t_eval", {"t_eval": [[0.5], [0.5], [1.5]]}),
    ("t_eval", {"t_eval": [[0.5], [0.5], [NAN]]}),
    ("t_eval", {"t_eval": [[0.5], [0.5], [0.2, 0.3]]}),
    ("t_eval", {"t_eval": [[0.5]] * 3, "t_span": [(0, 1), (2, 1), (1, 0)]}),
    ("t_eval", {"t_eval": [0.5, 0.7], "t_span": [(0, 1), (2, 1), (1, 0)]}),
    ("t_span", {"t_span": [(0, 1), (0, 1)]}),
    ("t_span", {"t_span": [(0, 1), (0, 1), (0, NAN)]}),
    ("t_span", {"t_span": [(0, 1, 2)] * 3}),
    ("t_span", {"t_span": np.zeros((3, 2, 1))}),
    ("jump_times", {"jump_times": np.full((2, 2), 0.5)}),
    ("jump_times", {"jump_times": np.full((3, 2, 1), 0.5)}),
    ("jump_times", {"jump_times": [[0.5], [0.5], [0.2, 0.3]]}),
    ("t_eval_mask", {"t_eval_mask": np.ones((3, 2), bool)}),
    (
        "t_eval_mask",
        {"t_eval": [[0.5]] * 3, "t_eval_mask": np.ones((3, 2), bool)},
    ),
    (
        "t_eval_mask",
        {"t_eval": [[0.5]] * 3, "t_eval_mask": np.ones((2, 1), bool)},
    ),
    (
        "t_eval",
        {
            "t_eval": [[0.5, NAN], [0.5, 0.5], [NAN, 0.5]],
            "t_eval_mask": [[True, False], [True, True], [True, True]],
        },
    ),
]
# What is good, to the edge of what is allowed.
EDGES = (1, 1e-18, 1e30, np.float32(1e-3), Fraction(1, 4))
GOOD = {
    "rtol": EDGES,
    "atol": EDGES,
    "first_step": EDGES,
    "max_steps": (1, np.int64(7), 2**31 - 1),
    "num_steps": (1, np.int64(7), 2**31 - 1),
    "checkpoints": (1, np.int64(7), 2**31 - 1),
    "per_sample": (True, False),
    "time_dependent": (True, False),
    "kinetic_regularizer": (None, 0, *EDGES),
    "units": (1, np.int64(7), 2**31 - 1),
    "evolve": ("before", "after"),
    **dict.fromkeys((*OPTIONS_OF_RNN, "use_bias"), (True, False)),
    "method": ("previous", "linear", "hermite"),
    "derivative": (True, False),
    "interpolation": ("linear", "hermite"),
    "dims": (1, np.int64(7), 2**31 - 1),
    "axis": (1, -1, np.int64(-2), 5),
    "t_span": ((1, 0), [0, 1e30], np.array([-1e30, 1e30]), (1, 1 + 1e-12)),
    "t_eval": ((1, 0), [0.5], np.array([0.5, 0.5])),
}


def public_classes():
    """Every class in the public namespaces that a user makes objects of."""
    members = {}
    for name in keras_node.__all__:
        member = getattr(keras_node, name)
        names = getattr(member, "__all__", vars(member))
        if inspect.ismodule(member):
            members |= {name: getattr(member, name) for name in names}
        else:
            members[name] = member
    return {
        cls
        for name, cls in members.items()
        if inspect.isclass(cls)
        and cls.__module__.startswith("keras_node")
        and not name.startswith("_")
        and not inspect.isabstract(cls)
        # Raised and returned, not made.
        and not issubclass(cls, (Exception, tuple))
    }


CLASSES = sorted(public_classes(), key=lambda cls: cls.__name__)


def parameters(cls):
    """The arguments of a class, and whether they may be `None`."""
    found = {}
    _, *taken = inspect.signature(cls.__init__).parameters.values()
    for parameter in taken:
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= dict.fromkeys(("name", "dtype", "trainable"), True)
        else:
            found[parameter.name] = parameter.default is None or "None" in str(
                parameter.annotation
            )
    return found


# What must be given.
GIVEN = {
    "ODEBlock": {"dynamics": layers.Dense(4)},
    "CDEBlock": {"dynamics": layers.Dense(4)},
    "ContinuousFlow": {"dynamics": layers.Dense(4)},
    "Hamiltonian": {"potential": layers.Dense(1)},
    "ConcatSquash": {"layer": layers.Dense(4)},
    "Augment": {"dims": 2},
    "GRUODE": {"units": 4},
    "ODERNN": {
        "cell": layers.GRUCell(4),
        "dynamics": layers.Dense(4),
        "solver": "tsit5",
    },
}


def make(cls, **kwargs):
    return cls(**{**GIVEN.get(cls.__name__, {}), **kwargs})


def block(**kwargs):
    return make(ODEBlock, **{"dynamics": layers.Dense(4), **kwargs})


def assert_refused(name, call, /, *args, **kwargs):
    try:
        call(*args, **kwargs)
        message = "nothing was raised"
    except (TypeError, ValueError) as error:
        message = str(error)
    pattern = rf"`{name}`.*Received: "
    assert re.search(pattern, message, re.S), (args, kwargs, message)


def test_every_argument_of_every_public_class_has_its_bad_values():
    known = {ODEBlock, *solvers.ALL.values(), *adjoints.ALL.values()}
    assert known < set(CLASSES)
    arguments = {(c.__name__, name) for c in CLASSES for name in parameters(c)}
    assert set(BAD) == {name for _, name in arguments}
    only = {(cls, name) for cls, names in BAD_IN.items() for name in names}
    assert only < arguments
    call = [*inspect.signature(ODEBlock.call).parameters][1:]
    solve = [*inspect.signature(ODEBlock.solve).parameters][1:]
    assert list(BAD_AT_CALL) == call == solve


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_bad_values_are_refused(cls):
    for name, may_be_none in parameters(cls).items():
        may_be_none = may_be_none or name in PARTS
        values = BAD[name] if may_be_none else (*BAD[name], None)
        for value in values:
            assert_refused(name, make, cls, **{name: value})
    for name, values in BAD_IN.get(cls.__name__, {}).items():
        for value in values:
            assert_refused(name, make, cls, **{name: value})
    with pytest.raises((TypeError, ValueError), match="nonsense"):
        make(cls, nonsense=1)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_values_at_the_edge_are_taken(cls):
    for name in parameters(cls):
        for value in GOOD.get(name, ()):
            made = make(cls, **{name: value})
            owner = made if hasattr(made, name) else made.solver
            np.testing.assert_array_equal(getattr(owner, name), value)


TSIT5 = keras.saving.serialize_keras_object(solvers.Tsit5())
COMBINATIONS = [
    ("rtol", block, {"solver": solvers.Tsit5(), "rtol": 1e-3}),
    ("atol", block, {"solver": TSIT5, "atol": 1e-3}),
    ("rtol", block, {"solver": "euler", "rtol": 1e-3}),
    ("atol", block, {"solver": "rk4", "atol": 1e-3}),
    ("max_steps", solvers.get, {"identifier": "heun", "max_steps": 3}),
    ("per_sample", solvers.get, {"identifier": TSIT5, "per_sample": True}),
    ("solver", block, {"adjoint": "discrete"}),
    ("solver", block, {"adjoint": "interpolating"}),
    ("solver", block, {"adjoint": adjoints.GaussAdjoint(solvers.Tsit5())}),
    ("t_eval", block, {"t_span": (2.0, 1.0), "t_eval": [1.5, 0.5]}),
    ("t_eval", block, {"t_span": (1.0, 1 + 1e-12), "t_eval": [1 + 1e-11]}),
]
COMBINATIONS += [
    ("dynamics", ODEBlock.from_config, {"config": config})
    for config in ({}, *({"dynamics": dynamics} for dynamics in CONFIGS))
]


@pytest.mark.parametrize("name, call, kwargs", COMBINATIONS)
def test_bad_combinations_are_refused(name, call, kwargs):
    assert_refused(name, call, **kwargs)


def test_unknown_names_are_refused_with_the_known_ones_listed():
    for known in (solvers, adjoints):
        with pytest.raises(ValueError, match=", ".join(map(repr, known.ALL))):
            known.get("eulerish")


class Function(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, y):
        return self.function(y)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: None,
        lambda y: (y, y),
        lambda y: [y],
        lambda y: {"y": y},
        lambda y: ops.sum(y, axis=-1, keepdims=True),
        lambda y: ops.sum(y, axis=-1),
        lambda y: y[None],
        lambda y: ops.cast(y, "int32"),
        lambda y: ops.cast(y, "complex64"),
        lambda y: y > 0,
    ],
)
def test_dynamics_that_return_no_slope_are_refused(function):
    build = block(dynamics=Function(function)).build
    assert_refused("dynamics", build, (2, 3, 5))


def test_dynamics_must_keep_the_shape():
    for shape, units in (((None, 4), 1), ((None, 4), 5), ((2, 3, 5), 4)):
        made = block(dynamics=layers.Dense(units))
        with pytest.raises(ValueError) as caught:
            made.build(shape)
        for part in (shape, (*shape[:-1], units)):
            assert str(part) in str(caught.value)


def test_dynamics_must_keep_the_shape_at_every_call():
    # Built for a width of 1, it keeps that; else it would broadcast.
    made = block(
        dynamics=Function(lambda y: ops.mean(y, axis=-1, keepdims=True))
    )
    made.build((None, 1))
    assert_refused("dynamics", made.solve, X)


@pytest.mark.parametrize("name", BAD_AT_CALL)
def test_bad_values_at_a_call_are_refused(name):
    made = block(solver="tsit5" if name == "jump_times" else "euler")
    made(X)
    state = keras.Input((4,))
    for value in BAD_AT_CALL[name]:
        arguments = {"inputs": X, name: value}
        if name == "t_eval_mask":
            arguments["t_eval"] = [[0.5, 0.5]] * 3
        assert_refused(name, made.solve, **arguments)
        if name == "inputs":
            # Much of it is refused by Keras, in words of its own.
            for layer in (made, block()):
                with pytest.raises((TypeError, ValueError)):
                    layer(value)
            continue
        assert_refused(name, made, **arguments)
        assert_refused(name, made, **{**arguments, "inputs": state})


@pytest.mark.parametrize("name, arguments", BAD_OF_EACH)
def test_bad_values_of_each_sample_are_refused(name, arguments):
    made = block(solver="tsit5" if name == "jump_times" else "euler")
    assert_refused(name, made.solve, X, **arguments)
    assert_refused(name, made, X, **arguments)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TFP, on TensorFlow"
)
def test_times_of_each_sample_need_a_native_solver():
    times, spans = [[0.5]] * 3, [(0, 1)] * 3
    made = block(solver="dormand_prince")
    for arguments in ({"t_eval": times}, {"t_eval": [0.5], "t_span": spans}):
        with pytest.raises(ValueError, match=r"'tsit5'.*Received: solver"):
            made(X, **arguments)
    with pytest.raises(ValueError, match=r"'tsit5'.*Received: solver"):
        made(keras.Input((4,)), t_eval=keras.Input((None,)))
    assert made(X, t_span=spans).shape == (3, 4)


@pytest.mark.parametrize("solver", ["dormand_prince", "rk4", "euler"])
def test_jumps_need_a_solver_that_can_stop_at_them(solver):
    made = block(solver=solver)
    for inputs in (X, keras.Input((4,))):
        with pytest.raises(ValueError, match=r"`jump_times`.*'tsit5'"):
            made(inputs, jump_times=[0.5])


def test_what_is_not_one_tensor_is_refused_before_the_layer_is_built():
    for value in (None, [], [X, X], X[0, 0]):
        with pytest.raises(ValueError, match="[Ii]nput"):
            block()(value)


def test_bad_symbolic_values_are_refused():
    made = block()
    state, times = keras.Input((4,)), keras.Input(batch_shape=(2,))
    for dtype in ("int32", "bool", "complex64"):
        assert_refused("inputs", made, keras.Input((4,), dtype=dtype))
    assert_refused("t_eval", made, state, t_eval=keras.Input((2, 1)))
    assert_refused("t_span", made, state, t_span=keras.Input((3,)))
    mask = {"t_eval_mask": keras.Input((2,))}
    assert_refused("t_eval_mask", made, state, t_eval=[0.5, 0.5], **mask)
    assert_refused("inputs", made.solve, state)
    assert_refused("t_eval", made.solve, X, t_eval=times)
    assert made(state, t_eval=times).shape == (None, 2, 4)


@pytest.mark.parametrize(
    "layer, inputs",
    [
        (keras_node.layers.ConcatTime(), X),
        (keras_node.layers.ConcatTime(), [X, X, X]),
        (keras_node.layers.ConcatSquash(layers.Dense(4)), X),
        (keras_node.layers.ConcatSquash(layers.Dense(4)), [X]),
        (keras_node.layers.ConcatTime(), [X, X[:, :1]]),
        (keras_node.layers.Augment(2), [X, X]),
        (keras_node.layers.Interpolate(), [X, X]),
        (keras_node.layers.CDEBlock(layers.Dense(4)), [X, X]),
    ],
)
def test_layers_want_their_inputs(layer, inputs):
    assert_refused("inputs", layer, inputs)


SERIES = np.ones((3, 5, 4), "float32")
TIMES_OF_SERIES = np.tile(np.arange(5.0), (3, 1))
BAD_SERIES = [
    ("inputs", SERIES, {}),
    ("inputs", [SERIES], {}),
    ("inputs", [SERIES] * 3, {}),
    ("inputs", [SERIES.astype("int32"), TIMES_OF_SERIES], {}),
    ("inputs", [SERIES[..., 0], TIMES_OF_SERIES], {}),
    ("inputs", [SERIES[:, :0], TIMES_OF_SERIES[:, :0]], {}),
    ("inputs", [None, TIMES_OF_SERIES], {}),
    ("t", [SERIES, SERIES], {}),
    ("t", [SERIES, "12345"], {}),
    ("t", [SERIES, None], {}),
    ("t", [SERIES, TIMES_OF_SERIES[:, 1:]], {}),
    ("t", [SERIES, TIMES_OF_SERIES[1:]], {}),
    ("t", [SERIES, TIMES_OF_SERIES[:, ::-1]], {}),
    ("t", [SERIES, TIMES_OF_SERIES * NAN], {}),
    ("t", [SERIES, [0.0, 1.0, 2.0, 3.0, INF]], {}),
    ("mask", [SERIES, TIMES_OF_SERIES], {"mask": np.ones((3, 4), bool)}),
    ("mask", [SERIES, TIMES_OF_SERIES], {"mask": np.ones((2, 5), bool)}),
    ("mask", [SERIES, TIMES_OF_SERIES], {"mask": np.ones((3, 5))}),
    ("mask", [SERIES, TIMES_OF_SERIES], {"mask": np.ones(3, bool)}),
    ("mask", [SERIES, TIMES_OF_SERIES], {"mask": "yes"}),
    *(
        ("initial_state", [SERIES, TIMES_OF_SERIES], {"initial_state": states})
        for states in ([], [X, X], [X[:, :3]], [X[:2]], X[0])
    ),
    ("training", [SERIES, TIMES_OF_SERIES], {"training": 2}),
]


@pytest.mark.parametrize("name, inputs, arguments", BAD_SERIES)
def test_bad_series_are_refused(name, inputs, arguments):
    made = make(keras_node.layers.ODERNN)
    assert_refused(name, made, inputs, **arguments)


def test_series_must_fit_the_layer():
    cls = keras_node.layers.ODERNN
    series = [SERIES, TIMES_OF_SERIES]
    assert_refused("t", make(cls, elapsed=True), [SERIES, -series[1]])
    assert_refused("dynamics", make(cls, dynamics=layers.Dense(3)), series)
    unknown = [keras.Input((None, 4)), keras.Input((None,))]
    assert_refused("inputs", make(cls, unroll=True), unknown)
    assert_refused("inputs", make(cls, stateful=True), unknown)
    stateful = make(cls, stateful=True, cell=layers.GRUCell(4))
    stateful(series)
    assert_refused("inputs", stateful, [SERIES[:2], TIMES_OF_SERIES[:2]])
    for cell in (Function(lambda x: x), Narrow()):
        cell.state_size = 4
        assert_refused("cell", make(cls, cell=cell), series)


class Narrow(layers.Layer):
    def call(self, x, states):
        return x, [x[:, :3]]


def test_an_axis_must_be_one_of_the_input():
    for axis in (2, -2, -3):
        assert_refused("axis", keras_node.layers.Augment(1, axis=axis), X)
        concat = keras_node.layers.ConcatTime(axis)
        assert_refused("axis", concat, [X[:, :1], X])


def test_inputs_must_be_as_many_as_the_block_was_built_for():
    context = block(
        dynamics=[layers.Concatenate(), layers.Dense(4)], solver="euler"
    )
    state = keras.Input((4,))
    assert context([X, X]).shape == (3, 4)
    for inputs in (X, [X], [X, X, X]):
        assert_refused("inputs", context, inputs)
        assert_refused("inputs", context.solve, inputs)
    assert_refused("inputs", context, state)


def test_a_mask_has_no_place_for_times_given_at_a_call():
    tokens = keras.Input((5,), dtype="int32")
    masked = layers.Embedding(7, 4, mask_zero=True)(tokens)
    assert_refused("inputs", block(), masked, t_eval=[0.5])


def test_dynamics_must_take_what_the_block_has_for_them():
    time = {"dynamics": layers.Concatenate(), "time_dependent": True}
    assert_refused("dynamics", block(), [X, X])
    assert_refused("dynamics", block(time_dependent=True), X)
    assert_refused("dynamics", block(**time), X)
    assert_refused("dynamics", block(**time).solve, [X, X])


def test_flags_and_times_of_every_kind_are_taken():
    made = block(solver="euler")
    for training in (None, False, True, 0, 1, np.True_):
        assert made.solve(X, training=training).y1.shape == (3, 4)
    state = keras.Input((4,))
    for times in ([0, 1], (0.0, 1.0), np.array([0, 1]), ops.ones(2)):
        assert made(X, t_eval=times).shape == (3, 2, 4)
        assert made(state, t_eval=times).shape == (None, 2, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"t_span": (-1e30, 1e30)},
        {"t_span": (1, 1 + 1e-12)},
        {"t_span": (1e-46, 0)},
        {"rtol": 1e-18},
        {"atol": 1e-18},
    ],
    ids=str,
)
@pytest.mark.parametrize("solver", ["dormand_prince", "tsit5"])
def test_values_at_the_edge_are_solved_with(solver, arguments):
    # y' = r y, from a state of zeros too: nothing but `atol` counts there.
    made = ODEBlock(layers.Dense(2, use_bias=False), solver=solver, **arguments)
    made.build((None, 2))
    span = made.t_span[1] - made.t_span[0]
    rate = -1 / max(abs(span), 1)
    made.dynamics.set_weights([rate * np.eye(2)])
    x = np.array([[1.0, -2.0], [0.0, 0.0]], "float32")
    y1 = numpy(made(x))
    np.testing.assert_allclose(y1, np.exp(rate * span) * x, rtol=2e-3)

"""What the docstrings say is what the code does."""

import doctest
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import slow_on

import keras_node
from keras_node import adjoints
from keras_node import solvers

CLASSES = [keras_node.ODEBlock, *solvers.ALL.values(), *adjoints.ALL.values()]
CLASSES += [keras_node.solve_ivp, keras_node.ContinuousFlow]
CLASSES.append(keras_node.layers.Hamiltonian)
CLASSES += [keras_node.layers.ODERNN, keras_node.layers.GRUODE]
CLASSES += [keras_node.layers.CDEBlock, keras_node.layers.Interpolate]
CLASSES.append(keras_node.layers.fill_missing)


def arguments(cls):
    """The entries under `Args:`, by name."""
    doc = inspect.cleandoc(cls.__doc__)
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", doc, re.M).group(1)
    entries = re.findall(
        r"^    (\*{0,2}\w+): ((?:.*\n(?:     .*\n)*))", section, re.M
    )
    return {name: " ".join(text.split()) for name, text in entries}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_argument_and_default_is_documented(cls):
    documented = arguments(cls)
    parameters = list(inspect.signature(cls).parameters.values())
    names = [
        "**kwargs" if p.kind is p.VAR_KEYWORD else p.name for p in parameters
    ]
    assert list(documented) == names
    for parameter in parameters:
        if parameter.default is parameter.empty:
            continue
        text = documented[parameter.name]
        default = re.search(r"Defaults to `(.+?)`\.$", text)
        assert default, f"{parameter.name}: {text}"
        assert eval(default.group(1)) == parameter.default


@slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    "cls",
    [*CLASSES, keras_node.callbacks.SolverStats],
    ids=lambda cls: cls.__name__,
)
def test_examples_run(cls):
    names = {"keras": keras, "np": np, "keras_node": keras_node}
    for test in doctest.DocTestFinder(recurse=False).find(cls, globs=names):
        failures, _ = doctest.DocTestRunner().run(test)
        assert not failures


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    repository = Path(__file__).parents[1]
    (tmp_path / "examples").symlink_to(repository / "examples")
    monkeypatch.chdir(tmp_path)
    readme = (repository / "README.md").read_text()
    names = {}
    first, *others = re.findall(r"```python\n(.*?)```", readme, re.S)
    exec(first, names)
    assert names["model"].history.history["accuracy"][-1] > 0.8
    loaded = keras.models.load_model("digits.keras")
    images = names["data"]["images"][:10].astype("float32")
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0),
        names["model"].predict(images, verbose=0),
    )
    for other in others:
        exec(other, names)
    assert names["model"].predict(
        [names["start"], names["seen"]], verbose=0
    ).shape == (256, 20, 2)
    assert bool(names["solution"].success)

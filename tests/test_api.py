"""What is public: named, documented, and with keywords behind the first two arguments."""

import dataclasses
import inspect
import typing

import keras
import pytest

import kerasq

# Overrides of methods that Keras or TensorFlow calls by place.
INHERITED = (keras.layers.Layer, keras.callbacks.Callback, kerasq.MultiWorkerStrategy)
PUBLIC = [getattr(kerasq, name) for name in kerasq.__all__]


def methods(cls):
    """The public methods that a class of ours defines itself, and its constructor."""
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        overrides = any(hasattr(base, name) for base in INHERITED if issubclass(cls, base))
        is_own = name == "__init__" or not (name.startswith("_") or overrides)
        if inspect.isfunction(function) and is_own:
            yield function, 0 if isinstance(value, staticmethod) else 1


def functions():
    for found in PUBLIC:
        if inspect.isfunction(found):
            yield found, 0
        elif not issubclass(found, tuple):  # Named tuples are built by us.
            yield from methods(found)


FUNCTIONS = list(functions())
NAMES = [function.__qualname__ for function, _ in FUNCTIONS]


# Whose arguments have the order in which they are read: models, data, and where the page goes.
BY_PLACE = {"report": 4, "compare_reports": 3}


@pytest.mark.parametrize(("function", "bound"), FUNCTIONS, ids=NAMES)
def test_only_two_arguments_go_by_place(function, bound):
    parameters = list(inspect.signature(function).parameters.values())[bound:]
    by_place = [
        x.name
        for x in parameters
        if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD, x.VAR_POSITIONAL)
    ]
    assert len(by_place) <= BY_PLACE.get(function.__name__, 2), by_place


@pytest.mark.parametrize(("function", "bound"), FUNCTIONS, ids=NAMES)
def test_all_arguments_have_types(function, bound):
    hints = typing.get_type_hints(function)
    missing = {*list(inspect.signature(function).parameters)[bound:]} - {*hints}
    assert not missing and "return" in hints


@pytest.mark.parametrize("found", PUBLIC, ids=kerasq.__all__)
def test_what_is_public_is_documented(found):
    assert len(inspect.getdoc(found)) > 50
    if dataclasses.is_dataclass(found) or issubclass(
        found if inspect.isclass(found) else int, tuple
    ):
        assert "Attributes:" in found.__doc__
    for function, _ in methods(found) if inspect.isclass(found) else ():
        if function.__name__ != "__init__":
            assert function.__doc__ and "See the class" not in function.__doc__, function


def test_all_names_the_public_ones_once():
    assert len(kerasq.__all__) == len({*kerasq.__all__})
    found = {
        name
        for name, value in vars(kerasq).items()
        if getattr(value, "__module__", "").startswith("kerasq.")
    }
    assert found == {*kerasq.__all__}

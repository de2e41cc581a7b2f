"""Garbage collection while tests run, and the order of files."""

import gc

import pytest

# Files in which tests take long. They go first: the last one to start may keep a core busy alone.
LONG = ("tools", "recipes", "training", "analysis", "probes", "targets")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the folders of `LONG` to the front."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


def pytest_collection_finish() -> None:
    """Leaves what the modules have made, which stays, out of every collection to come."""
    # TensorFlow's modules are a million objects; tracing makes garbage by the thousand.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)

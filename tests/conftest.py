"""Garbage collection and Grappler while tests run, and the order of files."""

import gc

import pytest
import tensorflow as tf

# Files in which tests take long. They go first: the last one to start may keep a core busy alone.
LONG = ("tools", "recipes", "training", "analysis", "probes", "targets")

# Folders and files that test the graphs of `predict` and `fit`, which Grappler rewrites.
GRAPHS = ("targets", "training", "test_graphs", "test_mixed", "test_registry", "test_wrappers")


@pytest.fixture(autouse=True, scope="module")
def grappler(request: pytest.FixtureRequest) -> None:
    """Leaves functions as they are traced where they run once: to rewrite them takes longer."""
    is_kept = {request.path.stem, request.path.parent.name} & {*GRAPHS}
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not is_kept})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the folders of `LONG` to the front."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


def pytest_collection_finish() -> None:
    """Leaves what the modules have made, which stays, out of every collection to come."""
    # TensorFlow's modules are a million objects; tracing makes garbage by the thousand.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)

"""Garbage collection, Grappler and names while tests run, their order, and how many of a kind."""

import collections
import gc
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state

# Files in which tests take long. They go first: the last one to start may keep a core busy alone.
LONG = ("tools", "recipes", "training", "analysis", "probes", "targets")

# Folders and files that test the graphs of `predict` and `fit`, which Grappler rewrites.
GRAPHS = ("targets", "training", "test_graphs", "test_mixed", "test_registry", "test_wrappers")


@pytest.fixture(autouse=True, scope="module")
def grappler(request: pytest.FixtureRequest) -> None:
    """Leaves functions as they are traced where they run once: to rewrite them takes longer."""
    is_kept = {request.path.stem, request.path.parent.name} & {*GRAPHS}
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not is_kept})


@pytest.fixture(autouse=True, scope="module")
def seed() -> None:
    """Has batches shuffled alike in each run: `networks.set_seed` leaves TensorFlow's seed."""
    tf.random.set_seed(0)


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Has Keras count on behind a test that had names counted anew.

    Layers in the arguments of tests have theirs since before, and a model takes each name once.
    """
    before = global_state.get_global_attribute("object_name_uids")
    yield
    if before and global_state.get_global_attribute("object_name_uids") is not before:
        global_state.set_global_attribute("object_name_uids", before)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--few`."""
    parser.addoption(
        "--few", type=int, help="Of tests that differ in their arguments alone, so many at most."
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves the folders of `LONG` to the front; leaves out what `--few` says."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    if (few := config.getoption("few")) is None:
        return
    kinds = collections.defaultdict(list)
    for item in items:
        kinds[item.nodeid.partition("[")[0]].append(item)
    # From the first to the last, as neighbours are much alike.
    kept = {
        kind[round(i)].nodeid
        for kind in kinds.values()
        for i in np.linspace(0, len(kind) - 1, min(few, len(kind)))
    }
    config.hook.pytest_deselected(items=[x for x in items if x.nodeid not in kept])
    items[:] = [x for x in items if x.nodeid in kept]


def pytest_collection_finish() -> None:
    """Leaves what the modules have made, which stays, out of every collection to come."""
    # TensorFlow's modules are a million objects; tracing makes garbage by the thousand.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)

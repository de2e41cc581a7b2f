"""Garbage collection while tests run."""

import gc


def pytest_collection_finish() -> None:
    """Leaves what the modules have made, which stays, out of every collection to come."""
    # TensorFlow's modules are a million objects; tracing makes garbage by the thousand.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)

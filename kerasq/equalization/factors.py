"""Factors of channels, from the weights before and behind them, and what the weights then span."""

from collections.abc import Iterable

import numpy as np

from kerasq.equalization.channels import Channels
from kerasq.equalization.links import Link

# Factors of one tensor move by less beside each other, or the sweeps are over: the function is the
# same after any number of them.
TOLERANCE, SWEEPS = 1e-2, 50


def free(link: Link, found: Channels) -> np.ndarray:
    """Which of the channels that a link makes can be rescaled, by feature."""
    return ~np.isin(link.targets, [*found.fixed])


def spread(link: Link, found: Channels) -> float:
    """The largest range over the smallest one, of channels that can be rescaled and are not 0."""
    weights = _largest(link.magnitudes(), link.outputs, len(link.targets))
    ranges = _made(weights, link.reach())
    ranges = ranges[free(link, found) & (ranges > 0.0)]
    return float(ranges.max() / ranges.min()) if ranges.size else 1.0


def _largest(values: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """By index, the largest of the values that have it; 0 where there is none."""
    # Along an axis that indices do not vary on, which is faster by far.
    for axis in range(values.ndim):
        if indices.shape[axis] == 1:
            values = values.max(axis=axis, keepdims=True)
    found = np.zeros(count)
    np.maximum.at(found, np.broadcast_to(indices, values.shape), values)
    return found


def solve(found: Channels) -> tuple[np.ndarray, int]:
    """The factor of each channel, and after how many sweeps."""
    factors = np.ones(found.count)
    weights = {id(link): link.magnitudes() for link in found.links}
    free = np.ones(found.count, bool)
    free[[*found.fixed]] = False
    # Those that a link makes, with all that make them, and all that read them.
    groups = [
        (np.unique(link.targets[free[link.targets]]), _making(link, found), _reading(link, found))
        for link in found.links
        if free[link.targets].any()
    ]

    def ranges(links: Iterable[Link], end: str, at: str) -> np.ndarray:
        largest = np.zeros(found.count)
        for link in links:
            taken, given = factors[link.sources][link.inputs], factors[link.targets][link.outputs]
            ids = getattr(link, end)[getattr(link, at)]
            own = _largest(weights[id(link)] * taken / given, ids, found.count)
            largest = np.maximum(largest, own)
        return largest

    reach = np.zeros(found.count)
    for link in found.links:
        np.maximum.at(reach, link.targets, link.reach())
    sweeps, moved = 0, np.inf
    while moved >= TOLERANCE and sweeps < SWEEPS:
        sweeps, moved = sweeps + 1, 0.0
        for ids, making, reading in groups:
            out = _made(ranges(making, "targets", "outputs")[ids], reach[ids] / factors[ids])
            taken = ranges(reading, "sources", "inputs")[ids]
            is_live = (out > 0.0) & (taken > 0.0)
            steps = np.log(out[is_live] / taken[is_live]) / 2.0
            factors[ids[is_live]] *= np.exp(steps)
            # What all have in common no grid depends on; over a deep network it takes long to stay.
            moved = max(moved, float(np.ptp(steps)) if steps.size else 0.0)
    return factors, sweeps


def _made(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The ranges of channels of a tensor, by those of the weights that make it and of its values.

    The larger of the two, each as a share of the tensor's. By its weights alone, a channel that is
    all but constant, whose weights are next to nothing and whose bias is not, would be blown up
    until it takes the whole grid of its tensor.
    """
    furthest = values.max(initial=0.0)
    if furthest == 0.0:
        return weights
    return np.maximum(weights, values / furthest * weights.max())


def _making(link: Link, found: Channels) -> list[Link]:
    return [x for x in found.links if np.isin(x.targets, link.targets).any()]


def _reading(link: Link, found: Channels) -> list[Link]:
    return [x for x in found.links if np.isin(x.sources, link.targets).any()]

"""`equalize`: channels rescaled so that the weights before and behind them span alike."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.equalization import channels, factors, limits
from kerasq.equalization.links import Link
from kerasq.equalization.rebuilding import Copies, read, rebuild
from kerasq.support import tables
from kerasq.support.finite import check_finite

# What becomes of limits such as that of ReLU6.
LIMITS = ("per_channel", "leave", "remove")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equalization:
    """What `equalize` did. Printing it gives a table.

    Attributes:
        model: the equalized float model, for `kerasq.quantize_model`.
        layers: the layers whose output channels were rescaled, in the order of the model.
        before: by layer, the range `r_out` of a channel over that of another, at most.
        after: the same behind it.
        left: by layer whose output channels were not rescaled, what they are part of.
        unlimited: what had a limit, as ReLU6 has, and is a plain ReLU now.
        limited: what has a limit for each channel now: a Minimum and a constant more.
        sweeps: how often all channels were gone over.
    """

    model: keras.Model
    layers: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    left: dict[str, str]
    unlimited: tuple[str, ...]
    limited: tuple[str, ...]
    sweeps: int

    def __str__(self) -> str:
        rows = [["layer", "before", "after"]]
        found = zip(self.layers, self.before, self.after, strict=True)
        rows += [[name, f"{x:,.1f}", f"{y:,.1f}"] for name, x, y in found]
        text = f"{tables.plain(rows)}\n\nRanges of channels, of one over another at most."
        if self.left:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left.items())
            text += f"\nLeft alone, for what their channels are part of: {reasons}."
        if self.unlimited:
            text += f"\nPlain ReLUs now: {', '.join(self.unlimited)}."
        if self.limited:
            text += f"\nA limit for each channel: {', '.join(self.limited)}."
        return text


def equalize(
    model: keras.Model, data: Any = None, *, limits: str = "per_channel", steps: int | None = None
) -> Equalization:
    """Rescales channels so that the weights before and behind them span alike; the same function.

    Channel c of a tensor is divided by `s[c]`: the kernels that make it, or the gamma and beta of
    their BatchNormalization, by `s[c]`, those that read it times `s[c]`, with::

        s = sqrt(r_out / r_in),

    the geometric mean of the two over `r_in` (Nagel et al. 2019, arXiv 1906.04721, section 4.1,
    eq. 11; Meller et al. 2019, arXiv 1902.01917): r_in is the largest magnitude of the weights of
    that channel in all layers that read it, r_out that in all layers that make it,
    BatchNormalization folded. Where BatchNormalization says how far the channel's values reach,
    `|beta| + 3 |gamma|`, that counts for r_out as well, as a share of the furthest of the tensor:
    by weights alone, a channel that is all but constant would be blown up until it takes the grid
    of its tensor for itself. ReLU, LeakyReLU and PReLU let factors through, and so do pooling,
    padding with zeros, Flatten and the like; across Add all that is added has the factors of the
    sum. Channels are gone over until factors stay. Channels of zeros alone are left as they are,
    and those that are part of what lets no factor through: ends of the model, other activations,
    products.

    Do it before `quantize_model`. It is for weights that have one scale for all channels;
    where each channel has its own, only activations become other ones, for better or worse.

    Args:
        model: a float model, as for `quantize_model`. It is not changed.
        data: as for `calibrate`; it only says which limits, such as that of ReLU6, values reach.
            Without it, BatchNormalization does: none where `beta + 6 |gamma|` is below.
        limits: a limit that no value reaches is left out, where channels are rescaled. What of
            others: "per_channel" makes them one for each channel, the same function for one more
            operator, MINIMUM; "leave" leaves those channels alone; "remove" leaves out all limits,
            as the paper does, which is another function.
        steps: the most batches of `data` to use; None for all.

    Returns:
        The equalized model, `.model`, of the same layers by the same names, models inside it
        opened; and what was done to them.

    Raises:
        ValueError: for a model that `quantize_model` refuses to read, data that `calibrate`
            refuses, and unknown `limits`.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(2, "relu"), keras.layers.Dense(1)]
        ... )
        >>> model.set_weights([np.diag([100.0, 1.0]), np.zeros(2), np.ones((2, 1)), np.zeros(1)])
        >>> found = kerasq.equalize(model)
        >>> found.before, found.after
        ((100.0,), (10.0,))
        >>> q = kerasq.quantize_model(found.model)
    """
    if limits not in LIMITS:
        raise ValueError(f"`limits` must be one of {list(LIMITS)}. Received: limits={limits!r}.")
    model, graph = read(model)
    check_finite(graph.model)
    return _Equalizer(graph, data, limits, steps).equalize(model)


class _Equalizer:
    """The work on one graph, whose layers it changes."""

    def __init__(self, graph: graphs.Graph, data: Any, mode: str, steps: int | None) -> None:
        self._graph = graph
        self._limited = limits.find(graph)
        found = [] if mode == "remove" else limits.reached(graph, self._limited, data, steps)
        # Calls of one layer have one activation.
        self._reached = {node.source.weights_of for node in found}
        keep = {id(node): f"the limit of {node.layer.name!r}" for node in found}
        self._channels = channels.find(graph, keep if mode == "leave" else {})

    def equalize(self, model: keras.Model) -> Equalization:
        """Rescales, and builds the model."""
        found = self._channels
        scales, sweeps = factors.solve(found)
        made = [link for link in found.links if factors.free(link, found).any()]
        before = self._spreads(made)
        for link in found.links:
            link.rescale(scales)
        ceilings = self._ceilings(scales)
        return Equalization(
            model=self._rebuilt(model, ceilings),
            layers=tuple(link.name for link in made),
            before=before,
            after=self._spreads(made),
            left=self._left(),
            unlimited=self._names(key for key, x in ceilings.items() if x is None),
            limited=self._names(key for key, x in ceilings.items() if x is not None),
            sweeps=sweeps,
        )

    def _spreads(self, made: list[Link]) -> tuple[float, ...]:
        return tuple(factors.spread(link, self._channels) for link in made)

    def _names(self, keys: Iterable[int]) -> tuple[str, ...]:
        wanted = {*keys}
        return tuple(node.layer.name for node in self._limited if id(node) in wanted)

    def _left(self) -> dict[str, str]:
        """By layer whose channels are not all rescaled, why the first of those is not."""
        found = self._channels
        fixed = {x.name: [i for i in x.targets if i in found.fixed] for x in found.links}
        return {name: found.fixed[ids[0]] for name, ids in fixed.items() if ids}

    def _ceilings(self, scales: np.ndarray) -> dict[int, np.ndarray | None]:
        """By id of a call that had another limit, that of each channel; None for no limit."""
        found: dict[int, np.ndarray | None] = {}
        for node in self._limited:
            own = scales[self._channels.of[id(node.output)]]
            if (own != 1.0).any():
                found[id(node)] = (
                    limits.limit_of(node) / own if node.source.weights_of in self._reached else None
                )
        return found

    def _rebuilt(self, model: keras.Model, ceilings: dict[int, np.ndarray | None]) -> keras.Model:
        copies = Copies()
        limiter = limits.Limiter(self._graph, copies)

        def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
            if id(node) in ceilings:
                return limiter.call(node, ceilings[id(node)], *args, **kwargs)
            return copies.call(node, *args, **kwargs)

        return rebuild(model, self._graph, call)

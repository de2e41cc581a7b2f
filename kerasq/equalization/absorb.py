"""`absorb_biases`: high biases in front of a ReLU, moved into the layers behind it."""

import dataclasses
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.equalization import homogeneous, limits
from kerasq.equalization.links import value
from kerasq.equalization.rebuilding import Copies, read, rebuild
from kerasq.equalization.shifts import Refused, Shifts, named
from kerasq.support import tables
from kerasq.support.finite import check_finite

L = keras.layers
# What is absorbed is below all but 0.1 % of the values.
DEVIATIONS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absorption:
    """What `absorb_biases` did. Printing it gives a table.

    Attributes:
        model: the changed float model, for `kerasq.quantize_model`.
        layers: the BatchNormalizations whose beta is lower now, in the order of the model.
        largest: by layer, the most that was taken from a channel.
        into: by layer, the layers that make up for it.
        left: by layer that has high biases still, what could not make up for them.
    """

    model: keras.Model
    layers: tuple[str, ...]
    largest: tuple[float, ...]
    into: tuple[tuple[str, ...], ...]
    left: dict[str, str]

    def __str__(self) -> str:
        if not self.layers and not self.left:
            return "No bias is high."
        rows = [["layer", "into", "largest bias absorbed"]]
        found = zip(self.layers, self.into, self.largest, strict=True)
        rows += [[name, ", ".join(into), f"{x:.3g}"] for name, into, x in found]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left.items())
        left = f"\n\nLeft alone, for what reads them: {reasons}." if self.left else ""
        return f"{tables.plain(rows, left=2)}{left}"


def absorb_biases(model: keras.Model) -> Absorption:
    """Moves high biases in front of a ReLU into the layers behind it: smaller ranges between them.

    Of a BatchNormalization in front of a ReLU, whose values have the mean beta and the standard
    deviation `|gamma|`, beta loses::

        c = max(0, beta - 3 |gamma|)

    in each channel, and the layers that read the ReLU add `W c` to their bias, or take it from the
    moving mean of their BatchNormalization (Nagel et al. 2019, arXiv 1906.04721, section 4.1.3,
    eq. 15 and 16). `relu(y - c) + c = relu(y)` where y > c: of normal values 0.1 % are below, and
    change. It is left alone where what reads the ReLU cannot make up for it at all places, such
    as a convolution that pads with zeros, or a ReLU behind a sum.

    Do it behind `kerasq.equalize`, which may raise biases, and before `quantize_model`.

    Args:
        model: a float model, as for `quantize_model`, that has its BatchNormalization still. It is
            not changed.

    Returns:
        The changed model, `.model`, of the same layers by the same names, models inside it opened;
        and what was done.

    Raises:
        ValueError: for a model without BatchNormalization, or that `quantize_model` refuses to
            read.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> for layer in (keras.layers.BatchNormalization(name="norm"), keras.layers.ReLU()):
        ...     model.add(layer)
        >>> model.add(keras.layers.Dense(1, name="head"))
        >>> _ = model.get_layer("norm").beta.assign([5.0, 1.0])
        >>> found = kerasq.absorb_biases(model)
        >>> found.into, found.largest
        ((('head',),), (2.0,))
        >>> print(found.model.get_layer("norm").beta.numpy())
        [3. 1.]
    """
    model, graph = read(model)
    check_finite(graph.model)
    if not any(isinstance(node.layer, L.BatchNormalization) for node in graph.nodes):
        raise ValueError(
            "`model` must have BatchNormalization, which says where values lie. "
            f"Received: {model.name!r}, without any. Do it before they are folded."
        )
    return _Absorber(graph).absorb(model)


class _Absorber:
    """The work on one graph, whose layers it changes."""

    def __init__(self, graph: graphs.Graph) -> None:
        self._graph = graph
        self._shifts = Shifts(graph)
        # By id of a call of a layer that had no bias, the one that it gets.
        self._biases: dict[int, np.ndarray] = {}

    def absorb(self, model: keras.Model) -> Absorption:
        """Moves biases, and builds the model."""
        into: dict[str, tuple[str, ...]] = {}
        largest: dict[str, float] = {}
        left: dict[str, str] = {}
        for relu in filter(homogeneous.is_activation, self._graph.nodes):
            norm = limits.norm_in_front(self._graph, relu)
            if norm is None:
                continue
            if norm.layer.axis not in (-1, len(norm.output.shape) - 1):
                left[norm.layer.name] = "its axis, which is none of channels"
                continue
            mean, deviation = limits.statistics(norm.layer)
            shift = np.maximum(mean - DEVIATIONS * deviation, 0.0)
            if not shift.any():
                continue
            name = norm.layer.name
            try:
                into[name] = self._move(norm, relu, shift)
                largest[name] = float(shift.max())
            except Refused as refused:
                left[name] = str(refused)
        return Absorption(
            model=self._rebuilt(model),
            layers=tuple(into),
            largest=tuple(largest.values()),
            into=tuple(into.values()),
            left=left,
        )

    def _move(self, norm: graphs.Node, relu: graphs.Node, shift: np.ndarray) -> tuple[str, ...]:
        """Moves the biases of one BatchNormalization; returns the layers that make up for them."""
        is_plain, limit = homogeneous.ceiling(relu.layer)
        if not is_plain:
            raise Refused(named(relu))
        if norm.layer.name in self._shifts.shared or self._graph.only_consumer(norm) is not relu:
            raise Refused(f"other calls of {norm.layer.name!r}, or of what it returns")
        takers, limiters = self._shifts.readers(relu, shift)
        # A limit for each channel, behind it, is below that of the ReLU.
        is_reached = limit is not None and relu in limits.reached(self._graph, [relu])
        if is_reached and not self._shifts.is_limited(relu):
            raise Refused(f"the limit of {named(relu)}")
        for node, own in limiters:
            (values,) = node.layer.get_weights()
            node.layer.set_weights([values - own])
        for node, own in takers:
            self._take(node, own)
        norm.layer.beta.assign(value(norm.layer.beta) - shift)
        return tuple(node.layer.name for node, _ in takers)

    def _take(self, node: graphs.Node, shift: np.ndarray) -> None:
        """Has a layer return what it did, of values that are lower by `shift`."""
        for link in self._shifts.links[id(node)]:
            shift = link.response(shift) if link.kernel else shift
        if link.norm is not None:
            link.norm.moving_mean.assign(value(link.norm.moving_mean) - shift)
        elif link.bias:
            bias = getattr(link.layer, link.bias)
            bias.assign(value(bias) + shift)
        else:
            self._biases[id(node)] = shift + self._biases.get(id(node), 0.0)

    def _rebuilt(self, model: keras.Model) -> keras.Model:
        copies = Copies()

        def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
            if id(node) not in self._biases:
                return copies.call(node, *args, **kwargs)
            weights = [*node.layer.get_weights(), self._biases[id(node)]]
            changes = {"use_bias": True}
            return copies.call(node, *args, changes=changes, weights=weights, **kwargs)

        return rebuild(model, self._graph, call)

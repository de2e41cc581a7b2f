"""`Network`: a model in which the scheme of each layer is open, and the grids for all of them."""

import dataclasses
import functools
from typing import Any

import keras

from kerasq import graph, plan
from kerasq.calibration.calibrate import observe
from kerasq.calibration.observer import Observer
from kerasq.grid import Grid
from kerasq.litert.operators import multiplies
from kerasq.quantize import quantize_model
from kerasq.quantizers.activations import ActivationQuantizer
from kerasq.quantizers.threshold import activation_quantizer
from kerasq.rule import Output
from kerasq.scales import FREE, SCALES
from kerasq.scheme import FLOAT_BITS, Scheme, check_overrides, overridden
from kerasq.targets import Target
from kerasq.wrappers import (
    Boundary,
    QuantizeWrapper,
    input_of,
    joins,
    on_grids,
    scales_of,
    sharing_ranges,
    wrapped,
)


class Network:
    """A model in which each layer may have any of several schemes.

    Args:
        model: the float model.
        schemes: those that a layer may have.
        overrides: as for `quantize_model`: what it says is "float" stays float here.
        target: as for `quantize_model`.
        granularity: as for `quantize_model`.
        scales: as for `quantize_model`.

    Attributes:
        model: the model quantized at int8: its layers are those of any scheme, since what differs
            between schemes are boundaries, which a run puts in itself.
        schemes: those that a layer may have.
        overrides: the schemes of the layers that `overrides` names.
        wrappers: the layers of `model` that have a grid.
        sources: by name of a wrapper, the user's layer, or input, that it belongs to.
        layers: names of the user's layers, and inputs, that have a scheme.
        readers: by name of a wrapper, the places in `layers` of those that multiply what it writes.
        joins: by name of a wrapper, the concatenation whose range it shares at equal widths
            (`kerasq.one_grid`).
        widths: the bits that a tensor may have.
        grids: by name of a wrapper, the grids of its output at each of `widths`.
        boundaries: by name of a tensor, the grids of a boundary behind it at each of `widths`.
    """

    def __init__(
        self,
        model: keras.Model,
        schemes: list[Scheme],
        overrides: dict | None,
        target: Target,
        granularity: str = "per_channel",
        scales: str = FREE,
    ) -> None:
        self.schemes = schemes
        check_overrides(overrides)
        self.overrides = _overridden(model, overrides)
        # Other schemes are for `allocate` to keep to; here a layer may have any.
        floats = {name: scheme for name, scheme in self.overrides.items() if scheme == "float"}
        device: dict[str, Any] = {"granularity": granularity, "scales": scales}
        self.model = quantize_model(model, overrides=floats, target=target, **device)
        self.wrappers = wrapped(self.model)
        self.sources = {x.name: name for x in self.wrappers if (name := _source(x)) is not None}
        self.layers = tuple(dict.fromkeys(self.sources.values()))
        self.readers = self._readers()
        self.joins = {x.name: join for join in self.wrappers for x in _sharing(join)}
        # Without those that no scheme has: each width costs an observer's range for each tensor.
        wide = [Scheme(weight_bits=8, activation_bits=16)] * any(map(is_wide, self.wrappers))
        used = {bits for x in [*schemes, *wide] for bits in (x.code_bits, x.activation_bits)}
        self.widths = sorted({8, *used} - {FLOAT_BITS})
        self.grids: dict[str, list[Grid]] = {}
        self.boundaries: dict[str, list[Grid]] = {}

    def _readers(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for wrapper in self.wrappers:
            for source in wrapper.producers if multiplies(wrapper.rule.operator) else ():
                assert source is not None  # Only boundaries read float values.
                place = self.layers.index(self.sources[wrapper.name])
                found.setdefault(written_by(source).name, []).append(place)
        return found

    def calibrate(self, samples: list, method: str | dict[str, Any] | Observer | None) -> None:
        """Sets all grids from batches; before the first run, which has them as constants."""
        own = {x.name: x for x in self.wrappers if x.output_quantizer is not None}
        # A boundary sees what its reader reads: of a split a part, of an average the averages.
        read = [
            graph.tensor_name(tensor)
            for wrapper in self.wrappers
            for tensor in on_grids(graph.origin(wrapper.output)[1])
            if not wrapper.reads_float
        ]
        widths = dict.fromkeys((*own, *read), self.widths)
        shared = self._shared()
        ranges, _ = observe(self.model, iter(samples), widths, method=method, shared=shared)
        # Few kinds for many tensors: making a layer takes longer than setting its range.
        is_power_of_two = SCALES[scales_of(self.model)].activations
        quantizer = functools.cache(functools.partial(_quantizer, is_power_of_two))

        def grids(name: str, **cut: Any) -> list[Grid]:
            return [_grid(quantizer(bits, **cut), ranges[name, bits]) for bits in self.widths]

        self.boundaries = {name: grids(name) for name in read}
        self.grids = {name: grids(name, relu=x.relu, limit=x.limit) for name, x in own.items()}

    def _shared(self) -> dict[str, list[str]]:
        """By name of a wrapper, those whose values its range holds in any choice of schemes."""
        # What a concatenation reads has a range of its own where that has another width.
        alone = {*self.joins, *(x.name for x in self.joins.values())}
        return {k: v for k, v in sharing_ranges(self.model).items() if k not in alone}

    def runs(self, layer: int, scheme: int) -> bool:
        """Whether the target has kernels for a layer at a scheme."""
        parts = [(x, part_scheme(x, self.schemes[scheme])) for x in self.parts(self.layers[layer])]
        return not any(
            plan.lacks(x.target, x.rule.operator_at(bits.code_bits, x.target), bits)
            for x, bits in parts
        )

    def parts(self, name: str) -> list[QuantizeWrapper]:
        """The wrappers that a user's layer became."""
        return [x for x in self.wrappers if self.sources.get(x.name) == name]


def _sharing(join: QuantizeWrapper) -> list[QuantizeWrapper]:
    """The wrappers that write onto the grid of a concatenation, which it shares with them."""
    if not joins(join):
        return []
    makers = [_maker(x) for x in join.producers if x is not None]
    return [x for x in makers if x.output_quantizer is join.output_quantizer]


def _maker(wrapper: QuantizeWrapper) -> QuantizeWrapper:
    """The wrapper that the grid of an output is from: its own, or that of its input."""
    is_own = wrapper.rule.output != Output.INPUT
    return wrapper if is_own or wrapper.producers[0] is None else _maker(wrapper.producers[0])


def is_wide(wrapper: QuantizeWrapper) -> bool:
    """Whether a part of a layer has codes of 16 bits, of a network whose layers have 8."""
    return not isinstance(wrapper, Boundary) and wrapper.bits.activation_bits == 16


def part_scheme(wrapper: QuantizeWrapper, scheme: Scheme) -> Scheme:
    """What a wrapper runs at where its layer has a scheme."""
    if not is_wide(wrapper) or scheme.activation_bits == FLOAT_BITS:
        return scheme
    return dataclasses.replace(scheme, activation_bits=16)


def written_by(wrapper: QuantizeWrapper) -> QuantizeWrapper:
    """The wrapper whose codes a boundary between layers puts on another grid; or a wrapper."""
    if isinstance(wrapper, Boundary) and wrapper.producers[0] is not None:
        return wrapper.producers[0]
    return wrapper


def _overridden(model: keras.Model, overrides: dict | None) -> dict[str, str]:
    """The schemes of the layers that `overrides` names."""
    # As `quantize_model` reads it: keys may name layers, and models, inside of others.
    whole = graph.read(model)
    layers = {x.name: x for x in whole.model.operations}
    models = {x.layer.name: x.source.models for x in whole.nodes}
    return overridden(overrides, layers, models)


def _source(wrapper: QuantizeWrapper) -> str | None:
    """The user's layer, or input, that a wrapper belongs to.

    None for a boundary behind a layer that stays float: its readers put the values on grids.
    """
    if not isinstance(wrapper, Boundary):
        return wrapper.source
    return str(input_of(wrapper).name) if wrapper.is_input else None


def _quantizer(is_power_of_two: bool, bits: int, **cut: Any) -> ActivationQuantizer:
    quantizer = activation_quantizer(bits, None, is_power_of_two, **cut)
    quantizer.build()
    return quantizer


def _grid(quantizer: ActivationQuantizer, ends: tuple[float, float]) -> Grid:
    """The grid that a tensor gets over an observed range."""
    quantizer.assign_range(*ends)
    return quantizer.grid().numpy()

"""`Network`: a model as one traced graph in which the scheme of each layer is an input."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, graph, plan, registry
from kerasq.calibration import calibrate as calibration
from kerasq.calibration.observers import Observer
from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.litert.operators import multiplies
from kerasq.quantize import quantize_model
from kerasq.quantizers import activations
from kerasq.scheme import FLOAT_BITS, Scheme, overridden, resolve
from kerasq.support.data import batch_spec
from kerasq.wrappers import Boundary, QuantizeWrapper, ranged


class Network:
    """The model as one traced graph in which each layer's scheme is an input.

    Attributes:
        model: the model quantized at int8, which holds the ranges.
        layers: names of the user's layers that have a scheme.
    """

    def __init__(self, model: keras.Model, schemes: list[Scheme], overrides: dict | None) -> None:
        self.schemes = schemes
        # Ranges of less than 8 bits, by width and name.
        self._narrow: dict[int, dict[str, tuple[float, float]]] = {}
        whole = graph.read(model)
        layers = {x.name: x for x in whole.model.operations}
        models = {x.layer.name: x.source.models for x in whole.nodes}
        self.settled = overridden(overrides, layers, models)
        floats = {name: scheme for name, scheme in self.settled.items() if scheme == "float"}
        self.model = quantize_model(model, overrides=floats)
        # By name of a wrapper, the user's layer that it belongs to. Boundaries behind layers that
        # stay float belong to none: their readers put the values on grids.
        self.owner: dict[str, str] = {}
        self.wrappers = [x for x in self.model.layers if isinstance(x, QuantizeWrapper)]
        for wrapper in self.wrappers:
            if isinstance(wrapper, Boundary) and wrapper.is_input:
                self.owner[wrapper.name] = str(graph.origin(wrapper.output)[1][0].name)
            elif not isinstance(wrapper, Boundary):
                self.owner[wrapper.name] = wrapper.owner
        self.layers = tuple(dict.fromkeys(self.owner.values()))
        # The widths that a tensor may have, and by width its place among them.
        self._widths = sorted({8, 16} | {x.activation_bits for x in schemes} - {FLOAT_BITS})
        self._places = [
            self._widths.index(width) if width in self._widths else 0
            for width in range(FLOAT_BITS + 1)
        ]
        # By name of a wrapper, the layers that multiply what it writes.
        self._readers: dict[str, list[int]] = {}
        for wrapper in self.wrappers:
            for source in wrapper.producers if multiplies(wrapper.rule.operator) else ():
                if source is not None:
                    index = self.layers.index(self.owner[wrapper.name])
                    self._readers.setdefault(source.name, []).append(index)
        signature = [batch_spec(self.model.input), tf.TensorSpec([len(self.layers)], tf.int32)]
        self.run = tf.function(self._run, input_signature=signature, autograph=False)

    def calibrate(self, samples: list, method: str | dict[str, Any] | Observer | None) -> None:
        """Sets the ranges from batches, before the first run: those at 8 bits, and narrow ones."""
        for bits in {x.activation_bits for x in self.schemes if x.activation_bits < 8}:
            calibration.calibrate_at(bits, self.model, iter(samples), method)
            self._narrow[bits] = {
                name: tuple(end.numpy() for end in quantizer.range())
                for name, quantizer in ranged(self.model).items()
            }
        calibration.calibrate(self.model, iter(samples), method=method)

    def runs(self, layer: int, scheme: int) -> bool:
        """Whether LiteRT has kernels for a layer at a scheme."""
        bits = self.schemes[scheme]
        parts = self.parts(self.layers[layer])
        return not any(plan.lacks(x.target, x.layer, x.rule.operator, bits) for x in parts)

    def parts(self, name: str) -> list[QuantizeWrapper]:
        """The wrappers that a user's layer became."""
        return [x for x in self.wrappers if self.owner.get(x.name) == name]

    def _run(self, x: Any, choice: tf.Tensor) -> list[tf.Tensor]:
        traced = _Traced(choice)

        def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.layer
            if not isinstance(layer, QuantizeWrapper):
                return graph.infer(layer, *args, **kwargs)
            traced.grids[layer.name] = self._grids(layer)
            if layer.name not in self.owner:  # A boundary behind a float layer.
                traced.widths[layer.name] = tf.constant(FLOAT_BITS)
                return args[0]
            own = choice[self.layers.index(self.owner[layer.name])]
            schemes = [*self.schemes, resolve("float")]
            written = [self._written_bits(layer, scheme, traced) for scheme in schemes]
            traced.widths[layer.name] = tf.gather(tf.stack(written), own)
            branches: list[Callable] = [
                lambda scheme=scheme: self._at(layer, args[0], scheme, traced) for scheme in schemes
            ]
            return tf.switch_case(own, branches)

        return graph.run(self.model, x, call)

    def _at(
        self, wrapper: QuantizeWrapper, inputs: Any, scheme: Scheme, traced: "_Traced"
    ) -> tf.Tensor:
        """A layer with inputs, weights, bias and output fake-quantized at `scheme`."""
        if scheme.activation_bits == FLOAT_BITS:
            return _clamp(wrapper, wrapper.run_float(inputs))
        widths = self._read_bits(wrapper, scheme, traced)
        sources = wrapper.producers
        flat = [
            x if source is None else self._read(x, source.name, width, traced)
            for x, source, width in zip(keras.tree.flatten(inputs), sources, widths, strict=True)
        ]
        inputs = flat if len(flat) > 1 else flat[0]
        if isinstance(wrapper, KernelWrapper):
            assert sources[0] is not None
            scale = self._grid_at(traced.grids[sources[0].name], widths[0])[0]
            y = wrapper.run_quantized(inputs, scheme.weight_bits, scale)
        else:
            y = wrapper.run_float(inputs)
        written = self._written_bits(wrapper, scheme, traced)
        return self._on_grid(_clamp(wrapper, y), traced.grids[wrapper.name], written)

    def _read_bits(
        self, wrapper: QuantizeWrapper, scheme: Scheme, traced: "_Traced"
    ) -> list[tf.Tensor]:
        """The width at which a layer at `scheme` reads each of its inputs."""
        read = [
            plan.read_bits(wrapper.rule.operator, scheme, width) for width in range(FLOAT_BITS + 1)
        ]
        return [
            tf.gather(read, FLOAT_BITS if source is None else traced.widths[source.name])
            for source in wrapper.producers
        ]

    def _written_bits(
        self, wrapper: QuantizeWrapper, scheme: Scheme, traced: "_Traced"
    ) -> tf.Tensor:
        """Bits of what a layer writes at `scheme`, where its readers have those of the choice."""
        if wrapper.rule.output == registry.Output.INPUT:
            return self._read_bits(wrapper, scheme, traced)[0]
        if wrapper.output_quantizer is None:
            return tf.constant(scheme.code_bits)
        narrow = tf.constant([x.activation_bits < 8 for x in self.schemes] + [False])
        readers = tf.constant(self._readers.get(wrapper.name, []), tf.int32)
        is_read_narrow = tf.reduce_any(tf.gather(narrow, tf.gather(traced.choice, readers)))
        wide, few = (plan.written_bits(scheme, wrapper.is_cut, x) for x in (False, True))
        return tf.where(is_read_narrow, few, wide)

    def _read(self, x: tf.Tensor, source: str, width: tf.Tensor, traced: "_Traced") -> tf.Tensor:
        """What a layer reads at `width`: the values as they are, or behind a boundary."""
        return tf.cond(
            tf.equal(width, traced.widths[source]),
            lambda: x,
            lambda: self._on_grid(x, traced.grids[source], width),
        )

    def _grid(self, wrapper: QuantizeWrapper, bits: int) -> Grid:
        """The grid of a wrapper's output, or of a boundary behind it, at another width."""
        if wrapper.rule.grids:
            fixed = wrapper.rule.grids[16 if bits > 8 else 8]
            if bits >= 8:
                return fixed
            return fake_quant.grid_from_range(tf.constant(fixed.low), tf.constant(fixed.high), bits)
        if wrapper.output_quantizer is None:
            (source, *_) = wrapper.producers
            assert source is not None  # Only boundaries read float values, and have ranges.
            return self._grid(source, bits)
        own = self._narrow.get(bits, {}).get(wrapper.name)
        low, high = own or wrapper.output_quantizer.range()
        if bits > 8:
            low, high = activations.symmetric(tf.maximum(-low, high), bits)
        return fake_quant.grid_from_range(low, high, bits)

    def _grids(self, wrapper: QuantizeWrapper) -> tf.Tensor:
        """Scale, zero point, lowest and highest code of `_grid` at each width, a row a width."""
        rows = [
            [grid.scale, tf.cast(grid.zero_point, tf.float32), float(grid.qmin), float(grid.qmax)]
            for grid in (self._grid(wrapper, width) for width in self._widths)
        ]
        return tf.stack(rows)

    def _grid_at(self, grids: tf.Tensor, bits: tf.Tensor) -> list[tf.Tensor]:
        """The row of `_grids` for a width."""
        return tf.unstack(tf.gather(grids, tf.gather(self._places, bits)))

    def _on_grid(self, x: tf.Tensor, grids: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
        scale, zero_point, low, high = self._grid_at(grids, bits)
        codes = tf.clip_by_value(tf.round(x / scale) + zero_point, low, high)
        return (codes - zero_point) * scale


class _Traced:
    """What is known, while the graph is traced, of the wrappers that have been called.

    Attributes:
        choice: the index of each layer's scheme.
        widths: by name of a wrapper, the bits of what it writes.
        grids: by name of a wrapper, its grids at all widths.
    """

    def __init__(self, choice: tf.Tensor) -> None:
        self.choice = choice
        self.widths: dict[str, tf.Tensor] = {}
        self.grids: dict[str, tf.Tensor] = {}


def _clamp(wrapper: QuantizeWrapper, y: tf.Tensor) -> tf.Tensor:
    quantizer = wrapper.output_quantizer
    return y if quantizer is None else quantizer.clamp(y)

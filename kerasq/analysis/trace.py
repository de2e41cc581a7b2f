"""`traced`: a network as one TensorFlow function of a batch and the scheme of each layer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph, kernels, plan
from kerasq.analysis.network import Network, part_scheme, written_by
from kerasq.grid import Grid
from kerasq.layers import Constant, Requantize
from kerasq.litert.operators import OPERATORS
from kerasq.rule import Output
from kerasq.scheme import FLOAT_BITS, Scheme, resolve
from kerasq.support.data import batch_spec
from kerasq.wrappers import Boundary, QuantizeWrapper, on_grids, parted

_FLOAT = resolve("float")


def traced(network: Network) -> Callable[[Any, tf.Tensor], list[tf.Tensor]]:
    """The function `run(x, choice)` that gives the outputs of a calibrated network.

    `choice`, int32 of shape `(layers,)`, has the index of each layer's scheme among those of the
    network; the one behind the last stands for float. The outputs are those of the model that
    `quantize_model` and `calibrate` make with these schemes: the same kernels between the same
    grids.
    """
    signature = [batch_spec(network.model.input), tf.TensorSpec([len(network.layers)], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def run(x: Any, choice: tf.Tensor) -> list[tf.Tensor]:
        return graph.run(network.model, x, _Trace(network, choice).call)

    return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Format:
    """How a tensor lies on integers, which depends on the schemes.

    Attributes:
        bits: the width, int32 of shape `()`; `FLOAT_BITS` for float values.
        figures: scale, zero point and number of levels of the grid, float32 of shape `(3,)`; of
            float values they mean nothing.
    """

    bits: tf.Tensor
    figures: tf.Tensor

    def grid(self, code_bits: int) -> Grid:
        """The grid to read on, where codes are known to have 8 bits, or 16."""
        # Without its levels: kernels look no further than where an input's codes begin, and the
        # first index of a table must be known when it is traced.
        return Grid(scale=self.figures[0], zero_point=self.figures[1], bits=code_bits)

    def cut(self, code_bits: int) -> Grid:
        """The grid to write on, whose ends cut."""
        return dataclasses.replace(self.grid(code_bits), levels=self.figures[2])


def _figures(grid: Grid) -> np.ndarray:
    """See `_Format`."""
    levels = grid.levels or 2**grid.bits
    return np.array([grid.scale, grid.zero_point, levels], np.float32)


def _fixed(bits: int, grid: Grid | None = None) -> _Format:
    """A format that no scheme of another layer changes."""
    figures = np.ones(3, np.float32) if grid is None else _figures(grid)
    return _Format(bits=tf.constant(bits), figures=tf.constant(figures))


class _Trace:
    """One run of a network while it is traced.

    Attributes:
        network: what runs.
        formats: by name of a wrapper, what it writes.
        known: the widths that tensors may have.
    """

    def __init__(self, network: Network, choice: tf.Tensor) -> None:
        self.network = network
        self.formats: dict[str, _Format] = {}
        self.known = (*network.widths, FLOAT_BITS)
        self._choice = choice
        self._schemes = [*network.schemes, _FLOAT]

    def call(self, node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        """What a call returns at the schemes of the choice."""
        layer = node.layer
        if not isinstance(layer, QuantizeWrapper):
            return graph.infer(layer, *args, **kwargs)
        if layer.name not in self.network.sources:
            self.formats[layer.name] = self._behind(layer)
            return args[0]
        place = self.network.layers.index(self.network.sources[layer.name])
        cases = [self._at(node, scheme, args[0]) for scheme in self._schemes_of(layer, place)]
        own = self._choice[place]
        # Outside of the branches: a tensor made in one cannot be read from another's.
        self.formats[layer.name] = _Format(
            bits=tf.gather([written.bits for written, _ in cases], own),
            figures=tf.gather([written.figures for written, _ in cases], own),
        )
        return tf.switch_case(own, [run for _, run in cases])

    def _schemes_of(self, layer: QuantizeWrapper, place: int) -> list[Scheme]:
        """What a part of a layer runs at, at each scheme of the layer."""
        # No choice has a scheme without a kernel, but there must be something to trace.
        runs = [self.network.runs(place, j) for j in range(len(self.network.schemes))]
        schemes = [x if ok else _FLOAT for x, ok in zip(self._schemes, [*runs, True], strict=True)]
        return [part_scheme(layer, x) for x in schemes]

    def _behind(self, boundary: Boundary) -> _Format:
        """How values lie behind a boundary: as in front of it.

        Which width it has, and whether it is there at all, is a matter of its readers, which put
        the values on grids themselves.
        """
        return self.formats.get(written_by(boundary).name, _fixed(FLOAT_BITS))

    def _at(self, node: graph.Node, scheme: Scheme, x: Any) -> tuple[_Format, Callable]:
        """How a wrapper writes at a scheme, and the function that computes it."""
        if scheme == _FLOAT:
            return _fixed(FLOAT_BITS), lambda: node.layer.float_output(x)
        call = _Call(self, node, scheme)
        return call.writes, lambda: call.run(x)

    def written(self, wrapper: QuantizeWrapper, bits: tf.Tensor) -> tf.Tensor:
        """The figures of the grid that a wrapper writes on at a width."""
        own = self.pick(self.network.grids[wrapper.name], bits)
        join = self.network.joins.get(wrapper.name)
        if join is None:
            return own
        place = self.network.layers.index(self.network.sources[join.name])
        widths = [part_scheme(join, x).code_bits for x in self._schemes]
        is_shared = tf.equal(bits, tf.gather(widths, self._choice[place]))
        return tf.where(is_shared, self.written(join, bits), own)

    def pick(self, grids: list[Grid], bits: tf.Tensor) -> tf.Tensor:
        """The figures of that of a tensor's grids, one a width of the network, of a width."""
        widths = self.network.widths
        places = [widths.index(x) if x in widths else 0 for x in range(FLOAT_BITS + 1)]
        return tf.gather(np.stack([_figures(grid) for grid in grids]), tf.gather(places, bits))

    def is_read_narrow(self, wrapper: QuantizeWrapper) -> tf.Tensor:
        """Whether a layer that multiplies reads what a wrapper writes at fewer than 8 bits."""
        narrow = tf.constant([x.activation_bits < 8 for x in self._schemes])
        readers = tf.constant(self.network.readers.get(wrapper.name, []), tf.int32)
        return tf.reduce_any(tf.gather(narrow, tf.gather(self._choice, readers)))


class _Call:
    """One call of a wrapper at an integer scheme.

    Attributes:
        writes: how it writes.
    """

    def __init__(self, trace: _Trace, node: graph.Node, scheme: Scheme) -> None:
        self._trace = trace
        self._wrapper = node.layer
        self._scheme = scheme
        self._sources: list[_Format] = []
        self._boundaries: list[Grid] = []
        # Constants are rounded when the file is written, inputs of the model by the first layer.
        if not self._wrapper.reads_float and not isinstance(self._wrapper.layer, Constant):
            self._sources = [trace.formats[x.name] for x in self._wrapper.producers]
            self._boundaries = [self._boundary(x) for x in on_grids(node.inputs)]
        self._reads = list(map(self._read, self._sources, self._boundaries))
        self.writes = self._writes()

    @functools.cached_property
    def _rule(self) -> list[int]:
        """By the width of a tensor, that at which it is read."""
        # For all of them, since the width is a tensor, and the rule of widths is Python.
        operator = self._wrapper.rule.operator
        return [plan.read_bits(operator, self._scheme, x) for x in range(FLOAT_BITS + 1)]

    def _boundary(self, tensor: keras.KerasTensor) -> Grid:
        """The grid of the boundary behind a tensor, for where there is one."""
        network = self._trace.network
        wanted = plan.wanted_bits(self._wrapper.rule.operator, self._scheme)
        return network.boundaries[graph.tensor_name(tensor)][network.widths.index(wanted)]

    def _read(self, source: _Format, boundary: Grid) -> _Format:
        """How an input is read: as it is, or behind a boundary."""
        bits = tf.gather(self._rule, source.bits)
        is_same = tf.equal(bits, source.bits)
        return _Format(bits=bits, figures=tf.where(is_same, source.figures, _figures(boundary)))

    def _writes(self) -> _Format:
        wrapper, scheme = self._wrapper, self._scheme
        if wrapper.rule.output == Output.INPUT:
            return self._reads[0]
        if wrapper.rule.derive is not None:
            read = self._reads[0].grid(scheme.code_bits)
            grid = wrapper.rule.derive(wrapper.layer, read, wrapper.target)
            figures = tf.stack([grid.scale, 0.0, 2.0**scheme.code_bits])
            return _Format(bits=tf.constant(scheme.code_bits), figures=figures)
        if wrapper.output_quantizer is None:
            return _fixed(scheme.code_bits, wrapper.rule.grids[scheme.code_bits])
        # Inputs of a model are int8 or int16; who reads fewer bits has a boundary.
        is_cut = wrapper.is_cut and not isinstance(wrapper, Boundary)
        wide, few = (plan.written_bits(scheme, is_cut, x) for x in (False, True))
        bits = tf.where(self._trace.is_read_narrow(wrapper), few, wide)
        return _Format(bits=bits, figures=self._trace.written(wrapper, bits))

    def run(self, inputs: Any) -> tf.Tensor:
        """What the wrapper returns, as real values."""
        bits = self._scheme.code_bits
        conditions, values = parted(keras.tree.flatten(inputs), len(self._sources))
        out, grids = self.writes.cut(bits), [x.grid(bits) for x in self._reads]
        if self._reads:
            values = self._read_values(values)
        if self._reads and self._reads_any_width():
            # These read 8 and 16 bits at once, where others know from the scheme what they read.
            pairs = zip(values, self._reads, strict=True)
            values = [self._quantized(x, read, out, {FLOAT_BITS}) for x, read in pairs]
            grids = [out] * len(values)
        inputs = [*conditions, *values]
        inputs = inputs if len(inputs) > 1 else inputs[0]
        return self._wrapper.run_on_grids(inputs, grids, out, self._scheme)

    def _reads_any_width(self) -> bool:
        """Whether the operator takes codes of 8 and of 16 bits, and puts them on its grid first."""
        operator = self._wrapper.rule.operator
        is_one_grid = operator in OPERATORS and OPERATORS[operator].one_grid
        return is_one_grid or isinstance(self._wrapper.layer, Requantize)

    def _read_values(self, values: list) -> list:
        """The inputs, each behind its boundary where that is read."""
        as_is = {x for x in self._trace.known if self._rule[x] == x}
        each = zip(values, self._sources, self._boundaries, strict=True)
        return [self._quantized(*x, as_is) for x in each]

    def _quantized(self, x: tf.Tensor, now: _Format, out: Grid, as_is: set[int]) -> tf.Tensor:
        """Values behind a QUANTIZE; those of widths that are to stay as they are without one."""

        def quantize(bits: int) -> tf.Tensor:
            grids = [] if bits == FLOAT_BITS else [now.grid(bits)]
            codes = kernels.centre(x, grids[0]) if grids else x
            identity = keras.layers.Identity()
            return self._wrapper.target.run("QUANTIZE", identity, [codes], grids, out) * out.scale

        # There is a kernel for each kind of codes; those that cannot occur are not traced.
        known = self._trace.known
        kinds = sorted({max(8, bits) for bits in known if bits not in as_is})
        cases = [
            1 + kinds.index(max(8, bits)) if bits in known and bits not in as_is else 0
            for bits in range(FLOAT_BITS + 1)
        ]
        branches = [lambda: x, *(functools.partial(quantize, bits) for bits in kinds)]
        return tf.switch_case(tf.gather(cases, now.bits), branches) if kinds else x

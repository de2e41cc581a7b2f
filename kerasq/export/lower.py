"""Second half of the export: a QDQ flatbuffer to integer kernels.

An operator whose inputs come from DEQUANTIZE and whose output goes to QUANTIZE becomes the integer
operator on the quantized tensors. `Q(DQ(x))` onto another grid becomes one QUANTIZE. Biases become
int32 at `s_in * s_w[c]`. Grids are carried through operators that only move values, forwards and
backwards (the converter merges equal fake-quants on both sides of a reshape).
"""

import dataclasses
import itertools
import tempfile
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export import flatbuffer
from kerasq.export.convert import tags_of
from kerasq.export.flatbuffer import Op
from kerasq.grid import Grid

# Least operator versions for int8, from LiteRT's op_version.cc. FULLY_CONNECTED 12 is the first
# with per-channel weights: an older runtime must refuse the file, not misread it.
VERSIONS = {
    Op.ADD: 2,
    Op.AVERAGE_POOL_2D: 2,
    Op.CONCATENATION: 2,
    Op.CONV_2D: 3,
    Op.DEPTHWISE_CONV_2D: 3,
    Op.FULLY_CONNECTED: 12,
    Op.LOGISTIC: 2,
    Op.MAX_POOL_2D: 2,
    Op.PAD: 2,
    Op.REDUCE_MAX: 2,
    Op.RELU: 2,
    Op.RELU6: 2,
    Op.RESHAPE: 1,
    Op.SOFTMAX: 2,
    Op.TANH: 2,
}
# Operators that only move or pick values: their output has the grid of their input.
SAME_GRID = {Op.MAX_POOL_2D, Op.PAD, Op.REDUCE_MAX, Op.RESHAPE}
# What the constant second input of an operator is called.
PARAMETERS = {Op.PAD: "paddings", Op.REDUCE_MAX: "axes", Op.RESHAPE: "shape"}
WEIGHTED = {Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.FULLY_CONNECTED}
# XNNPACK's delegate refuses to load a model with a multiplier s_in * s_w / s_out of 256 or more.
LARGEST_MULTIPLIER = 256.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary:
    """What the finished model looks like from outside.

    Attributes:
        input_dtype: "int8", "uint8" or "float32".
        output_dtype: the same choice.
        input_names: names of the inputs in the signature, and of their tensors.
        output_names: names of the outputs in the signature.
        output_layers: the layers that make them, which their tensors are named for.
    """

    input_dtype: str
    output_dtype: str
    input_names: list[str]
    output_names: list[str]
    output_layers: list[str]


def lower(content: bytes, tagged: list[tuple[str, Grid | None]], boundary: Boundary) -> bytes:
    """Lowers a QDQ flatbuffer.

    Args:
        content: what `convert` returned.
        tagged: readable name and exact grid by the tag in a tensor's name.
        boundary: types and names of inputs and outputs.

    Raises:
        ValueError: where an operator has no integer form, or its scales do not fit the kernel.
        RuntimeError: where the flatbuffer has no signature.
    """
    model = flatbuffer.read(content)
    if not model.signatureDefs:
        raise RuntimeError(
            "The converter must write a signature. Received: a flatbuffer without one, as happens "
            f"when its temporary files cannot be written. Make room in {tempfile.gettempdir()!r}."
        )
    return _Lowering(model, tagged, boundary).run()


class _Lowering:
    """The pass over one model: QDQ operators in, integer operators out, in the same order."""

    def __init__(
        self, model: schema.ModelT, tagged: list[tuple[str, Grid | None]], boundary: Boundary
    ) -> None:
        self.model = model
        self.boundary = boundary
        self.graph = model.subgraphs[0]
        self.tagged = tagged
        self.consumers: dict[int, list[schema.OperatorT]] = {}
        for op in self.graph.operators:
            for i in op.inputs:
                self.consumers.setdefault(int(i), []).append(op)
        # The integer tensor that stands for a tensor of the QDQ graph, and the grid of each.
        self.codes: dict[int, int] = {}
        self.grids: dict[int, Grid] = {}
        self.ops: list[schema.OperatorT] = []

    def run(self) -> bytes:
        handlers = {
            Op.QUANTIZE: self._quantize,
            Op.DEQUANTIZE: self._dequantize,
            Op.TRANSPOSE: self._transpose,
            Op.RESHAPE: self._reshape,
        }
        for op in self.graph.operators:
            handlers.get(flatbuffer.op_code(self.model, op), self._compute)(op)
        self._inputs()
        self._outputs()
        self.graph.operators = self.ops
        self._distinct_names()
        flatbuffer.prune(self.model)
        self.model.description = b"kerasq"
        return flatbuffer.write(self.model)

    # Tensors.

    def _tensor(self, index: int) -> schema.TensorT:
        return self.graph.tensors[index]

    def _name(self, index: int) -> str:
        return self._tensor(index).name.decode()

    def _layer_name(self, index: int) -> str:
        """The name of the layer that a tensor of the QDQ graph comes from."""
        tags = tags_of(self._name(index))
        return self.tagged[tags[0]][0] if tags else self._name(index)

    def _constant(self, index: int) -> np.ndarray | None:
        return flatbuffer.constant(self.model, self._tensor(index))

    def _add(self, name: str, shape: Any, grid: Grid, values: np.ndarray | None) -> int:
        index = flatbuffer.new_tensor(self.model, name, shape, grid.dtype, grid, values)
        self.grids[index] = grid
        return index

    def _quantized(self, index: int) -> tuple[str, Grid]:
        """Name and grid of a tensor that a QUANTIZE of the QDQ graph writes."""
        found = flatbuffer.grid_of(self._tensor(index))
        tagged = [self.tagged[tag] for tag in tags_of(self._name(index))]
        name, grid = next(((n, grid) for n, grid in tagged if grid is not None), ("", None))
        if found is None or grid is None:
            raise ValueError(
                "Every QUANTIZE must come from a fake-quant op of kerasq's. "
                f"Received: tensor {self._name(index)!r}."
            )
        agrees = np.allclose(found.scale, grid.scale, rtol=1e-4) and np.array_equal(
            np.broadcast_to(found.zero_point, np.shape(grid.scale)), grid.zero_point
        )
        if not agrees:
            raise ValueError(
                f"The converter must keep the grid of {name!r}, {grid}. Received: {found}."
            )
        return name, dataclasses.replace(grid, axis=found.axis)

    # Handlers, one an operator of the QDQ graph.

    def _quantize(self, op: schema.OperatorT) -> None:
        source, target = int(op.inputs[0]), int(op.outputs[0])
        if target in self.codes:
            return
        name, grid = self._quantized(target)
        values = self._constant(source)
        shape = self._tensor(source).shape
        if values is not None:
            self.codes[target] = self._add(name, shape, grid, grid.quantize(values))
        elif source in self.codes:
            self.codes[target] = self._requantized(self.codes[source], name, grid)
        else:
            self.codes[target] = self._add(name, shape, grid, None)
            self._emit(Op.QUANTIZE, [source], [self.codes[target]], version=1)

    def _dequantize(self, op: schema.OperatorT) -> None:
        self.codes[int(op.outputs[0])] = self.codes[int(op.inputs[0])]

    def _transpose(self, op: schema.OperatorT) -> None:
        """Folds the transpose of a constant; the quantized axis moves along."""
        source = self.codes[int(op.inputs[0])]
        values, permutation = self._constant(source), self._constant(int(op.inputs[1]))
        if values is None or permutation is None:
            raise self._no_integer_form(op)
        order, grid = permutation.tolist(), self.grids[source]
        axis = None if grid.axis is None else order.index(grid.axis % len(order))
        values = values.transpose(order)
        self.codes[int(op.outputs[0])] = self._add(
            self._name(source), values.shape, dataclasses.replace(grid, axis=axis), values
        )

    def _reshape(self, op: schema.OperatorT) -> None:
        """Folds the reshape of a constant: how the converter transposes a kernel of one unit."""
        source = self.codes.get(int(op.inputs[0]), -1)
        values = self._constant(source) if source >= 0 else None
        if values is None:
            self._compute(op)
            return
        output = int(op.outputs[0])
        values = values.reshape(self._tensor(output).shape)
        # All its axes but one have length 1, so that one scale serves every value.
        grid = dataclasses.replace(self.grids[source], axis=0)
        self.codes[output] = self._add(self._name(source), values.shape, grid, values)

    def _compute(self, op: schema.OperatorT) -> None:
        code = flatbuffer.op_code(self.model, op)
        if code in SAME_GRID and int(op.inputs[0]) in self.graph.inputs:
            self._quantize_early(op)
        inputs = [self.codes.get(int(i), int(i)) for i in op.inputs]
        if code not in VERSIONS or inputs[0] not in self.grids or len(op.outputs) != 1:
            raise self._no_integer_form(op)
        if code in SAME_GRID and getattr(op.builtinOptions, "fusedActivationFunction", False):
            self._pool_then_relu(op, inputs)
            return
        output = self._output(op, code, self.grids[inputs[0]])
        grid, name = self.grids[output], self._name(output)
        if code == Op.CONCATENATION:
            inputs = [
                self._requantized(tensor, f"{name}/input_{i}", grid)
                for i, tensor in enumerate(inputs)
            ]
        if code in WEIGHTED:
            inputs[2:] = [self._bias(op, inputs, name, grid)]
        self._finish(op, inputs, output)

    def _finish(self, op: schema.OperatorT, inputs: list[int], output: int) -> None:
        """Puts an operator of the QDQ graph onto integer tensors."""
        code, name = flatbuffer.op_code(self.model, op), self._name(output)
        op.inputs, op.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        for i, tensor in enumerate(inputs[1:], start=1):
            if tensor not in self.grids and code not in WEIGHTED:
                self._tensor(tensor).name = f"{name}/{PARAMETERS.get(code, f'input_{i}')}".encode()
        version = max(VERSIONS[code], self.model.operatorCodes[op.opcodeIndex].version)
        op.opcodeIndex = flatbuffer.code_index(self.model, code, version)
        self.ops.append(op)

    def _pool_then_relu(self, op: schema.OperatorT, inputs: list[int]) -> None:
        """Undoes the fusion of a ReLU that has a grid of its own into the pooling before it."""
        real = int(op.outputs[0])
        (target,) = (int(q.outputs[0]) for q in self._readers(real, Op.QUANTIZE))
        name, grid = self._quantized(target)
        pool = next(self.tagged[tag][0] for tag in reversed(tags_of(self._name(real))))
        shape = self._tensor(real).shape
        pooled = self._add(pool, shape, self.grids[inputs[0]], None)
        op.builtinOptions.fusedActivationFunction = 0
        self._finish(op, inputs, pooled)
        self.codes[real] = self.codes[target] = self._add(name, shape, grid, None)
        self._emit(Op.RELU, [pooled], [self.codes[target]], VERSIONS[Op.RELU])

    def _quantize_early(self, op: schema.OperatorT) -> None:
        """Quantizes an input of the graph that the converter reshapes before its fake-quant."""
        source = int(op.inputs[0])
        if source not in self.codes:
            name, grid = self._grid_ahead(op, int(op.outputs[0]))
            self.codes[source] = self._add(name, self._tensor(source).shape, grid, None)
            self._emit(Op.QUANTIZE, [source], [self.codes[source]], version=1)

    def _output(self, op: schema.OperatorT, code: int, input_grid: Grid) -> int:
        """The integer tensor that `op` writes; the QUANTIZE behind it then has nothing to do."""
        real = int(op.outputs[0])
        targets = [int(q.outputs[0]) for q in self._readers(real, Op.QUANTIZE)]
        if targets and not (code in SAME_GRID and self._differs(targets[0], input_grid)):
            grid = self._quantized(targets[0])[1]
        elif code in SAME_GRID:
            grid = input_grid
        else:
            grid = self._grid_ahead(op, real)[1]
        name = self._layer_name(real)
        output = self._add(name, self._tensor(real).shape, grid, None)
        self.codes[real] = output
        for target in targets:
            if not self._differs(target, grid):
                self.codes[target] = output
        return output

    def _readers(self, tensor: int, code: int) -> list[schema.OperatorT]:
        return [
            op
            for op in self.consumers.get(tensor, [])
            if flatbuffer.op_code(self.model, op) == code
        ]

    def _differs(self, target: int, grid: Grid) -> bool:
        return not self._quantized(target)[1].equals(grid)

    def _grid_ahead(self, op: schema.OperatorT, real: int) -> tuple[str, Grid]:
        """Name and grid of the QUANTIZE behind the operators ahead that only move values."""
        for reader in self.consumers.get(real, []):
            code = flatbuffer.op_code(self.model, reader)
            if code == Op.QUANTIZE:
                return self._quantized(int(reader.outputs[0]))
            if code in SAME_GRID:
                return self._grid_ahead(op, int(reader.outputs[0]))
        raise self._no_integer_form(op)

    def _requantized(self, tensor: int, name: str, grid: Grid) -> int:
        if self.grids[tensor].equals(grid):
            return tensor
        output = self._add(name, self._tensor(tensor).shape, grid, None)
        self._emit(Op.QUANTIZE, [tensor], [output], version=2)
        return output

    def _bias(self, op: schema.OperatorT, inputs: list[int], name: str, out: Grid) -> int:
        """The bias as int32 (int64 under int16 activations) at `s_in * s_w[c]`."""
        grid, weights = self.grids[inputs[0]], self.grids[inputs[1]]
        scale = np.float32(grid.scale) * np.asarray(weights.scale, np.float32)
        if (scale / out.scale >= LARGEST_MULTIPLIER).any():
            raise ValueError(
                f"The output range of layer {name!r} must not be far narrower than its "
                f"accumulators: s_in * s_w / s_out must be below {LARGEST_MULTIPLIER}. Received: "
                f"{np.max(scale / out.scale):.3g}. The layer's output was (almost) constant in "
                "the data seen: calibrate on other data, or remove the layer."
            )
        has_bias = len(op.inputs) > 2 and op.inputs[2] >= 0
        constant = self._constant(int(op.inputs[2])) if has_bias else None
        values = np.zeros(scale.shape) if constant is None else constant
        dtype = np.int64 if grid.bits > 8 else np.int32
        bias = Grid(scale=scale, zero_point=np.zeros(scale.shape, np.int64), axis=0)
        return flatbuffer.new_tensor(
            self.model, f"{name}/bias", values.shape, dtype, bias, np.rint(values / scale)
        )

    def _emit(self, code: int, inputs: list[int], outputs: list[int], version: int) -> None:
        self.ops.append(flatbuffer.new_op(self.model, code, inputs, outputs, version))

    def _no_integer_form(self, op: schema.OperatorT) -> ValueError:
        kind = flatbuffer.op_name(flatbuffer.op_code(self.model, op))
        return ValueError(
            "Every operator must have an integer form. Received: "
            f"{kind} at {self._name(int(op.outputs[0]))!r}, which the lowering does not know."
        )

    # The outside.

    def _inputs(self) -> None:
        """Gives inputs their type: the QUANTIZE behind one goes, or reads unsigned codes."""
        signature, boundary = self.model.signatureDefs[0], self.boundary
        ends = {end.name.decode(): end for end in signature.inputs}
        signature.inputs = [ends[f"input_{i}"] for i in range(len(ends))]
        for end, name in zip(signature.inputs, boundary.input_names, strict=True):
            real, end.name = end.tensorIndex, name.encode()
            self._tensor(real).name = name.encode()
            if boundary.input_dtype == "float32":
                continue
            op = next(op for op in self.ops if int(op.inputs[0]) == real)
            code = int(op.outputs[0])
            end.tensorIndex = self._typed(code, name, boundary.input_dtype)
            if boundary.input_dtype == "int8":
                self.ops = [o for o in self.ops if o is not op]
                self._tensor(code).name = name.encode()
            else:
                op.inputs = np.array([end.tensorIndex], np.int32)
                op.opcodeIndex = flatbuffer.code_index(self.model, Op.QUANTIZE, 2)
        self.graph.inputs = [end.tensorIndex for end in signature.inputs]

    def _outputs(self) -> None:
        """Gives outputs their type, through a QUANTIZE or DEQUANTIZE where it is not int8."""
        signature, boundary = self.model.signatureDefs[0], self.boundary
        ends = {end.name.decode(): end for end in signature.outputs}
        signature.outputs = [ends[f"output_{i}"] for i in range(len(ends))]
        named: set[int] = set()
        for end, name, layer in zip(
            signature.outputs, boundary.output_names, boundary.output_layers, strict=True
        ):
            code, end.name = self.codes[end.tensorIndex], name.encode()
            if code not in named:
                self._tensor(code).name = layer.encode()
                named.add(code)
            dtype = boundary.output_dtype
            end.tensorIndex = self._typed(code, f"{layer}_{dtype}", dtype)
            if end.tensorIndex != code:
                kind = Op.DEQUANTIZE if dtype == "float32" else Op.QUANTIZE
                self._emit(kind, [code], [end.tensorIndex], version=2)
        self.graph.outputs = [end.tensorIndex for end in signature.outputs]

    def _distinct_names(self) -> None:
        """Numbers names that several tensors have; the last operator's output keeps it as it is."""
        outputs = [int(i) for op in reversed(self.ops) for i in op.outputs]
        others = [int(i) for op in self.ops for i in op.inputs if i >= 0]
        taken: set[str] = set()
        for index in dict.fromkeys(outputs + others):
            name = self._name(index)
            numbered = (f"{name}/{i}" for i in itertools.count(1))
            distinct = next(n for n in itertools.chain([name], numbered) if n not in taken)
            taken.add(distinct)
            self._tensor(index).name = distinct.encode()

    def _typed(self, code: int, name: str, dtype: str) -> int:
        """`code` itself, or a new tensor of the same shape that is float or has unsigned codes."""
        if dtype == "int8":
            return code
        grid, shape = self.grids[code], self._tensor(code).shape
        if dtype == "float32":
            return flatbuffer.new_tensor(self.model, name, shape, np.float32)
        unsigned = dataclasses.replace(grid, zero_point=grid.zero_point + 128)
        return flatbuffer.new_tensor(self.model, name, shape, np.uint8, unsigned)

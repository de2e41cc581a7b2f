"""Second half of the export: a marked float flatbuffer to integer kernels.

An operator whose output goes to the marker of its own layer becomes the integer operator, on the
grids that the marks give. A marker that quantizes becomes QUANTIZE, from float or another grid.
Biases become int32, or int64 under int16 activations, at `s_in * s_w[c]`. Operators that only move
values keep the grid of their input. All others stay float, behind DEQUANTIZE.
"""

import dataclasses
import tempfile

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export import signature
from kerasq.export.builder import Builder
from kerasq.export.convert import MARKER, Converted
from kerasq.export.marks import (
    Computed,
    Constant,
    Emitted,
    LookedUp,
    Made,
    Mark,
    Named,
    OfOperator,
    Quantized,
    Separator,
    Weighted,
)
from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.operators import OPERATORS


def lower(converted: Converted, wanted: signature.Signature) -> bytes:
    """Lowers a marked float flatbuffer.

    Args:
        converted: what `convert` returned.
        wanted: types and names of inputs and outputs.

    Raises:
        ValueError: where an operator has no integer form, or its scales do not fit the kernel.
        RuntimeError: where the flatbuffer has no signature.
    """
    model = flatbuffer.read(converted.content)
    if not model.signatureDefs:
        raise RuntimeError(
            "The converter must write a signature. Received: a flatbuffer without one, as happens "
            f"when its temporary files cannot be written. Make room in {tempfile.gettempdir()!r}."
        )
    return _Lowering(model, converted).run(wanted)


class _Lowering(Builder):
    """The pass over one model: marked operators in, integer operators out, in the same order."""

    def __init__(self, model: schema.ModelT, converted: Converted) -> None:
        super().__init__(model, converted.target)
        self.converted = converted
        self.marks: dict[int, OfOperator] = {}  # by the tensor before a marker
        for op in self.graph.operators:
            own = self._mark(op) if self._is_marker(op) else None
            if isinstance(own, OfOperator):
                mark = self.marks.setdefault(int(op.inputs[0]), own)
                if mark is not own:
                    raise RuntimeError(
                        "The converter must keep layers apart. Received: one tensor for "
                        f"{mark.name!r} and {own.name!r}."
                    )
        for op in reversed(self.graph.operators):
            self._move_mark(op)
        # The integer tensor, or the float one, that stands for a tensor of the marked graph; and
        # the float tensor that has the values of an integer one.
        self.codes: dict[int, int] = {}
        self.reals: dict[int, int] = {}
        self.dequantized: dict[int, int] = {}

    def run(self, wanted: signature.Signature) -> bytes:
        for op in self.graph.operators:
            mark = self.marks.get(int(op.outputs[0])) if len(op.outputs) == 1 else None
            if self._is_marker(op):
                self._pass(op)
            elif isinstance(mark, Computed | Weighted):
                self._compute(op, mark)
            elif (grid := self._moved(op)) is not None:
                name = mark.name if mark is not None else self._layer_name(op)
                self._compute(op, Computed(name=name, grid=grid))
            else:
                self._keep(op)
        signature.set_inputs(self, wanted)
        signature.set_outputs(self, wanted, self.reals | self.codes)
        self._drop_unread()
        self.graph.operators = self.ops
        signature.distinct_names(self)
        flatbuffer.prune(self.model)
        self.model.description = b"kerasq"
        return flatbuffer.write(self.model)

    def _move_mark(self, op: schema.OperatorT) -> None:
        """Moves a layer's mark in front of operators that only change its shape.

        The converter puts a RESHAPE behind the operator of some layers, such as Conv1D.
        """
        mark = self.marks.get(int(op.outputs[0])) if len(op.outputs) == 1 else None
        if isinstance(mark, Computed | Weighted) and self._copies(op):
            self.marks[int(op.outputs[0])] = Named(name=mark.name)
            inner = f"{mark.name}/{self.op(op).lower()}_input"
            self.marks[int(op.inputs[0])] = dataclasses.replace(mark, name=inner)

    def _is_marker(self, op: schema.OperatorT) -> bool:
        entry = self.model.operatorCodes[op.opcodeIndex]
        return entry.customCode is not None and entry.customCode.decode() == MARKER

    def _mark(self, op: schema.OperatorT) -> Mark:
        number = self.constant(int(op.inputs[1]))
        assert number is not None
        return self.converted.marks[int(number)]

    def _copies(self, op: schema.OperatorT) -> bool:
        kind = self.op(op)
        return kind in OPERATORS and OPERATORS[kind].copies

    def _data(self, op: schema.OperatorT) -> int:
        """The tensor whose values an operator takes."""
        kind = self.op(op)
        return int(op.inputs[OPERATORS[kind].data if kind in OPERATORS else 0])

    def _moved(self, op: schema.OperatorT) -> Grid | None:
        """The one grid of the values that an operator only moves; None for any other."""
        kind = self.op(op)
        if kind not in OPERATORS:
            return None
        data = op.inputs if OPERATORS[kind].one_grid else [self._data(op)] * self._copies(op)
        grids = [self.grids.get(self.codes.get(int(i), -1)) for i in data]
        first = grids[0] if grids else None
        is_one = first is not None and all(x is not None and x.equals(first) for x in grids)
        return first if is_one else None

    def _layer_name(self, op: schema.OperatorT) -> str:
        """The layer and kind of an operator inside a layer."""
        name = self.name(int(op.outputs[0]))
        return f"{self.converted.layer_of(name) or name}/{self.op(op).lower()}"

    def _pass(self, op: schema.OperatorT) -> None:
        """A marker: the tensor behind it is that before it, or is made from that."""
        source, target, mark = int(op.inputs[0]), int(op.outputs[0]), self._mark(op)
        if isinstance(mark, Made):
            self.codes[target] = self._made(source, mark)
        elif source in self.codes:
            self.codes[target] = self.codes[source]
        else:
            self.reals[target] = self.reals.get(source, source)
            if not isinstance(mark, Separator):
                self.rename(self.reals[target], mark.name)

    def _made(self, source: int, mark: Made) -> int:
        """The integer tensor that a mark asks for, from the tensor before the marker."""
        match mark:
            case Constant():
                return self.add(mark.name, mark.codes.shape, mark.grid, mark.codes)
            case Quantized():
                return self._quantize(source, mark.name, mark.grid)
        if source not in self.codes:
            raise ValueError(
                f"Layer {mark.name!r} must read integer codes. Received: a float tensor."
            )
        code = self.add(mark.name, self.tensor(source).shape, mark.grid)
        match mark:
            case Emitted():
                self.emit(mark.op, [self.codes[source]], [code], options=mark.options)
            case LookedUp():
                self._look_up(self.codes[source], code, mark.table)
        return code

    def _quantize(self, source: int, name: str, grid: Grid) -> int:
        """The tensor on a grid.

        QUANTIZE cuts where int8 ends. A grid of few levels takes two: the first, of the same scale,
        has the lower end of the range there, the second the upper one.
        """
        given = self.grids[self.codes[source]] if source in self.codes else None
        if grid.levels is not None and not (given and given.low >= grid.low):
            full = dataclasses.replace(grid, levels=None)
            full = dataclasses.replace(full, zero_point=grid.zero_point - grid.qmin + full.qmin)
            return self.requantized(self._quantize(source, f"{name}/lower_end", full), name, grid)
        if source in self.codes:
            return self.requantized(self.codes[source], name, grid)
        code = self.add(name, self.tensor(source).shape, grid)
        if not self._picks(self.reals.get(source, source), code, grid):
            version = 1 if grid.bits <= 8 else 2
            self.emit("QUANTIZE", [self.reals.get(source, source)], [code], version)
        return code

    def _picks(self, real: int, code: int, grid: Grid) -> bool:
        """Makes `code` by GATHER from integers where `real` is GATHER from float constants.

        Such as Embedding: picking quantized rows is quantizing picked ones.
        """
        for op in self.ops:
            if real in op.outputs and self.op(op) == "GATHER":
                table = self.constant(int(op.inputs[0]))
                if table is None or table.dtype != np.float32:
                    return False
                codes = grid.quantize(table)
                source = self.add(f"{self.name(code)}/table", table.shape, grid, codes)
                kind, options = type(op.builtinOptions).__name__[:-1], vars(op.builtinOptions)
                self.emit("GATHER", [source, int(op.inputs[1])], [code], options=(kind, options))
                return True
        return False

    def _drop_unread(self) -> None:
        """Drops operators that nothing reads: GATHER from floats whose integers are read."""
        read = {int(i) for op in self.ops for i in op.inputs} | {*map(int, self.graph.outputs)}
        self.ops = [op for op in self.ops if read & {*map(int, op.outputs)}]

    def _look_up(self, source: int, target: int, table: np.ndarray) -> None:
        """`target = table[source + 128]`: codes are indices once they are not negative."""
        name, shape = self.name(target), self.tensor(target).shape
        signed, index = (
            flatbuffer.new_tensor(self.model, f"{name}/{part}", shape, np.int32)
            for part in ("code", "index")
        )
        types = {"inDataType": schema.TensorType.INT8, "outDataType": schema.TensorType.INT32}
        self.emit("CAST", [source], [signed], options=("CastOptions", types))
        lowest = np.array(-self.grids[source].qmin, np.int32)
        offset = flatbuffer.new_tensor(self.model, f"{name}/offset", (), np.int32, values=lowest)
        self.emit("ADD", [signed, offset], [index], 1, ("AddOptions", {}))
        codes = self.add(f"{name}/table", table.shape, self.grids[target], table)
        self.emit("GATHER", [codes, index], [target], options=("GatherOptions", {}))

    def _keep(self, op: schema.OperatorT) -> None:
        """Keeps a float operator; what it reads in codes is dequantized."""
        if self.op(op) == "CUSTOM":
            raise self._no_such_operator(op)
        op.inputs = np.array([self._real(int(i)) for i in op.inputs], np.int32)
        for i in map(int, op.outputs):
            self.rename(i, self._layer_name(op))
        self.ops.append(op)

    def _real(self, index: int) -> int:
        """The float tensor that stands for a tensor of the marked graph."""
        if index not in self.codes:
            return self.reals.get(index, index)
        code = self.codes[index]
        if code not in self.dequantized:
            name, shape = f"{self.name(code)}_float", self.tensor(code).shape
            real = flatbuffer.new_tensor(self.model, name, shape, np.float32)
            self.emit("DEQUANTIZE", [code], [real])
            self.dequantized[code] = real
        return self.dequantized[code]

    def _compute(self, op: schema.OperatorT, mark: Computed | Weighted) -> None:
        """Puts an operator of the marked graph onto integer tensors."""
        kind = self.op(op)
        inputs = [self.codes.get(int(i), int(i)) for i in op.inputs]
        data = self._data(op)
        if kind not in OPERATORS or data not in self.codes:
            raise self._no_integer_form(op, mark)
        if OPERATORS[kind].one_grid:
            inputs = [
                self.requantized(tensor, f"{mark.name}/input_{i}", mark.grid)
                for i, tensor in enumerate(inputs)
            ]
        weight_bits = 8
        if OPERATORS[kind].channels is not None:
            weight_bits = self._weights(op, inputs, mark)
        else:
            self._name_parameters(kind, inputs, mark.name)
        if kind in ("ADD", "SUB"):
            op.builtinOptions.potScaleInt16 = False  # Scales are any real numbers.
        entry = self.model.operatorCodes[op.opcodeIndex]
        version = self.target.version(kind, weight_bits, self.grids[self.codes[data]].bits)
        op.opcodeIndex = flatbuffer.code_index(
            self.model, entry.builtinCode, max(version, entry.version)
        )
        op.inputs = np.array(inputs, np.int32)
        op.outputs = np.array(self._outputs(op, mark), np.int32)
        self.ops.append(op)

    def _name_parameters(self, kind: str, inputs: list[int], name: str) -> None:
        """Names the constants that an operator reads beside its values, such as axes."""
        for i, tensor in enumerate(inputs):
            if tensor not in self.grids and tensor >= 0:
                self.rename(tensor, f"{name}/{OPERATORS[kind].parameter or f'input_{i}'}")

    def _outputs(self, op: schema.OperatorT, mark: Computed | Weighted) -> list[int]:
        """Integer tensors for the outputs of an operator, each named for its own layer."""
        outputs = []
        for i, old in enumerate(map(int, op.outputs)):
            own = self.marks.get(old, mark).name if len(op.outputs) > 1 else mark.name
            name = own if i == 0 or old in self.marks else f"{own}:{i}"
            outputs.append(self.add(name, self.tensor(old).shape, mark.grid))
            self.codes[old] = outputs[-1]
        return outputs

    def _weights(self, op: schema.OperatorT, inputs: list[int], mark: Computed | Weighted) -> int:
        """Replaces float kernel and bias by codes; returns the kernel's bits.

        The bias is int32 at `s_in * s_w[c]`, or int64 under int16 activations.
        """
        kind, grid = self.op(op), self.grids[self.codes[self._data(op)]]
        values = self.constant(inputs[1])
        if values is None or not isinstance(mark, Weighted):
            raise self._no_integer_form(op, mark)
        kernel = dataclasses.replace(mark.kernel, axis=OPERATORS[kind].channels)
        scale = np.float32(grid.scale) * np.asarray(kernel.scale, np.float32)
        largest = self.target.limits.multiplier
        if (scale / mark.grid.scale >= largest).any():
            raise ValueError(
                f"The output range of layer {mark.name!r} must not be far narrower than its "
                f"accumulators: s_in * s_w / s_out must be below {largest}. Received: "
                f"{np.max(scale / mark.grid.scale):.3g}. The layer's output was (almost) constant "
                "in the data seen: calibrate on other data, remove the layer, or train again at a "
                "lower learning rate if training has diverged."
            )
        inputs[1] = self.add(f"{mark.name}/kernel", values.shape, kernel, kernel.quantize(values))
        if self.target.packs(kind, kernel.bits, grid.bits):
            flatbuffer.pack_constant(self.model, self.tensor(inputs[1]))
        dtype = np.int64 if grid.bits > 8 else np.int32
        bias = Grid(scale=scale, zero_point=np.zeros(scale.shape, np.int64), axis=0)
        name, shape = f"{mark.name}/bias", mark.bias.shape
        inputs[max(2, OPERATORS[kind].data + 1) :] = [
            flatbuffer.new_tensor(self.model, name, shape, dtype, bias, mark.bias)
        ]
        return kernel.bits

    def _no_integer_form(self, op: schema.OperatorT, mark: OfOperator) -> ValueError:
        return ValueError(
            "Every operator must have an integer form. Received: "
            f"{self.op(op)} at {mark.name!r}, which the lowering does not know."
        )

    def _no_such_operator(self, op: schema.OperatorT) -> ValueError:
        code = self.model.operatorCodes[op.opcodeIndex].customCode.decode()
        name = self.name(int(op.outputs[0]))
        return ValueError(
            "Every float operator must be one that LiteRT has. Received: TensorFlow's "
            f"{code} in layer {self.converted.layer_of(name) or name!r}. Replace the layer."
        )

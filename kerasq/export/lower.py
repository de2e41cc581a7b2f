"""Second half of the export: a marked float flatbuffer to integer kernels.

An operator whose output goes to the marker of its own layer becomes the integer operator, on the
grids that the marks give. A marker that quantizes becomes QUANTIZE, from float or another grid.
Biases become int32, or int64 under int16 activations, at `s_in * s_w[c]`. Operators that only move
values keep the grid of their input. All others stay float, behind DEQUANTIZE.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import assert_never

from ai_edge_litert import schema_py_generated as schema

from kerasq.export import dead_channels, operators, recurrence, signature, substitutes, weights
from kerasq.export.builder import Builder
from kerasq.export.convert import MARKER, Converted
from kerasq.export.lookup import look_up
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
    Recurrent,
    Separator,
    Weighted,
)
from kerasq.export.quantization import drop_unread, quantized
from kerasq.litert import flatbuffer, metadata, preprocessing, removed
from kerasq.litert.runtimes import RUNTIMES

_LOG = logging.getLogger(__name__)


def lower(
    converted: Converted,
    wanted: signature.Signature,
    values: Callable[[], dead_channels.Values] | None = None,
) -> bytes:
    """Lowers a marked float flatbuffer.

    Why an operator stays in float is logged at level DEBUG.

    Args:
        converted: what `convert` returned.
        wanted: types and names of inputs and outputs.
        values: gives what constant channels are, so that those that change nothing can go; None to
            keep all channels.

    Raises:
        ValueError: where an operator has no integer form.
    """
    model = flatbuffer.read(converted.content)
    signature.add(model)
    return _Lowering(model, converted).run(wanted, values)


def _made(converted: Converted) -> metadata.Made:
    """What a file says of itself."""
    from kerasq import __version__  # It is the last thing that kerasq defines.

    target = converted.target
    version = RUNTIMES[target.runtime].version() if target.runtime else ""
    return metadata.Made(
        target=target.name,
        runtime=target.runtime or "",
        version=version,
        machines=list(target.machines),
        away=target.away,
        kerasq=__version__,
        schemes=converted.schemes,
        training=converted.training,
    )


class _Lowering:
    """The pass over one model: marked operators in, integer operators out, in the same order."""

    def __init__(self, model: schema.ModelT, converted: Converted) -> None:
        self.builder = Builder(model, converted)
        self.converted = converted
        for op in self.builder.graph.operators:
            if self._is_marker(op):
                self._note(int(op.inputs[0]), self._mark(op))
        # From the end on, so that a mark moves over several operators in a row.
        for op in reversed(self.builder.graph.operators):
            self._move_mark(op)

    def run(
        self, wanted: signature.Signature, values: Callable[[], dead_channels.Values] | None
    ) -> bytes:
        builder = self.builder
        # Operators stand in order of execution, so what one reads has been rewritten before.
        for op in builder.graph.operators:
            if self._is_marker(op):
                self._replace_marker(op)
            else:
                self._rewrite(op)
        signature.set_inputs(builder, wanted)
        signature.set_outputs(builder, wanted, builder.reals | builder.codes)
        # The ends have taken QUANTIZE away by now, and given tensors their last names.
        drop_unread(builder)
        operators.check_axes(builder)
        builder.graph.operators = builder.ops
        signature.distinct_names(builder)
        flatbuffer.prune(builder.model)
        lacking = dead_channels.remove(builder.model, builder.target, values) if values else {}
        builder.model.description = b"kerasq"
        preprocessing.write(builder.model, signature.preprocessing(wanted))
        metadata.put_made(builder.model, _made(self.converted))
        removed.write(builder.model, lacking)
        return flatbuffer.write(builder.model)

    def _is_marker(self, op: schema.OperatorT) -> bool:
        entry = self.builder.model.operatorCodes[op.opcodeIndex]
        return entry.customCode is not None and entry.customCode.decode() == MARKER

    def _mark(self, op: schema.OperatorT) -> Mark:
        """The mark that a marker leads to."""
        number = self.builder.constant(int(op.inputs[1]))
        assert number is not None
        return self.converted.marks[int(number.flat[0])]

    def _note(self, tensor: int, mark: Mark) -> None:
        """Notes a mark on the tensor that it tells of."""
        if not isinstance(mark, OfOperator):
            return
        noted = self.builder.marks.setdefault(tensor, mark)
        # The converter merges equal operators on equal inputs, if nothing keeps them apart.
        if noted is not mark:
            raise RuntimeError(
                "The converter must keep layers apart. Received: one tensor for "
                f"{noted.name!r} and {mark.name!r}."
            )

    def _mark_of(self, op: schema.OperatorT) -> OfOperator | None:
        """The mark of what an operator computes, if it has one output."""
        return self.builder.marks.get(int(op.outputs[0])) if len(op.outputs) == 1 else None

    def _move_mark(self, op: schema.OperatorT) -> None:
        """Moves a layer's mark in front of operators that only change its shape.

        The converter puts a RESHAPE behind the operator of some layers, such as Conv1D.
        """
        mark, kind = self._mark_of(op), self.builder.op(op)
        known = self.builder.target.operators.get(kind)
        if isinstance(mark, Computed | Weighted) and known is not None and known.pass_through:
            self.builder.marks[int(op.outputs[0])] = Named(name=mark.name)
            # Several operators, as behind FrameConv2D, need no longer name.
            is_moved = mark.name.endswith("_input")
            name = mark.name if is_moved else f"{mark.name}/{kind.lower()}_input"
            self.builder.marks[int(op.inputs[0])] = dataclasses.replace(mark, name=name)

    def _rewrite(self, op: schema.OperatorT) -> None:
        """An operator that the converter wrote: on integers where its mark says so."""
        builder, mark = self.builder, self._mark_of(op)
        match mark:
            case Computed():
                reason = operators.compute(builder, op, mark)
            case Weighted():
                reason = weights.compute(builder, op, mark)
            case Recurrent():
                reason = recurrence.compute(builder, op, mark)
            case Named() | None:
                self._keep(op)
                return
            case _:
                assert_never(mark)
        if reason:
            raise ValueError(
                "Every operator must have an integer form. Received: "
                f"{builder.op(op)} at {mark.name!r}: {reason}. Give the layer the scheme 'float', "
                "or register it with the operator that it converts to."
            )

    def _keep(self, op: schema.OperatorT) -> None:
        """An operator of which no mark says what it computes: moved along, or float."""
        # A float layer that only moves codes costs nothing on them, and DEQUANTIZE would.
        not_moved = operators.move(self.builder, op)
        if not not_moved or not operators.compare(self.builder, op):
            return
        not_kept = operators.keep(self.builder, op)
        layer = self.builder.layer(int(op.outputs[0]))
        if not_kept:
            raise ValueError(
                "Every float operator must be one that LiteRT has. Received: "
                f"layer {layer!r}: {not_kept}. Replace the layer."
            )
        _LOG.debug("%s in layer %s stays float: %s", self.builder.op(op), layer, not_moved)

    def _replace_marker(self, op: schema.OperatorT) -> None:
        """A marker: the tensor behind it is that before it, or is made from that."""
        builder = self.builder
        source, target, mark = int(op.inputs[0]), int(op.outputs[0]), self._mark(op)
        if isinstance(mark, Made):
            builder.codes[target] = self._made(source, mark)
        elif source in builder.codes:
            builder.codes[target] = builder.codes[source]
        else:
            builder.reals[target] = builder.real(source)
            # A separator stands between two operators of one layer, and names nothing.
            if not isinstance(mark, Separator):
                builder.rename(builder.reals[target], mark.name)

    def _made(self, source: int, mark: Made) -> int:
        """The integer tensor that a mark asks for, from the tensor before the marker."""
        builder = self.builder
        match mark:
            case Constant():
                # The tensor before the marker is any input: only the marker's place counts.
                return builder.add(mark.name, mark.codes.shape, mark.grid, mark.codes)
            case Quantized():
                return quantized(builder, source, mark)
            case LookedUp() | Emitted():
                return self._made_from_codes(source, mark)
            case _:
                assert_never(mark)

    def _made_from_codes(self, source: int, mark: LookedUp | Emitted) -> int:
        builder = self.builder
        if source not in builder.codes:
            raise ValueError(
                f"Layer {mark.name!r} must read integer codes. Received: the float tensor "
                f"{builder.name(source)!r}. Quantize the layer before it, or keep both in float."
            )
        read = builder.codes[source]
        match mark:
            case LookedUp():
                code = builder.add(mark.name, builder.tensor(source).shape, mark.grid)
                look_up(builder, read, code, mark.table)
                return code
            case Emitted():
                return substitutes.emit(builder, read, mark)
            case _:
                assert_never(mark)

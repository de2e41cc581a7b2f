"""`TFLiteModel`: a .tflite file in the LiteRT interpreter."""

import collections
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.operators import KERNEL_OPS, OPERATORS
from kerasq.support import tables
from kerasq.support.files import write_whole
from kerasq.support.progress import track

KERNELS = {"optimized": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}
BOUNDARY_OPS = ("QUANTIZE", "DEQUANTIZE")


class Tensor(NamedTuple):
    """A tensor of the file.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: the type that NumPy holds it in: packed INT4 codes are int8 there.
        grid: its grid in signed codes, also where `dtype` is uint8; None where it is float.
        type: the type in the file, such as "int4".
        bytes: the size of a constant; 0 where it is computed.
        codes: what the integers of a constant are, where fewer bits would hold them: "4-bit codes"
            (up to 5), "powers of two", "3 values a channel"; else empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    grid: Grid | None
    type: str
    bytes: int
    codes: str

    @property
    def constant(self) -> bool:
        """Whether the file holds its values."""
        return self.bytes > 0


class Op(NamedTuple):
    """An operator of the file.

    Attributes:
        name: the operator, such as "CONV_2D".
        inputs: names of the tensors that it reads, "" for an optional one that is absent.
        outputs: names of the tensors that it writes.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TFLiteModel:
    """Runs a .tflite model on LiteRT's kernels.

    Args:
        path_or_bytes: the file's path, or its content.
        num_threads: threads of the interpreter; None for LiteRT's default.
        kernels: "optimized" (LiteRT's default, with XNNPACK) or "reference" (portable kernels,
            which round as TFLite Micro does).

    Attributes:
        content: the file's bytes.
        kernels: the kernels it runs on.
        num_threads: the threads it runs on.
        ops, tensors: the file's operators and tensors.
        inputs, outputs: the tensors at its ends.
        input_names, output_names: what the signature calls them.

    Raises:
        FileNotFoundError: where there is no file at the path.
        ValueError: for unknown `kernels`, or content that the interpreter does not load.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike | bytes,
        num_threads: int | None = None,
        *,
        kernels: str = "optimized",
    ) -> None:
        if kernels not in KERNELS:
            raise ValueError(
                f"`kernels` must be one of {list(KERNELS)}. Received: kernels={kernels!r}."
            )
        if isinstance(path_or_bytes, (bytes, bytearray)):
            self.content = bytes(path_or_bytes)
        else:
            self.content = pathlib.Path(path_or_bytes).read_bytes()
        self.kernels = kernels
        self.num_threads = num_threads
        try:
            self._interpreter = Interpreter(
                model_content=self.content,
                num_threads=num_threads,
                experimental_op_resolver_type=KERNELS[kernels],
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"The model must load in the LiteRT interpreter ({kernels} kernels). "
                f"Received: {len(self.content)} bytes that it refuses: {error}"
            ) from error
        self._read(flatbuffer.read(self.content))

    def _read(self, model: Any) -> None:
        graph = model.subgraphs[0]
        self._constants = sum(len(x.data) for x in model.buffers if x.data is not None)
        self.tensors = [
            Tensor(
                name=tensor.name.decode(),
                shape=tuple(int(n) for n in tensor.shape),
                dtype=np.dtype(flatbuffer.NUMPY_TYPES[tensor.type]),
                grid=flatbuffer.grid_of(tensor),
                type=flatbuffer.type_name(tensor.type),
                bytes=flatbuffer.byte_count(model, tensor),
                codes=_form(model, tensor),
            )
            for tensor in graph.tensors
        ]
        self.ops = [
            Op(
                flatbuffer.op_name(flatbuffer.op_code(model, op)),
                tuple(self.tensors[i].name for i in op.inputs if i >= 0),
                tuple(self.tensors[i].name for i in op.outputs),
            )
            for op in graph.operators
        ]
        self.inputs = [self.tensors[i] for i in graph.inputs]
        self.outputs = [self.tensors[i] for i in graph.outputs]
        signature = model.signatureDefs[0] if model.signatureDefs else None
        self.input_names = _names(self.inputs, graph.inputs, signature and signature.inputs)
        self.output_names = _names(self.outputs, graph.outputs, signature and signature.outputs)

    @property
    def float_ops(self) -> list[Op]:
        """Operators that compute in float; empty for an integer-only model.

        QUANTIZE and DEQUANTIZE at a float input or output are not counted.
        """
        floats = {tensor.name for tensor in self.tensors if tensor.dtype.kind == "f"}
        return [
            op
            for op in self.ops
            if op.name not in BOUNDARY_OPS and floats & {*op.inputs, *op.outputs}
        ]

    def __str__(self) -> str:
        """The export report: operators with their types, inputs and outputs, then `remarks`."""
        by_name = {tensor.name: tensor for tensor in self.tensors}
        rows = [["output", "operator", "type", "weights", "bytes"]]
        for op in self.ops:
            output, kernel = by_name[op.outputs[0]], _kernel(op, by_name)
            stored = size = ""
            if kernel is not None:
                stored = f"{kernel.type}, {kernel.codes}" if kernel.codes else kernel.type
                size = f"{kernel.bytes:,}"
            rows.append([output.name, op.name, output.type, stored, size])
        lines = [
            tables.plain(rows, left=4),
            "",
            f"Input {', '.join(map(_end, self.inputs))}.",
            f"Output {', '.join(map(_end, self.outputs))}.",
            f"{len(self.content):,} bytes, {self._constants:,} of them weights and constants.",
        ]
        lines += [] if self.float_ops else ["Integer only."]
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """What a user should know: what computes in float, which weights are stored too wide."""
        by_name = {tensor.name: tensor for tensor in self.tensors}
        floats: dict[str, list[str]] = {}
        unpacked = []
        for op in self.float_ops:
            floats.setdefault(op.outputs[0].split("/")[0], []).append(op.name)
        for op in self.ops:
            kernel = _kernel(op, by_name)
            if kernel is not None and kernel.codes:
                data = by_name[op.inputs[OPERATORS[op.name].data]]
                codes = f"{kernel.codes} as {kernel.type}"
                unpacked.append(f"{op.outputs[0]} ({codes}, {op.name} on {data.type})")
        lines = []
        if floats:
            layers = [f"{layer} ({_counted(ops)})" for layer, ops in floats.items()]
            lines.append(f"Float operators: {'; '.join(layers)}.")
        if unpacked:
            lines.append(
                "Weights stored wider than they are, for want of a narrower kernel: "
                f"{'; '.join(unpacked)}."
            )
        return lines

    def constant(self, name: str) -> np.ndarray:
        """The codes, or floats, of a tensor that the file holds, such as "conv/kernel".

        Raises:
            ValueError: for a name that no such tensor has.
        """
        model = flatbuffer.read(self.content)
        held = [tensor.name for tensor in self.tensors if tensor.constant]
        if name not in held:
            raise ValueError(f"`name` must be one of {held}. Received: name={name!r}.")
        names = [tensor.name for tensor in self.tensors]
        values = flatbuffer.constant(model, model.subgraphs[0].tensors[names.index(name)])
        assert values is not None
        return values

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file, whole or not at all."""
        write_whole(path, self.content)

    def predict(self, x: Any, dequantize: bool = True) -> Any:
        """Runs any number of samples.

        Args:
            x: real values, one array, or a list or dict (by name) of one array an input; with
                the samples along the first axis. Integer inputs of the model are quantized here.
            dequantize: whether to return real values (float32) rather than raw codes.

        Returns:
            One array, or a dict of arrays by name where the model has several outputs.

        Raises:
            ValueError: where `x` does not have the model's inputs, or their shapes.
        """
        columns = self.columns(x)
        chunks = [[out.copy() for out in outs] for outs in self.calls(columns)]
        arrays = []
        for i, tensor in enumerate(self.outputs):
            empty = np.zeros((0, *tensor.shape[1:]), tensor.dtype)
            codes = np.concatenate([empty, *(chunk[i] for chunk in chunks)])[: len(columns[0])]
            arrays.append(real(codes, tensor) if dequantize else codes)
        if len(arrays) == 1:
            return arrays[0]
        return dict(zip(self.output_names, arrays, strict=True))

    def columns(self, x: Any) -> list[np.ndarray]:
        """One array an input, checked; `x` as in `predict`."""
        if isinstance(x, dict) and any(
            isinstance(leaf, (dict, list, tuple)) for leaf in x.values()
        ):
            x = keras.tree.flatten(x)
        if isinstance(x, dict):
            missing = [name for name in self.input_names if name not in x]
            if missing:
                raise ValueError(f"`x` must hold every input. Received: no {missing} in {list(x)}.")
            x = [x[name] for name in self.input_names]
        leaves = list(x) if isinstance(x, (list, tuple)) and len(self.inputs) == len(x) else [x]
        columns = [np.asarray(leaf) for leaf in leaves]
        wanted = [tensor.shape[1:] for tensor in self.inputs]
        if [column.shape[1:] for column in columns] != wanted:
            raise ValueError(
                f"`x` must have sample shapes {wanted} (inputs {self.input_names}). "
                f"Received: arrays of shape {[column.shape for column in columns]}. "
                "The first axis is that of the samples."
            )
        if not all(np.isfinite(column).all() for column in columns if column.dtype.kind == "f"):
            raise ValueError("`x` must be finite. Received: NaN or infinity.")
        if len({len(column) for column in columns}) > 1:
            raise ValueError(
                "`x` must have equally many samples for every input. "
                f"Received: {[len(column) for column in columns]}."
            )
        return columns

    def calls(self, columns: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Outputs of one call after the other; the last one is filled up with its last sample."""
        details = self._interpreter.get_input_details()
        outputs = [detail["index"] for detail in self._interpreter.get_output_details()]
        batch = self.inputs[0].shape[0]
        starts = range(0, len(columns[0]), batch)
        for start in track(starts, len(starts), "call"):
            for column, tensor, detail in zip(columns, self.inputs, details, strict=True):
                values = column[start : start + batch]
                if len(values) < batch:
                    values = np.concatenate([values, [values[-1]] * (batch - len(values))])
                self._interpreter.set_tensor(detail["index"], _codes(values, tensor))
            self._interpreter.invoke()
            yield [self._interpreter.get_tensor(index) for index in outputs]

    def evaluate(self, data: Any, metrics: list | dict[str, list]) -> dict[str, float]:
        """Keras metrics of the model's predictions.

        Args:
            data: `(x, y)` arrays, or an iterable of such batches. Where the model has several
                outputs, `y` is a dict by their names, or a list in their order.
            metrics: Keras metrics, or their names; "accuracy" picks the kind that fits `y`. A
                dict of such lists by output name where the model has several outputs.

        Returns:
            The result of each metric, by name; "<output>_<metric>" with several outputs.

        Raises:
            ValueError: where there is no data, or `metrics` does not fit the outputs.
        """
        several = len(self.outputs) > 1
        if several != isinstance(metrics, dict) or (several and {*metrics} - {*self.output_names}):
            raise ValueError(
                "`metrics` must be a list, or a dict by output where the model has several. "
                f"Received: metrics={metrics!r} for outputs {self.output_names}."
            )
        is_arrays = isinstance(data, tuple) and not isinstance(data[0], tuple)
        results: dict[str, keras.Metric] = {}
        for x, y, *_ in [data] if is_arrays else data:
            predicted = self.predict(x)
            if not isinstance(metrics, dict):
                _update(results, "", metrics, np.asarray(y), predicted)
                continue
            truth = y if isinstance(y, dict) else dict(zip(self.output_names, y, strict=True))
            for output, wanted in metrics.items():
                truths = np.asarray(truth[output])
                _update(results, f"{output}_", wanted, truths, predicted[output])
        if not results:
            raise ValueError("`data` must hold at least one batch. Received: none.")
        return {name: float(metric.result()) for name, metric in results.items()}


def _form(model: Any, tensor: Any) -> str:
    """See `Tensor.codes`."""
    values, grid = flatbuffer.constant(model, tensor), flatbuffer.grid_of(tensor)
    bits = {"int4": 4, "int8": 8}.get(flatbuffer.type_name(tensor.type), 0)
    if not bits or values is None or grid is None or not values.any():
        return ""
    sizes = np.abs(values.astype(np.int64))
    needed = int(max(values.max(), -1 - values.min(), 0)).bit_length() + 1
    if needed <= 5:
        return f"{needed}-bit codes" if needed < bits else ""
    if (sizes & (sizes - 1) == 0).all():
        return "powers of two"
    if grid.axis is None:
        return ""
    channels = np.sort(np.moveaxis(values, grid.axis, 0).reshape(values.shape[grid.axis], -1))
    most = 1 + np.count_nonzero(np.diff(channels), axis=1).max()
    return f"{most} values a channel" if most <= 3 and channels.shape[1] > 3 else ""


def _end(tensor: Tensor) -> str:
    """An input or output: its name and type, and scale and zero point."""
    if tensor.grid is None:
        return f"{tensor.name}: {tensor.type}"
    zero_point = int(tensor.grid.zero_point) + (128 if tensor.dtype == np.uint8 else 0)
    scale = str(np.float32(tensor.grid.scale))  # As many digits as float32 needs.
    return f"{tensor.name}: {tensor.type}, scale {scale}, zero point {zero_point}"


def _counted(names: list[str]) -> str:
    """Each name once, with the number of times it is there."""
    counts = collections.Counter(names)
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


def _kernel(op: Op, tensors: dict[str, Tensor]) -> Tensor | None:
    """The constant that an operator multiplies by."""
    found = [tensors[name] for name in op.inputs[1:2] if op.name in KERNEL_OPS]
    return found[0] if found and found[0].constant else None


def _update(results: dict, prefix: str, metrics: Any, y: np.ndarray, predicted: np.ndarray) -> None:
    """Adds a batch to each metric; the first batch makes those that were given by name."""
    for metric in metrics:
        name = prefix + (metric if isinstance(metric, str) else metric.name)
        if name not in results:
            results[name] = keras_metric(metric, y, predicted)
        results[name].update_state(y, predicted)


def _names(tensors: list[Tensor], indices: Any, ends: Any) -> list[str]:
    """The names that the signature gives to inputs or outputs; without one, the tensors' own."""
    if not ends:
        return [tensor.name for tensor in tensors]
    unused = list(ends)
    names = []
    for index in indices:
        end = next(end for end in unused if end.tensorIndex == index)
        unused.remove(end)
        names.append(end.name.decode())
    return names


def _codes(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """What the input tensor takes for real values."""
    if tensor.dtype.kind == "f" or tensor.grid is None:
        return values.astype(tensor.dtype)
    codes = tensor.grid.quantize(values)
    return codes if tensor.dtype != np.uint8 else (codes.astype(np.int16) + 128).astype(np.uint8)


def real(codes: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The real values of an output tensor's codes."""
    if tensor.dtype.kind == "f" or tensor.grid is None:
        return codes
    signed = codes if tensor.dtype != np.uint8 else codes.astype(np.int16) - 128
    return tensor.grid.dequantize(signed)


def keras_metric(metric: Any, y: np.ndarray, predicted: np.ndarray) -> keras.Metric:
    """The metric object; "accuracy" is resolved by shapes, as `compile` does."""
    if metric not in ("accuracy", "acc"):
        found = keras.metrics.get(metric)
        return found() if isinstance(found, type) else found
    if predicted.shape[-1] == 1:
        return keras.metrics.BinaryAccuracy()
    if y.shape == predicted.shape:
        return keras.metrics.CategoricalAccuracy()
    return keras.metrics.SparseCategoricalAccuracy()

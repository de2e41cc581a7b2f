"""`TFLiteModel`: a .tflite file in the interpreter of LiteRT, or of TFLite Micro."""

import contextlib
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerasq.litert import contents, evaluation, flatbuffer, metadata, micro, report, values
from kerasq.litert.contents import Op, Tensor
from kerasq.litert.runtimes import RUNTIMES
from kerasq.litert.tflite_metadata import read_labels
from kerasq.litert.verify import verify
from kerasq.support.files import existing_file, write_whole
from kerasq.support.progress import track

KERNELS = {"optimized": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}


class TFLiteModel:
    """Runs a .tflite model on LiteRT's kernels, or on those of TFLite Micro.

    Args:
        path_or_bytes: the file's path, or its content.
        num_threads: threads of the interpreter; None for LiteRT's default.
        kernels: of LiteRT, "optimized" (the default, with XNNPACK) or "reference" (portable ones,
            which round mostly, not always, as TFLite Micro does).
        target: whose interpreter runs it: "litert", or "tflm", which needs
            `pip install 'kerasq[tflm]'`.

    Attributes:
        content: the file's bytes.
        kernels: the kernels it runs on; "portable" where `target` is "tflm".
        target: whose they are.
        num_threads: the threads it runs on.
        ops, tensors: the file's operators and tensors.
        inputs, outputs: the tensors at its ends.
        input_names, output_names: what the signature calls them.
        labels: names of the classes, where its TFLite Metadata have some.

    Raises:
        FileNotFoundError: where there is no file at the path.
        ImportError: for TFLite Micro, where it is not installed.
        ValueError: for unknown `kernels` or `target`, or content that is damaged or that the
            interpreter does not load.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike | bytes,
        num_threads: int | None = None,
        *,
        kernels: str = "optimized",
        target: str = "litert",
    ) -> None:
        if kernels not in KERNELS:
            raise ValueError(
                f"`kernels` must be one of {list(KERNELS)}. Received: kernels={kernels!r}."
            )
        if target == "tflm" and kernels != "optimized":
            raise ValueError(
                f"`kernels` are LiteRT's to choose. Received: kernels={kernels!r} for target "
                f"{target!r}, which has one set. Leave it out."
            )
        if target not in RUNTIMES:
            raise ValueError(
                f"`target` must be one of {list(RUNTIMES)}. Received: target={target!r}."
            )
        if isinstance(path_or_bytes, (bytes, bytearray)):
            self.content = bytes(path_or_bytes)
        else:
            self.content = existing_file(path_or_bytes, "path_or_bytes").read_bytes()
        self.target, self.kernels = target, "portable" if target == "tflm" else kernels
        self.num_threads = num_threads
        # Of calls from several threads: tensors are one for all of them.
        self._lock = threading.Lock()
        # It verifies the flatbuffer, but trusts what is in it: kernels may end the process.
        self._interpreter: Any = self._loaded()
        model = flatbuffer.read(self.content)
        verify(model)
        if target == "tflm":
            micro.verify(model)
            with self._accepted("load", self._way_out):
                self._interpreter = micro.MicroInterpreter(self.content)
        with self._accepted("load", lambda: _free_shapes(model)):
            # Kernels check versions, types and shapes here, so that a bad file fails now.
            self._interpreter.allocate_tensors()
        self._contents = contents.read(model, len(self.content))
        self.tensors, self.ops = self._contents.tensors, self._contents.ops
        self.inputs, self.outputs = self._contents.inputs, self._contents.outputs
        self.input_names = self._contents.input_names
        self.output_names = self._contents.output_names
        self.labels = read_labels(model, self.content)
        if other := self._made_for_another():
            warnings.warn(other, stacklevel=2)

    def _loaded(self) -> Interpreter:
        """An interpreter of the file, before its tensors have memory."""
        with self._accepted("load"):
            return Interpreter(
                model_content=self.content,
                num_threads=self.num_threads,
                experimental_op_resolver_type=KERNELS.get(self.kernels, OpResolverType.AUTO),
            )

    def reloaded(self, content: bytes) -> "TFLiteModel":
        """Another file in an interpreter as this one's."""
        kernels = {} if self.target == "tflm" else {"kernels": self.kernels}
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # Said before.
            return TFLiteModel(content, self.num_threads, target=self.target, **kernels)

    def arena_bytes(self) -> int:
        """The memory that TFLite Micro has taken for a call, in bytes, its buffers included.

        Raises:
            ValueError: where LiteRT runs the file.
        """
        if self.target != "tflm":
            raise ValueError(
                "The arena is that of TFLite Micro. Received: a model that LiteRT runs. Load it "
                'with kerasq.TFLiteModel(path, target="tflm").'
            )
        return self._interpreter.arena_bytes()

    @contextlib.contextmanager
    def _accepted(self, verb: str, way_out: Callable[[], str] = str) -> Iterator[None]:
        """Makes a ValueError of what the interpreter refuses, and says what to do."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"The model must {verb} in the {RUNTIMES[self.target].title} interpreter "
                f"({self.kernels} kernels). "
                f"Received: {len(self.content)} bytes that it refuses: {said}{way_out()}"
            ) from error

    def _way_out(self) -> str:
        """What to do where TFLite Micro lacks an operator; "" where LiteRT refuses a file."""
        if self.target != "tflm":
            return ""
        found = contents.read(flatbuffer.read(self.content), len(self.content))
        if found.made is None or found.made.runtime != self.target:
            return ". Export it for target 'tflm', which has its operators alone."
        if floats := list(report.float_layers(found)):
            return f". Layers that stay in float may be what it lacks: {floats}. Replace them."
        return ""

    @property
    def made(self) -> metadata.Made | None:
        """What the file was made for; None where kerasq has not written it."""
        return self._contents.made

    @property
    def removed_channels(self) -> dict[str, np.ndarray]:
        """By tensor the channels that its layer has and the file lacks, as they change nothing.

        Codes, int32, `(channels,)`: what stands for those removed, -2^31 for those computed.
        """
        return self._contents.removed

    @property
    def float_ops(self) -> list[Op]:
        """Operators that compute in float; empty for an integer-only model.

        QUANTIZE and DEQUANTIZE at a float input or output are not counted.
        """
        return self._contents.float_ops()

    def __str__(self) -> str:
        """The export report: operators with their types, inputs and outputs, then `remarks`."""
        lines = [report.report(self._contents), f"{self.made_for()} {self._runs_on()}"]
        if written := report.written_by(self._contents.made):
            lines.append(written)
        if self.labels:
            lines.append(report.named(self.labels))
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """What a user should know: what computes in float, which weights are stored too wide."""
        return [*report.remarks(self._contents), *filter(None, [self._made_for_another()])]

    def made_for(self) -> str:
        """The target that the file was made for, in words."""
        made = self._contents.made
        if made is None:
            return "It does not say what it was made for."
        runtime = RUNTIMES.get(made.runtime)
        checked = f" ({runtime.title} {made.version})" if runtime and made.version else ""
        return f"Made for target {made.target!r}{checked}."

    def _runs_on(self) -> str:
        return f"Runs here on {RUNTIMES[self.target]}, {self.kernels} kernels."

    def _made_for_another(self) -> str:
        """That the file's target rounds otherwise than what runs it; "" where it does not."""
        made = self._contents.made
        machine = platform.machine()
        if made is None or (
            made.runtime == self.target and machine in (made.machines or [machine])
        ):
            return ""
        own = ""
        if made.runtime in RUNTIMES and made.runtime != self.target:
            own = f" Its own is kerasq.TFLiteModel(path, target={made.runtime!r})."
        elif not made.runtime:
            own = " Nothing here computes as that does but the quantized model itself."
        return (
            f"The file was made for target {made.target!r}, whose kernels round otherwise than "
            f"those of {RUNTIMES[self.target].title} on {machine}, which runs it here: expect "
            f"other codes.{own}"
        )

    def constant(self, name: str) -> np.ndarray:
        """The codes, or floats, of a tensor that the file holds, such as "conv/kernel".

        Raises:
            ValueError: for a name that no such tensor has.
        """
        held = [tensor.name for tensor in self.tensors if tensor.constant]
        if name not in held:
            raise ValueError(f"`name` must be one of {held}. Received: name={name!r}.")
        # Parsed anew, since a model that keeps all its constants takes twice its memory.
        model = flatbuffer.read(self.content)
        index = [tensor.name for tensor in self.tensors].index(name)
        found = flatbuffer.constant(model, model.subgraphs[0].tensors[index])
        assert found is not None
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file, whole or not at all."""
        write_whole(path, self.content)

    def predict(self, x: Any, dequantize: bool = True) -> Any:
        """Runs any number of samples. Several threads may call it, and run one at a time.

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
        calls = list(self.calls(columns))
        arrays = []
        for i, tensor in enumerate(self.outputs):
            # Of no samples there are no calls, but still an output of the right shape.
            empty = np.zeros((0, *tensor.shape[1:]), tensor.dtype)
            codes = np.concatenate([empty, *(call[i] for call in calls)])[: len(columns[0])]
            arrays.append(values.real(codes, tensor) if dequantize else codes)
        if len(arrays) == 1:
            return arrays[0]
        return dict(zip(self.output_names, arrays, strict=True))

    def columns(self, x: Any) -> list[np.ndarray]:
        """One array an input, checked; `x` as in `predict`."""
        return values.columns(x, self.inputs, self.input_names)

    def codes(self, x: np.ndarray, tensor: Tensor) -> np.ndarray:
        """What an input takes for real values: its codes, or the values in its own type.

        Ties are rounded as the target's QUANTIZE does.
        """
        made = self._contents.made
        return values.codes(x, tensor, away=made is not None and made.away)

    def calls(self, columns: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Raw outputs of one call after the other, for inputs as `columns` gives them.

        The last call is filled up with its last sample: a file has one batch size.
        """
        return self._calls(columns, self.codes)

    def run_codes(self, columns: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """As `calls`, of codes, or what else the inputs take."""
        return self._calls(columns, lambda codes, tensor: codes)

    def _calls(
        self, columns: list[np.ndarray], encode: Callable[[np.ndarray, Tensor], np.ndarray]
    ) -> Iterator[list[np.ndarray]]:
        details = self._interpreter.get_input_details()
        outputs = [detail["index"] for detail in self._interpreter.get_output_details()]
        batch = self.inputs[0].shape[0]
        starts = range(0, len(columns[0]), batch)
        for start in track(starts, len(starts), "call"):
            # Not held while a caller has what is yielded.
            with self._lock:
                for column, tensor, detail in zip(columns, self.inputs, details, strict=True):
                    samples = column[start : start + batch]
                    # What the model makes of the filling is for the caller to cut off.
                    if len(samples) < batch:
                        missing = batch - len(samples)
                        samples = np.concatenate([samples, [samples[-1]] * missing])
                    self._interpreter.set_tensor(detail["index"], encode(samples, tensor))
                with self._accepted("run", self._way_out):
                    self._interpreter.invoke()
                # `get_tensor` copies, so that the next call does not change what was yielded.
                found = [self._interpreter.get_tensor(index) for index in outputs]
            self._check_shapes(found)
            yield found

    def _check_shapes(self, found: list[np.ndarray]) -> None:
        """Raises a ValueError where a damaged file tells other shapes than kernels have written."""
        said = [tensor.shape for tensor in self.outputs]
        if [y.shape for y in found] != said:
            raise ValueError(
                f"Outputs must have the shapes that the file says, {said}. "
                f"Received: {[y.shape for y in found]}. Export it again."
            )

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
        return evaluation.evaluate(self.predict, self.output_names, data=data, metrics=metrics)


def require_lite(lite: Any, argument: str = "lite") -> None:
    """Raises a ValueError unless an argument is a TFLiteModel."""
    if not isinstance(lite, TFLiteModel):
        raise ValueError(
            f"`{argument}` must be a TFLiteModel. "
            f"Received: {lite!r:.80}. Load a file with kerasq.TFLiteModel(path)."
        )


def _free_shapes(model: Any) -> str:
    """That an input has no fixed shape, where a file is refused; "" where all have."""
    graph = model.subgraphs[0]
    for tensor in (graph.tensors[i] for i in graph.inputs):
        signature = [] if tensor.shapeSignature is None else [*map(int, tensor.shapeSignature)]
        if any(size < 0 for size in signature[1:]):
            return (
                f". Input {tensor.name.decode()!r} has no fixed shape, {signature}: convert a "
                "model with fixed `keras.Input(shape=...)`"
            )
    return ""

"""The zoo: what becomes of architectures on the whole road, from a float model to LiteRT.

    bash tools/zoo --page=docs/coverage.md

Every network gets random weights and inputs, BatchNormalization statistics of its own activations,
shaken, and goes through `quantize_model`, `calibrate`, `export_tflite` and `compare`.
"""

import collections
import contextlib
import dataclasses
import gc
import io
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
from absl import app, flags
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import kerasq
from kerasq.litert import flatbuffer
from kerasq.litert.excerpt import Subgraph
from kerasq.support import tables
from kerasq.support.files import write_whole
from recipes import models

L = keras.layers

_ROWS = flags.DEFINE_list("rows", [], "Names of rows; all by default.")
_PAGE = flags.DEFINE_string("page", None, "The Markdown page whose table is replaced.")

# Operators whose kernels work on tables: 2 steps of their grids are allowed, of all others 1.
TABLES = ("SOFTMAX", "EXP", "RSQRT")
WORDS = 50
HEADER = [
    "network",
    "quantized",
    "float operators",
    "max LSB per layer",
    "outputs equal",
    "argmax agreement",
    "size over float",
    "XNNPACK partitions",
    "seconds",
    "remark",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A network of the zoo.

    Attributes:
        make: builds it.
        cnn: whether it shall have no float operator, one partition and no layer beyond 1 LSB.
        quick: whether the test suite runs it.
        remark: why the row cannot reach that, beside what XNNPACK leaves out.
    """

    make: Callable[[], keras.Model]
    cnn: bool = True
    quick: bool = False
    remark: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What `measure` found.

    Attributes:
        quantized: "yes", "partly" where operators stay float, or "no".
        float_ops: the operators that stay float.
        max_lsb: the largest difference of a layer from its simulation, on equal inputs.
        worst: the operator that differs so.
        exact: share of output values equal to the simulation's, end to end; None for float ones.
        agreement: share of samples with the simulation's argmax.
        size: bytes over those of the float .tflite.
        partitions: groups of operators that XNNPACK computes.
        left: the operators that it leaves to LiteRT's own kernels.
        seconds: from the float model to the comparison.
    """

    quantized: str
    float_ops: list[str]
    max_lsb: int
    worst: str
    exact: float | None
    agreement: float
    size: float
    partitions: int
    left: list[str]
    seconds: float


def application(name: str, size: int = 64) -> Callable[[], keras.Model]:
    """What builds a network of `keras.applications`, for images of a size."""

    def make() -> keras.Model:
        build = getattr(keras.applications, name)
        return build(weights=None, input_shape=(size, size, 3), classes=10)

    return make


def _ds_cnn() -> keras.Model:
    """Keyword spotting, after Zhang et al. 2017 (arXiv 1711.07128)."""
    x = sound = keras.Input((49, 10, 1), name="sound")
    x = L.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(x)
    x = L.ReLU()(L.BatchNormalization()(x))
    for _ in range(4):
        x = L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
        x = L.Conv2D(64, 1, use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
    x = L.GlobalAveragePooling2D()(L.Dropout(0.4)(x))
    return keras.Model(sound, L.Dense(12, activation="softmax")(x))


def _autoencoder() -> keras.Model:
    """Anomaly detection of MLPerf Tiny: Banbury et al. 2021 (arXiv 2106.07597)."""
    x = frames = keras.Input((640,), name="frames")
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = L.ReLU()(L.BatchNormalization()(L.Dense(units)(x)))
    return keras.Model(frames, L.Dense(640)(x))


def _unet() -> keras.Model:
    """Segmentation, after Ronneberger et al. 2015 (arXiv 1505.04597)."""

    def block(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
        for _ in range(2):
            x = L.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = L.ReLU()(L.BatchNormalization()(x))
        return x

    x = image = keras.Input((32, 32, 3), name="image")
    skips = []
    for filters in (8, 16):
        skips.append(block(x, filters))
        x = L.MaxPooling2D()(skips[-1])
    x = block(x, 32)
    for filters, skip in zip((16, 8), reversed(skips), strict=True):
        x = L.Conv2DTranspose(filters, 2, strides=2)(x)
        x = block(L.Concatenate()([skip, x]), filters)
    return keras.Model(image, L.Conv2D(4, 1, activation="softmax")(x))


def _tcn() -> keras.Model:
    """Dilated causal convolutions, after Bai et al. 2018 (arXiv 1803.01271)."""
    x = series = keras.Input((64, 6), name="series")
    for dilation in (1, 2, 4, 8):
        y = L.Conv1D(16, 3, padding="causal", dilation_rate=dilation, activation="relu")(x)
        y = L.Conv1D(16, 3, padding="causal", dilation_rate=dilation, activation="relu")(y)
        x = L.ReLU()(L.Add()([y, L.Conv1D(16, 1)(x)]))
    return keras.Model(series, L.Dense(5, activation="softmax")(L.GlobalAveragePooling1D()(x)))


def _squeeze_excite() -> keras.Model:
    """A squeeze-and-excite block: Hu et al. 2018 (arXiv 1709.01507)."""
    x = image = keras.Input((32, 32, 3), name="image")
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, strides=2, use_bias=False)(x)))
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Conv2D(16, 1, activation="sigmoid")(L.Conv2D(4, 1, activation="relu")(gate))
    x = L.GlobalAveragePooling2D()(x * gate)
    return keras.Model(image, L.Dense(10, activation="softmax")(x))


def _transformer() -> keras.Model:
    """One encoder block: Vaswani et al. 2017 (arXiv 1706.03762)."""
    x = series = keras.Input((16, 8), name="series")
    x = L.Dense(16)(x)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8)(x, x))
    x = L.LayerNormalization()(x + L.Dense(16)(L.Dense(32, activation="gelu")(x)))
    return keras.Model(series, L.Dense(5, activation="softmax")(L.GlobalAveragePooling1D()(x)))


def _decoder() -> keras.Model:
    """One decoder block: causal attention, normalization in front (Radford et al. 2019)."""
    words = keras.Input((16,), dtype="int32", name="words")
    x = L.Embedding(WORDS, 16)(words) + L.Embedding(16, 16)(np.arange(16)[None])
    y = L.LayerNormalization()(x)
    x = x + L.MultiHeadAttention(2, 8)(y, y, use_causal_mask=True)
    y = L.Dense(32, activation="gelu")(L.LayerNormalization()(x))
    x = L.LayerNormalization()(x + L.Dense(16)(y))
    return keras.Model(words, L.Dense(WORDS, activation="softmax")(x))


def _mobilevit() -> keras.Model:
    """Convolutions and attention among places of patches: Mehta & Rastegari 2022 (2110.02178)."""

    def conv(x: keras.KerasTensor, filters: int, size: int, strides: int = 1) -> keras.KerasTensor:
        x = L.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return L.Activation("silu")(L.BatchNormalization()(x))

    def inverted(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
        y = conv(x, 2 * x.shape[-1], 1)
        y = L.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
        y = L.Activation("silu")(L.BatchNormalization()(y))
        y = L.BatchNormalization()(L.Conv2D(filters, 1, use_bias=False)(y))
        return L.Add()([x, y]) if strides == 1 else y

    def attended(x: keras.KerasTensor, size: int) -> keras.KerasTensor:
        (height, width, filters), places = x.shape[1:], x.shape[1] * x.shape[2]
        y = L.Conv2D(size, 1)(conv(x, filters, 3))
        y = L.Reshape((4, places // 4, size))(y)
        for _ in range(2):
            # Each of the four pixels of a patch attends to its like in all patches.
            y = models.transformer_block(y, 2, 2 * size, attention_axes=(2,))
        y = L.Reshape((height, width, size))(L.LayerNormalization()(y))
        return conv(L.Concatenate()([x, conv(y, filters, 1)]), filters, 3)

    image = keras.Input((32, 32, 3), name="image")
    x = conv(L.Rescaling(1.0 / 255.0)(image), 8, 3, 2)
    x = inverted(inverted(x, 8, 1), 16, 2)
    x = conv(attended(x, 24), 32, 1)
    return keras.Model(image, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(x)))


def _vit() -> keras.Model:
    """The vision transformer of the recipes."""
    return models.build("vit", (32, 32, 3), 10)


def _video() -> keras.Model:
    """Convolutions over frames: Tran et al. 2015 (arXiv 1412.0767)."""
    x = video = keras.Input((8, 16, 16, 3), name="video")
    for filters in (8, 16):
        # LiteRT pools no volumes in float, for the sizes to compare.
        x = L.Conv3D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
    x = L.Conv3D(16, 3, padding="same", activation="relu")(x)
    return keras.Model(video, L.Dense(5, activation="softmax")(L.GlobalAveragePooling3D()(x)))


def _recurrent(layer: type) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        series = keras.Input((20, 6), name="series")
        x = layer(16)(L.Dense(8, activation="relu")(series))
        return keras.Model(series, L.Dense(5, activation="softmax")(x))

    return make


def _bilstm_stack() -> keras.Model:
    """Two LSTM in both directions, one behind the other."""
    x = series = keras.Input((12, 6), name="series")
    x = L.Bidirectional(L.LSTM(8, return_sequences=True))(x)
    x = L.Bidirectional(L.LSTM(8))(x)
    return keras.Model(series, L.Dense(5, activation="softmax")(x))


def _gru_keywords() -> keras.Model:
    """Keywords from a spectrogram of 25 frames: convolution, GRU, classes."""
    x = frames = keras.Input((49, 10, 1), name="frames")
    x = L.Conv2D(16, (5, 4), strides=(2, 2), padding="same", activation="relu")(x)
    x = L.GRU(24)(L.Reshape((25, 80))(x))
    return keras.Model(frames, L.Dense(12, activation="softmax")(x))


def _gru_stream() -> keras.Model:
    """Four frames a call; the state goes in and comes out."""
    frames, state = keras.Input((4, 8), name="frames"), keras.Input((16,), name="state")
    y, after = L.GRU(16, return_sequences=True, return_state=True)(frames, initial_state=state)
    return keras.Model([frames, state], [L.Dense(3)(y), after])


def _text() -> keras.Model:
    """Words of any number up to 12, classified: zeros behind them are masked."""
    words = keras.Input((12,), dtype="int32", name="words")
    x = L.Bidirectional(L.LSTM(8))(L.Embedding(WORDS, 16, mask_zero=True)(words))
    return keras.Model(words, L.Dense(2, activation="softmax")(x))


def _conv_lstm() -> keras.Model:
    """Frames, classified by ConvLSTM: Shi et al. 2015 (arXiv 1506.04214)."""
    frames = keras.Input((4, 16, 16, 1), name="frames")
    x = L.ConvLSTM2D(8, 3, strides=2, padding="same", return_sequences=True)(frames)
    x = L.ConvLSTM2D(8, 3, padding="same")(x)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(frames, L.Dense(5, activation="softmax")(x))


def _two_by_two() -> keras.Model:
    """Two inputs, two outputs."""
    image, numbers = keras.Input((16, 16, 3), name="image"), keras.Input((6,), name="numbers")
    x = L.Flatten()(L.Conv2D(8, 3, strides=2, activation="relu")(image))
    x = L.Concatenate()([x, L.Dense(8, activation="relu")(numbers)])
    outputs = {"kind": L.Dense(4, activation="softmax")(x), "value": L.Dense(1)(x)}
    return keras.Model({"image": image, "numbers": numbers}, outputs)


ROWS = {
    "mobilenet": Row(make=application("MobileNet")),
    "mobilenetv2": Row(make=application("MobileNetV2")),
    "mobilenetv3small": Row(make=application("MobileNetV3Small")),
    "mobilenetv3large": Row(make=application("MobileNetV3Large")),
    "efficientnetb0": Row(make=application("EfficientNetB0")),
    "efficientnetv2b0": Row(make=application("EfficientNetV2B0")),
    "resnet50": Row(make=application("ResNet50")),
    "resnet50v2": Row(make=application("ResNet50V2")),
    "resnet101": Row(make=application("ResNet101")),
    "densenet121": Row(make=application("DenseNet121")),
    "inceptionv3": Row(make=application("InceptionV3", 80)),
    "inceptionresnetv2": Row(make=application("InceptionResNetV2", 80)),
    "xception": Row(make=application("Xception", 80)),
    "nasnetmobile": Row(make=application("NASNetMobile")),
    "vgg16": Row(make=application("VGG16")),
    "convnexttiny": Row(make=application("ConvNeXtTiny")),
    "ds_cnn": Row(make=_ds_cnn, quick=True),
    "autoencoder": Row(make=_autoencoder),
    "unet": Row(make=_unet),
    "tcn": Row(make=_tcn),
    "squeeze_excite": Row(make=_squeeze_excite, quick=True),
    "transformer": Row(make=_transformer, cnn=False),
    "decoder": Row(make=_decoder, cnn=False, quick=True),
    "vit": Row(make=_vit, cnn=False),
    "mobilevit": Row(make=_mobilevit, cnn=False),
    "video": Row(make=_video, cnn=False, quick=True),
    "lstm": Row(make=_recurrent(L.LSTM), cnn=False),
    "gru": Row(make=_recurrent(L.GRU), cnn=False),
    "bilstm_stack": Row(make=_bilstm_stack, cnn=False),
    "gru_keywords": Row(make=_gru_keywords, cnn=False),
    "text": Row(make=_text, cnn=False),
    "conv_lstm": Row(make=_conv_lstm, cnn=False),
    "gru_stream": Row(make=_gru_stream, cnn=False),
    "two_by_two": Row(make=_two_by_two, quick=True),
}


def samples(model: keras.Model, count: int, seed: int = 0) -> list[np.ndarray]:
    """Random samples for each input: pixels of 0..255 for images, words, else of variance 1."""
    rng = np.random.default_rng(seed)
    found = []
    for x in model.inputs:
        shape = (count, *x.shape[1:])
        # What reads three channels is taken for images.
        images = len(shape) == 4 and shape[-1] == 3
        values = rng.uniform(0, 255, shape) if images else rng.normal(size=shape)
        found.append(rng.integers(0, WORDS, shape) if "int" in x.dtype else values)
    return [x.astype(np.float32) for x in found]


def shake(model: keras.Model, x: list[np.ndarray], seed: int = 0) -> None:
    """Random gamma and beta; statistics of the activations on `x`, up to 20 % off."""
    rng = np.random.default_rng(seed)
    # With fresh statistics, mean 0 and variance 1, deep networks output zeros. `layers` does not
    # list what is inside nested models.
    norms = [n for n in model._flatten_layers() if isinstance(n, L.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # One call then replaces the statistics.
        channels = norm.moving_mean.shape
        if norm.scale:
            norm.gamma.assign(rng.uniform(0.5, 1.5, channels))
        if norm.center:
            norm.beta.assign(rng.normal(0.0, 0.3, channels))
    model(keras.tree.pack_sequence_as(model.input, x), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.moving_mean, norm.moving_variance):
            statistic.assign(statistic * rng.uniform(0.8, 1.2, statistic.shape))


def partitions(content: bytes) -> int:
    """How many groups of operators LiteRT gives to XNNPACK."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    # A group that is delegated is an operator only in this private list.
    return [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE")


def left_out(content: bytes) -> list[str]:
    """The operators that XNNPACK does not take, even where they are the whole model."""
    whole = flatbuffer.read(content)
    graph = whole.subgraphs[0]

    def kind(op: schema.OperatorT) -> tuple:
        """What operators have in common that XNNPACK takes, or none of them."""
        ends = [graph.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
        shapes = [(x.type, *x.shape, flatbuffer.constant(whole, x) is None) for x in ends]
        return (op.opcodeIndex, *shapes)

    # A recurrent network has hundreds that are alike.
    kinds = [kind(op) for op in graph.operators]
    taken = {}
    for op, x in zip(graph.operators, kinds, strict=True):
        if x not in taken:
            taken[x] = bool(partitions(flatbuffer.write(Subgraph(whole, graph).alone(op)[0])))
    return [
        flatbuffer.op_name(flatbuffer.op_code(whole, op))
        for op, x in zip(graph.operators, kinds, strict=True)
        if not taken[x]
    ]


def prepared(row: Row, count: int = 32) -> tuple[keras.Model, list[np.ndarray]]:
    """A network with random weights, its statistics those of its activations, and samples."""
    keras.utils.set_random_seed(0)
    model = row.make()
    x = samples(model, count)
    shake(model, x)
    return model, x


def measure(row: Row) -> Result:
    """Takes a network down the whole road."""
    model, x = prepared(row)
    plain = kerasq.export_float_tflite(model)
    start = time.perf_counter()
    data = [keras.tree.pack_sequence_as(model.input, x)]
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, data, method="minmax")
    lite = kerasq.export_tflite(q)
    report = kerasq.compare(q, lite, x=data)
    seconds = time.perf_counter() - start
    # An operator on a table may be a step further off: see TABLES.
    worst = max(report.layers, key=lambda layer: (layer.max_lsb or 0) - (layer.op in TABLES))
    floats = [op.name for op in lite.float_ops]
    return Result(
        quantized="partly" if floats else "yes",
        float_ops=floats,
        max_lsb=worst.max_lsb or 0,
        worst=worst.op,
        exact=report.exact,
        agreement=report.argmax_agreement,
        size=len(lite.content) / len(plain.content),
        partitions=partitions(lite.content),
        left=left_out(lite.content) if partitions(lite.content) > 1 else [],
        seconds=seconds,
    )


def reaches(result: Result) -> bool:
    """Whether a network has no float operator, one partition and exact layers."""
    allowed = 2 if result.worst in TABLES else 1
    return not result.float_ops and result.partitions == 1 and result.max_lsb <= allowed


def _cells(name: str, row: Row, result: Result | Exception) -> list[str]:
    if isinstance(result, Exception):
        first = re.sub(r"\s+", " ", str(result))[:160].replace("|", "/")
        return [name, "no", *[""] * 7, f"{type(result).__name__}: {first}"]
    left = collections.Counter(result.left)
    names = [f"{n} x {op}" if n > 1 else op for op, n in left.items()]
    outside = f"not XNNPACK's: {', '.join(names)}" if names else ""
    remark = "; ".join(filter(None, [row.remark, outside]))
    if row.cnn and not reaches(result) and not remark:
        remark = "does not reach the goal"
    exact = "float" if result.exact is None else f"{100 * result.exact:.2f} %"
    return [
        name,
        result.quantized,
        str(len(result.float_ops)),
        str(result.max_lsb),
        exact,
        f"{100 * result.agreement:.2f} %",
        f"{result.size:.2f}",
        str(result.partitions),
        f"{result.seconds:.0f}",
        remark,
    ]


def replace_table(page: str, table: str, columns: Sequence[str] = ()) -> str:
    """A Markdown page with another table in place of its first that begins with some columns."""
    # Widths of columns follow the rows.
    start = r" *\| *".join(map(re.escape, columns))
    found = re.search(rf"(?m)^\| *{start}.*\n(?:\|.*\n)+", page)
    if found is None:
        which = f"table of {[*columns]}" if columns else "Markdown table"
        raise ValueError(f"The page must hold a {which}. Received: one without.")
    return page[: found.start()] + table.rstrip("\n") + "\n" + page[found.end() :]


def main(argv: list[str]) -> None:
    """Measures rows and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"There are no arguments but flags. Received: {argv[1:]}.")
    unknown = sorted({*_ROWS.value} - {*ROWS})
    if unknown:
        raise app.UsageError(f"--rows must name rows of {list(ROWS)}. Received: {unknown}.")
    cells = [HEADER]
    for name in _ROWS.value or ROWS:
        result: Result | Exception
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = measure(ROWS[name])
        except Exception as error:  # A row that fails is a result too.
            result = error
        cells.append(_cells(name, ROWS[name], result))
        print("  ".join(cells[-1]), file=sys.stderr, flush=True)
        # Layers and tensors refer to each other: only the collector frees a network.
        keras.backend.clear_session()
        gc.collect()
    table = tables.markdown(cells, left=2)
    print(table)
    if _PAGE.value:
        path = pathlib.Path(_PAGE.value)
        write_whole(path, replace_table(path.read_text(), table).encode())


if __name__ == "__main__":
    app.run(main)

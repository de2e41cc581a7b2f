"""The target "ethos-u" against what its compiler, Vela, programs."""

import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq.kernels.fixed_point import decompose
from kerasq.layers import Matmul, Mean, Sum
from kerasq.litert import flatbuffer
from kerasq.targets import ETHOS_U
from tests import networks
from tests.firmware import test_kit
from tests.test_kernels import CODES, grid, simulate

pytest.importorskip("ethosu")
from tools import vela

L, K = keras.layers, keras.ops


def placed(lite, path, processor="ethos-u55-128"):
    lite.save(path)
    return vela.compiled(path, processor)


def exported(model, x=None, **options):
    q = networks.quantized(model, x, target="ethos-u", **options)
    return q, kerasq.export_tflite(q)


@pytest.mark.parametrize("processor", vela.PROCESSORS)
@pytest.mark.parametrize("name", ["residual", "mobile", "two_by_two"])
def test_networks_run_on_the_npu(name, processor, tmp_path):
    _, lite = exported(getattr(networks, name)())
    found = placed(lite, tmp_path / "model.tflite", processor)
    assert found.cpu == [] and found.npu >= len(lite.ops) // 2
    assert found.cycles > 0 and found.sram > 0 and found.other > 0


def test_weights_of_four_bits_are_not_packed(tmp_path):
    _, lite = exported(networks.mobile(), scheme="w4a8")
    assert "int4" not in {tensor.type for tensor in lite.tensors}
    assert placed(lite, tmp_path / "model.tflite").cpu == []


def test_blocks_of_pixels_and_channels_stay_on_the_npu(tmp_path):
    if not hasattr(K, "depth_to_space"):
        pytest.skip("Keras 3.10 has neither")
    x = keras.Input((4, 6, 8))
    _, lite = exported(keras.Model(x, K.depth_to_space(L.Conv2D(8, 1)(x), 2)))
    assert placed(lite, tmp_path / "model.tflite").cpu == []


# Functions: Vela puts a table of 256 codes into the file.


def runs(content, length):
    """All runs of so many bytes, from multiples of 16 on, in the constants of what Vela writes."""
    for buffer in flatbuffer.read(content).buffers:
        data = np.array(buffer.data if buffer.data is not None else [], np.uint8)
        for start in range(0, len(data) - length + 1, 16):
            yield data[start : start + length]


FUNCTIONS = {
    "LOGISTIC": L.Activation("sigmoid"),
    "TANH": L.Activation("tanh"),
    "LEAKY_RELU": L.LeakyReLU(0.3),
    "ELU": L.ELU(),
    "EXP": L.Activation("exponential"),
    "GELU": L.Activation("gelu"),
}


@pytest.mark.parametrize("scale", [0.3, 2.1])
@pytest.mark.parametrize("operator", FUNCTIONS)
def test_functions(operator, scale, tmp_path):
    layer, x = FUNCTIONS[operator], keras.Input((5, 4))
    data = np.random.default_rng(0).normal(0.2, scale, (64, 5, 4)).astype("float32")
    _, lite = exported(keras.Model(x, layer(x)), data)
    assert [op.name for op in lite.ops] == [operator]
    (source,), (out,) = lite.inputs, lite.outputs
    codes = CODES.reshape(1, -1)
    found = simulate(operator, layer, [codes], [source.grid], out.grid, ETHOS_U).ravel()
    made = placed(lite, tmp_path / "model.tflite")
    assert made.cpu == []
    assert any(np.array_equal(found, each.view(np.int8)) for each in runs(made.content, 256))


# Rounding: the commands say by what multiplier, and how.


def commands(text, name, field):
    return re.findall(rf"{name} .*{field} = (\w+)", text)


@pytest.mark.parametrize("layer", [L.Conv2D(4, 3), L.DepthwiseConv2D(3), L.Dense(4)])
def test_weights_are_rounded_twice(layer, tmp_path):
    x = keras.Input((6, 6, 3))
    _, lite = exported(keras.Model(x, layer(x)))
    text = placed(lite, tmp_path / "model.tflite").commands
    modes = commands(text, "NPU_SET_OFM_PRECISION", "round_mode")
    assert modes == ["ROUND_MODE_DBL"]


def test_codes_for_another_grid_are_rounded_twice(tmp_path):
    x, y = keras.Input((4, 4, 8)), keras.Input((4, 4, 8))
    rng = np.random.default_rng(0)
    # Neither lies on the grid of both, which has steps of nearly twice the size.
    data = [rng.normal(m, s, (64, 4, 4, 8)).astype("float32") for m, s in ((-2, 1), (4, 1))]
    _, lite = exported(keras.Model([x, y], K.concatenate([x, y], -1)), data)
    text = placed(lite, tmp_path / "model.tflite").commands
    assert {*commands(text, "NPU_SET_OFM_PRECISION", "round_mode")} == {"ROUND_MODE_DBL"}
    by_name = {tensor.name: tensor for tensor in lite.tensors}
    moved = [op for op in lite.ops if op.name == "QUANTIZE"]
    ends = [(by_name[op.inputs[0]].grid.scale, by_name[op.outputs[0]].grid.scale) for op in moved]
    wanted = {int(decompose(np.float64(a) / np.float64(b))[0]) for a, b in ends}
    scales = map(int, commands(text, "NPU_SET_OFM_SCALE", "scale"))
    assert wanted <= {*scales}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_means_are_sums_by_one_multiplier(scheme, tmp_path):
    x = keras.Input((7, 5, 3))
    _, lite = exported(keras.Model(x, L.GlobalAveragePooling2D()(x)), scheme=scheme)
    text = placed(lite, tmp_path / "model.tflite", "ethos-u85-256").commands
    ratio = np.float64(lite.inputs[0].grid.scale) / np.float64(lite.outputs[0].grid.scale) / 35
    (scalar,) = commands(text, "NPU_SET_OP_SCALAR", "scalar")
    mantissa, exponent = (int(x) for x in decompose(ratio))
    assert int(scalar) == mantissa
    assert "NPU_OP_DEPTHWISE" in text and "ELEMENTWISE_MODE_MUL" in text
    source, out = lite.inputs[0].grid, lite.outputs[0].grid
    codes = np.random.default_rng(0).integers(-128, 128, (500, 7, 5, 3)).astype(source.dtype)
    found = simulate("MEAN", Mean([1, 2]), [codes], [source], out, ETHOS_U)
    total = (codes.astype(np.int64) - int(source.zero_point)).sum(axis=(1, 2))
    # A doubling high multiplication, ties up, then a shift, ties away from zero.
    high = (total * mantissa + (1 << 30)) >> 31
    half = (1 << -exponent) >> 1
    wanted = np.sign(high) * ((np.abs(high) + half) >> -exponent) + int(out.zero_point)
    np.testing.assert_array_equal(found, np.clip(wanted, out.qmin, out.qmax))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("processor", ["ethos-u55-128", "ethos-u85-256"])
def test_sums_are_rounded_once(processor, scheme, tmp_path):
    x = keras.Input((5, 8))
    _, lite = exported(keras.Model(x, K.sum(x, -1)), scheme=scheme)
    text = placed(lite, tmp_path / "model.tflite", processor).commands
    assert commands(text, r"NPU_SET_OFM_\w+", "round_mode")[-1].endswith("NATURAL")
    (source,), (out,) = lite.inputs, lite.outputs
    ratio = np.float64(source.grid.scale) / np.float64(out.grid.scale)
    if "CONV" not in text:  # Which has its multipliers among the weights.
        assert int(commands(text, "NPU_SET_OFM_SCALE", "scale")[-1]) == int(decompose(ratio)[0])
    codes = np.random.default_rng(0).integers(-128, 128, (1, 5, 8)).astype(f"int{source.grid.bits}")
    found = simulate("SUM", Sum([2]), [codes], [source.grid], out.grid, ETHOS_U)
    wanted = np.floor((codes - np.float64(source.grid.zero_point)).sum(-1) * ratio + 0.5)
    wanted = np.clip(wanted + out.grid.zero_point, out.grid.qmin, out.grid.qmax)
    np.testing.assert_array_equal(found, wanted)


def test_products_of_vectors_are_sums_of_products():
    """MUL onto the least grid of all products, and SUM by one multiplier, half up."""
    rng = np.random.default_rng(0)
    a, b, out = (grid(scale, bits=16) for scale in (0.001, 0.0005, 0.02))
    codes = [rng.integers(-(2**15), 2**15, (200, 1, 24)).astype(np.int16) for _ in range(2)]
    found = simulate("BATCH_MATMUL", Matmul(transpose=True), codes, [a, b], out, ETHOS_U)
    x, y = (values.astype(np.int64) for values in codes)
    # By 2^-15 in two steps: one bit, ties up, and 14 bits, ties away from zero.
    high = (x * y + 1) >> 1
    products = np.sign(high) * ((np.abs(high) + 2**13) >> 14)
    products = np.clip(products, -(2**15), 2**15 - 1)
    # The scales are float32, whose products are rounded.
    ratio = np.float64(np.float32(0.001) * np.float32(0.0005)) * 2.0**15 / np.float64(out.scale)
    wanted = np.clip(np.floor(products.sum(-1) * ratio + 0.5), out.qmin, out.qmax)
    np.testing.assert_array_equal(found[:, 0], wanted)


@pytest.mark.parametrize("size", [2, 3, (2, 3), 5])
def test_averages_without_padding(size, tmp_path):
    """The multiplier is rounded up, so that ties go away from zero on both sides."""
    x = keras.Input((10, 15, 2))
    layer = L.AveragePooling2D(size)
    _, lite = exported(keras.Model(x, layer(x)))
    text = placed(lite, tmp_path / "model.tflite").commands
    assert commands(text, "NPU_SET_OFM_PRECISION", "round_mode") == ["ROUND_MODE_NATURAL"]
    (scale,) = map(int, commands(text, "NPU_SET_OFM_SCALE", "scale"))
    (shift,) = map(int, re.findall(r"NPU_SET_OFM_SCALE .*shift = (\d+)", text))
    windows = np.random.default_rng(0).integers(-128, 128, (1, 10, 15, 2)).astype(np.int8)
    rows, columns = layer.pool_size
    # Many sums on ties.
    windows[:, ::rows, ::columns] = np.clip(windows[:, ::rows, ::columns] // 2 * 2 + 1, -127, 127)
    grid = lite.inputs[0].grid
    found = simulate("AVERAGE_POOL_2D", layer, [windows], [grid], grid, ETHOS_U)
    shape = (1, 10 // rows, rows, 15 // columns, columns, 2)
    cut = windows[:, : 10 // rows * rows, : 15 // columns * columns].reshape(shape)
    total = cut.astype(np.int64).sum(axis=(2, 4))
    np.testing.assert_array_equal(found, (total * scale + (1 << (shift - 1))) >> shift)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize(("count", "strides"), [(5, 1), (5, 2), (4, 2)])
def test_averages_with_padding_are_the_npus_own(count, strides, scheme, tmp_path):
    x = keras.Input((count, count, 1))
    layer = L.AveragePooling2D(2, strides=strides, padding="same")
    _, lite = exported(keras.Model(x, layer(x)), scheme=scheme)
    text = placed(lite, tmp_path / "model.tflite").commands
    assert commands(text, "NPU_SET_OFM_PRECISION", "round_mode") == ["ROUND_MODE_NATURAL"]
    is_padded = commands(text, "NPU_SET_OFM_SCALE", "scale") == ["1"]
    assert is_padded == (count == 5)  # "same" pads nothing that windows do not reach beyond.
    grid = lite.inputs[0].grid
    codes = np.full((1, count, count, 1), -3, grid.dtype)
    codes[:, ::2] = -2
    found = simulate("AVERAGE_POOL_2D", layer, [codes], [grid], grid, ETHOS_U)
    # -2.5, ties up where the NPU divides; away from zero it would be -3.
    assert found[0, 0, 0, 0] == (-2 if is_padded else -3)


def test_a_file_is_not_checked_and_says_so(capsys):
    _, lite = exported(networks.mlp())
    said = capsys.readouterr().out
    assert "no interpreter here computes as target 'ethos-u' does" in said
    assert "Made for target 'ethos-u'." in str(lite) and lite.target == "litert"
    assert "expect other codes. Nothing here computes as that does but the quantized" in said
    with pytest.warns(UserWarning, match="made for target 'ethos-u'.*expect other codes"):
        kerasq.TFLiteModel(lite.content, target="tflm")


def test_what_vela_has_compiled_runs_on_the_npu_alone(tmp_path):
    lite = kerasq.export_tflite(exported(networks.mlp())[0], labels=["a", "b", "c"])
    found = placed(lite, tmp_path / "model.tflite")
    # It keeps what a file says of itself, but not the archive of labels behind it.
    kept = [x.name for x in flatbuffer.read(found.content).metadata]
    assert {b"kerasq.made", b"TFLITE_METADATA"} <= {*kept}
    with pytest.raises(ValueError, match="one that Vela has compiled for the NPU"):
        kerasq.TFLiteModel(found.content)


def test_a_kit_of_what_vela_has_compiled(tmp_path):
    model = networks.residual()
    x = networks.data(model, 8)
    q, lite = exported(model, x)
    other = tmp_path / "other.tflite"
    other.write_bytes(placed(exported(networks.mlp())[1], tmp_path / "mlp.tflite").content)
    compiled = tmp_path / "compiled.tflite"
    compiled.write_bytes(placed(lite, tmp_path / "model.tflite").content)
    kerasq.deploy(lite, tmp_path / "kit", x=x, compiled=compiled, model=q)
    texts = {path.name: path.read_text() for path in (tmp_path / "kit").iterdir()}
    data = re.findall(r"0x(..),", texts["model.cc"])
    assert bytes(int(byte, 16) for byte in data) == compiled.read_bytes()
    assert "MicroMutableOpResolver<1>" in texts["model_ops.h"]
    assert "resolver.AddEthosU()" in texts["model_ops.h"]
    assert test_kit.compiled(tmp_path / "kit", tmp_path)[0] == 0
    # The simulation's codes; probabilities lie on steps of 1/256 from code -128 on.
    outputs = texts["model_test_vectors.cc"].partition("kTestOutput0")[2]
    codes = np.array(re.findall(r"-?\d+(?=,)", outputs), int).reshape(4, -1)
    np.testing.assert_array_equal((codes + 128) / 256, q.predict_on_batch(x)[:4])
    (arena,) = re.findall(r"kArenaSize = (\d+)", texts["model.h"])
    # Vela's own figure is that of its working memory alone.
    assert 1024 * placed(lite, tmp_path / "model.tflite").sram < int(arena) < 20_000

    def refused(text, **options):
        with pytest.raises(ValueError, match=text):
            kerasq.deploy(lite, tmp_path / "none", x=x, **options)
        assert not (tmp_path / "none").exists()

    refused("`compiled` needs `model`", compiled=compiled)
    refused("must be for target 'ethos-u'", compiled=compiled, model=networks.quantized(model))
    refused("must be a file that Vela has written", compiled=tmp_path / "model.tflite", model=q)
    refused("must be what Vela made of `lite`", compiled=other, model=q)
    refused(r"`model` goes with `compiled`.*run `vela` on the file", model=q)
    refused("needs what Vela made of it")
    stem = next(layer for layer in q.layers if hasattr(layer, "kernel"))
    stem.kernel.assign(-stem.kernel)
    refused(
        "`model` must be what `lite` was exported from, as it is now", compiled=compiled, model=q
    )


def test_what_vela_does_not_compile_is_its_error(tmp_path):
    path = tmp_path / "none.tflite"
    path.write_bytes(b"\x00" * 16)
    with pytest.raises(RuntimeError, match=r"Vela does not compile none\.tflite"):
        vela.compiled(path, "ethos-u55-128")


@pytest.mark.parametrize("processor", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_normalizations_stay_on_the_npu_and_have_its_roots(processor, tmp_path):
    x = keras.Input((4, 12))
    model = keras.Model(x, L.LayerNormalization(epsilon=1e-3, name="norm")(x))
    q, lite = exported(model, np.random.default_rng(0).normal(2, 3, (64, 4, 12)).astype("float32"))
    made = placed(lite, tmp_path / "model.tflite", processor)
    assert made.cpu == []
    assert {"MUL", "SUM", "RSQRT"} <= {op.name for op in lite.ops}
    # Of 512 chords, each the value where it begins, and its slope.
    tables = [each.view(np.int16).reshape(512, 2)[:, 0] for each in runs(made.content, 2048)]
    codes = np.arange(-(2**15), 2**15)[None]
    for name in ("norm_first_root", "norm_second_root"):
        layer = q.get_layer(name)
        (source,), out = layer.input_grids(), layer.grid().numpy()
        if name == "norm_first_root":  # Smaller codes, of one chord, are all alike.
            assert out.quantize(1 / np.sqrt(128 * source.numpy().scale)) == out.qmax
        found = simulate(
            "RSQRT", layer.layer, [codes.astype(np.int16)], [source.numpy()], out, ETHOS_U
        )
        starts = found.ravel()[::128]
        assert any(np.array_equal(starts, table) for table in tables)

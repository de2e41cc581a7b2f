"""The deployment kit, compiled against the few classes of TFLite Micro that it names."""

import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

import kerasq
from kerasq.firmware.sources import _number, method
from kerasq.targets import TFLM
from tests import networks

pytest.importorskip("tflite_micro")
L = keras.layers
FILES = [
    "main.cc",
    "model.cc",
    "model.h",
    "model_ops.h",
    "model_test_vectors.cc",
    "model_test_vectors.h",
]
# What MicroMutableOpResolver calls them, from its header of August 2026.
METHODS = re.findall(
    r"\w+",
    """
    Add ArgMax ArgMin AveragePool2D BatchMatMul BroadcastTo Cast Concatenation Conv2D
    DepthToSpace DepthwiseConv2D Dequantize Equal EthosU FullyConnected Gather Greater GreaterEqual
    L2Normalization LeakyRelu Less LessEqual LogSoftmax Logistic MaxPool2D Maximum Mean Minimum
    MirrorPad Mul NotEqual Pack Pad Quantize ReduceMax ReduceMin Relu Reshape ResizeBilinear
    ResizeNearestNeighbor ReverseV2 Rsqrt SelectV2 Slice Softmax SpaceToDepth Split SplitV
    StridedSlice Sub Sum Tanh Transpose TransposeConv UnidirectionalSequenceLSTM Unpack
    """,
)
# Its interpreter looks a sample up among the test vectors and gives what stands there.
STUB = """
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>
#include "model_test_vectors.h"
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
#define TF_LITE_ENSURE_STATUS(call) do { if ((call) != kTfLiteOk) return kTfLiteError; } while (0)
#define MicroPrintf(...) (std::printf(__VA_ARGS__), std::printf("\\n"))
struct TfLiteTensor { union { void* data; } data; };
namespace tflite {
inline void InitializeTarget() {}
struct Model {};
inline const Model* GetModel(const unsigned char* data) {
  return std::memcmp(data + 4, "TFL3", 4) == 0 && reinterpret_cast<std::uintptr_t>(data) % 16 == 0
             ? reinterpret_cast<const Model*>(data) : nullptr;
}
template <int count>
struct MicroMutableOpResolver {
  int registered = 0;
  TfLiteStatus Register() { return ++registered <= count ? kTfLiteOk : kTfLiteError; }
  METHODS
};
struct MicroInterpreter {
  template <int count>
  MicroInterpreter(const Model* model, const MicroMutableOpResolver<count>& resolver,
                   uint8_t* arena, std::size_t size)
      : works(model && resolver.registered == count && size == model::kArenaSize) {
    arena[size - 1] = 0;
  }
  TfLiteStatus AllocateTensors() { return works ? kTfLiteOk : kTfLiteError; }
  std::size_t inputs_size() const { return sizeof(model::kInputs) / sizeof(model::kInputs[0]); }
  std::size_t outputs_size() const { return sizeof(model::kOutputs) / sizeof(model::kOutputs[0]); }
  std::size_t arena_used_bytes() const { return 1000; }
  TfLiteTensor* input(std::size_t i) { ins[i].data.data = in[i]; return &ins[i]; }
  TfLiteTensor* output(std::size_t i) { outs[i].data.data = out[i]; return &outs[i]; }
  TfLiteStatus Invoke() {
    const auto at = [](const model::Vectors& v, int s) {
      return static_cast<const char*>(v.data) + s * v.bytes;
    };
    for (int s = 0; s < model::kVectors; ++s) {
      bool same = true;
      for (std::size_t i = 0; i < inputs_size(); ++i)
        same &= !std::memcmp(in[i], at(model::kInputs[i], s), model::kInputs[i].bytes);
      if (!same) continue;
      for (std::size_t i = 0; i < outputs_size(); ++i)
        std::memcpy(out[i], at(model::kOutputs[i], s), model::kOutputs[i].bytes);
#ifdef WRONG
      if (s == WRONG) out[0][0] ^= 1;
#endif
      return kTfLiteOk;
    }
    return kTfLiteError;
  }
  bool works;
  TfLiteTensor ins[9], outs[9];
  char in[9][99999], out[9][99999];
};
}  // namespace tflite
"""
HEADERS = [
    "micro/micro_interpreter.h",
    "micro/micro_log.h",
    "micro/micro_mutable_op_resolver.h",
    "micro/system_setup.h",
    "schema/schema_generated.h",
]


def compiled(folder, tmp_path, *flags):
    """Runs a kit's `main`: how it ended, and what it said."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    methods = "".join(f"  TfLiteStatus Add{name}() {{ return Register(); }}\n" for name in METHODS)
    root = tmp_path / "stub" / "tensorflow" / "lite"
    for header in HEADERS:
        (root / header).parent.mkdir(parents=True, exist_ok=True)
        (root / header).write_text(f'#pragma once\n#include "{tmp_path}/stub.h"\n')
    (tmp_path / "stub.h").write_text(STUB.replace("METHODS", methods))
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    includes = ["-DTF_LITE_STATIC_MEMORY", f"-I{folder}", f"-I{tmp_path / 'stub'}"]
    program = tmp_path / "program"
    subprocess.run(
        [
            "g++",
            "-DTF_LITE_STATIC_MEMORY",
            *strict,
            *flags,
            *includes,
            *sorted(map(str, folder.glob("*.cc"))),
            "-o",
            program,
        ],
        check=True,
        timeout=600,
    )
    done = subprocess.run([program], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout.strip()


def deployed(model, x, folder, **options):
    q = networks.quantized(model, x, target="tflm")
    lite = kerasq.export_tflite(q)
    return lite, kerasq.deploy(lite, folder, x=x, **options)


def arrays(text):
    """The numbers of each array of a C++ file."""
    found = re.findall(r"= \{\n(.*?)\n\};", text, re.DOTALL)
    return [np.array([float(x) for x in each.replace("f,", ",").split(",")[:-1]]) for each in found]


def test_every_operator_has_a_method():
    assert {method(name) for name in TFLM.operators} <= {f"Add{name}" for name in METHODS}


def test_a_classifier(tmp_path):
    model, folder = networks.residual(), tmp_path / "firmware"
    x = networks.data(model, 16)
    classes = model.output_shape[-1]
    names = [f'"{i}" \\ ü??/' for i in range(classes)]
    lite, files = deployed(model, x, folder, labels=names, count=3)
    assert files == FILES == sorted(path.name for path in folder.iterdir())
    given, wanted = arrays((folder / "model_test_vectors.cc").read_text())
    np.testing.assert_array_equal(given, lite.codes(x[:3], lite.inputs[0]).ravel())
    np.testing.assert_array_equal(wanted, lite.predict(x[:3], dequantize=False).ravel())
    header, data = (folder / "model.h").read_text(), (folder / "model.cc").read_text()
    content = bytes(int(byte, 16) for byte in re.findall(r"0x(..)", data))
    assert content == lite.content and f"kDataSize = {len(content)};" in header
    shape = ", ".join(map(str, lite.inputs[0].shape))
    assert f"kInput0Shape[] = {{{shape}}};" in header
    grid = lite.outputs[0].grid
    assert f"kOutput0Grid = {{{float(grid.scale)!r}f, {int(grid.zero_point)}}};" in header
    operators = (folder / "model_ops.h").read_text()
    kinds = {op.name for op in lite.ops}
    assert operators.count("resolver.Add") == len(kinds)
    assert f"MicroMutableOpResolver<{len(kinds)}>" in operators
    arena = int(re.search(r"kArenaSize = (\d+);", header).group(1))
    assert lite.arena_bytes() <= arena < lite.arena_bytes() + 8192 and arena % 1024 == 0

    ended, said = compiled(folder, tmp_path)
    assert (ended, said) == (
        0,
        "3 of 3 samples give the expected codes; 1000 bytes of the arena used.",
    )
    ended, said = compiled(folder, tmp_path, "-DWRONG=1")
    wrong = int(wanted.astype(np.int8).reshape(3, -1)[1, 0])
    difference = f"Sample 1, output 0, value 0: {wrong ^ 1} instead of {wrong}."
    assert ended == 1 and said.startswith(f"{difference}\n2 of 3 samples")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_other_types_of_ends(dtype, tmp_path):
    model, folder = networks.two_by_two(), tmp_path / "firmware"
    x = networks.data(model, 8)
    q = networks.quantized(model, x, target="tflm")
    lite = kerasq.export_tflite(q, input_dtype=dtype, output_dtype=dtype)
    kerasq.deploy(lite, folder, x=x, count=2)
    assert (
        f"using Input1 = {'float' if dtype == 'float32' else 'uint8_t'};"
        in (folder / "model.h").read_text()
    )
    found = arrays((folder / "model_test_vectors.cc").read_text())
    predicted = lite.predict([column[:2] for column in x], dequantize=False)
    for got, want in zip(found[2:], predicted.values(), strict=True):
        np.testing.assert_array_equal(got.astype("float32"), want.ravel().astype("float32"))
    assert compiled(folder, tmp_path)[0] == 0
    first = np.asarray(next(iter(predicted.values()))).ravel()[0]
    said = compiled(folder, tmp_path, "-DWRONG=0")[1]
    wanted = f"{first ^ 1} instead of {first}" if dtype == "uint8" else None
    if wanted is None:
        bits = int(first.view(np.uint32))
        wanted = f"float 0x{bits ^ 1:x} instead of 0x{bits:x}"
    assert said.startswith(f"Sample 0, output 0, value 0: {wanted}.\n")


def test_kits_of_two_networks_in_one_program(tmp_path):
    folder = tmp_path / "firmware"
    # A keyword, and a header's name.
    for name, model in (("class", networks.mlp()), ("string", networks.residual())):
        _, files = deployed(model, networks.data(model, 4), folder, name=name)
        assert files == sorted(["main.cc", *(f"{name}_{x}" for x in FILES[1:])])
    (folder / "main.cc").write_text(
        '#include "class_model_test_vectors.h"\n#include "string_model_test_vectors.h"\n'
        "namespace one = class_model;\nnamespace two = string_model;\nint main() {\n"
        "  return one::kDataSize == two::kDataSize || one::kData[4] != two::kData[4];\n}\n"
    )
    assert compiled(folder, tmp_path)[0] == 0


def test_multipliers_of_a_width(tmp_path):
    model, folder = networks.residual(), tmp_path / "firmware"
    lite, files = deployed(model, networks.data(model, 4), folder, multiplier_bits=15)
    assert files == sorted([*FILES, "model_multipliers.h"])
    rows = kerasq.multipliers(lite, bits=15).rows
    # What a program reads there, one number after the other.
    (folder / "main.cc").write_text(
        '#include <cstdio>\n#include "model_multipliers.h"\nint main() {\n'
        "  for (const auto& x : model::kRequantizations)\n"
        "    for (int i = 0; i < x.count; ++i)\n"
        '      std::printf("%s %s %d %d\\n", x.output, x.op, x.multiplier[i], x.shift[i]);\n}\n'
    )
    code, said = compiled(folder, tmp_path)
    wanted = [
        f"{row.name} {row.op} {multiplier} {shift}"
        for row in rows
        for multiplier, shift in zip(row.multiplier, row.shift, strict=True)
    ]
    assert code == 0 and said.splitlines() == wanted
    header = (folder / "model_multipliers.h").read_text()
    assert "using FixedMultiplier = int16_t;" in header and "kMultiplierBits = 15;" in header
    with pytest.raises(ValueError, match=r"width in \[2, 31\]"):
        kerasq.deploy(lite, folder, x=networks.data(model, 1), multiplier_bits=40)


def test_quantize_and_preprocessing(tmp_path):
    units = np.array([1.0, 1000.0, 0.01])
    x = (np.random.default_rng(0).normal(1, 1, (64, 3)) * units).astype("float32")
    scale = L.Normalization()
    scale.adapt(x)
    model = keras.Sequential([keras.Input((3,), name="sensors"), scale, L.Dense(2)])
    folder = tmp_path / "firmware"
    lite, _ = deployed(model, x, folder)
    header = (folder / "model.h").read_text()
    own = lite.inputs[0].preprocessing
    for what, values in (("Gain", own.gain), ("Shift", own.shift)):
        (found,) = re.findall(rf"kInput0{what}\[\] = {{(.*)}};", header)
        np.testing.assert_array_equal(
            np.array([x.removesuffix("f") for x in found.split(", ")], "float32"), values
        )
    # What the header computes is what the test vectors have, ties included.
    values = ", ".join(f"{value!r}f" for value in own(x[:4]).ravel().tolist())
    (folder / "main.cc").write_text(
        '#include "model_test_vectors.h"\nint main() {\n'
        f"  const float values[] = {{{values}}};\n"
        "  using namespace model;\n"
        "  for (int i = 0; i < 12; ++i)\n"
        "    if (Quantize<Input0>(values[i], kInput0Grid) != kTestInput0[i]) return 1;\n"
        "  if (model::Quantize<int8_t>(2.5f, {1.0f, 0}) != 3) return 2;\n"
        "  if (model::Quantize<int8_t>(1e9f, {1.0f, 0}) != 127) return 3;\n"
        "  return model::Dequantize(5, {0.5f, -1}) == 3.0f ? 0 : 4;\n}\n"
    )
    assert compiled(folder, tmp_path)[0] == 0


def test_operators_of_loops_and_float_layers(tmp_path):
    x = keras.Input((5, 3))
    model = keras.Model(x, L.Dense(2)(keras.ops.cumsum(L.LSTM(4, name="lstm")(x), 1)))
    data = networks.data(model, 8)
    q = networks.quantized(model, data, target="tflm", overrides={"lstm": "float"})
    kerasq.deploy(kerasq.export_tflite(q), tmp_path, x=data)
    found = (tmp_path / "model_ops.h").read_text()
    assert {"AddWhile", "AddLess", "AddTanh", "AddCumSum", "AddFullyConnected"} <= {
        *re.findall(r"resolver\.(\w+)", found)
    }
    with pytest.raises(ValueError, match=r"must be those of TFLite Micro.*a custom one"):
        method("CUSTOM")


@pytest.mark.parametrize("end", ["int16", "int32", "bool"])
def test_outputs_that_are_no_int8(end, tmp_path):
    x = keras.Input((5,))
    ends = {
        "int16": lambda y: y,
        "int32": lambda y: keras.ops.argmax(y, -1),
        "bool": lambda y: y > 0.1,
    }
    model, folder = keras.Model(x, ends[end](L.Dense(3)(x))), tmp_path / "firmware"
    q = networks.quantized(model, scheme="w8a16" if end == "int16" else "w8a8", target="tflm")
    kerasq.deploy(kerasq.export_tflite(q), folder, x=networks.data(q, 3))
    named = {"int16": "int16_t", "int32": "int32_t", "bool": "bool"}[end]
    assert f"using Output0 = {named};" in (folder / "model.h").read_text()
    assert compiled(folder, tmp_path)[0] == 0


def test_a_file_for_litert_is_deployed_with_the_codes_that_the_device_gives(tmp_path):
    q = networks.quantized(networks.mlp())
    x = networks.data(q, 4)
    with pytest.warns(UserWarning, match="made for target 'litert'"):
        kerasq.deploy(kerasq.export_tflite(q), tmp_path, x=x)
    wanted = arrays((tmp_path / "model_test_vectors.cc").read_text())[1]
    with pytest.warns(UserWarning, match="made for target 'litert'"):
        micro = kerasq.TFLiteModel(kerasq.export_tflite(q).content, target="tflm")
    np.testing.assert_array_equal(wanted, micro.predict(x, dequantize=False).ravel())


def test_one_value_has_two_labels(tmp_path):
    x = keras.Input((5,), name='a\n"b"\\')  # A comment of the header has it.
    model = keras.Model(x, L.Dense(1, activation="sigmoid")(x))
    deployed(model, networks.data(model, 4), tmp_path, labels=["no", "yes"])
    assert 'kLabels[] = {"no", "yes"};' in (tmp_path / "model.h").read_text()
    assert compiled(tmp_path, tmp_path)[0] == 0
    deployed(model, networks.data(model, 4), tmp_path, labels=["volts"])
    with pytest.raises(ValueError, match="two where that is one value"):
        deployed(model, networks.data(model, 4), tmp_path, labels=["a", "b", "c"])


def test_of_labels_there_are_as_many_as_one_says(tmp_path):
    x = keras.Input((5,))
    model = keras.Model(x, keras.ops.argmax(L.Dense(3)(x), -1))
    deployed(model, networks.data(model, 4), tmp_path, labels=["a", "b", "c"])
    assert 'kLabels[] = {"a", "b", "c"};' in (tmp_path / "model.h").read_text()


def test_a_kit_has_the_labels_of_its_file(tmp_path):
    q = networks.quantized(networks.mlp(), target="tflm")
    lite = kerasq.export_tflite(q, labels=["a", "b", "c"])
    kerasq.deploy(lite, tmp_path, x=networks.data(q, 4))
    assert 'kLabels[] = {"a", "b", "c"};' in (tmp_path / "model.h").read_text()


def test_values_that_are_no_numbers():
    wanted = {np.inf: "INFINITY", -np.inf: "-INFINITY", np.nan: "NAN"}
    assert [_number(np.float32(value)) for value in wanted] == [*wanted.values()]


def test_bad_arguments(tmp_path):
    q = networks.quantized(networks.mlp(), target="tflm")
    lite, x = kerasq.export_tflite(q), networks.data(q, 4)
    for labels in (["a", "b"], np.array(["a", "b"]), [1, 2, 3], "abc"):
        with pytest.raises(ValueError, match=r"`labels` must be a list of names.*outputs of \[3\]"):
            kerasq.deploy(lite, tmp_path, x=x, labels=labels)
    for count in (0, 1.5):
        with pytest.raises(ValueError, match="`count` must be an integer of at least 1"):
            kerasq.deploy(lite, tmp_path, x=x, count=count)
    for name in ("", "2nd", "a-b", "é", 3):
        with pytest.raises(ValueError, match=r"`name` must be one that C\+\+ can have"):
            kerasq.deploy(lite, tmp_path, x=x, name=name)
    with pytest.raises(TypeError, match=r"must be a kerasq.TFLiteModel.*Received: Functional"):
        kerasq.deploy(q, tmp_path, x=x)
    with pytest.raises(ValueError, match="must hold at least one sample"):
        kerasq.deploy(lite, tmp_path, x=x[:0])
    with pytest.raises(ValueError, match=r"one sample a call.*Export it with batch_size=1"):
        kerasq.deploy(kerasq.export_tflite(q, batch_size=2), tmp_path, x=x)
    with pytest.raises(ValueError, match="`x` must have sample shapes"):
        kerasq.deploy(lite, tmp_path, x=x[:, :-1])
    assert not [*tmp_path.iterdir()]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"must name a folder.*where a file is"):
        kerasq.deploy(lite, tmp_path / "file", x=x)

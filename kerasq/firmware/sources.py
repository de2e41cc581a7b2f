"""The C++ of a deployment kit, as text."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from kerasq.litert.contents import Tensor
from kerasq.requantization import FORMULA, Multiplier, Multipliers

# Bytes, or numbers, a line.
_PER_LINE = 16
# The operator that is the NPU of an Ethos-U.
NPU = "ETHOS_U"
_TYPES = {"f": "float", "b": "bool", "i": "int{bits}_t", "u": "uint{bits}_t"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What runs on the device.

    Attributes:
        origin: a line that says what the file is, and what made it.
        content: the .tflite file.
        operators: its operators.
        arena: the bytes that its interpreter takes.
        outputs: for each output, an array of what it gives for some samples.
    """

    origin: str
    content: bytes
    operators: Sequence[str]
    arena: int
    outputs: Sequence[np.ndarray]

    @property
    def is_compiled(self) -> bool:
        """Whether it is what Vela made, whose arena is an estimate."""
        return NPU in self.operators


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kit:
    """What the sources are made of.

    Attributes:
        name: that of the namespace, and the first part of the files' names.
        program: what runs on the device.
        inputs, outputs: the tensors at its ends.
        labels: names of the classes, or none.
        vectors: for each input, and then each output, an array of samples as the device has them.
        multipliers: what its operators rescale by, for kernels of one's own; None for none.
    """

    name: str
    program: Program
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    labels: Sequence[str]
    vectors: Sequence[np.ndarray]
    multipliers: Multipliers | None = None


# What no rule makes of the names of operators.
_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    NPU: "AddEthosU",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}


def method(operator: str) -> str:
    """What registers an operator with `MicroMutableOpResolver`, such as "AddConv2D".

    Raises:
        ValueError: for an operator of someone's own.
    """
    if operator == "CUSTOM":
        raise ValueError(
            "A kit's operators must be those of TFLite Micro. Received: a custom one. Register it "
            "by hand, with `MicroMutableOpResolver::AddCustom`."
        )
    words = [word.capitalize() for word in operator.split("_")]
    return _METHODS.get(operator, "Add" + "".join(words).replace("2d", "2D"))


_ARENA = """\
// The least that TFLite Micro's interpreter ran in on a 64-bit machine, where pointers are largest:
// an upper bound for its portable kernels. Kernels of a vendor may need more. It is more than
// `MicroInterpreter::arena_used_bytes()`, as kernels are prepared in memory that is free later."""
_COMPILED_ARENA = """\
// An estimate from above, of all tensors that Vela left in the file: nothing here has the NPU."""


def sources(kit: Kit) -> dict[str, str]:
    """The files of a kit, by name."""
    head = f"// {kit.program.origin}\n// Written by kerasq; do not edit.\n"
    own = {}
    if kit.multipliers is not None:
        own = {f"{kit.name}_multipliers.h": head + _multipliers(kit.name, kit.multipliers)}
    return own | {
        f"{kit.name}.h": head + _model_header(kit),
        f"{kit.name}.cc": head + _model_data(kit),
        f"{kit.name}_ops.h": head + _operators(kit),
        f"{kit.name}_test_vectors.h": head + _vectors_header(kit),
        f"{kit.name}_test_vectors.cc": head + _vectors(kit),
        "main.cc": head + _main(kit),
    }


def _model_header(kit: Kit) -> str:
    lines = [_describe("Input", i, tensor) for i, tensor in enumerate(kit.inputs)]
    lines += [_describe("Output", i, tensor) for i, tensor in enumerate(kit.outputs)]
    return f"""\
#ifndef KERASQ_{kit.name.upper()}_H_
#define KERASQ_{kit.name.upper()}_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace {kit.name} {{

// The .tflite file.
extern const unsigned char kData[];
inline constexpr std::size_t kDataSize = {len(kit.program.content)};

{_COMPILED_ARENA if kit.program.is_compiled else _ARENA}
inline constexpr std::size_t kArenaSize = {kit.program.arena};

// How integers stand for real values: scale * (code - zero_point).
struct Grid {{
  float scale;
  int zero_point;
}};

{"".join(lines)}{_labels(kit.labels)}\
// The code of a real value, ties away from zero.
template <typename Code>
Code Quantize(float value, const Grid& grid) {{
  const float code = std::round(value / grid.scale) + static_cast<float>(grid.zero_point);
  const float low = std::numeric_limits<Code>::min(), high = std::numeric_limits<Code>::max();
  return static_cast<Code>(code < low ? low : code > high ? high : code);
}}

// The real value of a code.
inline float Dequantize(int code, const Grid& grid) {{
  return grid.scale * static_cast<float>(code - grid.zero_point);
}}

}}  // namespace {kit.name}

#endif  // KERASQ_{kit.name.upper()}_H_
"""


def _describe(end: str, index: int, tensor: Tensor) -> str:
    """The constants of an input or output."""
    name, shape = f"k{end}{index}", ", ".join(map(str, tensor.shape))
    # Names may hold anything, such as the end of a line.
    lines = [f"// {end} {index}, {_text(tensor.name)}: {tensor.type}, shape ({shape})."]
    lines.append(f"using {end}{index} = {_type(tensor.dtype)};")
    lines.append(f"inline constexpr int {name}Shape[] = {{{shape}}};")
    lines.append(f"inline constexpr std::size_t {name}Size = {int(np.prod(tensor.shape))};")
    if tensor.grid is not None and tensor.dtype.kind != "f":
        scale = _number(np.float32(tensor.grid.scale))
        lines.append(f"inline constexpr Grid {name}Grid = {{{scale}, {tensor.zero_point}}};")
    if tensor.preprocessing is not None:
        own = tensor.preprocessing
        lines.append("// Whoever feeds it computes value * gain + shift, by the last axis, before.")
        for what, values in (("Gain", own.gain), ("Shift", own.shift)):
            lines.append(f"inline constexpr float {name}{what}[] = {{{_listed(values)}}};")
    return "\n".join(lines) + "\n\n"


def _labels(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    quoted = ", ".join(_text(label) for label in labels)
    return f"// The classes.\ninline constexpr const char* kLabels[] = {{{quoted}}};\n\n"


def _text(label: str) -> str:
    """A C string of any text: what is no printable ASCII in octal."""
    return '"' + "".join(_character(byte) for byte in label.encode()) + '"'


def _character(byte: int) -> str:
    is_plain = 32 <= byte < 127 and chr(byte) not in '"\\?'
    return chr(byte) if is_plain else f"\\{byte:03o}"


def _model_data(kit: Kit) -> str:
    rows = _rows([f"0x{byte:02x}" for byte in kit.program.content])
    return f"""\
#include "{kit.name}.h"

namespace {kit.name} {{

// Kernels read weights 16 bytes at a time.
alignas(16) const unsigned char kData[] = {{
{rows}
}};

}}  // namespace {kit.name}
"""


def _operators(kit: Kit) -> str:
    names = sorted({*kit.program.operators})
    calls = "".join(f"  TF_LITE_ENSURE_STATUS(resolver.{method(name)}());\n" for name in names)
    return f"""\
#ifndef KERASQ_{kit.name.upper()}_OPS_H_
#define KERASQ_{kit.name.upper()}_OPS_H_

// Tensors have fewer fields with it: compiled apart, both sides read each other's memory wrongly.
#ifndef TF_LITE_STATIC_MEMORY
#error "Compile this with -DTF_LITE_STATIC_MEMORY, as TFLite Micro's library is."
#endif

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace {kit.name} {{

// The operators of the file, and no others: each takes flash.
using Resolver = tflite::MicroMutableOpResolver<{len(names)}>;

inline TfLiteStatus AddOperators(Resolver& resolver) {{
{calls}  return kTfLiteOk;
}}

}}  // namespace {kit.name}

#endif  // KERASQ_{kit.name.upper()}_OPS_H_
"""


def _multipliers(name: str, found: Multipliers) -> str:
    arrays = "".join(map(_arrays, range(len(found.rows)), found.rows))
    table = "".join(
        f"    {{{_text(x.name)}, {_text(x.op)}, kMultiplier{i}, kShift{i}, {len(x.real)}}},\n"
        for i, x in enumerate(found.rows)
    )
    return f"""\
#ifndef KERASQ_{name.upper()}_MULTIPLIERS_H_
#define KERASQ_{name.upper()}_MULTIPLIERS_H_

#include <cstdint>

namespace {name} {{

// What operators rescale by, for kernels of your own: {FORMULA}.
// TFLite Micro computes these itself, of 31 bits, and does not read this file.
inline constexpr int kMultiplierBits = {found.bits};
using FixedMultiplier = {_mantissa_type(found.bits)};

{arrays}
struct Requantization {{
  const char* output;
  const char* op;
  const FixedMultiplier* multiplier;
  const int8_t* shift;
  int count;  // One for all channels, or as many as there are; of a sum, its inputs.
}};

// In the order of the file.
inline constexpr Requantization kRequantizations[] = {{
{table}}};

}}  // namespace {name}

#endif  // KERASQ_{name.upper()}_MULTIPLIERS_H_
"""


def _arrays(index: int, row: Multiplier) -> str:
    """The constants of one operator."""
    return (
        f"// {row.op}, by {row.along}.\n"
        f"inline constexpr FixedMultiplier kMultiplier{index}[] = {{\n"
        f"{_rows(_numbers(row.multiplier))}\n}};\n"
        f"inline constexpr int8_t kShift{index}[] = {{\n{_rows(_numbers(row.shift))}\n}};\n"
    )


def _mantissa_type(bits: int) -> str:
    # Slopes below 0 have a sign.
    return "int32_t" if bits > 15 else "int16_t" if bits > 7 else "int8_t"


def _vectors_header(kit: Kit) -> str:
    declared = "".join(f"extern const {line};\n" for line in _declarations(kit))
    return f"""\
#ifndef KERASQ_{kit.name.upper()}_TEST_VECTORS_H_
#define KERASQ_{kit.name.upper()}_TEST_VECTORS_H_

#include "{kit.name}.h"

namespace {kit.name} {{

// Samples, and the codes that the first line of this file tells of.
inline constexpr int kVectors = {len(kit.vectors[0])};

// An input or output of all samples: where they are, and the bytes of one.
struct Vectors {{
  const void* data;
  std::size_t bytes;
}};
{declared}
inline constexpr Vectors kInputs[] = {{{_pointers("Input", kit.inputs)}}};
inline constexpr Vectors kOutputs[] = {{{_pointers("Output", kit.outputs)}}};

}}  // namespace {kit.name}

#endif  // KERASQ_{kit.name.upper()}_TEST_VECTORS_H_
"""


def _pointers(end: str, tensors: Sequence[Tensor]) -> str:
    return ", ".join(
        f"{{kTest{end}{i}, sizeof({end}{i}) * k{end}{i}Size}}" for i in range(len(tensors))
    )


def _declarations(kit: Kit) -> list[str]:
    """What the arrays are called, and their types."""
    ends = [("Input", i) for i in range(len(kit.inputs))]
    ends += [("Output", i) for i in range(len(kit.outputs))]
    return [f"{end}{i} kTest{end}{i}[kVectors * k{end}{i}Size]" for end, i in ends]


def _vectors(kit: Kit) -> str:
    arrays = [
        f"const {line} = {{\n{_rows(_numbers(values))}\n}};\n"
        for line, values in zip(_declarations(kit), kit.vectors, strict=True)
    ]
    return f"""\
#include "{kit.name}_test_vectors.h"

namespace {kit.name} {{

{"".join(arrays)}
}}  // namespace {kit.name}
"""


def _type(dtype: np.dtype) -> str:
    return _TYPES[dtype.kind].format(bits=8 * dtype.itemsize)


def _numbers(values: np.ndarray) -> list[str]:
    if values.dtype.kind == "f":
        return [_number(x) for x in values.ravel()]
    return [str(int(x)) for x in values.ravel()]


def _number(value: np.floating) -> str:
    """A float that leads back to the very number."""
    if not np.isfinite(value):  # Macros of <cmath>.
        return "NAN" if np.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    return f"{float(value)!r}f" if "." in repr(float(value)) else f"{float(value):.9e}f"


def _listed(values: np.ndarray) -> str:
    return ", ".join(_numbers(np.asarray(values, np.float32)))


def _rows(items: Iterable[str]) -> str:
    found = list(items)
    parts = [found[i : i + _PER_LINE] for i in range(0, len(found), _PER_LINE)]
    return "\n".join(f"    {', '.join(part)}," for part in parts)


def _main(kit: Kit) -> str:
    checks = "".join(
        f"  is_equal &= IsExpected(interpreter, {i}, sample, {kit.name}::kTestOutput{i}, "
        f"{kit.name}::kOutput{i}Size);\n"
        for i in range(len(kit.outputs))
    )
    return f"""\
// Runs the test vectors on this device and compares every code.
#include <cstring>
#include <type_traits>

#include "{kit.name}.h"
#include "{kit.name}_ops.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "{kit.name}_test_vectors.h"

namespace {{

alignas(16) uint8_t arena[{kit.name}::kArenaSize];

// Whether a sample has the expected codes at an output; says which is the first that differs.
template <typename Code>
bool IsExpected(tflite::MicroInterpreter& interpreter, int output, int sample,
                const Code* expected, std::size_t size) {{
  const Code* found = static_cast<const Code*>(interpreter.output(output)->data.data);
  expected += sample * size;
  for (std::size_t i = 0; i < size; ++i) {{
    // Bytes, as a NaN is not equal to itself.
    if (std::memcmp(found + i, expected + i, sizeof(Code)) == 0) continue;
    if constexpr (std::is_floating_point_v<Code>) {{
      // Their bits, as few decimals may be the same.
      uint32_t bits[2];
      std::memcpy(bits, found + i, sizeof(Code));
      std::memcpy(bits + 1, expected + i, sizeof(Code));
      MicroPrintf("Sample %d, output %d, value %d: float 0x%x instead of 0x%x.", sample, output,
                  static_cast<int>(i), static_cast<unsigned>(bits[0]),
                  static_cast<unsigned>(bits[1]));
    }} else {{
      MicroPrintf("Sample %d, output %d, value %d: %d instead of %d.", sample, output,
                  static_cast<int>(i), static_cast<int>(found[i]), static_cast<int>(expected[i]));
    }}
    return false;
  }}
  return true;
}}

// Runs a sample: 1 where it gives the expected codes, 0 where not, -1 where it does not run.
int RunSample(tflite::MicroInterpreter& interpreter, int sample) {{
  for (std::size_t i = 0; i < interpreter.inputs_size(); ++i) {{
    const {kit.name}::Vectors& all = {kit.name}::kInputs[i];
    std::memcpy(interpreter.input(i)->data.data,
                static_cast<const char*>(all.data) + sample * all.bytes, all.bytes);
  }}
  if (interpreter.Invoke() != kTfLiteOk) return -1;
  bool is_equal = true;
{checks}  return is_equal;
}}

// 0 where every sample gives the expected codes.
int RunTestVectors() {{
  tflite::InitializeTarget();
  {kit.name}::Resolver resolver;
  if ({kit.name}::AddOperators(resolver) != kTfLiteOk) return 1;
  tflite::MicroInterpreter interpreter(tflite::GetModel({kit.name}::kData), resolver, arena,
                                       {kit.name}::kArenaSize);
  if (interpreter.AllocateTensors() != kTfLiteOk) {{
    MicroPrintf("The arena of %d bytes is too small, or an operator is missing.",
                static_cast<int>({kit.name}::kArenaSize));
    return 1;
  }}
  int equal = 0;
  for (int sample = 0; sample < {kit.name}::kVectors; ++sample) {{
    const int is_equal = RunSample(interpreter, sample);
    if (is_equal < 0) {{
      MicroPrintf("Sample %d does not run.", sample);
      return 1;
    }}
    equal += is_equal;
  }}
  MicroPrintf("%d of %d samples give the expected codes; %d bytes of the arena used.", equal,
              {kit.name}::kVectors, static_cast<int>(interpreter.arena_used_bytes()));
  return equal == {kit.name}::kVectors ? 0 : 1;
}}

}}  // namespace

#ifdef ESP_PLATFORM
extern "C" void app_main() {{ RunTestVectors(); }}
#else
int main() {{ return RunTestVectors(); }}
#endif
"""

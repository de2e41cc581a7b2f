#!/usr/bin/env bash
# LiteRT 1.0.1: int16 FULLY_CONNECTED of a sequence or an image fills only the beginning of its output.
#
# FULLY_CONNECTED works on the last axis, whatever stands before it (`keepNumDims`), and does so on int8 and in float. On int16,
# with a scale for each channel, LiteRT 1.0.1 takes the first axis of the output for the rows and the second one for the units:
# of a tensor (2, 3, 12) it writes 2 x 3 values, and the others are what happened to stand in memory. It loads such a file
# whatever version of the operator that says (7 and 12 alike), and a tensor of two axes is right, so a test with a flat input
# finds nothing. LiteRT 1.2.0 fills the whole output.
#
# Seen: inputs (4, 8): all values equal to those of 1.2.0 (within a step); inputs (2, 3, 8): 69 of 72 values are others.
# Fails if a value of (4, 8) is more than a step apart, or if most values of (2, 3, 8) are equal.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 1.0.1 1.2.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --disable-pip-version-check "ai-edge-litert==$version" numpy==1.26.4 flatbuffers==25.2.10
done
python3 -m venv writer
writer/bin/pip install --quiet --disable-pip-version-check ai-edge-litert==2.3.0 numpy==2.2.6
cat >write.py <<'PYTHON'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

INPUTS, UNITS = 8, 12
rng = np.random.default_rng(0)
weights = rng.integers(-127, 128, (UNITS, INPUTS)).astype(np.int8)
scales = np.float32(0.001 * (1 + np.arange(UNITS)))


def tensor(name, shape, kind, scale, axis=0, buffer=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = scale, [0] * len(scale)
    made.quantization.quantizedDimension = axis
    return made


def write(name, shape, version):
    graph, kinds = schema.SubGraphT(), schema.TensorType
    bias = np.float32(0.0005) * scales
    graph.tensors = [
        tensor("x", [*shape, INPUTS], kinds.INT16, [0.0005]),
        tensor("w", [UNITS, INPUTS], kinds.INT8, scales.tolist(), buffer=1),
        tensor("b", [UNITS], kinds.INT64, bias.tolist(), buffer=2),
        tensor("y", [*shape, UNITS], kinds.INT16, [0.002]),
    ]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1, 2], [3]
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = schema.FullyConnectedOptionsT()
    op.builtinOptions.keepNumDims = len(shape) > 1
    graph.operators, graph.inputs, graph.outputs = [op], [0], [3]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = version
    buffers = [schema.BufferT() for _ in range(3)]
    buffers[1].data = np.frombuffer(weights.tobytes(), np.uint8)
    buffers[2].data = np.frombuffer(np.zeros(UNITS, np.int64).tobytes(), np.uint8)
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs, whole.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    with open(f"{name}_{version}.tflite", "wb") as file:
        file.write(bytes(builder.Output()))


for version in (7, 12):
    write("flat", [4], version)
    write("sequence", [2, 3], version)
PYTHON
cat >run.py <<'PYTHON'
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

rng, found = np.random.default_rng(1), {}
for name, shape in (("flat", (4, 8)), ("sequence", (2, 3, 8))):
    for version in (7, 12):
        interpreter = Interpreter(f"{name}_{version}.tflite")
        interpreter.allocate_tensors()
        x = rng.integers(-32767, 32768, shape).astype(np.int16)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        found[f"{name}_{version}"] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
np.savez(sys.argv[1], **found)
PYTHON
writer/bin/python write.py 2>/dev/null
for version in 1.0.1 1.2.0; do "venv-$version/bin/python" run.py "$version.npz" 2>/dev/null; done
writer/bin/python - <<'PYTHON'
import numpy as np

old, new = np.load("1.0.1.npz"), np.load("1.2.0.npz")
for key in old:
    apart = np.abs(old[key].astype(int) - new[key].astype(int))
    name, version = key.split("_")
    count = np.count_nonzero(apart > 1)
    print(f"{name} input, operator version {version}: {count} of {apart.size} values are others")
    assert count == 0 if name == "flat" else count > apart.size / 2, key
PYTHON

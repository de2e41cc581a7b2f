#!/usr/bin/env bash
# LiteRT 2.3.0: the zero point of an int8 ELU's output decides to which step a value is rounded.
#
# A zero point is a whole number, so one expects q - zero_point to be the same for any: rounding y / scale and adding it, or the
# other way round. XNNPACK makes its tables by rint(y * (1 / scale) + zero_point) in float32: the sum has fewer bits left behind the
# point than the product, so that what lies just below a tie becomes one, and goes to the even code. LiteRT's own tables, such as
# GELU's, round the product, ties away from zero.
#
# Seen: y / scale = 7.499997 is 7 steps with the zero points 0 and -7, and 8 steps with -128.
# Fails if it is another number of steps with any of them.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ai-edge-litert==2.3.0 numpy==2.2.6
cd "$folder"
cat >demo.py <<'PYTHON'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

SOURCE, OUT = 22517.40234375, 12009.2861328125


def tensor(name, scale, zero_point):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, [1, 1], schema.TensorType.INT8, 0
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
    return made


def steps(zero_point):
    """Those of the output's grid that 4 of the input's are."""
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", SOURCE, 0), tensor("y", OUT, zero_point)]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    graph.operators, graph.inputs, graph.outputs = [op], [0], [1]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ELU
    code.version = 1
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()))
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, np.int8([[4]]))
    interpreter.invoke()
    return int(interpreter.get_tensor(1)[0, 0]) - zero_point


print(f"y / scale = {4 * SOURCE / OUT:.6f}")
found = {zero_point: steps(zero_point) for zero_point in (0, -7, -128)}
for zero_point, count in found.items():
    print(f"zero point {zero_point}: {count} steps")
assert found == {0: 7, -7: 7, -128: 8}
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

#!/usr/bin/env bash
# LiteRT 2.3.0: an int16 TANH (and LOGISTIC) whose input scale is nearly 2^-12 is computed as if it were 2^-12.
#
# The kernel multiplies codes by a fixed-point form of the scale and interpolates a table, so that one expects outputs to move with
# the scale. Where the logarithm of the scale is within 0.001 of -12 (TANH: -11 as well), it takes another way, in fixed point
# without the scale: the same codes come out for all scales in that band, and others than the table gives just outside. Simulations
# by the table, and models trained on such a grid, are then off by up to 19 steps of the output; a range that ends at 8, as that of
# clipped values, has such a scale.
#
# Seen: the largest distance from tanh, in steps of 2^-15, at 2^-12 times 0.998, 0.9995, 1, 1.0005 and 1.002: 2.5, 18.0, 11.8, 18.8
# and 2.3; all codes are the same at the middle three.
# Fails if the middle three differ from each other, or are as near to tanh as the outer two.
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

CODES = np.arange(-32768, 32768, dtype=np.int16)


def tensor(name, scale):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, [CODES.size], schema.TensorType.INT16, 0
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
    return made


def tanh(scale):
    """What all codes become."""
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", scale), tensor("y", 2.0**-15)]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    graph.operators, graph.inputs, graph.outputs = [op], [0], [1]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TANH
    code.version = 3
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()))
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, CODES)
    interpreter.invoke()
    return interpreter.get_tensor(1).astype(int)


found, far = {}, {}
for factor in (0.998, 0.9995, 1.0, 1.0005, 1.002):
    scale = float(np.float32(factor * 2.0**-12))
    found[factor] = tanh(scale)
    want = np.clip(2.0**15 * np.tanh(scale * CODES), -32768, 32767)
    far[factor] = np.abs(found[factor] - want).max()
    print(f"2^-12 times {factor}: {far[factor]:.1f} steps from tanh at most")
assert all((found[x] == found[1.0]).all() for x in (0.9995, 1.0005))
assert max(far[0.998], far[1.002]) < 3.0 < 8.0 < min(far[0.9995], far[1.0], far[1.0005])
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

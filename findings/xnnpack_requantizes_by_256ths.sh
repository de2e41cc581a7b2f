#!/usr/bin/env bash
# LiteRT 2.1.3: QUANTIZE from int8 to int8 by default (XNNPACK) multiplies by the ratio of scales rounded to 1/256.
#
# TFLite's reference kernels rescale by a fixed-point multiplier of 31 bits, and most of XNNPACK's int8 kernels by a float32,
# so one expects as much of QUANTIZE between two int8 tensors. Its multiplier has 8 fractional bits: the ratio
# 0.0098 becomes 3/256 = 0.0117, a fifth more. A simulation that rounds the exact product is off by one step wherever that matters.
#
# Seen, of 256 input codes, those whose result differs from the reference kernels', always by 1:
#   ratio 0.0098: 16, 0.03: 18, 0.1: 13, 0.502: 0, 0.7: 1
# and the default kernel equals floor(code * round(256 * ratio) / 256 + 1/2) for every code. Fails if either changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ai-edge-litert==2.1.3 numpy==2.2.6
cd "$folder"
cat >demo.py <<'PYTHON'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def tensor(name, scale):
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = [scale], [0]
    made = schema.TensorT()
    made.name, made.shape, made.type = name, [1, 256], schema.TensorType.INT8
    made.quantization, made.buffer = quantization, 0
    return made


def model(ratio):
    """One QUANTIZE, from scale `ratio` to scale 1."""
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", ratio), tensor("y", 1.0)]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    graph.operators, graph.inputs, graph.outputs = [op], [0], [1]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 2
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(content, resolver):
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, codes[None])
    interpreter.invoke()
    return interpreter.get_tensor(1)[0].astype(int)


codes = np.arange(-128, 128).astype(np.int8)
differ = {}
print(f"{'ratio':>8} {'most off':>9} {'of codes':>9}   (default kernel against the reference kernel)")
for ratio in (0.0098, 0.03, 0.1, 0.502, 0.7):
    default = run(model(ratio), OpResolverType.AUTO)
    reference = run(model(ratio), OpResolverType.BUILTIN_REF)
    rounded = np.floor(codes * np.round(256 * np.float32(ratio)) / 256 + 0.5).astype(int)
    assert (default == rounded).all(), ratio
    off = abs(default - reference)
    differ[ratio] = int((off > 0).sum())
    assert off.max() <= 1
    print(f"{ratio:8} {off.max():9} {abs(reference).max():9}   {differ[ratio]} of 256 values differ")
assert differ == {0.0098: 16, 0.03: 18, 0.1: 13, 0.502: 0, 0.7: 1}
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

#!/usr/bin/env bash
# LiteRT 2.1.3: the reference kernel of SUM reads int8 codes as unsigned ones, so that a quantized sum is another number.
#
# Reference kernels are what one compares others with, and what a port to another processor starts from; for MEAN, which
# shares most of its code, they are right. In SUM a code below 0 counts 256 more than it is. Sums come
# out at an end of the unsigned range; where all codes are 0 or more both kernels agree, so that a test behind a ReLU
# with a zero point of 0 passes. The default kernel is right.
#
# Seen: of codes -3 .. 4 (scale 1), which add up to 4, the default kernel gives 4, the reference kernel -1 (255, the
# largest unsigned code); of codes 0 .. 7 both give 28; MEAN of the first, 0.5, gives 0 or 1 in both. Fails if that changes.
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


def tensor(name, kind, shape, buffer=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
    if kind == schema.TensorType.INT8:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [1.0], [0]
    return made


def model(kind):
    """A reduction of eight int8 codes to one, all of scale 1."""
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", schema.TensorType.INT8, [1, 8]),
        tensor("axis", schema.TensorType.INT32, [1], buffer=1),
        tensor("y", schema.TensorType.INT8, [1, 1]),
    ]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1], [2]
    op.builtinOptionsType = schema.BuiltinOptions.ReducerOptions
    op.builtinOptions = schema.ReducerOptionsT()
    op.builtinOptions.keepDims = True
    graph.operators, graph.inputs, graph.outputs = [op], [0], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 2
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    axis = schema.BufferT()
    axis.data = np.frombuffer(np.array([1], np.int32).tobytes(), np.uint8)
    whole.buffers = [schema.BufferT(), axis]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(kind, codes, resolver):
    interpreter = Interpreter(model_content=model(kind), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], codes[None])
    interpreter.invoke()
    return int(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0, 0])


found = {}
for name in ("SUM", "MEAN"):
    for first in (-3, 0):
        codes = np.arange(first, first + 8).astype(np.int8)
        kind = getattr(schema.BuiltinOperator, name)
        both = [run(kind, codes, x) for x in (OpResolverType.AUTO, OpResolverType.BUILTIN_REF)]
        found[name, first] = both
        print(f"{name} of codes {first} .. {first + 7}: default {both[0]}, reference {both[1]}")
assert found["SUM", -3] == [4, -1] and found["SUM", 0] == [28, 28], found
assert {*found["MEAN", -3]} <= {0, 1}, found
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

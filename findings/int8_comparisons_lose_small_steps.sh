#!/usr/bin/env bash
# LiteRT 2.1.3: GREATER, LESS and EQUAL of int8 tensors do not compare the codes, also where both lie on one grid.
#
# One expects of two tensors of one scale and zero point that the larger code is the larger value. The kernels, default and
# reference, shift each value by 8 bits instead, multiply it by its scale and round: they compare round(256 * scale * code).
# Where the scale is below 1/256 several codes become one integer, and different values are equal. So `where(a > b, a, b)`
# is not the maximum on small values, such as probabilities or normalized features, while MAXIMUM is.
#
# Seen, of 255 pairs of neighbouring codes, those for which GREATER is true of the larger and the smaller one:
#   scale 1/64: 255, 1/256: 255, 1/512: 128, 1/2048: 32, 1/8192: 8
# and EQUAL is true of the others. The default and reference kernels agree. Fails if that changes.
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

LOW = np.arange(-128, 127).astype(np.int8)


def tensor(name, kind, scale=None):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, [1, len(LOW)], kind, 0
    if scale:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
    return made


def model(kind, scale):
    """A comparison of two int8 tensors on one grid."""
    graph = schema.SubGraphT()
    graph.tensors = [tensor(name, schema.TensorType.INT8, scale) for name in "xy"]
    graph.tensors.append(tensor("z", schema.TensorType.BOOL))
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1], [2]
    graph.operators, graph.inputs, graph.outputs = [op], [0, 1], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 2
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def count(name, scale, resolver):
    """For how many pairs of neighbouring codes a comparison is true."""
    content = model(getattr(schema.BuiltinOperator, name), scale)
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, (LOW + 1).astype(np.int8)[None])
    interpreter.set_tensor(1, LOW[None])
    interpreter.invoke()
    return int(interpreter.get_tensor(2).sum())


found = {}
for parts in (64, 256, 512, 2048, 8192):
    greater, equal = (
        [count(name, 1 / parts, x) for x in (OpResolverType.AUTO, OpResolverType.BUILTIN_REF)]
        for name in ("GREATER", "EQUAL")
    )
    assert greater[0] == greater[1] and equal == [len(LOW) - greater[0]] * 2, (greater, equal)
    found[parts] = greater[0]
    print(f"scale 1/{parts}: of {len(LOW)} pairs {greater[0]} differ, {equal[0]} are equal")
assert found == {64: 255, 256: 255, 512: 128, 2048: 32, 8192: 8}, found
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

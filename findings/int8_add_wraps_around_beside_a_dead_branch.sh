#!/usr/bin/env bash
# LiteRT 2.1.3: int8 ADD of a large and an almost constant tensor is a wrong number where it should be a saturated one.
#
# ADD rescales both inputs to the grid of the output, and results beyond it are clamped to -128 or 127: one expects that of
# any scales. XNNPACK takes sums whose input scales are 2^-10 to 2^8 times the output's, and clamps. Where one input's scale is
# smaller, as behind a branch whose activations have died, the operator goes to LiteRT's own kernel, without a word. That one
# cuts sums down to 16 bits before it clamps, in all blocks of 16 values: what is 32,768 steps or more below the output's zero
# point becomes 127, not -128. The last values of a tensor whose size is no multiple of 16, and the reference kernel, are right.
#
# Seen, for codes -128 of a tensor of scale 200, zero point 127, plus an almost constant one, on an output of scale 1:
#   other scale 0.002 (XNNPACK): -128 in all 24 places
#   other scale 0.0005, 24 values: 127 in the first 16 places, -128 in the last 8; reference kernels: -128 in all
# Fails if that changes.
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

COUNT = 24


def tensor(name, scale, zero_point):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, [1, COUNT], schema.TensorType.INT8, 0
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
    return made


def model(other_scale):
    """x + y, of which y is almost constant."""
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", 200.0, 127), tensor("y", other_scale, 0), tensor("z", 1.0, 0)]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1], [2]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    op.builtinOptions.potScaleInt16 = False
    graph.operators, graph.inputs, graph.outputs = [op], [0, 1], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 2
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(other_scale, resolver):
    interpreter = Interpreter(model_content=model(other_scale), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, np.full((1, COUNT), -128, np.int8))
    interpreter.set_tensor(1, np.ones((1, COUNT), np.int8))
    interpreter.invoke()
    return interpreter.get_tensor(2)[0].tolist()


right, wrong = [-128] * COUNT, [127] * 16 + [-128] * 8
for scale, resolver, want in (
    (0.002, OpResolverType.AUTO, right),
    (0.0005, OpResolverType.AUTO, wrong),
    (0.0005, OpResolverType.BUILTIN_REF, right),
):
    found = run(scale, resolver)
    print(f"{resolver.name}, other scale {scale}: {found}")
    assert found == want, (scale, resolver, found)
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

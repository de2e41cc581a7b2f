#!/usr/bin/env bash
# LiteRT 2.3.0: on int16, FULLY_CONNECTED and CONV_2D of one pixel round the same sums to other codes.
#
# Both multiply the same weights with the same inputs, and on int8 XNNPACK rounds both alike. On int16 neither runs there.
# CONV_2D goes through a multiplier of 15 bits, ties up; FULLY_CONNECTED goes through a double, ties away from
# zero. So sums below 0 that lie half way are a step apart, and so may be large ones.
#
# Seen: sums that stand for -1.5 and 1.5 steps of the output are -2 and 2 by FULLY_CONNECTED, -1 and 2 by CONV_2D; one of 29907.8
# steps is 29908 by FULLY_CONNECTED, 29907 by CONV_2D.
# Fails if they come to agree, or are other numbers.
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

SOURCE, WEIGHT = 2.0**-5, 2.0**-7
# By operator: version, options, and the axes of a pixel that its tensors have.
OPERATORS = {"FULLY_CONNECTED": (12, "FullyConnectedOptions", ()), "CONV_2D": (6, "Conv2DOptions", (1, 1))}


def outputs(name, sums, step):
    """The codes of outputs that have these sums, each of so many steps of the output."""
    version, options, pixel = OPERATORS[name]
    count = len(sums)
    whole, graph = schema.ModelT(), schema.SubGraphT()
    whole.buffers, graph.tensors = [schema.BufferT()], []

    def tensor(name, shape, kind, scale, values=None):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, 0
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = scale, [0 for _ in scale]
        if values is not None:
            made.buffer = len(whole.buffers)
            whole.buffers.append(schema.BufferT())
            whole.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
        graph.tensors.append(made)

    weights = np.ones((count, *pixel, 2), np.int8)
    tensor("x", [1, *pixel, 2], schema.TensorType.INT16, [SOURCE])
    tensor("kernel", [*weights.shape], schema.TensorType.INT8, [WEIGHT] * count, weights)
    bias = np.int64(sums)
    tensor("bias", [count], schema.TensorType.INT64, [SOURCE * WEIGHT] * count, bias)
    tensor("y", [1, *pixel, count], schema.TensorType.INT16, [SOURCE * WEIGHT / step])
    op, code = schema.OperatorT(), schema.OperatorCodeT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1, 2], [3]
    op.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    op.builtinOptions = getattr(schema, f"{options}T")()
    if pixel:
        op.builtinOptions.strideW = op.builtinOptions.strideH = 1
        op.builtinOptions.dilationWFactor = op.builtinOptions.dilationHFactor = 1
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = version
    graph.operators, graph.inputs, graph.outputs = [op], [0], [3]
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()))
    interpreter.allocate_tensors()
    # Inputs are 0: the bias is the sum.
    interpreter.set_tensor(0, np.zeros((1, *pixel, 2), np.int16))
    interpreter.invoke()
    return interpreter.get_tensor(3).ravel().tolist()


found = {}
for name in OPERATORS:
    found[name] = outputs(name, [-3, 3], 0.5) + outputs(name, [49_000], 20_000.4 / 2**15)
    print(f"{name}: {found[name]}")
assert found == {"FULLY_CONNECTED": [-2, 2, 29908], "CONV_2D": [-1, 2, 29907]}
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

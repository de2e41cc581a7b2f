#!/usr/bin/env bash
# LiteRT 2.3.0, x86-64 with AVX2: on int16, equal pairs of codes have another sum in the last places of a tensor.
#
# ADD multiplies both inputs up onto one scale, adds them, and multiplies their sum back down. Sixteen values at once go
# through vector instructions, which round each rescaled input once; what is left over goes through the portable code, which
# rounds it twice (a doubling high multiplication, then a rounding shift). So one and the same pair adds up to two results, and a
# tensor of 16 values is computed by one rule where one of 15 is by the other; so do other processors, the reference kernels,
# and SUB everywhere: x - y is not x + (-y). How often it shows hangs on the scales: seldom where the output's steps are as large
# as the inputs', in a per cent of the values where they are much finer. No difference is left where both inputs have one scale.
#
# Seen, of 200,000 pairs of codes, each among the first 16 and among the last 15 places of a tensor of 31: 2,143 have two sums, 1 apart;
# none by reference kernels, and none with one scale for both.
# Fails if none has two sums by default, if any is more than a step apart, or if the others differ.
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
from ai_edge_litert.interpreter import Interpreter, OpResolverType

PLACES, PAIRS = 31, 200_000
FINE = 0.0003567614


def tensor(name, scale):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, [1, PLACES], schema.TensorType.INT16, 0
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
    return made


def model(scales):
    graph = schema.SubGraphT()
    graph.tensors = [tensor(name, scale) for name, scale in zip("xyz", (*scales, FINE))]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1], [2]
    op.builtinOptionsType = schema.BuiltinOptions.AddOptions
    op.builtinOptions = schema.AddOptionsT()
    op.builtinOptions.potScaleInt16 = False
    graph.operators, graph.inputs, graph.outputs = [op], [0, 1], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 3
    whole = schema.ModelT()
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def differences(scales, resolver=OpResolverType.AUTO):
    interpreter = Interpreter(model_content=model(scales), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    rng, count, most = np.random.default_rng(0), 0, 0
    # Sums that stay within int16 on the fine grid.
    for x in rng.integers(-100, 101, (PAIRS // 10, 10)):
        y = np.round((rng.uniform(-11, 11, 10) - x * scales[0]) / scales[1])
        for i, codes in enumerate((x, y)):
            interpreter.set_tensor(i, np.resize(codes, (1, PLACES)).astype(np.int16))
        interpreter.invoke()
        z = interpreter.get_tensor(2)[0].astype(int)
        apart = np.abs(z[:10] - z[20:30])
        count, most = count + np.count_nonzero(apart), max(most, apart.max())
    print(f"scales {scales}, {resolver.name}: {count} of {PAIRS:,} pairs have two sums, {most} apart at most")
    return count, most


two = (0.1990946, 0.27453786)
found, most = differences(two)
assert found > 0 and most == 1
assert differences(two, OpResolverType.BUILTIN_REF) == (0, 0)
assert differences((two[1], two[1])) == (0, 0)
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

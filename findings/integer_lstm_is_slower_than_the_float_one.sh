#!/usr/bin/env bash
# LiteRT 2.3.0, x86-64: UNIDIRECTIONAL_SEQUENCE_LSTM takes 7 times as long on int8 as in float, and goes on where the last call ended.
#
# TFLiteConverter makes one operator of an LSTM of tf_keras, in float and fully quantized. One expects the integer one to be the
# faster, as everywhere else. But on x86-64 LiteRT calls its portable C loops for it, one product at a time, and gemmlowp's functions
# value by value; vectorized ones are for Arm. And both keep their states in variables of the file: a second call with the same
# input gives other values, unless the program calls `reset_all_variables` before. kerasq's files write zeros to them by a QUANTIZE.
#
# Seen: float 38 us, int8 286 us, of 32 steps and 32 units; a second call differs in both.
# Fails if the integer one takes less than twice as long as the float one, or a second call returns the same.
set -euo pipefail
[[ "$(uname -m)" == x86_64 ]] || exit 0
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-cpu==2.21.0 tf_keras==2.21.0 ai-edge-litert==2.3.0
cd "$folder"
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1
cat >demo.py <<'PYTHON'
import time

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

STEPS, FEATURES, UNITS = 32, 16, 32
layers = [tf_keras.Input((STEPS, FEATURES), batch_size=1), tf_keras.layers.LSTM(UNITS)]
model = tf_keras.Sequential(layers)
data = np.random.default_rng(0).normal(size=(50, 1, STEPS, FEATURES)).astype("float32")


def converted(is_integer):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if is_integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x] for x in data)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def measured(content):
    """Microseconds a call, and whether a second call returns the same."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    ends = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(ends[0]["index"], np.ones(ends[0]["shape"], ends[0]["dtype"]))
    times, found = [], []
    for _ in range(300):
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
        found.append(interpreter.get_tensor(ends[1]["index"]))
    return 1e6 * min(times), np.array_equal(*found[:2])


(in_float, float_same), (on_integers, integer_same) = (measured(converted(x)) for x in (False, True))
print(f"float {in_float:.0f} us, int8 {on_integers:.0f} us")
assert on_integers > 2 * in_float and not float_same and not integer_same
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null | grep "us"

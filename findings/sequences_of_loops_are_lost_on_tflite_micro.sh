#!/usr/bin/env bash
# TFLite Micro 0.dev20261023182759, TensorFlow 2.21.0: recurrent layers that return sequences run, without a word, and give other values.
#
# The converter makes a WHILE of an LSTM. One that returns its last state alone is the same in LiteRT and in TFLite Micro. With
# return_sequences=True its body writes a step into the list of outputs by two SLICEs and a CONCATENATION, and the slices grow
# and shrink from step to step. TFLite Micro has no dynamic shapes; one expects it to refuse the file. It takes the sizes that the
# file happens to note (one step each), reports no error, and most of the sequence is left unwritten. With unroll=True
# there is no loop, and the values are right.
#
# Seen: last state, and sequence of the unrolled layer: equal within 1e-6; sequence of the loop: off by up to 0.8.
# Fails if the first two differ, if TFLite Micro refuses the third, or if that is right.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-cpu==2.21.0 keras==3.15.1 \
  ai-edge-litert==2.3.0 tflite-micro==0.dev20261023182759
cd "$folder"
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1
cat >demo.py <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tflite_micro.python.tflite_micro import runtime

STEPS = 5


def converted(**options):
    keras.utils.set_random_seed(0)
    x = keras.Input((STEPS, 3), batch_size=1)
    model = keras.Model(x, keras.layers.LSTM(4, **options)(x))
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def on_litert(content, x):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def on_micro(content, x):
    interpreter = runtime.Interpreter.from_bytes(content)
    interpreter.set_input(x, 0)
    interpreter.invoke()
    return interpreter.get_output(0)


x = np.random.default_rng(0).normal(size=(1, STEPS, 3)).astype("float32")
cases = {
    "last state": {},
    "sequence, unrolled": {"return_sequences": True, "unroll": True},
    "sequence of a loop": {"return_sequences": True},
}
for title, options in cases.items():
    content = converted(**options)
    apart = np.abs(on_litert(content, x) - on_micro(content, x)).max()
    print(f"{title}: off by at most {apart:.2g}")
    # Not a number where the arena held none.
    assert (apart < 1e-6) == (title != "sequence of a loop")
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null | grep "off by"

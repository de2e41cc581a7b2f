#!/usr/bin/env bash
# tfmot 0.8.1 (tf_keras 2.21.0): a convolution of 8 clusters, trained to preserve them (CQAT), has 86 different codes in the file.
#
# One expects weights of 8 values to be at most 8 int8 codes, which a zip or a compiler's look-up tables gain from. For Conv2D
# two things make them more: `get_centroids` takes a layer whose channels all have about as many values for one that was
# clustered channel by channel, and from then on trains values for each channel; and each channel has a scale of its own, its
# largest weight, on which equal weights of two channels have different codes. A Dense layer, of one scale, has its 8 codes.
# What is not Conv2D or Dense is not preserved at all: a DepthwiseConv2D of 8 values comes out with 114 codes.
#
# Seen, different codes in the .tflite of 8 values each: Conv2D 86, DepthwiseConv2D 114, Dense 8; in one channel of the Conv2D 8.
# Fails if the convolutions have fewer than 40, or the Dense other than 8.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow==2.21.0 tf_keras==2.21.0 \
  tensorflow-model-optimization==0.8.1
cd "$folder"
cat >demo.py <<'PYTHON'
import numpy as np
import tensorflow as tf
import tf_keras
import tensorflow_model_optimization as tfmot

L = tf_keras.layers
rng = np.random.default_rng(0)
x, y = rng.normal(size=(256, 8, 8, 4)).astype("float32"), rng.integers(0, 10, 256)


def clustered():
    tf_keras.utils.set_random_seed(0)
    image = L.Input((8, 8, 4))
    y = L.BatchNormalization(name="norm")(L.Conv2D(16, 3, use_bias=False, name="conv")(image))
    y = L.DepthwiseConv2D(3, name="depthwise")(L.ReLU(name="relu")(y))
    model = tf_keras.Model(image, L.Dense(10, name="head")(L.Flatten(name="flat")(y)))
    for variable in model.weights:
        if "kernel" in variable.name:
            kernel = variable.numpy()
            values = np.linspace(kernel.min(), kernel.max(), 8)
            variable.assign(values[np.abs(kernel[..., None] - values).argmin(-1)])
    return model


quantization = tfmot.quantization.keras
with quantization.quantize_scope():
    annotated = quantization.quantize_annotate_model(clustered())
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme()
    model = quantization.quantize_apply(annotated, scheme)
loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(tf_keras.optimizers.SGD(0.01, momentum=0.9), loss)
model.fit(x, y, epochs=2, verbose=0)
converter = tf.lite.TFLiteConverter.from_keras_model(tfmot.experimental.combine.strip_clustering_cqat(model))
converter.optimizations = [tf.lite.Optimize.DEFAULT]
interpreter = tf.lite.Interpreter(model_content=converter.convert())
shapes = {(16, 3, 3, 4): "Conv2D", (1, 3, 3, 16): "DepthwiseConv2D", (10, 256): "Dense"}
found = {}
for detail in interpreter.get_tensor_details():
    name = shapes.get(tuple(detail["shape"]))
    if name and detail["dtype"] == np.int8:
        codes = interpreter.get_tensor(detail["index"])
        found[name] = len(np.unique(codes))
        if name == "Conv2D":
            in_a_channel = max(len(np.unique(channel)) for channel in codes)
print(f"different codes of 8 values: {found}; in one channel of the Conv2D: {in_a_channel}")
assert found["Conv2D"] > 40 and found["DepthwiseConv2D"] > 40
assert found["Dense"] == in_a_channel == 8
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

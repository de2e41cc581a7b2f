#!/usr/bin/env bash
# tfmot 0.8.1 (tf_keras 2.21.0): a Conv2D, DepthwiseConv2D or Dense with a ReLU layer behind it trains on float weights.
#
# `tfmot.quantization.keras.quantize_model` is documented to emulate int8 weights in training. With activation="relu", or with a
# BatchNormalization in between, it does. In front of a layer of its own, ReLU or Activation("relu"), the transform that leaves
# out the fake-quant between the two (`LayerReLUQuantize`, written for Add) gives the layer `NoOpQuantizeConfig`, which leaves
# out that of its weights as well. They are rounded for the first time when the model is converted. Sparsity- and
# cluster-preserving training (PQAT, CQAT) hang on the same place: zeros of a pruned layer are gone after two epochs.
#
# Seen, share of zeros in the .tflite of a Conv2D that was pruned to 75 %, after PQAT:
#   activation="relu": 0.75; BatchNormalization, ReLU: 0.76; ReLU: less than 0.1
# Fails if either changes.
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
quantization = tfmot.quantization.keras

for layer in (L.Conv2D(4, 3, name="it"), L.DepthwiseConv2D(3, name="it"), L.Dense(4, name="it")):
    image = L.Input((8, 8, 4))
    model = quantization.quantize_model(tf_keras.Model(image, L.ReLU(name="relu")(layer(image))))
    wrapper = model.get_layer("quant_it")
    quantized = wrapper.quantize_config.get_weights_and_quantizers(wrapper.layer)
    print(f"{type(layer).__name__:>16}, ReLU: weights that are fake-quantized: {quantized}")
    assert quantized == []

rng = np.random.default_rng(0)
x, y = rng.normal(size=(256, 8, 8, 4)).astype("float32"), rng.integers(0, 10, 256)
found = {}
for kind in ('activation="relu"', "BatchNormalization, ReLU", "ReLU"):
    tf_keras.utils.set_random_seed(0)
    image = L.Input((8, 8, 4))
    h = L.Conv2D(16, 3, activation="relu" if "act" in kind else None, name="conv")(image)
    h = L.BatchNormalization(name="norm")(h) if "Norm" in kind else h
    h = L.ReLU(name="relu")(h) if "ReLU" in kind else h
    model = tf_keras.Model(image, L.Dense(10, name="head")(L.Flatten(name="flat")(h)))
    kernel = model.get_layer("conv").kernel
    kernel.assign(np.where(rng.random(kernel.shape) < 0.75, 0.0, kernel))
    with quantization.quantize_scope():
        annotated = quantization.quantize_annotate_model(model)
        scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
        model = quantization.quantize_apply(annotated, scheme)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(0.01, momentum=0.9), loss)
    model.fit(x, y, epochs=2, verbose=0)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    for detail in interpreter.get_tensor_details():
        if tuple(detail["shape"]) == (16, 3, 3, 4) and detail["dtype"] == np.int8:
            found[kind] = float((interpreter.get_tensor(detail["index"]) == 0).mean())
    print(f"PQAT of a Conv2D of 75 % zeros, {kind}: {found[kind]:.2f}")
assert found.pop("ReLU") < 0.2 and min(found.values()) > 0.7
PYTHON
"$folder/venv/bin/python" demo.py 2>/dev/null

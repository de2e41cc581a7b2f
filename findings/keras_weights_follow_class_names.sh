#!/usr/bin/env bash
# Keras 3.15.1 (TensorFlow 2.21.0): a registered name does not free a custom layer's Python class to be renamed.
#
# `register_keras_serializable(package, name)` is documented as what identifies a class in a saved file, and the
# configuration in a .keras file is indeed restored by it. The weights in the same file, however, are filed under the name
# of the Python class, with a number behind it ("layers/old_name", "layers/dense", "layers/dense_1"). So a class that is
# renamed in a later release, under the same registered name, restores its configuration and then finds no weights.
#
# Seen: with the class called OldName the file loads; called NewName, registered as the same "demo>Unit",
#   ValueError: ... Layer 'a' expected 2 variables, but received 0 variables during loading.
# Fails if either changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 tensorflow==2.21.0
cd "$folder"
cat >demo.py <<'PYTHON'
import sys

import keras


def layer_class(name):
    made = type(name, (keras.layers.Dense,), {"__module__": "__main__"})
    return keras.saving.register_keras_serializable("demo", "Unit")(made)


action, name = sys.argv[1:]
cls = layer_class(name)
if action == "save":
    layers = [keras.Input((2,)), cls(2, name="a"), keras.layers.Dense(1, name="b")]
    keras.Sequential(layers).save("model.keras")
else:
    print("loaded", type(keras.models.load_model("model.keras").layers[0]).__name__)
PYTHON
export CUDA_VISIBLE_DEVICES=-1 TF_CPP_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" demo.py save OldName 2>/dev/null
"$folder/venv/bin/python" demo.py load OldName 2>/dev/null | grep -x "loaded OldName"
if "$folder/venv/bin/python" demo.py load NewName >out.txt 2>&1; then
  echo "changed: a renamed class finds its weights" >&2
  exit 1
fi
grep -o "expected 2 variables, but received 0 variables during loading" out.txt

#!/usr/bin/env bash
# Keras 3.15.1 (TensorFlow 2.21.0): what `keras.ops.add` computes depends on whether the number of samples is known.
#
# On TensorFlow it takes a second operand with one axis longer than 1 for a bias, and adds it along the last axis of the
# first operand if that is as long, whatever axis it stands on. So (1, 6, 6) + (1, 6, 1) is not NumPy's sum, while with two
# samples, or with a number of samples that is not known when a model is traced, it is. A Functional model with such a sum
# (a gate, a position, a centred coordinate) trains and predicts in batches as one would think, and gives something else
# for `model(x[:1])`, and in a .tflite that is converted with a fixed batch of one. Multiply and subtract have no such rule;
# nor has the sum the other way round, although the operands of a sum may as well be exchanged.
#
# Seen: the largest differences of one sample from the same sample in a batch of two: add 1.12, subtract 0, multiply 0,
# exchanged 0; of a constant (6, 1) the sum differs from NumPy's in any batch.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 tensorflow==2.21.0
cd "$folder"
cat >demo.py <<'PYTHON'
import keras
import numpy as np

x = np.random.default_rng(0).uniform(-1, 1, (2, 6, 6)).astype("float32")
sums = {
    "add": lambda x: x + x[..., :1],
    "subtract": lambda x: x - x[..., :1],
    "multiply": lambda x: x * x[..., :1],
    "exchanged": lambda x: x[..., :1] + x,
}
for name, function in sums.items():
    inner = keras.Input((6, 6))
    model = keras.Model(inner, function(inner))
    one, both = np.asarray(model(x[:1]))[0], np.asarray(model(x))[0]
    print(name, "differs" if np.abs(one - both).max() > 0.1 else "equal", np.abs(one - both).max())
constant = x[0, :, :1]
found = np.asarray(keras.ops.add(x, constant))
print("constant", "differs" if np.abs(found - (x + constant)).max() > 0.1 else "equal")
PYTHON
export CUDA_VISIBLE_DEVICES=-1 TF_CPP_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" demo.py 2>/dev/null | tee out.txt
for line in "add differs" "subtract equal" "multiply equal" "exchanged equal" "constant differs"; do
  grep -q "^$line" out.txt || { echo "changed: no longer '$line'" >&2; exit 1; }
done

#!/usr/bin/env bash
# Keras 3.15.1 (TensorFlow 2.21.0): MultiHeadAttention drops a `query_mask` that it is given, and takes the other three.
#
# `call` has arguments query_mask, value_mask, key_mask and attention_mask, and all four are documented alike. The mask that
# travels with a tensor, of an Embedding with mask_zero or a Masking layer, is used for queries as well. But one that is
# passed as `query_mask=` is overwritten by the one that travels with the query, so by nothing where none does: no error, and
# the output is that without a mask. The same mask as value_mask, as key_mask, or as an attention_mask of shape (B, T, 1),
# which is what a query mask amounts to, changes the output.
#
# Seen, the largest difference from the output without a mask: query_mask 0, value_mask 7.5, key_mask 7.5, the mask that
# travels with the query 3.5, attention_mask 3.5 (weights from seed 0). Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 tensorflow==2.21.0
cd "$folder"
cat >demo.py <<'PYTHON'
import keras
import numpy as np

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
x[1, 1:] = 5.0
mask = np.array([[True, True, True], [True, False, False]])
layer = keras.layers.MultiHeadAttention(2, 4)
plain = np.asarray(layer(x, x))
# A layer takes along the mask of its input: here only for the query.
travelling = keras.layers.Masking(5.0)(x)
found = {
    "query_mask": layer(x, x, query_mask=mask),
    "value_mask": layer(x, x, value_mask=mask),
    "key_mask": layer(x, x, key_mask=mask),
    "travelling": layer(travelling, x),
    "attention_mask": layer(x, x, attention_mask=mask[..., None]),
}
for name, y in found.items():
    difference = np.abs(np.asarray(y) - plain).max()
    print(name, "differs" if difference > 0.01 else "equal", difference)
PYTHON
export CUDA_VISIBLE_DEVICES=-1 TF_CPP_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" demo.py 2>/dev/null | tee out.txt
for line in "query_mask equal" "value_mask differs" "key_mask differs" "travelling differs" "attention_mask differs"; do
  grep -q "^$line" out.txt || { echo "changed: no longer '$line'" >&2; exit 1; }
done

#!/usr/bin/env bash
# Keras 3.15.1 (TensorFlow 2.21.0): `keras.utils.set_random_seed` slows down the next call of every traced function.
#
# It sets TensorFlow's seed too, and TensorFlow forgets with it all that its eager runtime has made ready: kernels of
# operators, and functions that were traced, also those that draw nothing at random. Nothing is traced again, so that
# counting traces shows nothing; but the next call of each function instantiates and optimizes it once more, which takes
# thirty times as long as a call of a small one. Who seeds before each of many short runs (a sweep over settings, a test
# suite, a search) pays it each time. Keras 3 draws initial weights and
# dropout from Python's `random`, so where no batches are shuffled `random.seed` gives the same numbers for nothing: in
# our own tests that saved up to a fifth of the time.
#
# Seen: a call of a function of 200 sines takes 0.6 ms, the first one behind `random.seed` as well, and 19 ms behind
# `set_random_seed`, of one trace; initial weights are the same after either.
# Fails if that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 tensorflow==2.21.0
cd "$folder"
cat >demo.py <<'PYTHON'
import random
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

traces = []


@tf.function
def sines(x):
    traces.append(None)
    for _ in range(200):
        x = tf.sin(x)
    return x


x = tf.ones(4)
sines(x)


def milliseconds(before):
    times = []
    for _ in range(9):
        before(0)
        start = time.perf_counter()
        sines(x)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


kept, forgotten = milliseconds(random.seed), milliseconds(keras.utils.set_random_seed)
print(f"{kept:.2f} ms behind random.seed, {forgotten:.2f} ms behind set_random_seed, {len(traces)} trace")
print("ready anew" if forgotten > 5 * kept and len(traces) == 1 else "kept")


def weights(seed):
    seed(7)
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    return layer.get_weights()[0]


print("same weights" if np.array_equal(weights(random.seed), weights(keras.utils.set_random_seed)) else "others")
PYTHON
export CUDA_VISIBLE_DEVICES=-1 TF_CPP_MIN_LOG_LEVEL=3
"$folder/venv/bin/python" demo.py 2>/dev/null | tee out.txt
for line in "ready anew" "same weights"; do
  grep -q "^$line" out.txt || { echo "changed: no longer '$line'" >&2; exit 1; }
done

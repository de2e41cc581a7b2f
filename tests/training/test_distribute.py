"""Training on several devices and in several processes, as users start it."""

import json
import socket

import numpy as np

from tests import processes

SCRIPT = """
import json, sys
import numpy as np
import tensorflow as tf

name, out = sys.argv[1:3]
options = json.loads(sys.argv[3])
is_taught = options.pop("distill", False)
if name == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
elif name == "multi_worker":
    import kerasq
    strategy = kerasq.MultiWorkerStrategy()
else:
    strategy = tf.distribute.get_strategy()
import keras, kerasq
from tests import networks

rng = np.random.default_rng(0)
x, y = rng.uniform(0, 1, (64, 8, 8, 1)).astype("float32"), np.arange(64) % 3

def network(seed=0):
    model = networks.sequential(seed)
    return keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))

calibrated = kerasq.quantize_model(network(), **options)
kerasq.calibrate(calibrated, x)
with strategy.scope():
    q = kerasq.quantize_model(network(), **options)
    q.set_weights(calibrated.get_weights())
    for quantizer in kerasq.wrappers.ranged(q).values():
        # Learned only: each device holds a range against samples of its own part of the batch.
        quantizer.fixed = True
    if is_taught:
        q = kerasq.distill(q, network(1))
    q.compile(keras.optimizers.SGD(1e-2, momentum=0.9), "sparse_categorical_crossentropy",
              metrics=["accuracy"], jit_compile=False)
inq = [kerasq.IncrementalQuantization((0.5, 1.0))] if "weights" in options else []
check = kerasq.CheckTraining(x[:16])  # Runs the network outside of a graph.
history = q.fit(x, y, batch_size=16, shuffle=False, epochs=2, verbose=0,
                validation_data=(x, y), callbacks=[*inq, check]).history
with strategy.scope():  # Ranges that follow the data, from the first batch on.
    follows = kerasq.quantize_model(network(), range_gradient="none", keep_zeros=True)
    follows.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
pruning = kerasq.MagnitudePruning(0.5, epochs=1)
follows.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[pruning])
followed = {v.path: v.numpy() for v in follows.weights}
for v in [*q.weights, *follows.weights]:
    copies = [t.numpy() for t in strategy.experimental_local_results(v.value)]
    assert all((copies[0] == c).all() for c in copies), v.path
if name == "multi_worker":
    strategy.wait()
np.savez(out, *q.get_weights(), paths=[v.path for v in q.weights], loss=history["loss"],
         is_chief=getattr(strategy, "is_chief", True),
         val=history["val_loss"], accuracy=history["accuracy"], **followed)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def trained(name, out, options, workers=1):
    """Variables and history of each worker."""
    (out / "train.py").write_text(SCRIPT)
    logs = [out / f"{name}{i}.log" for i in range(workers)]
    ports = [free_port() for _ in range(workers)]
    running = []
    for i in range(workers):
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        config = {"cluster": cluster, "task": {"type": "worker", "index": i}}
        env = {"TF_CONFIG": json.dumps(config)} if name == "multi_worker" else {}
        argv = [str(out / "train.py"), name, str(out / f"{name}{i}.npz"), json.dumps(options)]
        running.append(processes.started(argv, logs[i], logs[i], env))
    for process, log in zip(running, logs, strict=True):
        assert processes.ended(process) == 0, log.read_text()[-3000:]
    return [dict(np.load(out / f"{name}{i}.npz")) for i in range(workers)]


def test_devices_and_workers_train_what_one_device_trains(tmp_path):
    options = {"scheme": "w4a8", "weights": "power_of_two", "batch_norm": "keep", "distill": True}
    options["overrides"] = {"logits": "w8a8"}  # whose weights have a range, which learns
    options["range_gradient"] = "lsq"
    (alone,) = trained("none", tmp_path, options)
    (mirrored,) = trained("mirrored", tmp_path, options)
    (worker, other) = trained("multi_worker", tmp_path, options, workers=2)
    assert any(key.endswith("range_max") for key in worker)
    assert any(path.endswith("kernel_range") for path in alone["paths"])
    assert worker.pop("is_chief") and not other.pop("is_chief")
    masks = [value for key, value in worker.items() if key.endswith("mask")]
    assert masks and all(mask.mean() == 0.5 for mask in masks)
    for key in worker:  # Ranges that learn, those that follow the data, and masks, included.
        np.testing.assert_array_equal(worker[key], other[key], err_msg=key)
    assert abs(alone["val"][0] - alone["val"][1]) > 0.01  # It trains.
    for found in (mirrored, worker):
        for key in ("loss", "val", "accuracy"):
            np.testing.assert_allclose(found[key], alone[key], rtol=1e-3, err_msg=key)
        for i, path in enumerate(alone["paths"]):
            tolerance = {"rtol": 1e-3, "atol": 1e-3, "err_msg": str(path)}
            np.testing.assert_allclose(found[f"arr_{i}"], alone[f"arr_{i}"], **tolerance)

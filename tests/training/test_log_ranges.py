import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kerasq
from tests import networks


def test_ranges_are_curves_in_tensorboard(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (32, 12, 12, 3)).astype("float32"), np.arange(32) % 10
    q = kerasq.quantize_model(networks.residual())
    q.compile("sgd", "sparse_categorical_crossentropy")
    check = kerasq.CheckTraining(x)
    q.fit(x, y, epochs=3, verbose=0, callbacks=[check, kerasq.LogRanges(tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["tensors"]
    assert {"ranges/branch/low", "ranges/branch/high", "ranges/branch/weights"} <= set(tags)
    points = events.Tensors("ranges/branch/high")
    assert [point.step for point in points] == [0, 1, 2]
    last = tf.make_ndarray(points[-1].tensor_proto)
    assert last == np.float32(q.get_layer("branch").output_quantizer.range()[1])
    clipped = tf.make_ndarray(events.Tensors("ranges/branch/clipped")[-1].tensor_proto)
    assert clipped == np.float32(check.clipped[-1]["branch"])

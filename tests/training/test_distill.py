import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq.training.distill import ends_in_softmax
from tests import networks


def samples():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (32, 12, 12, 3)).astype("float32"), np.arange(32) % 10


def softened(p, temperature):
    z = np.log(np.maximum(p, 1e-7)) / temperature
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss(weight, temperature):
    x, y = samples()
    teacher, student = networks.residual(0), networks.residual(1)
    learner = kerasq.distill(student, teacher, weight=weight, temperature=temperature)
    learner.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    learner.layers[[layer.name for layer in learner.layers].index("drop")].rate = 0.0
    for layer in learner.layers:  # Inference mode, so that the twin may predict.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    loss = learner.fit(x, y, batch_size=32, verbose=0).history["loss"][0]
    p, q = (m.predict_on_batch(x).astype(float) for m in (teacher, student))
    hard = -np.log(q[np.arange(32), y]).mean()
    a, b = softened(p, temperature), softened(q, temperature)
    soft = (a * np.log(a / b)).sum(-1).mean() * temperature**2
    assert loss == pytest.approx((1 - weight) * hard + weight * soft, rel=1e-4)


def test_the_student_learns_the_teacher_stays_and_nothing_else_is_saved(tmp_path):
    x, y = samples()
    teacher = networks.residual()
    before = [w.copy() for w in teacher.get_weights()]
    q = kerasq.quantize_model(teacher)
    learner = kerasq.distill(q, teacher, weight=0.9)
    assert learner.student is q and learner.layers[1] is q.layers[1]
    start = q.get_weights()
    learner.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    logs = learner.fit(x, y, epochs=2, verbose=0, validation_data=(x, y)).history
    assert {"accuracy", "val_accuracy", "val_loss"} <= set(logs)
    assert len(learner.weights) == len(q.weights)
    assert any((a != b).any() for a, b in zip(start, q.get_weights(), strict=True))
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    learner.save(tmp_path / "q.keras")  # as ModelCheckpoint does
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x), q.predict_on_batch(x))
    # The loss of `evaluate` is that of the labels alone.
    p = q.predict_on_batch(x)
    plain = keras.losses.sparse_categorical_crossentropy(y, p).numpy().mean()
    assert learner.evaluate(x, y, verbose=0)[0] == pytest.approx(plain, rel=1e-5)


def test_samples_without_weight_teach_nothing():
    x, y = samples()
    learner = kerasq.distill(networks.residual(1), networks.residual(0), weight=0.5)
    learner.compile("sgd", "sparse_categorical_crossentropy")
    before = [v.numpy() for v in learner.trainable_variables]
    learner.fit(x, y, sample_weight=np.zeros(32), verbose=0)
    for a, b in zip(before, learner.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"weight": 1.5},
            "`weight`, the teacher's share, must be in [0, 1]. Received: weight=1.5.",
        ),
        ({"temperature": 0.0}, "`temperature` must be above 0. Received: temperature=0.0."),
    ],
)
def test_bad_numbers(options, text):
    model = networks.residual()
    with pytest.raises(ValueError, match=re.escape(text)):
        kerasq.distill(model, model, **options)


def test_models_without_softmax():
    image = keras.Input((8,))
    model = keras.Model(image, keras.layers.Dense(3)(image), name="logits")
    with pytest.raises(ValueError, match=r"class probabilities of a softmax.*'logits'"):
        kerasq.distill(model, model)


@keras.saving.register_keras_serializable("tests")
class Probabilities(keras.layers.Layer):
    def call(self, inputs):
        return keras.ops.softmax(inputs)


@pytest.mark.parametrize(
    "end",
    [
        keras.layers.Softmax(),
        keras.layers.Dense(3, "softmax"),
        lambda x: keras.layers.Reshape((3,))(keras.layers.Activation("softmax")(x)),
        keras.ops.softmax,
        Probabilities(),
        lambda x: keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])(x),
    ],
)
def test_where_a_softmax_may_be(end):
    image = keras.Input((8,))
    model = keras.Model(image, end(keras.layers.Dense(3)(image)))
    assert ends_in_softmax(model) and ends_in_softmax(kerasq.quantize_model(model))
    logits = keras.Model(image, keras.layers.Dense(3)(model(image)))
    assert not ends_in_softmax(logits) and not ends_in_softmax(kerasq.quantize_model(logits))


def test_losses_are_scaled_as_the_student_s():
    student = networks.residual()
    student.dtype_policy = "mixed_float16"
    learner = kerasq.distill(student, networks.residual())
    learner.compile("sgd", "sparse_categorical_crossentropy")
    assert isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer)


def test_models_that_differ():
    with pytest.raises(ValueError, match=r"same inputs and outputs.*\(None, 5\).*\(None, 10\)"):
        kerasq.distill(networks.residual(), networks.mobile())

"""Copies of layers that have what is of the user's own, which files could not name."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L, ops = keras.layers, keras.ops


class Squares(keras.regularizers.Regularizer):
    """One without a configuration, as that of PointNet in Keras's examples."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, x):
        return self.weight * ops.sum(x * x)


class Within(keras.constraints.Constraint):
    """One without a configuration. Keras 3.10 takes no function for one."""

    def __init__(self, most):
        self.most = most

    def __call__(self, x):
        return ops.clip(x, -self.most, self.most)


within = Within(1.0)


RULES = {
    "kernel_regularizer": Squares(0.5),
    "bias_initializer": lambda shape, dtype=None: ops.ones(shape, dtype),
    "kernel_constraint": within,
    "activity_regularizer": Squares(0.0),
}


@pytest.mark.parametrize("overrides", [None, {"d": "float"}])
def test_rules_of_ones_own(overrides):
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="d", **RULES), L.Dense(2)])
    q = networks.quantized(model, overrides=overrides)
    layer = q.get_layer("d")
    assert layer.kernel.constraint is within
    kernel, bias, *_ = model.get_weights()
    x = networks.data(model)
    q(x)
    np.testing.assert_allclose(sum(q.losses), 0.5 * np.sum(kernel**2), rtol=1e-5)
    np.testing.assert_array_equal(bias, 1.0)
    assert networks.sqnr(model, q, x) > 25
    moved = kerasq.retarget(q, "tflm")
    assert moved.get_layer("d").kernel.constraint is within
    np.testing.assert_array_equal(moved.get_layer("d").kernel, kernel)


def sequence(*layers):
    return keras.Sequential([keras.Input((5, 4)), *layers])


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTM(3, kernel_regularizer=Squares(0.1), bias_constraint=within),
        lambda: L.TimeDistributed(L.Dense(3, kernel_regularizer=Squares(0.1))),
        lambda: L.SeparableConv1D(3, 2, depthwise_regularizer=Squares(0.1)),
    ],
)
def test_rules_of_layers_with_parts(make):
    model = sequence(make())
    lite = kerasq.export_tflite(networks.quantized(model))
    assert not lite.float_ops
    x = networks.data(model)
    assert np.max(np.abs(lite.predict(x) - networks.run(model, x))) < 0.1


def test_rules_of_attention():
    x = keras.Input((5, 4))
    attention = L.MultiHeadAttention(1, 2, kernel_regularizer=Squares(0.1), bias_constraint=within)
    q = networks.quantized(keras.Model(x, attention(x, x)))
    assert not kerasq.export_tflite(q).float_ops


class Cell(L.Layer):
    """A cell that is known here alone."""

    state_size = output_size = 4

    def build(self, shape):
        self.gain = self.add_weight(shape=(4,), name="gain")

    def call(self, x, states):
        y = ops.tanh(x * self.gain + states[0])
        return y, [y]


def test_a_cell_of_ones_own_stays_float():
    model = sequence(L.RNN(Cell(), name="r"), L.Dense(2))
    q = networks.quantized(model)
    x = networks.data(model)
    assert isinstance(q.get_layer("r"), L.RNN) and networks.sqnr(model, q, x) > 25


def test_classes_without_a_name_in_files_are_named():
    model = sequence(L.RNN([Cell(), L.GRUCell(2)], name="r"))
    with pytest.raises(
        ValueError, match=r"@keras.saving.register_keras_serializable\(\)`. Received"
    ):
        kerasq.quantize_model(model)
    layer = type("Own", (L.Layer,), {"__init__": lambda self, f: L.Layer.__init__(self)})(within)
    with pytest.raises(ValueError, match=r"Received: 'own\w*' \(Own\): Object Own was created by"):
        kerasq.graph.copy_layer(layer)


@pytest.mark.parametrize("overrides", [None, {"own": "float"}])
@pytest.mark.parametrize(
    "make",
    [
        lambda rule: L.Dense(3, activation="relu", activity_regularizer=rule, name="own"),
        lambda rule: L.Dense(3, lambda x: ops.tanh(2.0 * x), activity_regularizer=rule, name="own"),
        lambda rule: L.LSTM(3, activity_regularizer=rule, name="own"),
    ],
)
@pytest.mark.parametrize("rule", [keras.regularizers.L1(0.3), Squares(0.3)])
def test_what_layers_return_is_regularized(make, rule, overrides):
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((5, 4)), make(rule), L.Dense(2)])
    q = networks.quantized(model, x := networks.data(model, 32), overrides=overrides)
    model(x, training=True), q(x, training=True)
    (want,), (got,) = model.losses, q.losses
    np.testing.assert_allclose(got, want, rtol=0.02)


def test_a_regularizer_inside_is_left_out(capsys):
    rule = keras.regularizers.L2(0.1)
    x = keras.Input((5, 4), name="x")
    y = L.MultiHeadAttention(2, 4, activity_regularizer=rule, name="attention")(x, x)
    y = L.Bidirectional(L.LSTM(3, activity_regularizer=rule), name="both")(y)
    kerasq.quantize_model(keras.Model(x, y))
    said = "Left out in training: activity_regularizer of 'attention', 'both'."
    assert said in capsys.readouterr().out


def test_a_regularizer_in_the_way_is_left_out(capsys):
    """In front of what a layer is fused with, and of an output, which keeps its name."""
    rule = keras.regularizers.L2(0.1)
    x = keras.Input((6, 6, 3), name="x")
    conv = L.Conv2D(4, 3, activity_regularizer=rule, name="conv")(x)
    y = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization()(conv)))
    model = keras.Model(x, L.Dense(2, activity_regularizer=rule, name="head")(y))
    q = networks.quantized(model)
    said = "Left out in training: activity_regularizer of 'conv', 'head'."
    assert said in capsys.readouterr().out and q.output_names == ["head"]
    kinds = [op.name for op in kerasq.export_tflite(q).ops]
    assert kinds == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]

"""Weight quantizers as identifiers, and those of users down the whole road."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.weights import WEIGHTS, weight_quantizer
from tests import networks


@keras.saving.register_keras_serializable("tests")
class Shifted(kerasq.WeightQuantizer):
    """A step a channel, and `bias_share` of it added before weights are rounded."""

    widths = range(3, 9)

    def __init__(self, bias_share=0.0, **kwargs):
        super().__init__(**kwargs)
        self.bias_share = bias_share

    def get_config(self):
        return {**super().get_config(), "bias_share": self.bias_share}

    def start(self, kernel):
        self.step = self.parameter(
            "step",
            kernel().shape[-1:],
            value=lambda: tf.reduce_max(tf.abs(kernel()), range(len(kernel().shape) - 1)) / 3,
            trainable=False,
        )
        super().start(kernel)

    def scale(self, kernel):
        return self.step.value

    def codes(self, kernel):
        largest = 2 ** (self.bits - 1) - 1
        codes = tf.round(kernel / self.scale(kernel) + self.bias_share)
        return tf.clip_by_value(codes, -largest, largest)


def images(count=32):
    return np.random.default_rng(0).uniform(0, 1, (count, 12, 12, 3)).astype("float32")


def kernels(q):
    return {x.name: x.weight_quantizer for x in q.layers if isinstance(x, KernelWrapper)}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_a_users_quantizer_goes_the_whole_road(bits, batch_norm, tmp_path):
    prototype = Shifted(bias_share=0.25)
    x, y = images(), np.arange(32) % 5
    q = kerasq.quantize_model(
        networks.residual(), f"w{bits}a8", weights=prototype, batch_norm=batch_norm
    )
    kerasq.calibrate(q, x)
    q.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", jit_compile=False)
    q.fit(x, y, verbose=0)
    assert not prototype.built
    for quantizer in kernels(q).values():
        assert isinstance(quantizer, Shifted) and quantizer is not prototype
        assert (quantizer.bits, quantizer.bias_share) == (bits, 0.25)
    lite = kerasq.export_tflite(q)
    assert not lite.float_ops and kerasq.compare(q, lite, x=x).max_lsb == 0
    # On the device there are the class's own codes, whose zeros are not those of nearest codes.
    wrapper = q.get_layer("branch")
    np.testing.assert_array_equal(
        np.unique(np.abs(lite.constant("branch/kernel"))),
        np.unique(np.abs(wrapper.weight_quantizer.codes(wrapper.flat_kernel()))),
    )
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for name, quantizer in kernels(loaded).items():
        assert isinstance(quantizer, Shifted) and quantizer.bias_share == 0.25
        np.testing.assert_array_equal(quantizer.step, kernels(q)[name].step)
    np.testing.assert_array_equal(networks.run(loaded, x), networks.run(q, x))
    assert kerasq.export_tflite(loaded).content == lite.content


def test_layers_that_share_weights_share_the_users_quantizer(tmp_path):
    image = keras.Input((6, 6, 3), name="x")
    conv = keras.layers.Conv2D(3, 3, padding="same", name="conv")
    model = keras.Model(image, conv(conv(image)))
    q = kerasq.quantize_model(model, "w4a8", weights=Shifted(0.5))
    kerasq.calibrate(q, images()[:, :6, :6])
    q.save(tmp_path / "q.keras")
    for found in (q, keras.models.load_model(tmp_path / "q.keras")):
        first, second = kernels(found).values()
        assert first is second and first.bias_share == 0.5


@pytest.mark.parametrize(("scheme", "name"), [("w4a8", "dorefa"), ("w2a8", "ternary")])
def test_names_configurations_and_instances_are_the_same(scheme, name, tmp_path):
    instance = WEIGHTS[name]()
    found = set()
    for weights in (name, instance, keras.saving.serialize_keras_object(instance)):
        q = kerasq.quantize_model(networks.residual(), scheme, weights=weights)
        kerasq.calibrate(q, images())
        q.save(tmp_path / "q.keras")
        loaded = keras.models.load_model(tmp_path / "q.keras")
        found |= {kerasq.export_tflite(x).content for x in (q, loaded)}
    assert len(found) == 1


@pytest.mark.parametrize(("cls", "size"), [(kerasq.Ternary, np.mean), (kerasq.TrainedTernary, max)])
def test_thresholds_can_be_set(cls, size):
    w = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    quantizer = weight_quantizer(cls(threshold=0.4), 2, "lsq")
    quantizer.start(lambda: tf.constant(w))
    for c, codes in enumerate(np.transpose(quantizer.codes(tf.constant(w)))):
        magnitudes = np.abs(w[:, c])
        np.testing.assert_array_equal(codes == 0, magnitudes <= 0.4 * size(magnitudes))


def test_widths_that_a_class_does_not_have():
    with pytest.raises(ValueError, match=r"kind 'Shifted' must have a width in \[3, 4, .*2 bits"):
        kerasq.quantize_model(networks.residual(), "w2a8", weights=Shifted())
    # Of one bit they are binary, whatever the others are.
    q = kerasq.quantize_model(networks.residual(), "w1a8", weights=Shifted())
    assert {type(x) for x in kernels(q).values()} == {kerasq.Binary}


@pytest.mark.parametrize("weights", [8, kerasq.DoReFa, kerasq.MinMax(), {"bits": 4}])
def test_what_is_no_weight_quantizer(weights):
    match = r"`weights` must be one of .* pass a kerasq\.WeightQuantizer"
    with pytest.raises(ValueError, match=match):
        kerasq.quantize_model(networks.residual(), "w4a8", weights=weights)

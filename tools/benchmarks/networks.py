"""The networks of the benchmark, built with whichever Keras is handed in.

tf_keras cannot read a Keras 3 model, so one definition serves both, with and without
BatchNormalization.
"""

from typing import Any

SHAPE = (32, 32, 3)
CLASSES = 10


class _Builder:
    """Convolution, BatchNormalization (or a bias in its place) and activation."""

    def __init__(self, layers: Any, batch_norm: bool) -> None:
        self.layers = layers
        self.batch_norm = batch_norm

    def conv(self, x: Any, filters: int, kernel_size: int, strides: int = 1) -> Any:
        """A convolution with its normalization."""
        bias = not self.batch_norm  # beta is the bias where there is a normalization.
        options = {"padding": "same", "use_bias": bias}
        return self._norm(self.layers.Conv2D(filters, kernel_size, strides, **options)(x))

    def depthwise(self, x: Any, strides: int) -> Any:
        """A depthwise convolution with its normalization."""
        bias = not self.batch_norm
        return self._norm(self.layers.DepthwiseConv2D(3, strides, padding="same", use_bias=bias)(x))

    def _norm(self, x: Any) -> Any:
        return self.layers.BatchNormalization()(x) if self.batch_norm else x


def resnet8(layers: Any, batch_norm: bool) -> Any:
    """ResNet8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597): (inputs, outputs)."""
    build = _Builder(layers, batch_norm)
    image = layers.Input(SHAPE)
    x = layers.ReLU()(build.conv(image, 16, 3))
    # MLPerf's own shortcuts have no normalization.
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.ReLU()(build.conv(x, filters, 3, strides))
        y = build.conv(y, filters, 3)
        x = build.conv(x, filters, 1, strides) if strides > 1 else x
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return image, layers.Dense(CLASSES, activation="softmax")(x)


# filters, strides of the depthwise convolution of each block
_MOBILENET_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *[(512, 1)] * 5,
    *((1024, 2), (1024, 1)),
)


def mobilenet(layers: Any, batch_norm: bool) -> Any:
    """MobileNetV1, width 1 (Howard et al. 2017, arXiv 1704.04861): (inputs, outputs)."""
    build = _Builder(layers, batch_norm)
    image = layers.Input(SHAPE)
    x = layers.ReLU(6.0)(build.conv(image, 32, 3, 2))
    for filters, strides in _MOBILENET_BLOCKS:
        x = layers.ReLU(6.0)(build.depthwise(x, strides))
        x = layers.ReLU(6.0)(build.conv(x, filters, 1))
    x = layers.GlobalAveragePooling2D()(x)
    return image, layers.Dense(CLASSES, activation="softmax")(x)


def chain(layers: Any, depth: int) -> Any:
    """`depth` equal convolutions with BatchNormalization and ReLU: (inputs, outputs)."""
    build = _Builder(layers, batch_norm=True)
    image = x = layers.Input(SHAPE)
    for _ in range(depth):
        x = layers.ReLU()(build.conv(x, 16, 3))
    x = layers.GlobalAveragePooling2D()(x)
    return image, layers.Dense(CLASSES, activation="softmax")(x)


def recurrent(layers: Any, kind: str, unroll: bool) -> Any:
    """A recurrent layer, "loop", of 32 units over 32 steps of 16 features: (inputs, outputs)."""
    sequence = layers.Input((32, 16))
    loops = {
        "lstm": lambda: layers.LSTM(32, unroll=unroll, name="loop"),
        "bidirectional": lambda: layers.Bidirectional(layers.LSTM(32, unroll=unroll), name="loop"),
        "gru": lambda: layers.GRU(32, unroll=unroll, name="loop"),
    }
    return sequence, layers.Dense(CLASSES, activation="softmax")(loops[kind]()(sequence))


NETWORKS = {"resnet8": resnet8, "mobilenet": mobilenet}
RECURRENT = ("lstm", "bidirectional", "gru")
# Those of keras.applications that docs/coverage.md has, on small images.
APPLICATIONS = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0"),
    *("EfficientNetV2B0", "ResNet50", "ResNet50V2", "ResNet101", "DenseNet121", "InceptionV3"),
    *("InceptionResNetV2", "Xception", "NASNetMobile", "VGG16", "ConvNeXtTiny"),
)
APPLICATION_SHAPE = (96, 96, 3)


def build(keras: Any, name: str, batch_norm: bool = True) -> Any:
    """A network by name.

    One of `NETWORKS`, `RECURRENT` ("lstm, unrolled" without its loop) or `APPLICATIONS`,
    "mobilenet_v2" (keras.applications, at 224x224), or "chain8" for a chain of 8 convolutions.
    """
    if name in APPLICATIONS:
        make = getattr(keras.applications, name)
        return make(weights=None, input_shape=APPLICATION_SHAPE, classes=CLASSES)
    if name == "mobilenet_v2":
        return keras.applications.MobileNetV2(weights=None)
    if (kind := name.removesuffix(", unrolled")) in RECURRENT:
        return keras.Model(*recurrent(keras.layers, kind, unroll=kind != name))
    if name.startswith("chain"):
        return keras.Model(*chain(keras.layers, int(name.removeprefix("chain"))))
    return keras.Model(*NETWORKS[name](keras.layers, batch_norm))

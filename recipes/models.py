"""The networks recipes know by name; each takes raw pixels (0..255).

`width` multiplies the number of channels (WRPN: Mishra et al. 2018, arXiv 1709.01134).
"""

import difflib
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

Shape = tuple[int, int, int]


def build(name: str, input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """Builds a network for images of `input_shape` (height, width, channels).

    Args:
        name: a key of `MODELS`, or a network of keras.applications, such as "EfficientNetB0".
        input_shape: shape of an image.
        classes: number of classes; not used by "autoencoder".
        width: factor of the channels; keras.applications have 1.0 only.

    Raises:
        ValueError: for an unknown name, or a network that does not take such images.
    """
    if name in MODELS:
        return MODELS[name](input_shape, classes, width)
    application = applications().get(name)
    if application is None:
        known = {known.lower(): known for known in [*MODELS, *applications()]}
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {known[close[0]]}?" if close else ""
        raise ValueError(
            f"`model` must be one of {', '.join(MODELS)}, a network of keras.applications, or the "
            f"path of a .keras file. Received: model={name!r}.{hint}"
        )
    if width != 1.0:
        raise ValueError(
            f"`widen` must be 1 for networks of keras.applications. Received: widen={width}, "
            f"model={name!r}. Take one of {', '.join(MODELS)}."
        )
    try:
        return application(input_shape=input_shape, classes=classes, weights=None)
    except ValueError as error:
        raise ValueError(
            f"model={name!r} must fit images of {input_shape}: {str(error).rstrip('.')}. "
            "Give --image_size."
        ) from error


def applications() -> dict[str, Callable[..., keras.Model]]:
    """The networks of keras.applications by name."""
    found = vars(keras.applications).items()
    return {name: make for name, make in found if name[0].isupper() and callable(make)}


def _conv_bn(
    x: keras.KerasTensor, filters: int, kernel_size: int | tuple[int, int], strides: int = 1
):
    """Convolution with a bias, then BatchNormalization: the unit of MLPerf Tiny's ResNet."""
    x = layers.Conv2D(
        filters, kernel_size, strides, padding="same", kernel_initializer="he_normal"
    )(x)
    return layers.BatchNormalization()(x)


def _residual_block(x: keras.KerasTensor, filters: int, strides: int):
    """Two 3x3 convolutions around a shortcut: a 1x1 convolution where the size changes."""
    y = layers.ReLU()(_conv_bn(x, filters, 3, strides))
    y = _conv_bn(y, filters, 3)
    if strides > 1:
        x = layers.Conv2D(filters, 1, strides, padding="same", kernel_initializer="he_normal")(x)
    return layers.ReLU()(layers.Add()([x, y]))


def _resnet(name: str, blocks: int, shape: Shape, classes: int, width: float) -> keras.Model:
    """Three stages of 16, 32 and 64 channels, of so many blocks each."""
    image = keras.Input(shape, name="image")
    x = layers.ReLU()(_conv_bn(image, round(16 * width), 3))
    for filters, first_strides in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            x = _residual_block(x, round(filters * width), 1 if block else first_strides)
    # As MLPerf's code has it: AVERAGE_POOL_2D, where GlobalAveragePooling2D would be a MEAN.
    x = layers.AveragePooling2D(pool_size=min(x.shape[1:3]))(x)
    x = layers.Flatten()(x)
    x = layers.Dense(classes, activation="softmax", kernel_initializer="he_normal")(x)
    return keras.Model(image, x, name=name)


def resnet8(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """ResNet8, the image classification network of MLPerf Tiny (v0.5 to v1.3).

    Its training code's L2 penalty on the kernels is left to the optimizer's weight decay.

    References:
        Banbury et al. 2021, MLPerf Tiny Benchmark (arXiv 2106.07597).
    """
    return _resnet("resnet8", 1, input_shape, classes, width)


def resnet20(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """ResNet20 for CIFAR-10 (He et al. 2016, arXiv 1512.03385, section 4.2), n = 3.

    Shortcuts are convolutions where the size changes, as in ResNet8.
    """
    return _resnet("resnet20", 3, input_shape, classes, width)


def _pointwise_bn(x: keras.KerasTensor, filters: int):
    """1x1 convolution without a bias, then BatchNormalization."""
    x = layers.Conv2D(filters, 1, use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization()(x)


def _separable(x: keras.KerasTensor, filters: int, strides: int = 1):
    """Depthwise 3x3 and pointwise convolution with biases, BatchNormalization and ReLU."""
    x = layers.DepthwiseConv2D(3, strides, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return layers.ReLU()(_conv_bn(x, filters, 1))


# filters and strides of each block, at a quarter of the full width: MLPerf Tiny's
_MOBILENET_V1_BLOCKS = (
    (16, 1),
    (32, 2),
    (32, 1),
    (64, 2),
    (64, 1),
    (128, 2),
    *[(128, 1)] * 5,
    (256, 2),
    (256, 1),
)


def mobilenet_v1(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """MobileNetV1 with a quarter of the channels, MLPerf Tiny's for visual wake words.

    References:
        Howard et al. 2017, MobileNets (arXiv 1704.04861); Banbury et al. 2021.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.ReLU()(_conv_bn(image, round(8 * width), 3, 2))
    for filters, strides in _MOBILENET_V1_BLOCKS:
        x = _separable(x, round(filters * width), strides)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(image, x, name="mobilenet_v1")


def _inverted_residual(x: keras.KerasTensor, filters: int, strides: int, expansion: int):
    """Expand (1x1), filter (depthwise 3x3), project (1x1, linear); a shortcut if shapes allow."""
    inputs, channels = x, x.shape[-1]
    if expansion > 1:
        x = layers.ReLU(6.0)(_pointwise_bn(x, expansion * channels))
    x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = _pointwise_bn(x, filters)
    return layers.Add()([inputs, x]) if strides == 1 and channels == filters else x


# filters, strides, expansion of each inverted residual block
_MOBILENET_V2_BLOCKS = (
    (16, 1, 1),
    (24, 1, 3),
    (40, 2, 3),
    (40, 1, 4),
    (64, 2, 4),
    (64, 1, 4),
    (64, 1, 4),
)


def mobilenet_v2(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """A MobileNetV2 narrow and shallow enough for 32x32 images (about 140,000 parameters).

    References:
        Sandler et al. 2018, MobileNetV2 (arXiv 1801.04381).
    """
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(
        round(16 * width), 3, 2, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for filters, strides, expansion in _MOBILENET_V2_BLOCKS:
        x = _inverted_residual(x, round(filters * width), strides, expansion)
    x = layers.ReLU(6.0)(_pointwise_bn(x, round(256 * width)))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(image, x, name="mobilenet_v2")


def ds_cnn(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """DS-CNN, MLPerf Tiny's network for keywords in spectrograms (49 x 10 x 1); takes any image.

    References:
        Zhang Y. et al. 2017, Hello Edge (arXiv 1711.07128); Banbury et al. 2021.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.ReLU()(_conv_bn(image, round(64 * width), (10, 4), 2))
    x = layers.Dropout(0.2)(x)
    for _ in range(4):
        x = _separable(x, round(64 * width))
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.4)(x))
    x = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(image, x, name="ds_cnn")


def autoencoder(input_shape: Shape, classes: int = 0, width: float = 1.0) -> keras.Model:
    """MLPerf Tiny's fully connected autoencoder: nine layers of 128 around a bottleneck of 8.

    It learns to give back the image, in units of 0..1.

    References:
        Koizumi et al. 2020, DCASE challenge task 2 (arXiv 2006.05822); Banbury et al. 2021.
    """
    del classes
    image = keras.Input(input_shape, name="image")
    # MLPerf's reads spectrograms; this one is fed pixels, as all networks here are.
    x = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = layers.Dense(round(units * width))(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(int(np.prod(input_shape)))(x)
    return keras.Model(image, layers.Reshape(input_shape)(x), name="autoencoder")


def cnn(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """Three convolutions with BatchNormalization and pooling: enough for digits and MNIST."""
    image = keras.Input(input_shape, name="image")
    x = image
    for filters in (16, 32):
        x = layers.Conv2D(round(filters * width), 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    x = layers.Conv2D(round(64 * width), 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(image, x, name="cnn")


@keras.saving.register_keras_serializable("recipes")
class Positions(layers.Layer):
    """Adds a vector to each token that says where it is.

    Args:
        **kwargs: see `keras.layers.Layer`.
    """

    def build(self, shape: tuple) -> None:
        """Creates the vectors."""
        # An Embedding of constant places would be a constant, which fine-tuning leaves alone.
        options = {"initializer": keras.initializers.RandomNormal(stddev=0.02)}
        self.vectors = self.add_weight(shape[1:], name="vectors", **options)

    def call(self, tokens: keras.KerasTensor) -> keras.KerasTensor:
        """The tokens, `(samples, places, size)`."""
        return tokens + self.vectors


def transformer_block(
    x: keras.KerasTensor, heads: int, hidden: int, **options: object
) -> keras.KerasTensor:
    """Attention and two Dense layers, each behind a normalization and beside a shortcut.

    Args:
        x: tokens, their size in the last axis.
        heads: of the attention.
        hidden: units of the first Dense.
        **options: of MultiHeadAttention.
    """
    size = x.shape[-1]
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(heads, size // heads, **options)(y, y)])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(size)(layers.Dense(hidden, activation="gelu")(y))
    return layers.Add()([x, y])


def vit(input_shape: Shape, classes: int, width: float = 1.0) -> keras.Model:
    """A vision transformer of two blocks on patches of 4 x 4 pixels (about 75,000 parameters).

    References:
        Dosovitskiy et al. 2021 (arXiv 2010.11929).
    """
    size = 4 * round(16 * width)
    image = keras.Input(input_shape, name="image")
    x = layers.Rescaling(1.0 / 127.5, -1.0)(image)
    x = layers.Conv2D(size, 4, strides=4)(x)
    x = Positions()(layers.Reshape((-1, size))(x))
    for _ in range(2):
        x = transformer_block(x, 4, 2 * size)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(image, layers.Dense(classes, activation="softmax")(x), name="vit")


MODELS: dict[str, Callable[[Shape, int, float], keras.Model]] = {
    "cnn": cnn,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "ds_cnn": ds_cnn,
    "autoencoder": autoencoder,
    "vit": vit,
}

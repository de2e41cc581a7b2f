"""Small Keras 3 image classifiers; each takes raw pixels (0..255) and ends in a softmax."""

import keras
import numpy as np
from keras import layers

Shape = tuple[int, int, int]


def build(name: str, input_shape: Shape, classes: int) -> keras.Model:
    """Builds the model `name` of `MODELS` for images of `input_shape` (height, width, channels)."""
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {', '.join(MODELS)}. Received: name={name!r}.")
    return MODELS[name](input_shape, classes)


def _conv_bn(x: keras.KerasTensor, filters: int, kernel_size: int, strides: int = 1):
    """Convolution with a bias, then BatchNormalization: the unit of MLPerf Tiny's ResNet."""
    x = layers.Conv2D(
        filters, kernel_size, strides, padding="same", kernel_initializer="he_normal"
    )(x)
    return layers.BatchNormalization()(x)


def _residual_stack(x: keras.KerasTensor, filters: int, strides: int):
    """Two 3x3 convolutions around a shortcut: a 1x1 convolution where the size changes."""
    y = layers.ReLU()(_conv_bn(x, filters, 3, strides))
    y = _conv_bn(y, filters, 3)
    if strides > 1:
        x = layers.Conv2D(filters, 1, strides, padding="same", kernel_initializer="he_normal")(x)
    return layers.ReLU()(layers.Add()([x, y]))


def resnet8(input_shape: Shape, classes: int) -> keras.Model:
    """ResNet8, the image classification network of MLPerf Tiny (v0.5 to v1.3).

    Its training code's L2 penalty on the kernels is left to the optimizer's weight decay.

    References:
        Banbury et al. 2021, MLPerf Tiny Benchmark (arXiv 2106.07597).
    """
    image = keras.Input(input_shape, name="image")
    x = layers.ReLU()(_conv_bn(image, 16, 3))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        x = _residual_stack(x, filters, strides)
    x = layers.AveragePooling2D(pool_size=min(x.shape[1:3]))(x)
    x = layers.Flatten()(x)
    x = layers.Dense(classes, activation="softmax", kernel_initializer="he_normal")(x)
    return keras.Model(image, x, name="resnet8")


def _pointwise_bn(x: keras.KerasTensor, filters: int):
    """1x1 convolution without a bias, then BatchNormalization."""
    x = layers.Conv2D(filters, 1, use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization()(x)


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
_MOBILENET_BLOCKS = (
    (16, 1, 1),
    (24, 1, 3),
    (40, 2, 3),
    (40, 1, 4),
    (64, 2, 4),
    (64, 1, 4),
    (64, 1, 4),
)


def mobilenet(input_shape: Shape, classes: int) -> keras.Model:
    """A MobileNetV2 narrow and shallow enough for 32x32 images (about 140,000 parameters).

    References:
        Sandler et al. 2018, MobileNetV2 (arXiv 1801.04381).
    """
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(16, 3, 2, padding="same", use_bias=False, kernel_initializer="he_normal")(
        image
    )
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for filters, strides, expansion in _MOBILENET_BLOCKS:
        x = _inverted_residual(x, filters, strides, expansion)
    x = layers.ReLU(6.0)(_pointwise_bn(x, 256))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(image, x, name="mobilenet")


def cnn(input_shape: Shape, classes: int) -> keras.Model:
    """Three convolutions with BatchNormalization and pooling: enough for digits and MNIST."""
    image = keras.Input(input_shape, name="image")
    x = image
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    x = layers.Conv2D(64, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, activation="softmax")(x)
    return keras.Model(image, x, name="cnn")


MODELS = {"cnn": cnn, "resnet8": resnet8, "mobilenet": mobilenet}


def randomize_batch_norm(model: keras.Model, seed: int = 0) -> None:
    """Spreads the BatchNormalization statistics, in place; the model stays the same function.

    Output channel c of each convolution directly followed by a BatchNormalization is multiplied
    by a_c = +-10**u, u ~ U(-1, 1), and the normalization undoes it:

        mean' = a mean,   var' = a^2 (var + eps) - eps,   gamma' = sign(a) gamma.

    Gammas become negative and variances spread over orders of magnitude, as they do in networks
    that were trained for long. |a_c| is kept large enough for var' >= eps.

    Args:
        model: a Functional or Sequential model; its weights are changed.
        seed: of the random factors.
    """
    rng = np.random.default_rng(seed)
    for conv, norm in _conv_norm_pairs(model):
        _rescale(conv, norm, rng)


def _conv_norm_pairs(model: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """The convolutions whose only consumer is a BatchNormalization, each with that layer."""
    consumers: dict[int, list[keras.Layer]] = {}
    for layer in model.layers:
        for tensor in keras.tree.flatten(layer.input):
            consumers.setdefault(id(tensor), []).append(layer)
    pairs = []
    for conv in model.layers:
        following = consumers.get(id(conv.output), [])
        if _is_linear_convolution(conv) and [type(f) for f in following] == [
            layers.BatchNormalization
        ]:
            pairs.append((conv, following[0]))
    return pairs


def _is_linear_convolution(layer: keras.Layer) -> bool:
    """Whether the layer is a convolution that can absorb a factor per output channel."""
    return (
        isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)
        and layer.activation is keras.activations.linear
    )


def _rescale(conv: keras.Layer, norm: keras.Layer, rng: np.random.Generator) -> None:
    """Multiplies the convolution's output channels by random factors and has `norm` undo it."""
    variance = norm.moving_variance.numpy().astype("float64")
    smallest = np.sqrt(2.0 * norm.epsilon / (variance + norm.epsilon))
    factor = np.maximum(10.0 ** rng.uniform(-1.0, 1.0, variance.shape), smallest)
    if norm.scale:
        factor *= rng.choice((-1.0, 1.0), variance.shape)
        norm.gamma.assign(norm.gamma.numpy() * np.sign(factor))
    _scale_output(conv, factor)
    norm.moving_mean.assign(norm.moving_mean.numpy() * factor)
    norm.moving_variance.assign(factor**2 * (variance + norm.epsilon) - norm.epsilon)


def _scale_output(conv: keras.Layer, factor: np.ndarray) -> None:
    """Multiplies kernel and bias of a convolution by one factor per output channel."""
    kernel = conv.kernel.numpy()
    depthwise = isinstance(conv, layers.DepthwiseConv2D)
    shape = kernel.shape[2:] if depthwise else kernel.shape[3:]
    conv.kernel.assign(kernel * factor.reshape(shape))
    if conv.use_bias:
        conv.bias.assign(conv.bias.numpy() * factor)

"""Spreads the BatchNormalization statistics of a .keras file; the network computes the same.

Output channel c of each convolution that a BatchNormalization alone reads is multiplied by
a_c = +-10**u, u ~ U(-1, 1), and the normalization undoes it:

    mean' = a mean,   var' = a^2 (var + eps) - eps,   gamma' = sign(a) gamma.

Gammas become negative and variances spread over orders of magnitude, as they do in networks that
were trained for long. |a_c| is kept large enough for var' >= eps.

Arguments: the file, the file to write, and the seed of the factors (0 by default).

Example: python tools/randomize.py runs/qat/float.keras runs/qat/random.keras
"""

import collections

import keras
import numpy as np
from absl import app

from kerasq.support.files import whole_file

L = keras.layers


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Changes the weights of a Functional or Sequential model in place."""
    rng = np.random.default_rng(seed)
    readers: dict[int, list[keras.Layer]] = collections.defaultdict(list)
    for layer in model.layers:
        for tensor in keras.tree.flatten(layer.input):
            readers[id(tensor)].append(layer)
    for layer in model.layers:
        is_linear = getattr(layer, "activation", None) is keras.activations.linear
        if is_linear and isinstance(layer, L.Conv2D | L.DepthwiseConv2D):
            reading = readers[id(layer.output)]
            if [type(x) for x in reading] == [L.BatchNormalization]:
                _rescale(layer, reading[0], rng)


def _rescale(conv: keras.Layer, norm: keras.Layer, rng: np.random.Generator) -> None:
    """Multiplies the convolution's output channels by random factors and has `norm` undo it."""
    variance = norm.moving_variance.numpy().astype("float64")
    smallest = np.sqrt(2.0 * norm.epsilon / (variance + norm.epsilon))
    factor = np.maximum(10.0 ** rng.uniform(-1.0, 1.0, variance.shape), smallest)
    if norm.scale:  # Without a gamma nothing can undo a sign.
        factor *= rng.choice((-1.0, 1.0), variance.shape)
        norm.gamma.assign(norm.gamma.numpy() * np.sign(factor))
    kernel = conv.kernel.numpy()
    # A depthwise kernel (height, width, channels, multiplier) makes channels of its last two axes.
    axes = 2 if isinstance(conv, L.DepthwiseConv2D) else 3
    conv.kernel.assign(kernel * factor.reshape(kernel.shape[axes:]))
    if conv.use_bias:
        conv.bias.assign(conv.bias.numpy() * factor)
    norm.moving_mean.assign(norm.moving_mean.numpy() * factor)
    norm.moving_variance.assign(factor**2 * (variance + norm.epsilon) - norm.epsilon)


def main(argv: list[str]) -> None:
    """Reads, randomizes and writes."""
    if len(argv) not in (3, 4):
        raise app.UsageError(f"Give a file, the file to write, and a seed. Received: {argv[1:]}.")
    model = keras.models.load_model(argv[1])
    randomize(model, *map(int, argv[3:]))
    with whole_file(argv[2]) as temporary:
        model.save(temporary)


if __name__ == "__main__":
    app.run(main)

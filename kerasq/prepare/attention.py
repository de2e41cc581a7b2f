"""Attention, EinsumDense and products of tensors, as Dense, Matmul and Softmax.

Scores and contexts are BATCH_MATMUL (Vaswani et al. 2017, arXiv 1706.03762, equation 1):

    softmax(Q K^T / sqrt(d)) V

The factor goes into the weights of Q. Dropout of the probabilities, in training, is left out.
"""

import math
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.fits import Product, as_matrix, as_product
from kerasq.layers import Einsum, Matmul
from kerasq.prepare.parts import Parts

L = keras.layers


def _reshape(parts: Parts, x: Any, shape: tuple, name: str) -> Any:
    return parts.call(L.Reshape(shape, name=name, dtype="float32"), x)


def _permute(parts: Parts, x: Any, order: tuple, name: str) -> Any:
    return parts.call(L.Permute(order, name=name, dtype="float32"), x)


def _matmul(parts: Parts, x: list, name: str, transpose: bool = False) -> Any:
    return parts.call(Matmul(transpose, name=name, dtype="float32"), x)


def einsum_dense(parts: Parts, layer: keras.layers.EinsumDense, name: str, x: Any) -> Any:
    """Dense, behind "<name>_rows" and "<name>_in", in front of "<name>_split" and "<name>".

    Permute and Reshape where the matrix is of several axes, or of others than the last.
    """
    return _dense(parts, layer, name, x, layer.trainable)


def _dense(
    parts: Parts,
    layer: keras.layers.EinsumDense,
    name: str,
    x: Any,
    trainable: bool,
    factor: float = 1.0,
) -> Any:
    matrix = as_matrix(layer.equation, len(x.shape))
    assert matrix is not None  # `fits.einsum_fits` has found it.
    kernel, *bias = (factor * weight for weight in layer.get_weights())
    kernel = kernel.transpose(matrix.kernel)
    made = kernel.shape[matrix.taken :]
    # FULLY_CONNECTED has weights of one axis of inputs and one of units, a scale a unit: several
    # axes, such as heads and their size, are one while it runs.
    x = _permuted(parts, x, matrix.rows, name, "rows")
    if matrix.taken > 1:
        shape = (*x.shape[1 : -matrix.taken], math.prod(kernel.shape[: matrix.taken]))
        x = _reshape(parts, x, shape, parts.name(name, "in"))
    is_moved = matrix.output != tuple(range(len(matrix.output)))
    dense = L.Dense(
        math.prod(made),
        use_bias=bool(bias),
        name=parts.name(name, "dense") if is_moved or len(made) > 1 else name,
        trainable=trainable,
        dtype="float32",
    )
    weights = [kernel.reshape(x.shape[-1], -1), *(b.reshape(-1) for b in bias)]
    y = parts.call(dense, x, weights)
    if len(made) > 1:
        own = parts.name(name, "split") if is_moved else name
        y = _reshape(parts, y, (*x.shape[1:-1], *made), own)
    return _permute(parts, y, matrix.output[1:], name) if is_moved else y


def einsum(parts: Parts, layer: Einsum, name: str, x: list) -> Any:
    """Matmul, "<name>_product", between Permute and Reshape of the axes: "<name>_first", ..."""
    product = as_product(layer.equation, len(x[0].shape))
    assert product is not None  # `prepare.products` has found it.
    first, second = (
        _stacked(parts, tensor, axes, product, (name, suffix))
        for tensor, axes, suffix in (
            (x[0], product.first, "first"),
            (x[1], product.second, "second"),
        )
    )
    y = _matmul(parts, [first, second], parts.name(name, "product"), transpose=True)
    sizes = [x[0].shape[i] for i in product.first[: -product.summed]]
    sizes += [x[1].shape[i] for i in product.second[product.shared : -product.summed]]
    is_moved = product.output != tuple(range(len(sizes)))
    own = parts.name(name, "split") if is_moved else name
    y = _reshape(parts, y, tuple(sizes[1:]), own)
    return _permute(parts, y, product.output[1:], name) if is_moved else y


def _stacked(parts: Parts, x: Any, axes: tuple, product: Product, names: tuple[str, str]) -> Any:
    """A stack of matrices of one side of an Einstein sum: shared axes, its own, summed ones."""
    x = _permuted(parts, x, axes, *names)
    cuts = (1, product.shared, -product.summed)
    parts_of_shape = [x.shape[i:j] for i, j in zip(cuts, (*cuts[1:], None), strict=True)]
    # LiteRT's kernel has few axes, so that each of the three groups is one.
    shape = tuple(math.prod(sizes) for sizes in parts_of_shape)
    name, suffix = names
    return _reshape(parts, x, shape, parts.name(name, f"{suffix}_matrices"))


def _permuted(parts: Parts, x: Any, axes: tuple, name: str, suffix: str) -> Any:
    """The axes of `x` in another order, the first one where it is, by "<name>_<suffix>"."""
    if axes == tuple(range(len(axes))):
        return x
    return _permute(parts, x, axes[1:], parts.name(name, suffix))


def time_distributed(parts: Parts, layer: keras.layers.TimeDistributed, name: str, x: Any) -> Any:
    """A Dense that is distributed: the Dense, which takes any rank."""
    inner = layer.layer
    # The activation gets a layer of its own here: `decompose` has passed it by, inside a wrapper.
    config = {**inner.get_config(), "activation": "linear", "dtype": "float32"}
    config["trainable"] = layer.trainable and inner.trainable
    is_linear = keras.activations.serialize(inner.activation) == "linear"
    config["name"] = name if is_linear else parts.name(name, "linear")
    y = parts.call(L.Dense.from_config(config), x, inner.get_weights())
    if is_linear:
        return y
    return parts.call(L.Activation(inner.activation, name=name, dtype="float32"), y)


def dot(parts: Parts, layer: keras.layers.Dot, name: str, x: list) -> Any:
    """Matmul, behind Permute where the axes are not the last ones."""
    first, second = x
    if len(first.shape) == 2:  # BATCH_MATMUL wants matrices: a vector is one row of one.
        size = first.shape[1]
        first = _reshape(parts, first, (1, size), parts.name(name, "row"))
        second = _reshape(parts, second, (1, size), parts.name(name, "other"))
        y = _matmul(parts, [first, second], parts.name(name, "product"), transpose=True)
        return _reshape(parts, y, (1,), name)
    axes = layer.axes if isinstance(layer.axes, (list, tuple)) else (layer.axes, layer.axes)
    if axes[0] % 3 == 1:  # Axes may be negative: of three, -2 is 1.
        first = _permute(parts, first, (2, 1), parts.name(name, "first"))
    if axes[1] % 3 == 1:
        second = _permute(parts, second, (2, 1), parts.name(name, "second"))
    return _matmul(parts, [first, second], name, transpose=True)


def attention(parts: Parts, layer: keras.layers.Attention, name: str, x: list) -> Any:
    """Matmul, "<name>_scores"; Softmax, "<name>_probabilities"; Matmul."""
    query, value, key = x[0], x[1], x[-1]  # Without a key of its own, the value is the key.
    scores = _matmul(parts, [query, key], parts.name(name, "scores"), transpose=True)
    if layer.use_scale:  # A factor that is trained, and has no weights before it to go into.
        gain = np.float32(layer.get_weights()[0])
        scores = parts.scale(parts.name(name, "scaled"), scores, gain, 0.0, layer.trainable)
    return _weighted(parts, name, name, scores, value)


def _weighted(parts: Parts, name: str, own: str, scores: Any, value: Any) -> Any:
    """The averages of `value` by the softmax of `scores`."""
    softmax = L.Softmax(name=parts.name(name, "probabilities"), dtype="float32")
    return _matmul(parts, [parts.call(softmax, scores), value], own)


def heads(
    parts: Parts, layer: keras.Layer, name: str, query: Any, value: Any, key: Any = None
) -> Any:
    """MultiHeadAttention and GroupQueryAttention.

    Dense layers "<name>_query", "<name>_key", "<name>_value" and "<name>"; Matmul "<name>_scores"
    and "<name>_context". Heads that share keys are rows of one head.
    """
    key = value if key is None else key
    trainable = layer.trainable
    to_query, to_key, to_value, to_output = graphs.projections(layer)
    # Into the weights, since it costs an operator, and a rounding, behind them.
    factor = 1.0 / math.sqrt(to_query.kernel.shape[-1])

    def head(dense: keras.layers.EinsumDense, part: str, x: Any, factor: float = 1.0) -> Any:
        x = _dense(parts, dense, parts.name(name, part), x, trainable, factor)
        return _permute(parts, x, (2, 1, 3), parts.name(name, f"{part}_heads"))

    query = head(to_query, "query", query, factor)
    key, value = head(to_key, "key", key), head(to_value, "value", value)
    shape, groups = query.shape[1:], key.shape[1]
    # Keras repeats the keys and values that several heads share. Queries of those heads, below
    # each other, are as many rows of one matrix, and nothing is repeated.
    is_grouped = shape[0] != groups
    if is_grouped:
        rows = (groups, shape[0] // groups * shape[1], shape[2])
        query = _reshape(parts, query, rows, parts.name(name, "groups"))
    scores = _matmul(parts, [query, key], parts.name(name, "scores"), transpose=True)
    y = _weighted(parts, name, parts.name(name, "context"), scores, value)
    if is_grouped:
        y = _reshape(parts, y, (*shape[:2], y.shape[-1]), parts.name(name, "ungrouped"))
    y = _permute(parts, y, (2, 1, 3), parts.name(name, "merged"))
    return _dense(parts, to_output, name, y, trainable)

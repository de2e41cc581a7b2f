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
from kerasq.fits import as_matrix
from kerasq.layers import Matmul

L = keras.layers


def _reshape(parts: Any, x: Any, shape: tuple, name: str) -> Any:
    del parts
    return L.Reshape(shape, name=name, dtype="float32")(x)


def _permute(x: Any, order: tuple, name: str) -> Any:
    return L.Permute(order, name=name, dtype="float32")(x)


def einsum_dense(parts: Any, layer: keras.layers.EinsumDense, name: str, x: Any) -> Any:
    """Dense, between "<name>_in" and "<name>" where the matrix is of several axes."""
    return _dense(parts, layer, name, x, layer.trainable)


def _dense(
    parts: Any,
    layer: keras.layers.EinsumDense,
    name: str,
    x: Any,
    trainable: bool,
    factor: float = 1.0,
) -> Any:
    matrix = as_matrix(layer)
    assert matrix is not None  # `fits.einsum_fits` has found it.
    kernel, *bias = (factor * weight for weight in layer.get_weights())
    units = math.prod(kernel.shape[matrix[0] :])
    kernel = kernel.reshape(-1, units)
    if matrix[0] > 1:
        shape = (*x.shape[1 : -matrix[0]], kernel.shape[0])
        x = _reshape(parts, x, shape, parts.name(name, "in"))
    end = (*x.shape[1:-1], *layer.kernel.shape[matrix[0] :])
    dense = L.Dense(
        units,
        use_bias=bool(bias),
        name=name if matrix[1] == 1 else parts.name(name, "dense"),
        trainable=trainable,
        dtype="float32",
    )
    y = parts.call(dense, x, [kernel, *(b.reshape(-1) for b in bias)])
    return y if matrix[1] == 1 else _reshape(parts, y, end, name)


def time_distributed(parts: Any, layer: keras.layers.TimeDistributed, name: str, x: Any) -> Any:
    """A Dense that is distributed: the Dense, which takes any rank."""
    inner = layer.layer
    config = {**inner.get_config(), "activation": "linear", "dtype": "float32"}
    config["trainable"] = layer.trainable and inner.trainable
    is_linear = keras.activations.serialize(inner.activation) == "linear"
    config["name"] = name if is_linear else parts.name(name, "linear")
    y = parts.call(L.Dense.from_config(config), x, inner.get_weights())
    if is_linear:
        return y
    return parts.call(L.Activation(inner.activation, name=name, dtype="float32"), y)


def dot(parts: Any, layer: keras.layers.Dot, name: str, x: list) -> Any:
    """Matmul, behind Permute where the axes are not the last ones."""
    first, second = x
    if len(first.shape) == 2:
        size = first.shape[1]
        first = _reshape(parts, first, (1, size), parts.name(name, "row"))
        second = _reshape(parts, second, (1, size), parts.name(name, "other"))
        y = parts.call(
            Matmul(True, name=parts.name(name, "product"), dtype="float32"), [first, second]
        )
        return _reshape(parts, y, (1,), name)
    axes = layer.axes if isinstance(layer.axes, (list, tuple)) else (layer.axes, layer.axes)
    if axes[0] % 3 == 1:
        first = _permute(first, (2, 1), parts.name(name, "first"))
    if axes[1] % 3 == 1:
        second = _permute(second, (2, 1), parts.name(name, "second"))
    return parts.call(Matmul(True, name=name, dtype="float32"), [first, second])


def attention(parts: Any, layer: keras.layers.Attention, name: str, x: list) -> Any:
    """Matmul, "<name>_scores"; Softmax, "<name>_probabilities"; Matmul."""
    query, value, key = x[0], x[1], x[-1] if len(x) == 3 else x[1]
    scores = parts.call(
        Matmul(True, name=parts.name(name, "scores"), dtype="float32"), [query, key]
    )
    if layer.use_scale:
        gain = np.float32(layer.get_weights()[0])
        scores = parts.scale(parts.name(name, "scaled"), scores, gain, 0.0, layer.trainable)
    return _weighted(parts, name, name, scores, value)


def _weighted(parts: Any, name: str, own: str, scores: Any, value: Any) -> Any:
    """The averages of `value` by the softmax of `scores`."""
    softmax = L.Softmax(name=parts.name(name, "probabilities"), dtype="float32")
    return parts.call(Matmul(name=own, dtype="float32"), [parts.call(softmax, scores), value])


def heads(
    parts: Any, layer: keras.Layer, name: str, query: Any, value: Any, key: Any = None
) -> Any:
    """MultiHeadAttention and GroupQueryAttention.

    Dense layers "<name>_query", "<name>_key", "<name>_value" and "<name>"; Matmul "<name>_scores"
    and "<name>_context". Heads that share keys are rows of one head.
    """
    key = value if key is None else key
    trainable = layer.trainable
    to_query, to_key, to_value, to_output = graphs.projections(layer)
    factor = 1.0 / math.sqrt(to_query.kernel.shape[-1])

    def head(dense: keras.layers.EinsumDense, part: str, x: Any, factor: float = 1.0) -> Any:
        x = _dense(parts, dense, parts.name(name, part), x, trainable, factor)
        return _permute(x, (2, 1, 3), parts.name(name, f"{part}_heads"))

    query = head(to_query, "query", query, factor)
    key, value = head(to_key, "key", key), head(to_value, "value", value)
    shape, groups = query.shape[1:], key.shape[1]
    is_grouped = shape[0] != groups
    if is_grouped:
        rows = (groups, shape[0] // groups * shape[1], shape[2])
        query = _reshape(parts, query, rows, parts.name(name, "groups"))
    scores = parts.call(
        Matmul(True, name=parts.name(name, "scores"), dtype="float32"), [query, key]
    )
    y = _weighted(parts, name, parts.name(name, "context"), scores, value)
    if is_grouped:
        y = _reshape(parts, y, (*shape[:2], y.shape[-1]), parts.name(name, "ungrouped"))
    y = _permute(y, (2, 1, 3), parts.name(name, "merged"))
    return _dense(parts, to_output, name, y, trainable)

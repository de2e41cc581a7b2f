"""Attention, EinsumDense and products of tensors, as Dense, Matmul and Softmax.

Scores and contexts are BATCH_MATMUL (Vaswani et al. 2017, arXiv 1706.03762, equation 1):

    softmax(Q K^T / sqrt(d)) V

The factor goes into the weights of Q. Dropout of the probabilities, in training, is a Dropout.
"""

import functools
import math
from typing import Any

import keras
import numpy as np

from kerasq import fits
from kerasq import graph as graphs
from kerasq.fits import Product, as_matrix, as_product
from kerasq.graph import symbolic
from kerasq.layers import Constant, Einsum, Matmul, Select, Sum
from kerasq.prepare import masks
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
    config = {**graphs.configuration(inner), "activation": "linear", "dtype": "float32"}
    config["trainable"] = layer.trainable and inner.trainable
    is_linear = keras.activations.serialize(inner.activation) == "linear"
    config["name"] = name if is_linear else parts.name(name, "linear")
    y = parts.call(L.Dense.from_config(config), x, inner.get_weights())
    if is_linear:
        return y
    return parts.call(L.Activation(inner.activation, name=name, dtype="float32"), y)


def dot(parts: Parts, layer: keras.layers.Dot, name: str, x: list) -> Any:
    """Matmul, behind Permute where the axes are not the last ones, and UnitNormalization."""
    first, second = x
    if len(first.shape) == 2:  # BATCH_MATMUL wants matrices: a vector is one row of one.
        size = first.shape[1]
        first = _reshape(parts, first, (1, size), parts.name(name, "row"))
        second = _reshape(parts, second, (1, size), parts.name(name, "other"))
        ends = _of_unit_length(parts, layer, name, [first, second])
        y = _matmul(parts, ends, parts.name(name, "product"), transpose=True)
        return _reshape(parts, y, (1,), name)
    axes = layer.axes if isinstance(layer.axes, (list, tuple)) else (layer.axes, layer.axes)
    if axes[0] % 3 == 1:  # Axes may be negative: of three, -2 is 1.
        first = _permute(parts, first, (2, 1), parts.name(name, "first"))
    if axes[1] % 3 == 1:
        second = _permute(parts, second, (2, 1), parts.name(name, "second"))
    ends = _of_unit_length(parts, layer, name, [first, second])
    return _matmul(parts, ends, name, transpose=True)


def _of_unit_length(parts: Parts, layer: keras.layers.Dot, name: str, x: list) -> list:
    """The operands, whose rows have unit length where a Dot is one of cosines."""
    if not layer.normalize:
        return x
    names = [parts.name(name, suffix) for suffix in ("unit", "other_unit")]
    units = [L.UnitNormalization(name=own, dtype="float32") for own in names]
    return [parts.call(unit, y) for unit, y in zip(units, x, strict=True)]


def attention(
    parts: Parts,
    layer: keras.layers.Attention,
    name: str,
    x: list,
    mask: list | None = None,
    training: Any = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> Any:
    """Scores; Softmax, "<name>_probabilities"; Matmul.

    Masked scores become Masked, "<name>_masked", and what a mask of queries leaves out is 0.
    """
    del training
    query, value, key = x[0], x[1], x[-1]  # Without a key of its own, the value is the key.
    is_additive = type(layer) is L.AdditiveAttention
    scores = (_sums if is_additive else _products)(parts, layer, name, query, key)
    found = _of_scores(parts, name, scores, value, mask, use_causal_mask, layer.dropout)
    return found if return_attention_scores else found[0]


def _products(parts: Parts, layer: keras.Layer, name: str, query: Any, key: Any) -> Any:
    """The scores of Attention: Matmul, "<name>_scores"."""
    scores = _matmul(parts, [query, key], parts.name(name, "scores"), transpose=True)
    if not layer.use_scale:
        return scores
    # A factor that is trained, and has no weights before it to go into.
    gain = np.float32(layer.get_weights()[0])
    return parts.scale(parts.name(name, "scaled"), scores, gain, 0.0, "gain", layer.trainable)


def _sums(parts: Parts, layer: keras.Layer, name: str, query: Any, key: Any) -> Any:
    """The scores of AdditiveAttention: Add, tanh, and a Dense of one unit, "<name>_scores"."""
    (count, size), others = query.shape[1:], key.shape[1]
    query = _reshape(parts, query, (count, 1, size), parts.name(name, "query"))
    key = _reshape(parts, key, (1, others, size), parts.name(name, "key"))
    total = L.Add(name=parts.name(name, "sum"), dtype="float32")
    tanh = L.Activation("tanh", name=parts.name(name, "tanh"), dtype="float32")
    scores = parts.call(tanh, parts.call(total, [query, key]))
    if not layer.use_scale:
        return parts.call(Sum([3], name=parts.name(name, "scores"), dtype="float32"), scores)
    own = {"use_bias": False, "trainable": layer.trainable, "dtype": "float32"}
    dense = L.Dense(1, name=parts.name(name, "scores"), **own)
    scores = parts.call(dense, scores, [layer.get_weights()[0][:, None]])
    return _reshape(parts, scores, (count, others), parts.name(name, "matrix"))


def _of_scores(
    parts: Parts,
    name: str,
    scores: Any,
    value: Any,
    mask: list | None,
    causal: bool,
    dropout: float,
) -> tuple[Any, Any]:
    """What an Attention makes of its scores: averages of values, and their weights."""
    of_query, of_value = mask[:2] if mask else (None, None)
    held = [] if of_value is None else [_expanded(masks.condition(parts, name, of_value), 1)]
    weights = _dropped(parts, name, _probabilities(parts, name, scores, held, causal), dropout)
    if of_query is None:
        return _matmul(parts, [weights, value], name), weights
    y = _matmul(parts, [weights, value], parts.name(name, "context"))
    # Places of queries that are masked are 0.
    constant = Constant((1, 1), True, name=parts.name(name, "zero"), dtype="float32")
    queries = _expanded(masks.condition(parts, name, of_query), 2)
    chosen = [queries, y, parts.call(constant, y, [np.zeros((1, 1))])]
    return parts.call(Select(name=name, dtype="float32"), chosen), weights


def _expanded(mask: Any, axis: int) -> Any:
    """A mask, conditions or a constant, with another axis."""
    return keras.ops.expand_dims(mask, axis) if symbolic(mask) else np.expand_dims(mask, axis)


def _probabilities(
    parts: Parts, name: str, scores: Any, held: list, causal: bool, is_zeroed: bool = False
) -> Any:
    """The softmax of scores, under masks; where all is masked 0, or averages."""
    if held or causal:
        scores = masks.masked(parts, name, scores, held, causal=causal)
    softmax = L.Softmax(name=parts.name(name, "probabilities"), dtype="float32")
    weights = parts.call(softmax, scores)
    if held and is_zeroed and masks.is_zeroed():
        return masks.masked(parts, name, weights, held, causal=causal, value=0.0)
    return weights


def _dropped(parts: Parts, name: str, weights: Any, rate: float) -> Any:
    """Probabilities, some of which are 0 in training: Dropout, "<name>_dropout"."""
    if rate == 0.0:
        return weights
    return parts.call(L.Dropout(rate, name=parts.name(name, "dropout"), dtype="float32"), weights)


def _weights_by_head(
    parts: Parts, name: str, scores: Any, shape: tuple, held: list, **options: bool
) -> tuple[Any, Any]:
    """`_probabilities` in the shape of the scores, and in another one, for which masks are."""
    rows = tuple(scores.shape[1:])
    if rows == shape:
        weights = _probabilities(parts, name, scores, held, **options)
        return weights, weights
    scores = _reshape(parts, scores, shape, parts.name(name, "heads"))
    every = _probabilities(parts, name, scores, held, **options)
    return _reshape(parts, every, rows, parts.name(name, "rows")), every


def heads(
    parts: Parts,
    layer: keras.Layer,
    name: str,
    query: Any,
    value: Any,
    key: Any = None,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    return_attention_scores: bool = False,
    training: Any = None,
    use_causal_mask: bool = False,
) -> Any:
    """MultiHeadAttention and GroupQueryAttention.

    Dense layers "<name>_query", "<name>_key", "<name>_value" and "<name>"; Matmul "<name>_scores"
    and "<name>_context". Heads that share keys are rows of one head; places of an image that do not
    attend to each other are as heads are. Masked scores become Masked, "<name>_masked".
    """
    del training
    key = value if key is None else key
    trainable = layer.trainable
    to_query, to_key, to_value, to_output = graphs.projections(layer)
    # Into the weights, since it costs an operator, and a rounding, behind them.
    factor = 1.0 / math.sqrt(to_query.kernel.shape[-1])

    axes = fits.attention_axes(layer, query)

    def head(dense: keras.layers.EinsumDense, part: str, x: Any, factor: float = 1.0) -> Any:
        x = _dense(parts, dense, parts.name(name, part), x, trainable, factor)
        return _by_head(parts, x, axes, name, part)

    sizes = query.shape[1:-1]
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
    held = _held(parts, name, query_mask, value_mask, key_mask, attention_mask)
    # Keras goes by way of its Softmax then, which makes 0 of what is masked altogether.
    dropout = graphs.configuration(layer)["dropout"]
    is_explicit = return_attention_scores or dropout > 0.0
    is_plain = not (held or use_causal_mask or return_attention_scores)
    by_head = tuple(scores.shape[1:]) if is_plain else (*shape[:2], scores.shape[-1])
    options = {"causal": use_causal_mask, "is_zeroed": is_explicit}
    weights, every = _weights_by_head(parts, name, scores, by_head, held, **options)
    weights = _dropped(parts, name, weights, dropout)
    y = _matmul(parts, [weights, value], parts.name(name, "context"))
    if is_grouped:
        y = _reshape(parts, y, (*shape[:2], y.shape[-1]), parts.name(name, "ungrouped"))
    y = _merged(parts, y, axes, sizes, name)
    y = _dense(parts, to_output, name, y, trainable)
    return (y, every) if return_attention_scores else y


def _by_head(parts: Parts, x: Any, axes: list[int], name: str, part: str) -> Any:
    """Vectors of heads, `(samples, ..., heads, size)`, as `(samples, stacks, places, size)`.

    Places are those along some axes; each head, and place along the others, is a stack.
    """
    rank = len(x.shape)
    order = _head_order(rank, axes)
    x = _permute(parts, x, order, parts.name(name, f"{part}_heads"))
    if rank == 4:
        return x
    first = rank - 1 - len(axes)
    shape = (math.prod(x.shape[1:first]), math.prod(x.shape[first:-1]), x.shape[-1])
    return _reshape(parts, x, shape, parts.name(name, f"{part}_stacks"))


def _merged(parts: Parts, y: Any, axes: list[int], sizes: tuple, name: str) -> Any:
    """What `_by_head` was called on, the sizes of whose axes these are."""
    rank = len(sizes) + 3
    order = _head_order(rank, axes)
    if rank > 4:
        apart = math.prod(sizes[i - 1] for i in order if i <= len(sizes) and i not in axes)
        known = dict(enumerate((*sizes, y.shape[1] // apart, y.shape[-1]), 1))
        shape = tuple(known[i] for i in order)
        y = _reshape(parts, y, shape, parts.name(name, "unstacked"))
    back = tuple(1 + order.index(i) for i in range(1, rank))
    return _permute(parts, y, back, parts.name(name, "merged"))


def _head_order(rank: int, axes: list[int]) -> tuple[int, ...]:
    """The axes of vectors of heads: those of stacks, heads, places, and their size."""
    apart = [i for i in range(1, rank - 2) if i not in axes]
    return (*apart, rank - 2, *axes, rank - 1)


def _held(parts: Parts, name: str, query: Any, value: Any, key: Any, scores: Any) -> list[Any]:
    """The masks of a call of heads, each with axes for samples, heads, queries and keys."""
    # A mask of queries has no axes of heads and keys; one of keys, or values, of heads and queries.
    found: list[tuple[Any, tuple[int, ...]]] = [(query, (1, 3)), (value, (1, 2)), (key, (1, 2))]
    if scores is not None:
        # A constant of two axes is one for all samples.
        found.append((scores, (1,) * (4 - len(scores.shape)) if symbolic(scores) else ()))
    given = [(masks.condition(parts, name, x), places) for x, places in found if x is not None]
    return [functools.reduce(_expanded, places, held) for held, places in given]

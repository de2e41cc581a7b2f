"""Whether a call of a layer has an integer form: the conditions that the registry names."""

import dataclasses
import inspect
import string
from typing import Any

import keras
import numpy as np

from kerasq.graph import CONV_CELL, configuration

L = keras.layers
# What a distributed Dense may be followed by.
_KNOWN = tuple(getattr(keras.activations, n) for n in ("linear", "relu", "sigmoid", "tanh", "gelu"))


def reads_tensors_alone(layer: keras.Layer, x: Any = None, *more: Any, **options: Any) -> bool:
    """Whether a call has nothing but its tensors, in the first argument: no mask, for one."""
    del layer, x
    others = [*more, *(value for key, value in options.items() if key != "training")]
    # Not `in`: tensors have no truth value.
    return all(value is None or value is False for value in others)


def is_per_channel(value: Any) -> bool:
    """Whether a constant is one number, or one for each channel, the last axis."""
    return np.size(value) in (1, *np.shape(value)[-1:])


def constants_fit(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether the constants of a Rescaling or Normalization are those of samples of known size.

    A sample that they make larger, as one channel that is scaled by seven numbers, does not fit.
    """
    del kwargs
    names = ("scale", "offset", "mean", "variance")
    values = [getattr(layer, name) for name in names if hasattr(layer, name)]
    if all(map(is_per_channel, values)):
        return all(np.size(value) in (1, x.shape[-1]) for value in values)
    sample = (1, *x.shape[1:])
    return None not in sample and np.broadcast_shapes(sample, *map(np.shape, values)) == sample


def axes(axis: Any, x: Any) -> list[int]:
    """Axes of a tensor in their order, counted from the first one; None stands for all of them."""
    rank = len(x.shape)
    return sorted({i % rank for i in (range(rank) if axis is None else keras.tree.flatten(axis))})


def vectors_fit(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether a function of vectors is one along axes of each sample."""
    along = axes(getattr(layer, "axis", -1), x)
    is_known = len(along) == 1 or None not in x.shape[1:]
    return reads_tensors_alone(layer, x, **kwargs) and 0 not in along and is_known


def softmax_fits(layer: keras.Layer, x: Any, mask: Any = None, **kwargs: Any) -> bool:
    """Whether a softmax is one along axes of each sample, and a mask of the rank of these."""
    return vectors_fit(layer, x, **kwargs) and _mask_fits(mask, (len(x.shape),))


def _mask_fits(mask: Any, ranks: tuple[int, ...]) -> bool:
    """Whether a mask is none, a tensor of one of some ranks, or a constant for all samples."""
    if mask is None:
        return True
    if isinstance(mask, keras.KerasTensor):
        return len(mask.shape) in ranks and None not in mask.shape[1:]
    shape = np.shape(mask)
    return len(shape) < max(ranks) or (len(shape) == max(ranks) and shape[0] == 1)


def volume_fits(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether a layer in three dimensions reads samples of known size."""
    del layer, kwargs
    return None not in x.shape[1:]


def pooling_fits(layer: keras.Layer, x: Any, mask: Any = None, **kwargs: Any) -> bool:
    """Whether an average over steps is one of all, or of known steps that a tensor masks."""
    is_known = mask is None or (_is_mask(mask) and None not in x.shape[1:])
    return is_known and reads_tensors_alone(layer, x, **kwargs)


def transposed_fits(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether a transposed convolution that is dilated reads samples of known size."""
    return max(layer.dilation_rate) == 1 or volume_fits(layer, x, **kwargs)


def adaptive_fits(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether the sizes of an adaptive pooling divide those of the image."""
    del kwargs
    size = x.shape[1:-1]
    return None not in size and all(
        n % m == 0 for n, m in zip(size, layer.output_size, strict=True)
    )


def image_fits(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether the size is known of an image that a CenterCrop or Resizing crops or pads."""
    del kwargs
    names = ("pad_to_aspect_ratio", "crop_to_aspect_ratio")
    is_cut = any(getattr(layer, name, type(layer) is L.CenterCrop) for name in names)
    return None not in x.shape[1:3] or not is_cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """The kernel of an Einstein sum as a matrix, and what it multiplies as rows.

    Attributes:
        rows: the axes of the input, those that are summed over last.
        kernel: the axes of the kernel, those that are summed over first.
        taken: how many are.
        output: where the axes of the output are: behind each other, those that stay of the input,
            and those of the kernel.
    """

    rows: tuple[int, ...]
    kernel: tuple[int, ...]
    taken: int
    output: tuple[int, ...]


def as_matrix(equation: str, rank: int) -> Matrix | None:
    """How an Einstein sum of a tensor and weights is the product of rows and a matrix.

    None where it is not, as where weights differ from sample to sample, or from place to place.

    Args:
        equation: such as "abc,cd->abd", or "...c,cd->...d"; samples are the first axis.
        rank: how many axes the tensor has.
    """
    x, kernel, output = terms(equation, rank)
    shared, summed, kept, made = _roles(x, kernel, output)
    if shared or not summed or not made or not x[0] == kept[:1] == output[0]:
        return None
    return Matrix(
        rows=tuple(map(x.index, kept + summed)),
        kernel=tuple(map(kernel.index, summed + made)),
        taken=len(summed),
        output=tuple(map((kept + made).index, output)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """An Einstein sum of two tensors as a product of matrices, the second one transposed.

    Attributes:
        shared: how many axes the two have in common, and with the output: samples at least.
        summed: how many are summed over.
        first: the axes of the first tensor: those, its own, and those that are summed over.
        second: likewise, of the second one.
        output: where the axes of the output are: behind each other, those in common, those of the
            first, and those of the second tensor.
    """

    shared: int
    summed: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    output: tuple[int, ...]


def as_product(equation: str, rank: int) -> Product | None:
    """How an Einstein sum of two tensors, of which the first has `rank` axes, is a product.

    None where it is not.
    """
    x, y, output = terms(equation, rank)
    shared, summed, left, right = _roles(x, y, output)
    # Samples are the first axis of all three.
    if not summed or not x[0] == y[0] == output[0] == shared[:1]:
        return None
    return Product(
        shared=len(shared),
        summed=len(summed),
        first=tuple(map(x.index, shared + left + summed)),
        second=tuple(map(y.index, shared + right + summed)),
        output=tuple(map((shared + left + right).index, output)),
    )


def terms(equation: str, rank: int) -> list[str]:
    """The terms of an Einstein sum of two operands, "..." as capitals: "ABc", "cd", "ABd".

    Args:
        equation: see `as_matrix`.
        rank: how many axes the first operand has.
    """
    inputs, output = equation.replace(" ", "").split("->")
    x, y = inputs.split(",")
    others = rank - len(x.replace("...", ""))
    free = [c for c in string.ascii_uppercase if c not in equation][: max(others, 0)]
    return [term.replace("...", "".join(free)) for term in (x, y, output)]


def _roles(x: str, y: str, output: str) -> tuple[str, str, str, str]:
    """The axes of an Einstein sum: shared by all, summed over, of the first, of the second.

    All empty where there are others: diagonals, and sums over one operand alone.
    """
    pairs = ((x, y + output), (y, x + output), (output, x + y))
    if any(len(term) != len({*term} & {*others}) for term, others in pairs):
        return "", "", "", ""
    both = _common(x, y)
    left, right = _common(x, output, but=y), _common(output, y, but=x)
    return _common(both, output), _common(both, both, but=output), left, right


def _common(first: str, second: str, but: str = "") -> str:
    """The axes of two terms, in the order of the first, but for those of a third."""
    return "".join(axis for axis in first if axis in second and axis not in but)


def einsum_fits(layer: keras.layers.EinsumDense, x: Any, **kwargs: Any) -> bool:
    """Whether an EinsumDense is a Dense, in front of it and behind a Permute and a Reshape."""
    del kwargs
    matrix = as_matrix(layer.equation, len(x.shape))
    if matrix is None or None in (*x.shape[1:], *layer.kernel.shape):
        return False
    # A Dense has one bias a unit: for each place of several axes made, all of them.
    _, kernel, output = terms(layer.equation, len(x.shape))
    made = "".join(axis for axis in output if axis in kernel)
    return layer.bias_axes in (None, made)


def distributed_fits(layer: keras.layers.TimeDistributed, x: Any, **kwargs: Any) -> bool:
    """Whether a TimeDistributed is that of a Dense."""
    del x, kwargs
    return type(layer.layer) is L.Dense and layer.layer.activation in _KNOWN


def normalization_fits(layer: keras.layers.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether a normalization is one over axes of each sample, which has a known size."""
    is_plain = reads_tensors_alone(layer, x, **kwargs)
    return is_plain and 0 not in axes(layer.axis, x) and None not in x.shape[1:]


def matmul_fits(layer: keras.Layer, x: list, **kwargs: Any) -> bool:
    """Whether products have no more axes than BATCH_MATMUL takes."""
    del layer, kwargs
    return len(x[0].shape) <= 5


def dot_fits(layer: keras.layers.Dot, x: list, **kwargs: Any) -> bool:
    """Whether a Dot contracts one axis of two sequences, or of two vectors."""
    del layer, kwargs
    return (
        len(x) == 2
        and len(x[0].shape) == len(x[1].shape)
        and len(x[0].shape) in (2, 3)
        and None not in (*x[0].shape[1:], *x[1].shape[1:])
    )


def attention_fits(layer: keras.Layer, *args: Any, **kwargs: Any) -> bool:
    """Whether an attention layer reads sequences of known length, and masks of such."""
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    masks = {key: value for key, value in given.items() if key.endswith("mask")}
    is_causal = masks.pop("use_causal_mask", False)
    others = (*masks, "use_causal_mask", "return_attention_scores", "training")
    tensors = keras.tree.flatten([value for key, value in given.items() if key not in others])
    options = (is_causal, given.get("return_attention_scores"), *masks.values())
    return (
        isinstance(is_causal, bool)
        and len(tensors) in (2, 3)
        and _are_sequences(layer, tensors, options)
        and all(_masks_fit(layer, key, value) for key, value in masks.items())
        and _scores_by_dot(layer)
    )


def _are_sequences(layer: keras.Layer, tensors: list, options: tuple) -> bool:
    """Whether attention reads sequences of known length, or images where there is no option."""
    is_plain = type(layer) is L.MultiHeadAttention and reads_tensors_alone(layer, None, *options)
    ranks = (3, 4, 5) if is_plain else (3,)
    return all(
        isinstance(x, keras.KerasTensor)
        and len(x.shape) in ranks
        and None not in x.shape[1:]
        # What a comparison says lies on no grid.
        and x.dtype != "bool"
        for x in tensors
    )


def attention_axes(layer: keras.Layer, x: Any) -> list[int]:
    """The axes of places that a MultiHeadAttention attends to: all by default."""
    found = configuration(layer).get("attention_axes")
    return axes(found or tuple(range(1, len(x.shape) - 1)), x)


def _masks_fit(layer: keras.Layer, name: str, value: Any) -> bool:
    """Whether an argument of attention is a mask of scores, or masks of sequences."""
    if name == "query_mask" and type(layer) is L.MultiHeadAttention:
        return value is None  # Keras overwrites it by the one that it passes beside the tensor.
    if name == "attention_mask":
        return _mask_fits(value, (3, 4))
    several = value if isinstance(value, (list, tuple)) else [value]
    return all(_mask_fits(mask, (2,)) for mask in several)


def _scores_by_dot(layer: keras.Layer) -> bool:
    """Whether an attention layer is made of dot products alone: no window, gate or other score."""
    # The attributes have other names from class to class; Keras 3.10 has no windows and gates.
    config = configuration(layer)
    return (
        config.get("sliding_window") is None
        and not config.get("use_gate")
        and config.get("score_mode", "dot") == "dot"
    )


# The layers of Keras that are a loop over steps, and the cells of those that are known.
CONV_RECURRENT = (L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)
RECURRENT = (L.LSTM, L.GRU, L.SimpleRNN, L.RNN, *CONV_RECURRENT)
# The most steps: each has a dozen operators, and the time to quantize and export grows with them.
MOST_STEPS = 256
CELLS = (L.LSTMCell, L.GRUCell, L.SimpleRNNCell, CONV_CELL)
# Activations of each value alone: several gates may be one tensor.
_OF_EACH_VALUE = (
    "elu",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
)


def recurrence_fits(
    layer: Any, x: Any = None, *states: Any, mask: Any = None, **kwargs: Any
) -> bool | str:
    """Whether a recurrent layer is a known number of steps of known cells; why not, if it is not.

    Args:
        layer: a recurrent layer, or a Bidirectional of two.
        x: the sequence that it is called on.
        *states: the first states, if they are given.
        mask: that of the sequence, if one is given.
        **kwargs: the rest of the call.
    """
    both = isinstance(layer, L.Bidirectional)
    loops = [layer.forward_layer, layer.backward_layer] if both else [layer]
    is_sequence = len(x.shape) == 3 or type(loops[0]) in CONV_RECURRENT
    is_known = is_sequence and None not in x.shape[1:]
    obstacles = {
        "with a fixed number of steps; give Input one": not is_known,
        f"up to {MOST_STEPS} steps; call it on parts of the sequence, and hand the states over": (
            is_known and x.shape[1] > MOST_STEPS
        ),
        "with a tensor (samples, steps) as its mask": not _is_mask(mask),
        "with tensors as its first states": not all(map(_is_given, keras.tree.flatten(states))),
        **{text: True for loop in loops if (text := _unlike_a_loop(loop))},
    }
    found = [f"integer only {text}" for text, is_there in obstacles.items() if is_there]
    return found[0] if found else True


def _is_mask(mask: Any) -> bool:
    return mask is None or (isinstance(mask, keras.KerasTensor) and len(mask.shape) == 2)


def _is_given(x: Any) -> bool:
    return x is None or isinstance(x, keras.KerasTensor)


def cells(layer: keras.layers.RNN) -> list[keras.Layer]:
    """The cells of a recurrent layer, from the input on."""
    return layer.cell.cells if type(layer.cell) is L.StackedRNNCells else [layer.cell]


def _unlike_a_loop(layer: keras.Layer) -> str:
    """Why no call of a recurrent layer is made of known ones; "" where it may be."""
    if type(layer) not in RECURRENT:
        return f"of Keras's own layers, not of {type(layer).__name__}"
    for cell in cells(layer):
        if type(cell) not in CELLS:
            return f"of Keras's own cells, not of {type(cell).__name__}"
        functions = (cell.activation, getattr(cell, "recurrent_activation", None))
        for function in filter(None, functions):
            name = getattr(function, "__name__", "")
            if name not in _OF_EACH_VALUE or function is not getattr(keras.activations, name):
                return f"of Keras's activations of each value, not of {name or function}"
    return ""

"""What a layer costs on the device under a scheme: operations, bytes, width of its accumulators."""

import math
from collections.abc import Callable

import keras
import numpy as np

from kerasq import graph, registry, targets
from kerasq.graph import functional
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import Matmul, SequenceLSTM
from kerasq.scheme import FLOAT_BITS, Scheme
from kerasq.wrappers import Boundary, QuantizeWrapper


def _inner(layer: keras.Layer) -> keras.Layer:
    """The layer that a wrapper runs; another layer itself."""
    return layer.layer if isinstance(layer, QuantizeWrapper) else layer


def kernel_shape(layer: keras.Layer) -> tuple[int, ...] | None:
    """Shape of the kernel of a layer or wrapper; None where it has none."""
    inner = _inner(layer)
    rule = registry.find(inner)
    if rule is None or rule.kernel is None:
        return None
    return tuple(getattr(inner, rule.kernel).shape)


def fan_in(layer: keras.Layer) -> int:
    """Products that one output value sums up: c * k * k of a convolution; 0 without a kernel.

    The most there can be, of a transposed convolution, whose strides leave most of them out.
    """
    shape = kernel_shape(layer)
    return math.prod(shape) // _channels(layer) if shape else 0


def macs(layer: keras.Layer) -> int:
    """Multiply-accumulate operations a sample: output values times `fan_in`.

    Of a transposed convolution, input pixels times the kernel's size; of a product of two tensors,
    output values times the length that is summed over; of a whole LSTM, steps times both kernels.
    """
    inner = _inner(layer)
    if isinstance(inner, SequenceLSTM):
        return layer.input.shape[1] * sum(map(math.prod, _lstm_kernels(inner)))
    if isinstance(inner, Matmul):
        return math.prod(layer.output.shape[1:]) * layer.input[0].shape[-1]
    per_value = fan_in(layer)
    if not per_value:
        return 0
    if registry.rule(inner).transposed:
        return math.prod(layer.input.shape[1:-1]) * math.prod(kernel_shape(layer) or ())
    return math.prod(layer.output.shape[1:]) * per_value


def _lstm_kernels(layer: SequenceLSTM) -> list[tuple[int, ...]]:
    """The shapes of both kernels of a whole LSTM, `(features, 4 units)` and `(units, 4 units)`."""
    return [tuple(x.shape) for x in (layer.cell.kernel, layer.cell.recurrent_kernel)]


def bit_operations(layer: keras.Layer, scheme: Scheme) -> int:
    """MACs times the bits of both factors: of weights, and of activations (van Baalen et al. 2020).

    Baskin et al. 2018, who came up with the measure, count the additions as well.
    """
    is_product = isinstance(_inner(layer), Matmul)  # Of activations.
    bits = scheme.activation_bits if is_product else scheme.weight_bits
    return macs(layer) * bits * scheme.activation_bits


def activation_bytes(tensor: keras.KerasTensor, bits: int) -> int:
    """Bytes that one sample of a tensor takes; codes of fewer than 8 bits are stored as int8."""
    return math.prod(tensor.shape[1:]) * max(8, bits) // 8


def weight_bytes(layer: keras.Layer, scheme: Scheme) -> int:
    """Bytes of kernel and bias in the file; of all variables where the layer stays float.

    The table of an Embedding that is read on a grid is codes, and those of what puts it there.
    """
    if isinstance(layer, Boundary):
        table = graph.origin(layer.input)[0]
        return math.prod(table.embeddings.shape) * scheme.code_bits // 8 if _is_table(table) else 0
    if scheme.weight_bits == FLOAT_BITS:
        return _float_bytes(layer)
    shape = kernel_shape(layer)
    if isinstance(_inner(layer), SequenceLSTM):
        kernels = _lstm_kernels(_inner(layer))
        return sum(map(math.prod, kernels)) + 4 * kernels[0][-1]  # Codes are int8, biases int32.
    if shape is None:
        return 0
    if getattr(layer, "leader", None) is not None:  # A further call, on the first one's weights.
        return 0
    op, target = registry.rule(_inner(layer)).operator, _target(layer)
    groups = getattr(_inner(layer), "groups", 1)
    is_packed = target.packs(
        op, _code_bits(layer, scheme), scheme.code_bits, inputs=shape[0], groups=groups
    )
    bits = 4 if is_packed else 8
    # Half a byte at the end counts as one. Biases are int32 behind int8, int64 behind int16.
    return -(-math.prod(shape) * bits // 8) + _channels(layer) * (scheme.code_bits // 2)


def _float_bytes(layer: keras.Layer) -> int:
    """Bytes of what a layer has in float; of a quantized one without its ranges."""
    if _is_table(layer) and all(isinstance(x, Boundary) for x in graph.readers(layer)):
        return 0
    # Operations of `keras.ops` have none.
    weights = getattr(_inner(layer), "weights", ())
    return 4 * sum(math.prod(variable.shape) for variable in weights)


def _is_table(layer: keras.Layer) -> bool:
    """Whether a layer picks rows of its weights, which the file may have as codes."""
    return isinstance(layer, keras.layers.Embedding)


def _target(layer: keras.Layer) -> targets.Target:
    """The target of a quantized layer; that of models that name none for others."""
    return layer.target if isinstance(layer, QuantizeWrapper) else targets.find(targets.DEFAULT)


def _code_bits(layer: keras.Layer, scheme: Scheme) -> int:
    """Width of the codes of weights, which is more than the scheme's for some kinds of them."""
    is_own = isinstance(layer, KernelWrapper) and layer.bits == scheme
    return layer.weight_quantizer.code_bits if is_own else scheme.weight_bits


def _channels(layer: keras.Layer) -> int:
    """The number of output channels, each with a scale and a bias of its own."""
    # A transposed kernel has its inputs last; that of a depthwise layer has two axes of channels.
    rule, shape = registry.rule(_inner(layer)), kernel_shape(layer) or ()
    return shape[-2] if rule.transposed else math.prod(shape[len(shape) - rule.channels :])


def require_known_shapes(model: keras.Model) -> None:
    """Raises a ValueError for what is no model, or one whose samples, and costs, have any size."""
    functional.check(model)
    for x in model.inputs:
        if None in x.shape[1:]:
            raise ValueError(
                "The shape of a sample must be known. "
                f"Received: input {x.name!r} of shape {x.shape}."
            )


# What a budget may be in.
COSTS: dict[str, Callable[[keras.Layer, Scheme], int]] = {
    "bytes": weight_bytes,
    "bit_operations": bit_operations,
}


def accumulator_bound(layer: keras.Layer, scheme: Scheme) -> int:
    """Bits that sums of `c * k * k` products can need: `n_w + n_a + ceil(log2(c * k * k))`.

    The bias is not counted. So has Baskin et al. 2018 the width of accumulators.
    """
    weight_bits = _code_bits(layer, scheme)
    return weight_bits + scheme.activation_bits + math.ceil(math.log2(fan_in(layer)))


def accumulator_bits(wrapper: KernelWrapper) -> int:
    """Bits that the accumulators of a layer need for the worst input, from its integer weights.

    The sum over the weights of one channel of the larger (smaller) of `w * q` at both ends of the
    input's grid, plus the bias; the largest channel counts, sign included.
    """
    weights, grid = wrapper.integer_weights(), wrapper.input_grids()[0].numpy()
    codes = weights.codes.numpy().astype(np.int64)
    codes = codes.reshape(-1, codes.shape[-1])
    # Each product is the largest at one end of the grid: no need to search among inputs.
    ends = [codes * int(q - grid.zero_point) for q in (grid.qmin, grid.qmax)]
    bias = weights.bias.numpy().astype(np.int64)
    greatest = int((np.maximum(*ends).sum(0) + bias).max())
    least = int((np.minimum(*ends).sum(0) + bias).min())
    return bits_between(least, greatest)


def bits_between(least: int, greatest: int) -> int:
    """Bits of the narrowest signed integers that hold both, sign included."""
    return max(max(greatest, 0).bit_length(), max(-1 - least, 0).bit_length()) + 1

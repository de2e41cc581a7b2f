"""Whether a call of a layer has an integer form: the conditions that the registry names."""

from typing import Any

import keras
import numpy as np

from kerasq.graph import has_mask

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
    """Whether the constants of a Rescaling or Normalization are those of samples of known size."""
    del kwargs
    names = ("scale", "offset", "mean", "variance")
    values = [getattr(layer, name) for name in names if hasattr(layer, name)]
    return None not in x.shape[1:] or all(map(is_per_channel, values))


def softmax_fits(layer: keras.Layer, x: Any, **kwargs: Any) -> bool:
    """Whether a softmax is one over axes of each sample, without a mask."""
    axes = _axes(getattr(layer, "axis", -1), x)
    is_known = len(axes) == 1 or None not in x.shape[1:]
    return reads_tensors_alone(layer, x, **kwargs) and 0 not in axes and is_known


def _axes(axis: Any, x: Any) -> set[int]:
    return {i % len(x.shape) for i in keras.tree.flatten(axis)}


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


def as_matrix(layer: keras.layers.EinsumDense) -> tuple[int, int] | None:
    """How many axes of input and output the kernel of an EinsumDense is a matrix between.

    None where its equation is not "...c,cd->...d" for some axes c and d.
    """
    inputs, output = layer.equation.replace(" ", "").split("->")
    x, kernel = inputs.split(",")
    # Any number of axes as one sign, so that each sign is an axis to compare.
    x, output = x.replace("...", "."), output.replace("...", ".")
    for count in range(1, len(kernel)):
        taken, made = kernel[:count], kernel[count:]
        if x.endswith(taken) and output == x[: len(x) - count] + made and len(x) > count:
            # A Dense has one bias a unit: for each place of several axes made, all of them.
            biased = layer.bias_axes is None or layer.bias_axes == made
            return (count, len(made)) if biased and None not in layer.kernel.shape else None
    return None


def einsum_fits(layer: keras.layers.EinsumDense, x: Any, **kwargs: Any) -> bool:
    """Whether an EinsumDense is a Dense between two Reshape."""
    del kwargs
    return as_matrix(layer) is not None and None not in x.shape[1:]


def distributed_fits(layer: keras.layers.TimeDistributed, x: Any, **kwargs: Any) -> bool:
    """Whether a TimeDistributed is that of a Dense."""
    del x, kwargs
    return type(layer.layer) is L.Dense and layer.layer.activation in _KNOWN


def dot_fits(layer: keras.layers.Dot, x: list, **kwargs: Any) -> bool:
    """Whether a Dot contracts one axis of two sequences, or of two vectors."""
    del kwargs
    return (
        not layer.normalize
        and len(x) == 2
        and len(x[0].shape) == len(x[1].shape)
        and len(x[0].shape) in (2, 3)
        and None not in (*x[0].shape[1:], *x[1].shape[1:])
    )


def attention_fits(layer: keras.Layer, *args: Any, **kwargs: Any) -> bool:
    """Whether an attention layer reads sequences of known length, without masks or scores."""
    tensors = keras.tree.flatten(args)
    return (
        reads_tensors_alone(layer, **kwargs)
        and len(tensors) in (2, 3)
        and all(_is_plain_sequence(x) for x in tensors)
        and _scores_by_dot(layer)
    )


def _is_plain_sequence(x: Any) -> bool:
    """Whether a tensor is a sequence of known length without a mask."""
    return (
        isinstance(x, keras.KerasTensor)
        and len(x.shape) == 3
        and None not in x.shape[1:]
        and not has_mask(x)
    )


def _scores_by_dot(layer: keras.Layer) -> bool:
    """Whether an attention layer is made of dot products alone: no window, gate or other score."""
    # The attributes have other names from class to class; Keras 3.10 has no windows and gates.
    config = layer.get_config()
    return (
        config.get("sliding_window") is None
        and not config.get("use_gate")
        and config.get("score_mode", "dot") == "dot"
    )

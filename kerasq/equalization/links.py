"""Linear maps between channels: what their weights span, and how they take channels rescaled."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry
from kerasq.layers import Scale
from kerasq.prepare.batch_norm import gain_and_bias

L = keras.layers
# By the very class, as elsewhere: a subclass may compute something else.
SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose)
DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
KERNELS = (L.Dense, L.Conv1D, L.Conv2D, *DEPTHWISE, *SEPARABLE, *TRANSPOSED, Scale)


@dataclasses.dataclass(eq=False, kw_only=True)
class Link:
    """A kernel, or a BatchNormalization that stands alone, between channels.

    A kernel is looked at as a stack of matrices `(places, a, b)`, the last two axes being those of
    its inputs and outputs, in whichever order and shape the layer has them.

    Attributes:
        node: the call.
        name: that of the layer; of the first half of a separable convolution, of that half.
        kernel: attribute of the kernel; "" for a BatchNormalization.
        bias: attribute of the bias, or "".
        norm: the BatchNormalization that is part of it, or that it is.
        inputs: the feature of the input that an entry reads; broadcasts to `(a, b)`.
        outputs: the feature of the output that it adds to; broadcasts to `(a, b)`.
        sources: by feature of the input, the number of its channel.
        targets: by feature of the output, the number of its channel.
    """

    node: graphs.Node
    name: str
    kernel: str
    bias: str
    norm: keras.layers.BatchNormalization | None
    inputs: np.ndarray
    outputs: np.ndarray
    sources: np.ndarray
    targets: np.ndarray

    @property
    def layer(self) -> Any:
        """The layer that has the weights."""
        return self.node.layer

    def magnitudes(self) -> np.ndarray:
        """The largest magnitude of each entry, `(a, b)`, BatchNormalization folded."""
        found = np.abs(self._matrices()).max(axis=0) if self.kernel else np.ones(self.inputs.shape)
        if self.norm is not None:
            found = found * np.abs(value(gain_and_bias(self.norm, None)[0]))[self.outputs]
        return found

    def reach(self) -> np.ndarray:
        """By feature of the output, how far its values lie from 0: `|beta| + 3 |gamma|`.

        0, for unknown, where no BatchNormalization says.
        """
        if self.norm is None:
            return np.zeros(len(self.targets))
        variance = value(self.norm.moving_variance)
        # Of a channel that is all but constant hardly anything is left of gamma.
        deviation = np.sqrt(variance / (variance + self.norm.epsilon))
        if self.norm.scale:
            deviation = deviation * np.abs(value(self.norm.gamma))
        mean = np.abs(value(self.norm.beta)) if self.norm.center else 0.0
        return mean + 3.0 * deviation

    def response(self, shift: np.ndarray) -> np.ndarray:
        """What `shift` of the inputs, the same at all places, adds to the sums in the outputs."""
        found = np.zeros(len(self.targets))
        terms = self._matrices().sum(axis=0) * shift[self.inputs]
        np.add.at(found, np.broadcast_to(self.outputs, terms.shape), terms)
        return found

    def rescale(self, factors: np.ndarray) -> None:
        """Takes inputs, and gives outputs, that are divided by the factors of their channels.

        `kernel' = kernel * s_in / s_out`, `bias' = bias / s_out`; where a BatchNormalization is
        behind the kernel, its gamma and beta are divided by `s_out` in place of those.
        """
        taken, given = factors[self.sources], factors[self.targets]
        if not self.kernel:
            _rescale_input(self.norm, taken)
        else:
            kernel = self._matrices() * taken[self.inputs]
            if self.norm is None:
                kernel /= given[self.outputs]
            variable = getattr(self.layer, self.kernel)
            variable.assign(kernel.reshape(variable.shape))
        for variable in self._offsets():
            variable.assign(value(variable) / given)

    def _matrices(self) -> np.ndarray:
        kernel = value(getattr(self.layer, self.kernel))
        return kernel.reshape(-1, *np.broadcast_shapes(self.inputs.shape, self.outputs.shape))

    def _offsets(self) -> Iterator[keras.Variable]:
        """What is divided by the factors of the outputs, beside the kernel."""
        if self.norm is not None:
            if self.norm.scale:  # Else its channels have the factor 1.
                yield self.norm.gamma
            if self.norm.center:
                yield self.norm.beta
        elif self.bias and getattr(self.layer, self.bias) is not None:
            yield getattr(self.layer, self.bias)


def kernel_links(
    node: graphs.Node,
    norm: keras.layers.BatchNormalization | None,
    sources: np.ndarray,
    between: np.ndarray,
    targets: np.ndarray,
) -> list[Link]:
    """The links of a layer with a kernel: one, or the two halves of a separable convolution.

    Args:
        node: the call.
        norm: the BatchNormalization behind it that is part of it.
        sources: numbers of the channels of the input, by feature.
        between: those of the channels between two halves.
        targets: those of the output.
    """
    layer = node.layer
    if type(layer) in SEPARABLE:
        inputs, outputs = _depthwise(layer.depthwise_kernel.shape)
        first = Link(
            node=node,
            name=f"{layer.name}_depthwise",
            kernel="depthwise_kernel",
            bias="",
            norm=None,
            inputs=inputs,
            outputs=outputs,
            sources=sources,
            targets=between,
        )
        sources = between
    kernel = str(registry.rule(layer).kernel)
    inputs, outputs = _indices(layer, getattr(layer, kernel).shape)
    last = Link(
        node=node,
        name=layer.name,
        kernel=kernel,
        bias="bias" if layer.use_bias else "",
        norm=norm,
        inputs=inputs,
        outputs=outputs,
        sources=sources,
        targets=targets,
    )
    return [first, last] if type(layer) in SEPARABLE else [last]


def norm_link(node: graphs.Node, sources: np.ndarray, targets: np.ndarray) -> Link:
    """The link of a BatchNormalization that is part of no kernel."""
    inputs, outputs = _depthwise((len(sources), 1))
    return Link(
        node=node,
        name=node.layer.name,
        kernel="",
        bias="",
        norm=node.layer,
        inputs=inputs,
        outputs=outputs,
        sources=sources,
        targets=targets,
    )


def _indices(layer: keras.Layer, shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """`inputs` and `outputs` of a kernel of that shape."""
    if type(layer) is Scale:
        return _depthwise((*shape, 1))
    if type(layer) in DEPTHWISE:
        return _depthwise(shape)
    if type(layer) in TRANSPOSED:
        return np.arange(shape[-1])[None, :], np.arange(shape[-2])[:, None]
    inputs, outputs = np.arange(shape[-2])[:, None], np.arange(shape[-1])[None, :]
    groups = 1 if type(layer) in SEPARABLE else getattr(layer, "groups", 1)
    if groups > 1:  # Each group of outputs reads inputs of its own.
        inputs = inputs + outputs // (shape[-1] // groups) * shape[-2]
    return inputs, outputs


def _depthwise(shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a kernel with a matrix of inputs and their multipliers, in which each makes an output."""
    *_, channels, multiplier = shape
    outputs = np.arange(channels * multiplier).reshape(channels, multiplier)
    return np.arange(channels)[:, None], outputs


def _rescale_input(norm: Any, taken: np.ndarray) -> None:
    """Gives a BatchNormalization an input that is divided by `taken`."""
    # The variance of such an input, where epsilon leaves one; gamma makes up for the rest.
    sum_before = value(norm.moving_variance) + norm.epsilon
    variance = np.maximum(sum_before / taken**2 - norm.epsilon, 0.0)
    norm.moving_variance.assign(variance)
    # By the variance as float32 has it, which is what the layer computes on.
    sum_after = value(norm.moving_variance) + norm.epsilon
    norm.gamma.assign(value(norm.gamma) * taken * np.sqrt(sum_after / sum_before))
    norm.moving_mean.assign(value(norm.moving_mean) / taken)


def value(variable: Any) -> np.ndarray:
    """The value of a variable, in float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)

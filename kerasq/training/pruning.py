"""Pruning while a quantized model is fine-tuned: the smallest weights become 0, more each epoch."""

import fnmatch
from collections.abc import Sequence

import keras
import numpy as np

from kerasq import graph
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import Scale
from kerasq.quantizers.power_of_two import PowerOfTwo
from kerasq.support.numbers import check_number
from kerasq.wrappers import require_quantized

PATTERNS = ("unstructured", "2:4", "channels")


class MagnitudePruning(keras.callbacks.Callback):
    """Sets the smallest weights of each layer to 0, more of them each epoch, for good.

    In epoch t, counted from 1, the share of a layer's weights that is 0 is (Zhu & Gupta 2017,
    equation 1, a step an epoch):

        s_t = s_f + (s_i - s_f) (1 - t / n)^3,   s_f = sparsity, s_i = initial_sparsity, n = epochs

    Those of the least magnitude go. What is pruned is part of the model (`keep_zeros=True` of
    `kerasq.quantize_model`), not of this callback: it gets no gradient, neither weight decay nor
    momentum revives it, it is saved with the model, so that training may be interrupted, and goes
    on with `fit(initial_epoch=...)`; it is code 0 in the file. Weights that are 0 already count.

    Args:
        sparsity: the share of each layer's weights that is 0 in the end, in (0, 1).
        epochs: how many it takes to get there, the first one included. Those behind it train what
            is left, which regains most of what pruning costs.
        pattern: "unstructured": any weights. "2:4": two or more of each four input channels that
            follow each other, for one output channel and place of the kernel, as sparse matrix
            units want; from a sparsity of 0.5 on. "channels": output channels as a whole, those of
            the least sum of magnitudes (Li et al. 2017, section 3.1), rounded to whole ones; layers
            whose channels are outputs of the model, the last one of each head, are left alone.
        initial_sparsity: where the schedule starts, in [0, sparsity).
        skip: names, or shell patterns of names, of layers that are not pruned.

    Attributes:
        left: in `fit`, the names of layers that are not pruned: those of `skip`, frozen ones, and
            those that cannot have the pattern (number of inputs no multiple of 4; depthwise).

    Raises:
        ValueError: for numbers out of their bounds and an unknown pattern; and in `fit`, for a
            model that keeps no zeros, weights that become powers of two, and names in `skip` that
            there are not.

    References:
        Zhu & Gupta 2017, To prune, or not to prune (arXiv 1710.01878). For 2:4: Mishra et al. 2021,
        Accelerating Sparse Deep Neural Networks (arXiv 2104.08378). For channels: Li et al. 2017,
        Pruning Filters for Efficient ConvNets (arXiv 1608.08710).

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> q = kerasq.quantize_model(model, keep_zeros=True)
        >>> q.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(32, 8))
        >>> pruning = kerasq.MagnitudePruning(0.75, epochs=2)
        >>> _ = q.fit(x, np.zeros((32, 4)), epochs=3, verbose=0, callbacks=[pruning])
        >>> pruning.pruned_share
        0.75
    """

    def __init__(
        self,
        sparsity: float,
        epochs: int,
        *,
        pattern: str = "unstructured",
        initial_sparsity: float = 0.0,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if pattern not in PATTERNS:
            raise ValueError(
                f"`pattern` must be one of {list(PATTERNS)}. Received: pattern={pattern!r}."
            )
        check_number("sparsity", sparsity)
        check_number("initial_sparsity", initial_sparsity)
        if not 0.0 < sparsity < 1.0 or not 0.0 <= initial_sparsity < sparsity:
            raise ValueError(
                "`sparsity` must be in (0, 1), such as 0.75, and `initial_sparsity` in "
                f"[0, sparsity). Received: sparsity={sparsity}, "
                f"initial_sparsity={initial_sparsity}."
            )
        if pattern == "2:4" and sparsity < 0.5:
            raise ValueError(
                "`sparsity` must be 0.5 or more where two of four weights are to be 0. "
                f"Received: sparsity={sparsity}, pattern='2:4'."
            )
        if not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"`epochs` must be an integer of at least 1. Received: {epochs}.")
        self.sparsity, self.initial_sparsity = sparsity, initial_sparsity
        self.epochs = epochs
        self.pattern = pattern
        self.skip = (skip,) if isinstance(skip, str) else tuple(skip)
        self.left: tuple[str, ...] = ()

    @property
    def wrappers(self) -> list[KernelWrapper]:
        """The layers that are pruned."""
        return [layer for layer in self._prunable() if layer.name not in self.left]

    @property
    def pruned_share(self) -> float:
        """The share of the weights of those layers that stays 0."""
        masks = [x.mask.numpy().ravel() for x in self.wrappers]
        return float(np.mean(np.concatenate(masks) == 0.0)) if masks else 0.0

    def sparsity_in(self, epoch: int) -> float:
        """The share that is pruned in an epoch, counted from 0."""
        missing = 1.0 - min(epoch + 1, self.epochs) / self.epochs
        return self.sparsity + (self.initial_sparsity - self.sparsity) * missing**3

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Checks the model, and finds the layers that are left alone."""
        del logs
        names = self._checked_names()
        unfit = {layer.name for layer in self._prunable() if self._is_unfit(layer)}
        unfit |= _heads(self.model) if self.pattern == "channels" else set()
        self.left = tuple(x for x in names if x in unfit or _matches(x, self.skip))
        if said := [name for name in self.left if not _matches(name, self.skip)]:
            print(f"Not pruned, being frozen or unfit for the pattern {self.pattern!r}: {said}.")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Prunes what is missing from the share of the epoch."""
        del logs
        for wrapper in self.wrappers:
            kernel, mask = wrapper.flat_kernel().numpy(), wrapper.mask
            mask.assign(pruned(kernel, mask.numpy(), self.sparsity_in(epoch), self.pattern))
            _restore(wrapper)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the share of pruned weights to the figures of the epoch."""
        del epoch
        if logs is not None:
            logs["pruned"] = self.pruned_share

    def on_train_end(self, logs: dict | None = None) -> None:
        """Undoes what averages of an optimizer did to pruned weights."""
        del logs
        # With `use_ema` Keras puts averages in the place of weights when `fit` ends, past all
        # constraints.
        for wrapper in self.wrappers:
            _restore(wrapper)

    def _prunable(self) -> list[KernelWrapper]:
        """The layers that keep zeros; further calls of a layer have no weights of their own."""
        require_quantized(self.model)
        found = [x for x in self.model.layers if isinstance(x, KernelWrapper) and x.leader is None]
        return [layer for layer in found if layer.keep_zeros]

    def _checked_names(self) -> list[str]:
        """Their names; a ValueError where the arguments do not fit the model."""
        found = self._prunable()
        if not found or any(isinstance(x.weight_quantizer, PowerOfTwo) for x in found):
            what = "whose weights become powers of two" if found else "which keeps none"
            raise ValueError(
                "The model must keep zeros, and its weights must be free to become 0. Received: "
                f"{self.model.name!r}, {what}. Quantize with keep_zeros=True, and prune before "
                "weights become powers of two."
            )
        names = [layer.name for layer in found]
        if unknown := [x for x in self.skip if not fnmatch.filter(names, x)]:
            raise ValueError(
                "`skip` must name layers with weights, or match their names. Received: "
                f"{unknown}, which fit none of {names}."
            )
        return names

    def _is_unfit(self, wrapper: KernelWrapper) -> bool:
        """Whether a layer is frozen, or cannot have the pattern."""
        return not wrapper.layer.trainable or (self.pattern == "2:4" and not _in_fours(wrapper))


def _heads(model: keras.Model) -> set[str]:
    """The layers whose channels are outputs of a model: none that mixes channels is behind them."""
    found, seen, tensors = set(), set(), list(model.outputs)
    while tensors:
        tensor = tensors.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        layer, inputs = graph.origin(tensor)
        if isinstance(layer, KernelWrapper):
            found.add((layer.leader or layer).name)
            # Depthwise, or a Scale, each channel reads its own.
            mixes = layer.rule.channels == 1 and not isinstance(layer.layer, Scale)
            inputs = [] if mixes else inputs
        tensors += inputs
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _in_fours(wrapper: KernelWrapper) -> bool:
    """Whether the inputs of a kernel, its last axis but one, are groups of four."""
    # Of a depthwise kernel each channel has one input.
    return wrapper.rule.channels == 1 and wrapper.flat_kernel().shape[-2] % 4 == 0


def pruned(kernel: np.ndarray, mask: np.ndarray, share: float, pattern: str) -> np.ndarray:
    """The mask of a kernel that is pruned to a share of zeros: what is pruned already stays.

    Args:
        kernel: `(..., inputs, channels)`.
        mask: 0 where it is pruned, else 1; same shape.
        share: of its weights, or, of "channels", of its channels but one.
        pattern: of `PATTERNS`.
    """
    magnitudes = np.abs(kernel)
    order = _ORDERS[pattern](magnitudes)
    gone = mask.sum(_inner(mask)) == 0 if order.ndim == 1 else mask == 0
    if pattern == "2:4":  # A third zero of four is none that another four go without.
        gone &= order <= magnitudes.max()
    order = np.where(gone, -1.0, order)
    most = order.size - 1 if order.ndim == 1 else order.size
    # Stable, so that of equal weights the same ones are pruned on every machine.
    chosen = np.argsort(order, axis=None, kind="stable")[: min(round(share * order.size), most)]
    kept = np.ones(order.shape, mask.dtype)
    kept.flat[chosen] = 0
    return mask * kept


def _inner(kernel: np.ndarray) -> tuple[int, ...]:
    return tuple(range(kernel.ndim - 1))


def _by_groups(magnitudes: np.ndarray) -> np.ndarray:
    """The two smallest of each four inputs before all others."""
    *head, inputs, channels = magnitudes.shape
    groups = magnitudes.reshape(*head, inputs // 4, 4, channels)
    ranks = np.argsort(np.argsort(groups, axis=-2, kind="stable"), axis=-2)
    return (groups + (ranks >= 2) * (1.0 + magnitudes.max())).reshape(magnitudes.shape)


# By pattern: what is pruned first has the least value; of weights, or of channels.
_ORDERS = {
    "unstructured": lambda magnitudes: magnitudes,
    "2:4": _by_groups,
    "channels": lambda magnitudes: magnitudes.sum(_inner(magnitudes)),
}


def _restore(wrapper: KernelWrapper) -> None:
    """Sets pruned weights to 0, as the constraint does after every step."""
    wrapper.kernel.assign(wrapper.kernel.constraint(wrapper.kernel.value))

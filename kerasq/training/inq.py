"""Incremental network quantization: weights become 0 or +-2^n, a part at a time."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.power_of_two import FREE, PowerOfTwo, highest_exponent
from kerasq.support.numbers import check_number
from kerasq.wrappers import require_quantized

PARTITIONS = ("magnitude", "random")
RULES = ("max", "mse")
_TRIED = 5  # Exponents that "mse" tries, from that of "max" downwards.


def _numbers(argument: str, values: Any, count: int) -> tuple[Any, ...]:
    """Numbers, or one `count` times; a ValueError for what are none."""
    found = tuple(values) if isinstance(values, Iterable) else (values,) * count
    for value in found:
        check_number(argument, value)
    return found


class IncrementalQuantization(keras.callbacks.Callback):
    """Freezes the weights of a model at powers of two, in steps, while it is trained.

    At the first epoch of step i so many weights of each layer are frozen that they make up
    `portions[i]` of all; the others are trained on to make up for it. Frozen weights get no
    gradient, and neither weight decay nor momentum moves them. The values are in
    `kerasq.PowerOfTwo`; what is frozen is saved with the model, so that training
    may be interrupted, and goes on with `fit(initial_epoch=...)`.

    A learning rate that is a number is set back to its first value at each step. With a schedule,
    take one that restarts, such as `keras.optimizers.schedules.CosineDecayRestarts`. Where `fit`
    ends before all weights are frozen, a line says so.

    Args:
        portions: shares of the weights, growing to 1.0.
        epochs: epochs of each step: a number, or one for each portion. Those behind the last
            portion train what is left: biases, ranges, and BatchNormalization where it is kept.
        partition: "magnitude" (the largest weights of a layer first: "pruning-inspired") or
            "random".
        per_channel: whether each output channel has a highest exponent of its own, or each layer.
        highest_exponent: "max" takes it from the largest weight (equation 3 of the paper); "mse"
            takes the exponent, that one or a lower one, that has the least squared error were all
            weights rounded now. It matters at 2 and 3 bits, where few exponents are left and "max"
            rounds most weights to 0.
        seed: of the random partition.
        learning_rate: what each step starts with. Default: what the optimizer has when `fit`
            begins, which, where an interrupted `fit` goes on, may be a rate that fell meanwhile.

    Raises:
        ValueError: for portions that do not grow to 1.0; and in `fit`, for a model without such
            weights.

    References:
        Zhou A. et al. 2017, Incremental Network Quantization (arXiv 1702.03044).

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> q = kerasq.quantize_model(model, "w4a8", weights="power_of_two")
        >>> q.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(32, 8))
        >>> inq = kerasq.IncrementalQuantization(portions=(0.5, 1.0), epochs=1)
        >>> _ = q.fit(x, np.zeros((32, 4)), epochs=2, verbose=0, callbacks=[inq])
        >>> inq.frozen_share
        1.0
    """

    def __init__(
        self,
        portions: Sequence[float] = (0.5, 0.75, 0.875, 1.0),
        epochs: int | Sequence[int] = 1,
        *,
        partition: str = "magnitude",
        per_channel: bool = True,
        highest_exponent: str = "max",
        seed: int = 0,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        portions = _numbers("portions", portions, 1)
        grows = all(a < b for a, b in itertools.pairwise((0.0, *portions)))
        if not portions or not grows or portions[-1] != 1.0:
            raise ValueError(
                "`portions` must grow from above 0.0 to 1.0, such as (0.5, 0.75, 0.875, 1.0). "
                f"Received: portions={portions}."
            )
        if partition not in PARTITIONS:
            raise ValueError(
                f"`partition` must be one of {list(PARTITIONS)}. Received: partition={partition!r}."
            )
        if highest_exponent not in RULES:
            raise ValueError(
                f"`highest_exponent` must be one of {list(RULES)}. "
                f"Received: highest_exponent={highest_exponent!r}."
            )
        spans = _numbers("epochs", epochs, len(portions))
        if len(spans) != len(portions) or min(spans) < 1:
            raise ValueError(
                "`epochs` must be a number above 0, or one for each portion. "
                f"Received: epochs={epochs}, {len(portions)} portions."
            )
        self.portions = portions
        self.first_epochs = tuple(itertools.accumulate((0, *spans[:-1])))
        self.epochs = sum(spans)
        self.partition = partition
        self.per_channel = per_channel
        self.highest_exponent = highest_exponent
        self.seed = seed
        self.learning_rate = learning_rate

    @property
    def wrappers(self) -> list[KernelWrapper]:
        """The layers whose weights become powers of two."""
        require_quantized(self.model)
        # Further calls of a layer have no weights of their own.
        found = [x for x in self.model.layers if isinstance(x, KernelWrapper) and x.leader is None]
        return [x for x in found if isinstance(x.weight_quantizer, PowerOfTwo)]

    @property
    def frozen_share(self) -> float:
        """The share of the weights that is frozen now."""
        masks = [x.weight_quantizer.is_frozen().numpy().ravel() for x in self.wrappers]
        return float(np.mean(np.concatenate(masks)))

    @property
    def _optimizer(self) -> keras.optimizers.Optimizer:
        """What holds the learning rate: inside a LossScaleOptimizer, where there is one."""
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Checks the model, and chooses the exponents where nothing is frozen yet."""
        del logs
        if not self.wrappers:
            raise ValueError(
                "The model must have weights that become powers of two. Received: "
                f'{self.model.name!r}, which has none. Quantize with weights="power_of_two" and a '
                'scheme of 2 to 5 bits of weights, such as "w5a8".'
            )
        rate = self._optimizer.get_config()["learning_rate"]
        if isinstance(rate, dict) and self.learning_rate is not None:
            raise ValueError(
                "`learning_rate` must be None where the optimizer has a schedule. "
                f"Received: learning_rate={self.learning_rate}, {rate['class_name']}."
            )
        self._first_rate = None if isinstance(rate, dict) else self.learning_rate or float(rate)
        # Frozen codes are multiples of a scale that follows from the exponent: another one would
        # move them. So training that goes on keeps those that it began with.
        if self.frozen_share == 0.0:
            for wrapper in self.wrappers:
                self._choose_exponents(wrapper.weight_quantizer, wrapper.ranged_kernel())

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Freezes weights where a step begins."""
        del logs
        step = max(i for i, first in enumerate(self.first_epochs) if first <= epoch)
        if epoch == self.first_epochs[step] and self._first_rate is not None:
            self._optimizer.learning_rate = self._first_rate
        # At every epoch, not only the first of a step: `fit` may go on in the middle, and
        # makes up for what is missing from the portion.
        for number, wrapper in enumerate(self.wrappers):
            self._freeze(wrapper, self.portions[step], np.random.default_rng((self.seed, number)))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the share of frozen weights to the figures of the epoch."""
        del epoch
        if logs is not None:
            logs["frozen"] = self.frozen_share

    def on_train_end(self, logs: dict | None = None) -> None:
        """Undoes what averages of an optimizer did to frozen weights; warns where some are free."""
        del logs
        # With `use_ema` Keras puts averages in the place of weights when `fit` ends, past all
        # constraints.
        for wrapper in self.wrappers:
            _restore(wrapper)
        if self.frozen_share < 1.0:
            print(
                f"{100 * self.frozen_share:.1f} % of the weights are powers of two, the others "
                f"int8: the portions take {self.epochs} epochs. Train on with "
                f"fit(initial_epoch=..., epochs={self.epochs})."
            )

    def _choose_exponents(self, quantizer: PowerOfTwo, kernel: tf.Tensor) -> None:
        """Sets the highest exponent of each channel by the rule."""
        highest = highest_exponent(kernel).numpy()
        if not self.per_channel:
            highest = np.full_like(highest, highest.max())
        count = _TRIED if self.highest_exponent == "mse" else 1
        tried = [highest - lower for lower in range(count)]
        errors = []
        for exponent in tried:
            quantizer.exponent.assign(exponent)
            change = quantizer.powers(kernel) * quantizer.scale(kernel) - kernel
            error = np.square(change).reshape(-1, highest.size).sum(axis=0)
            errors.append(error if self.per_channel else np.full_like(error, error.sum()))
        quantizer.exponent.assign(np.choose(np.argmin(errors, axis=0), tried))

    def _freeze(self, wrapper: KernelWrapper, portion: float, rng: np.random.Generator) -> None:
        """Freezes as many weights of a layer as are missing from the portion."""
        quantizer, kernel = wrapper.weight_quantizer, wrapper.ranged_kernel()
        frozen = quantizer.frozen.numpy()
        free = np.flatnonzero(frozen == FREE)
        count = math.ceil(portion * frozen.size) - (frozen.size - free.size)
        if count <= 0:
            return
        # The same draw at each step, for frozen weights too: one random order, of which a portion
        # takes what comes next, whether `fit` was interrupted or not.
        order = rng.random(frozen.size)
        if self.partition == "magnitude":
            order = -np.abs(kernel.numpy()).ravel()
        # Stable, so that of equal weights the same ones are frozen on every machine.
        chosen = free[np.argsort(order[free], kind="stable")[:count]]
        frozen.flat[chosen] = quantizer.powers(kernel).numpy().flat[chosen]
        quantizer.frozen.assign(frozen)
        _restore(wrapper)


def _restore(wrapper: KernelWrapper) -> None:
    """Sets frozen weights to their codes' values, as the constraint does after every step."""
    wrapper.kernel.assign(wrapper.kernel.constraint(wrapper.kernel.value))

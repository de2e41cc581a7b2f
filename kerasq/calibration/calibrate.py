"""Calibration: the first ranges of activations, from data, by an observer."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph, range_limits
from kerasq.calibration import observers, provisional, samples, sharing
from kerasq.calibration.observer import Observer
from kerasq.scales import SCALES
from kerasq.support.data import batch_spec, batches, sample_count
from kerasq.support.finite import check_finite
from kerasq.support.progress import track
from kerasq.support.restore import restored_on_error
from kerasq.support.shared import traced_if_often
from kerasq.wrappers import (
    infer_float,
    range_variables,
    ranged,
    require_quantized,
    scales_of,
    sharing_ranges,
)

# Samples that count as one batch, where the data are an array: averages over batches depend on it.
BATCH_SIZE = 32


def calibrate(
    model: keras.Model,
    data: Any,
    *,
    method: str | dict[str, Any] | Observer | None = None,
    steps: int | None = None,
) -> None:
    """Sets the ranges of all activations from data that runs through the float layers.

    Printed is where a range is narrower than the target's kernels take, and so widened; where
    parts of a tensor get few codes, as features of an input do that differ by orders of magnitude;
    and where ranges hold for inference alone, behind a BatchNormalization that has yet to see data.

    Args:
        model: what `quantize_model` returned. Its ranges change, nothing else.
        data: an array of samples, or an iterable of batches `x` or `(x, y)`, or a function that
            returns one, as the `representative_dataset` of TFLiteConverter.
        method: the observer: "minmax", "average", "moving_average", "std" (5 standard deviations),
            "percentile" (99.999 %), "mse", "entropy", "aciq", or "best" of these for each tensor; a
            `kerasq.Observer`, such as `kerasq.Percentile(99.9)`, of which each tensor gets a copy;
            or its configuration. None is "mse" for ranges of up to 8 bits, and "minmax" for
            others, whose codes are so many that nothing is won by clipping.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.

    Raises:
        ValueError: for an unknown method, a model without ranges or with NaN weights, data that is
            empty, of the wrong shape, NaN or infinite, or an observer whose range is no range.
            After an error, or an interrupt, the model is as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.array([[-1.0, 2.0], [0.5, 0.0]]), method="minmax")
        >>> q.predict(np.array([[-1.0, 3.0]]), verbose=0)
        array([[0., 2.]], dtype=float32)
    """
    require_quantized(model)
    check_finite(model)
    quantizers = ranged(model)
    widths = {name: [quantizer.bits] for name, quantizer in quantizers.items()}
    shared = sharing_ranges(model)
    found, batch = observe(model, data, widths, method=method, shared=shared, steps=steps)
    with restored_on_error(range_variables(model)), graph.remembering():
        for (name, _), ends in found.items():
            quantizers[name].assign_range(*ends)
        few = samples.first(batch)
        sharing.share_inputs(model, few)
        remarks = [*range_limits.widen(model), *sharing.remarks(model, few)]
        remarks += provisional.mark(model)
        samples.keep(model, few)
    for remark in remarks:
        print(remark)


def observe(
    model: keras.Model,
    data: Any,
    widths: Mapping[str, Iterable[int]],
    *,
    method: str | dict[str, Any] | Observer | None,
    shared: Mapping[str, list[str]],
    steps: int | None = None,
) -> tuple[dict[tuple[str, int], tuple[float, float]], Any]:
    """The ranges that tensors of a quantized model get from data; the model stays as it is.

    Args:
        model: what `quantize_model` returned.
        data: as for `calibrate`.
        widths: by name of a tensor (`graph.tensor_name`), the bits that it gets ranges for.
        method: as for `calibrate`.
        shared: by name of a tensor, those whose values its range is to hold; else its own.
        steps: as for `calibrate`.

    Returns:
        By name and bits, the ends of the range, as `Observer.range` has them; and the first batch.

    Raises:
        ValueError: as `calibrate`.
    """
    prototype = None if method is None else observers.find(method)
    is_power = SCALES[scales_of(model)].activations
    taps = [tap for name, bits in widths.items() for tap in _taps(name, bits, prototype, is_power)]

    # Float layers only, so this costs about a `predict`.
    @traced_if_often(batch_spec(model.input))
    def statistics(x: Any) -> list[tuple[tf.Tensor, ...]]:
        return _statistics(model, x, taps, shared)

    first = None
    for x in _tracked(model, data, steps):
        first = x if first is None else first
        for tap, found in zip(taps, statistics(x), strict=True):
            tap.observer.update([np.asarray(s) for s in found])
    return {(tap.name, bits): tap.range(bits) for tap in taps for bits in tap.widths}, first


def _tracked(model: keras.Model, data: Any, steps: int | None) -> Iterable[Any]:
    """The batches, under a progress bar."""
    count = sample_count(model, data)
    total = steps if count is None else len(range(0, count, BATCH_SIZE)[:steps])
    return track(batches(model, data, BATCH_SIZE, steps), total, "batch")


def _statistics(
    model: keras.Model, x: Any, taps: list["_Tap"], shared: Mapping[str, list[str]]
) -> list[tuple[tf.Tensor, ...]]:
    """What each tap's observer makes of a batch, of a model whose wrappers run in float."""
    groups = [shared.get(tap.name, [tap.name]) for tap in taps]
    readers: dict[str, list[int]] = {}
    for i, names in enumerate(groups):
        for name in names:
            readers.setdefault(name, []).append(i)
    # Values are kept only until a tap has all that it reads: a network's may be too many.
    values: list[dict[str, tf.Tensor]] = [{} for _ in taps]
    found: dict[int, tuple[tf.Tensor, ...]] = {}

    def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        y = infer_float(node, *args, **kwargs)
        for name, value in zip(
            map(graph.tensor_name, node.outputs), keras.tree.flatten(y), strict=True
        ):
            for i in readers.get(name, []):
                # A layer may say that it returns floats, and return integers.
                values[i][name] = tf.cast(value, tf.float32)
                if len(values[i]) == len(groups[i]):
                    joined = tf.concat([values[i].pop(x) for x in groups[i]], 0)
                    found[i] = taps[i].observer.statistics(joined)
        return y

    # As in Keras's own models, names of layers may begin with "_", which that of no root scope may.
    with tf.name_scope("model"):
        graph.run(model, x, call)
    return [found[i] for i in range(len(taps))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tap:
    """An observer of one tensor.

    Attributes:
        name: the tensor's.
        observer: what sees its values.
        widths: the bits of the ranges that are taken from it.
    """

    name: str
    observer: Observer
    widths: list[int]

    def range(self, bits: int) -> tuple[float, float]:
        """The observed ends at a width.

        Raises:
            ValueError: where they are not two finite numbers, the lower one first.
        """
        symmetric = bits > 8 or self.observer.power_of_two
        found = self.observer.range(bits=bits, symmetric=symmetric)
        with np.errstate(over="ignore"):  # What float32 cannot hold is infinite, and refused.
            ends = np.asarray(found, np.float32)
        if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] > ends[1]:
            raise ValueError(
                "The range of an observer must be two finite numbers, the lower one first. "
                f"Received: {found} from {type(self.observer).__name__} for layer {self.name!r} "
                f"at {bits} bits. Mend its `range`, or take another `method`. Where it is one of "
                "kerasq's own, the layer computes infinite values or NaN in float: clip what it "
                "reads to where it is defined, or leave it in float with `overrides`."
            )
        return float(ends[0]), float(ends[1])


def _taps(
    name: str, widths: Iterable[int], prototype: Observer | None, power_of_two: bool
) -> list[_Tap]:
    """The observers of a tensor: a copy of the prototype; see `calibrate` for None."""
    if prototype is not None:
        found = [(copy.deepcopy(prototype), [*widths])]
    else:
        # One for all widths of a kind: what observers see does not depend on the width.
        kinds: dict[str, list[int]] = {}
        for bits in widths:
            kinds.setdefault("mse" if bits <= 8 else "minmax", []).append(bits)
        found = [(observers.find(kind), bits) for kind, bits in kinds.items()]
    for observer, _ in found:
        observer.power_of_two = power_of_two
    return [_Tap(name=name, observer=observer, widths=bits) for observer, bits in found]

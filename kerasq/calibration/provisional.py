"""Ranges that hold for inference alone: behind a BatchNormalization that has yet to see data."""

import keras

from kerasq import graph
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.prepare.batch_norm import has_statistics
from kerasq.quantizers.activations import PROVISIONAL
from kerasq.wrappers import ranged


def mark(model: keras.Model) -> list[str]:
    """Marks such ranges of a calibrated model, which training then forgets.

    In inference a BatchNormalization with the statistics that it was made with lets values of any
    size pass, where training, by the statistics of batches, sees units.

    Returns:
        A remark, or none.
    """
    quantizers, behind = ranged(model), _behind(model)
    marked = [
        name
        for name, quantizer in quantizers.items()
        if name in behind and quantizer.trainable and not quantizer.is_input
    ]
    for name in marked:
        quantizers[name].batches_seen.assign(PROVISIONAL)
    if not marked:
        return []
    return [
        f"The ranges of {len(marked)} layers, from {marked[0]!r} on, are those of a "
        "BatchNormalization that has yet to see data: they hold for inference as it is now, and "
        "training starts from those of its first batches."
    ]


def _behind(model: keras.Model) -> set[str]:
    """The names of the layers whose values such a BatchNormalization has passed on."""
    names: set[str] = set()
    tensors: set[int] = set()
    for node in graph.calls(model):
        if _is_new(node.layer) or any(id(x) in tensors for x in node.inputs):
            names.add(node.layer.name)
            tensors |= {id(x) for x in node.outputs}
    return names


def _is_new(layer: keras.Layer) -> bool:
    """Whether a layer normalizes batches in training, and has the first statistics."""
    norm = layer.batch_norm if isinstance(layer, KernelWrapper) else None
    if norm is None or layer.fixed_batch_norm or not norm.trainable:
        return False
    return not has_statistics(norm)

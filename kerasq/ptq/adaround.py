"""`adaround`: weights rounded up or down so that outputs stay, not to the nearest."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import keras

from kerasq.ptq import reference
from kerasq.ptq.backup import Backup
from kerasq.ptq.rounding import Figures, Problem, Settings, is_legal
from kerasq.ptq.units import Unit, by_block, by_layer
from kerasq.ptq.walk import Walk
from kerasq.support import tables
from kerasq.support.restore import restored_on_error

UNITS: dict[str, Callable[[keras.Model], list[Unit]]] = {"layer": by_layer, "block": by_block}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """What `adaround` did. Printing it gives a table.

    Attributes:
        layers: the layers that were rounded, in the order of the model.
        nearest, learned: by layer, the SQNR in dB of its output, or that of its block, by nearest
            rounding and as it is now, each on inputs from the quantized layers before.
        moved: by layer, the share of its weights that are not rounded to the nearest code.
        left: layers that are called more than once, or whose weights are not uniform, or have
            fewer than 8 bits and a range that follows them.
    """

    layers: tuple[str, ...]
    nearest: tuple[float, ...]
    learned: tuple[float, ...]
    moved: tuple[float, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        rows = [["layer", "nearest (dB)", "learned (dB)", "moved (%)"]]
        columns = zip(self.layers, self.nearest, self.learned, self.moved, strict=True)
        rows += [[name, f"{a:.1f}", f"{b:.1f}", f"{100 * c:.1f}"] for name, a, b, c in columns]
        left = f"\n\nLeft as they are: {', '.join(self.left)}." if self.left else ""
        return tables.plain(rows) + left


def adaround(
    model: keras.Model,
    data: Any,
    *,
    unit: str = "layer",
    iterations: int = 2000,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    drop: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    backup: str | os.PathLike | None = None,
) -> Rounding:
    """Rounds the weights of a calibrated model up or down, unit by unit, to keep their outputs.

    Minimizes, over V of the shape of each kernel (Nagel et al. 2020, arXiv 2004.10568, section 3)::

        mean (f(x_q, w_V) - f(x, w))^2 / mean f(x, w)^2 + 0.01 sum (1 - |2 h(V) - 1|^beta) / n,
        w_V = s clip(floor(w / s) + h(V), -2^(b-1) + 1, 2^(b-1) - 1),
        h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

    by Adam, where x_q comes from the layers before as they are quantized by then, x and w are those
    of the float network, f is the unit with its activation, n the number of weights, and batches
    are drawn anew each time. beta falls from 20 to 2 by a cosine; the regularizer sets in after a
    fifth of the iterations. Unlike in the paper both terms are relative, so that neither the scale
    of values nor the size of a layer changes their balance. A unit that would come out worse stays.

    A unit is a layer, or a block of layers, which are rounded together (Li et al. 2021, BRECQ,
    arXiv 2102.05426); in blocks values between layers, and those read, are left exact with the
    probability `drop` (Wei et al. 2022, QDrop, arXiv 2203.05740): for 2 bits of weights and 4 of
    activations.

    Kernels then lie on their codes, from where fine-tuning may start. Calibrate before. It takes
    the place of `correct_biases`: the mean of an output is part of what it keeps.

    Time grows with the number of units, each of which learns on its own. What it reads follows from
    what units before it have read, where that fits into 512 MB for all samples, or the network in
    front of it runs anew. Memory does not grow with the samples (`kerasq.ptq.samples`);
    convolutions on large images are fitted to windows of them.

    Args:
        model: what `quantize_model` returned, calibrated. Its kernels change, nothing else.
        data: as for `calibrate`; some hundred samples. What can be read only once, such as a
            generator, is kept in memory.
        unit: "layer", or "block": what lies between tensors that all goes through, such as a
            residual block.
        iterations: steps of Adam for each unit.
        batch_size: samples of a step.
        learning_rate: of Adam.
        drop: the probability of exact values; None is 0.5 in blocks and 0 in layers.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.
        seed: of the draws.
        backup: a file, `.npz`, that notes what is done after each unit. Where it is there, the run
            goes on from it. It stays.

    Raises:
        ValueError: for a model that is not quantized, has NaN weights or was changed by such a
            method already, for data that `calibrate` refuses, for settings out of their bounds, and
            for a `backup` of another model or other settings.
        UncalibratedError: where ranges have seen no data.
            After an error, or an interrupt, the model is as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> x = np.array([[-1.0, 2.0], [0.5, 0.0]])
        >>> q = kerasq.quantize_model(model, "w4a8")
        >>> kerasq.calibrate(q, x)
        >>> kerasq.adaround(q, x, iterations=10).layers
        ('head',)
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {list(UNITS)}. Received: unit={unit!r}.")
    settings = Settings(
        iterations=iterations,
        batch_size=batch_size,
        learning_rate=learning_rate,
        drop=(0.5 if unit == "block" else 0.0) if drop is None else drop,
        seed=seed,
    )
    walk = Walk(model, data, steps, UNITS[unit], is_legal)
    saved = Backup(backup, model, (unit, settings))
    found: dict[str, tuple[float, float, float]] = {}
    with restored_on_error([layer.kernel for layer in walk.legal.values()]):
        for pair in walk:
            figures = _solved(walk, pair, settings, saved)
            both = figures.nearest, figures.learned
            layers = zip(walk.layers(pair[0]), figures.moved, strict=True)
            found |= {layer.name: (*both, moved) for layer, moved in layers}
    reference.mark(model, "adaround")
    nearest, learned, moved = zip(*found.values(), strict=True) if found else ((), (), ())
    return Rounding(
        layers=tuple(found), nearest=nearest, learned=learned, moved=moved, left=walk.left
    )


def _solved(walk: Walk, pair: tuple[Unit, Unit], settings: Settings, saved: Backup) -> Figures:
    """The figures of a unit, which is rounded now, or was in the run that goes on."""
    unit, layers = pair[0], walk.layers(pair[0])
    if unit.name in saved.done:
        for layer in layers:
            layer.kernel.assign(saved.kernel(layer.name))
        return Figures(*saved.done[unit.name])
    figures = Problem(unit, layers, walk.seen(pair, settings.seed)).solve(settings)
    kernels = {layer.name: layer.kernel.numpy() for layer in layers}
    saved.add(unit.name, [figures.nearest, figures.learned, figures.moved], kernels)
    return figures

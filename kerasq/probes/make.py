"""Makes probes: exports of small networks, and what the simulation predicts for them."""

import contextlib
import dataclasses
import io

import keras
import numpy as np

from kerasq import graph
from kerasq.calibration.calibrate import calibrate
from kerasq.export.tflite import content_of
from kerasq.litert import contents, flatbuffer, values
from kerasq.litert.contents import Contents
from kerasq.prepare.fused_recurrence import OPERATOR as LSTM
from kerasq.probes import networks
from kerasq.probes.standalone import Probe
from kerasq.quantize import quantize_model
from kerasq.support import progress
from kerasq.targets import Target
from kerasq.wrappers import infer

# Samples a call, of 288 values on every input.
COUNT = 16


def make(target: Target, count: int = COUNT) -> list[Probe]:
    """A probe of each operator that a target has, for each type of codes and weights.

    Args:
        target: what the files are for.
        count: samples that they take.
    """
    wanted = [
        (operator, branch, scheme)
        for scheme in ("w8a8", "w8a16", "w4a8", "w4a16")
        for operator, branch in {**networks.WEIGHTED, **networks.BRANCHES}.items()
        if operator in target.operators and (scheme[:2] == "w8" or operator in networks.WEIGHTED)
        # At other widths a whole LSTM is other operators.
        if operator != LSTM or scheme == "w8a8"
    ]
    found: dict[tuple[str, str], Probe] = {}
    for operator, branch, scheme in progress.track(wanted, len(wanted), "probe"):
        if probe := _probe(operator, branch, scheme, target, count):
            # What has no kernel at a width runs at another one, of which there is a probe already.
            found.setdefault((probe.operator, probe.type), probe)
    return list(found.values())


def _probe(
    operator: str, branch: networks.Branch, scheme: str, target: Target, count: int
) -> Probe | None:
    """The probe of an operator; None where others stand for it at a width."""
    samples = list(networks.samples(count, _inputs(operator, target)))
    dtype = "float32" if operator in networks.FLOAT_ENDS else None
    network = networks.network(branch, len(samples))
    probe = of_network(network, operator, scheme, target, samples, dtype)
    file = contents.read(flatbuffer.read(probe.content), len(probe.content))
    kind = _type(file, operator)
    return dataclasses.replace(probe, type=kind) if kind else None


def of_network(
    model: keras.Model,
    name: str,
    scheme: str,
    target: Target,
    samples: list[np.ndarray],
    dtype: str | None = None,
) -> Probe:
    """A whole network, calibrated on its samples, as a probe.

    Args:
        model: a float network.
        name: what it is called in place of an operator.
        scheme: of its layers, as for `quantize_model`.
        target: what its file is for.
        samples: real values for each input, all of which one call takes.
        dtype: type of the file's ends, as for `export_tflite`.
    """
    # What is said of a user's model is not of interest here.
    with contextlib.redirect_stdout(io.StringIO()):
        recurrence = "fused" if name == LSTM else "unrolled"
        q = quantize_model(model, scheme, target=target, recurrence=recurrence)
        calibrate(q, [keras.tree.pack_sequence_as(model.input, samples)], method="minmax")
        content = content_of(q, len(samples[0]), dtype)
    file = contents.read(flatbuffer.read(content), len(content))
    predicted = [np.asarray(y) for y in graph.run(q, samples, infer)]
    ends = list(zip(predicted, file.outputs, strict=True))
    given = list(zip(samples, file.inputs, strict=True))
    return Probe(
        name,
        scheme,
        content,
        inputs=[values.codes(x, tensor, target.away) for x, tensor in given],
        outputs=[values.codes(y, tensor) for y, tensor in ends],
    )


def _inputs(operator: str, target: Target) -> int:
    """On how many grids an operator is tried."""
    known = target.operators[operator]
    if known.pass_through or known.compares:
        return 1  # What only moves codes, or compares them, does not hang on their grid.
    # Each channel of weights has a scale of its own.
    return 2 if known.channels is not None else len(networks.RANGES)


def _type(file: Contents, operator: str) -> str | None:
    """What the operator computes on in the file; None where the file does not have it."""
    for op in file.ops:
        if op.name == operator:
            output, kernel = file.by_name[op.outputs[0]].type, file.kernel(op)
            is_packed = kernel is not None and kernel.type != "int8"
            source = file.by_name[op.inputs[0]].type
            kind = source if output in ("bool", "int32") else output
            return f"{kernel.type} on {kind}" if kernel is not None and is_packed else kind
    return None

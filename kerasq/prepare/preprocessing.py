"""What only scales an input, in float and in front of its grid where features would be lost."""

import dataclasses
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.layers import InputCast, InputScale, Scale
from kerasq.scheme import resolve

MODES = ("auto", "float", "integer")
# The least codes that a feature, or a part of a tensor, should have over its own range.
LEAST_CODES = 16
# What a feature's range is taken for, where its mean and deviation are known.
_DEVIATIONS = 3.0


def scale_inputs(
    graph: graphs.Graph,
    user: graphs.Graph,
    schemes: dict[str, str],
    floats: frozenset[str],
    mode: str,
) -> graphs.Graph:
    """Returns an equal graph in which layers that alone read an input and scale it are one.

    A Normalization, Rescaling, BatchNormalization, or operators such as `(x - a) / b`: they become
    an `InputScale`, which is printed. The grid of the input is then that of the scaled values.
    Constants in a row are composed.

    Args:
        graph: a prepared graph; it is not changed.
        user: the user's graph, whose layers know statistics.
        schemes: names of schemes by name of a layer, or input, of the user's model.
        floats: names of layers that stay float as they are.
        mode: "float": wherever there are such; "auto": where on codes of the input the least
            feature had fewer than `LEAST_CODES`, by the numbers of the layers; "integer": nowhere.
    """
    runs: dict[int, list[graphs.Node]] = {}
    for x in graph.model.inputs if mode != "integer" else ():
        run = _run(graph, x, schemes, floats)
        bits = resolve(schemes[x.name]).code_bits if run else 0
        if run and (mode == "float" or _least_codes(run, user, bits) < LEAST_CODES):
            runs[id(run[-1])] = run
            print(
                f"In float, in front of the grid of input {x.name!r}: {run[-1].source.name!r}. "
                "The file has it at input_dtype='float32'; else whoever feeds it computes it "
                "(`preprocessing` of its input). preprocessing='integer' puts it onto codes."
            )
    return _moved(graph, runs) if runs else graph


def _run(
    graph: graphs.Graph, x: keras.KerasTensor, schemes: dict[str, str], floats: frozenset[str]
) -> list[graphs.Node]:
    """The calls that scale an input one after the other, alone: constants, or one that trains."""
    readers = graph.consumers(x)
    node = readers[0] if len(readers) == 1 else None
    front = [node] if node is not None and isinstance(node.layer, InputCast) else []
    if front:
        node = graph.only_consumer(front[0])
    run = _scaling(graph, node, schemes, floats, schemes[x.name])
    return front + run if run else []


def _scaling(
    graph: graphs.Graph,
    node: graphs.Node | None,
    schemes: dict[str, str],
    floats: frozenset[str],
    scheme: str,
) -> list[graphs.Node]:
    """The calls that scale, from `node` on."""
    run: list[graphs.Node] = []
    while node is not None and _scales(node, schemes, floats, scheme):
        if not node.layer.constant:
            shared = [y for y in graph.nodes if y.source.weights_of == node.source.weights_of]
            return run or shared if len(shared) == 1 else run
        run.append(node)
        node = graph.only_consumer(node)
    return run


def _scales(
    node: graphs.Node, schemes: dict[str, str], floats: frozenset[str], scheme: str
) -> bool:
    """Whether a call only scales, and is at the scheme of its input."""
    # Not where `overrides` ask for another one.
    own = schemes[node.source.name]
    return isinstance(node.layer, Scale) and node.layer.name not in floats and own == scheme


def _composed(run: list[graphs.Node]) -> tuple[np.ndarray, np.ndarray]:
    """Gain and shift of calls one after the other, float64, `(channels,)`."""
    gain, shift = np.ones(1), np.zeros(1)
    for node in run:
        if isinstance(node.layer, InputCast):
            continue
        kernel, *bias = (np.asarray(v, np.float64) for v in node.layer.gain_and_shift)
        gain, shift = gain * kernel, sum(bias, shift * kernel)
    return gain, shift


def _least_codes(run: list[graphs.Node], user: graphs.Graph, bits: int) -> float:
    """How many codes the least feature of an input would have, if all shared one grid.

    Layers with statistics say where each lies. Of other constants it is taken that they bring
    features to about 0 and 1; of an offset alone, which may be that of pixels, nothing.
    """
    gain, shift = _composed(run)
    layers = {node.layer.name: node.layer for node in user.nodes}
    known = _statistics(layers[run[-1].source.name])
    centre, spread = known or (0.0, 1.0)
    # What has always been constant has nothing to lose: 1 / epsilon is what it is divided by.
    used = (gain != 0) & (np.abs(gain) < 0.99 / keras.config.epsilon())
    if not used.any():
        return np.inf
    gain, shift, centre, spread = (
        np.broadcast_to(v, used.shape)[used] for v in (gain, shift, centre, spread)
    )
    if known is None and np.all(np.abs(gain) == 1.0):
        return 2.0**bits
    reach = _DEVIATIONS * spread / np.abs(gain)
    centre = (centre - shift) / gain
    high, low = max(0.0, np.max(centre + reach)), min(0.0, np.min(centre - reach))
    return float(2.0**bits * 2.0 * reach.min() / (high - low))


def _statistics(layer: keras.Layer) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and deviation that a layer gives its features; None for one that knows nothing."""
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        return np.zeros(1), np.ones(1)
    if isinstance(layer, keras.layers.BatchNormalization):
        centre = layer.beta.numpy() if layer.center else np.zeros(1)
        return centre, np.abs(layer.gamma.numpy()) if layer.scale else np.ones(1)
    return None


def _moved(graph: graphs.Graph, runs: dict[int, list[graphs.Node]]) -> graphs.Graph:
    """The graph with one `InputScale` in the place of each run, by id of its last call."""
    inner = {id(node) for run in runs.values() for node in run[:-1]}

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        if id(node) in inner:
            return args[0]
        if id(node) not in runs:
            return graphs.copy_call(node.layer, *args, **kwargs)
        old = node.layer
        layer = InputScale(
            constant=old.constant, name=old.name, trainable=old.trainable, dtype="float32"
        )
        y = layer(args[0])
        layer.assign(*_composed(runs[id(node)]))
        return y

    moved = graphs.transform(graph, call)
    # Two inputs may share a Normalization, behind constants of their own: so each has its weights.
    nodes = [
        dataclasses.replace(
            node, source=dataclasses.replace(node.source, weights_of=node.layer.name)
        )
        if isinstance(node.layer, InputScale)
        else node
        for node in moved.nodes
    ]
    return graphs.Graph(moved.model, nodes)

"""`Frontier`: how far a network has been run, so that what is behind does not start anew."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from kerasq import graph
from kerasq.ptq.data import Data

# Bytes that what is kept of one network may take, whatever the number of samples.
MEMORY = 2**29


class Frontier:
    """A network that is run part by part, on the same samples.

    A method that changes weights layer by layer would else run all that is in front of each: in
    time with the square of the number of layers.

    Args:
        model: the network.
        data: what it runs on.
        call: computes a call of it, `kerasq.wrappers.infer` or `infer_float`.
    """

    def __init__(self, model: keras.Model, data: Data, call: Callable[..., Any]) -> None:
        self._data, self._call = data, call
        self._reached = keras.tree.flatten(model.inputs)
        self._kept: list[list[np.ndarray]] | None = None  # As data has them, where None.

    def __iter__(self) -> Iterator[list[Any]]:
        """By batch, the values of the tensors that it has reached, for `values`."""
        kept = map(keras.tree.flatten, self._data) if self._kept is None else self._kept
        return iter(kept)

    def advance(self, tensors: list[keras.KerasTensor]) -> None:
        """Goes on to tensors that all that will be asked for follows from.

        What makes them must not change any more. It stays where the values of all samples would not
        fit into `MEMORY`.
        """
        first = [x[:1] for x in next(iter(self))]
        size = sum(x.nbytes for x in self.values(first, tensors))
        if size * self._data.count <= MEMORY:
            self._kept = [self.values(batch, tensors) for batch in self]
            self._reached = tensors

    def values(self, batch: list[Any], wanted: list[keras.KerasTensor]) -> list[np.ndarray]:
        """The values of tensors for some of a batch; what they do not need is not computed."""
        known = {id(s): v for s, v in zip(self._reached, batch, strict=True)}
        nodes = graph.between(self._reached, wanted)
        last = {id(x): i for i, node in enumerate(nodes) for x in node.inputs}
        last |= {id(x): len(nodes) for x in wanted}
        # Not traced: it runs a few times only, and each part would be traced anew.
        for i, node in enumerate(nodes):
            graph.compute(node, known, self._call)
            known = {key: value for key, value in known.items() if last.get(key, -1) > i}
        return [keras.ops.convert_to_numpy(known[id(s)]) for s in wanted]

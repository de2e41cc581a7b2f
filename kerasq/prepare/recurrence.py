"""Recurrent layers, step by step: Dense or convolutions, Add, Multiply and activations.

Of a sequence of known length each step has layers of its own, that share weights and ranges with
those of the other steps. What the input adds to gates is one Dense for all steps, "<name>_input".
Sums, gates and states have 16 bits; "<name>_state" is what the next step's Dense, and whoever reads
the layer, gets of a state. A step that is masked keeps the states, by SELECT_V2. Dropout of what
the steps read is a Dropout; that of states, in training, is left out, and said to be.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from kerasq import fits
from kerasq.graph import CONV_CELL
from kerasq.layers import Constant, Held, Requantize, Select, Stack
from kerasq.prepare import masks
from kerasq.prepare.parts import Parts, reshaped

L = keras.layers


def recurrent(
    parts: Parts,
    layer: keras.layers.RNN,
    name: str,
    x: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,
) -> Any:
    """LSTM, GRU, SimpleRNN, ConvLSTM, and RNN of their cells, one cell behind the other.

    The last layer is called "<name>": that of the last step, or a Stack of all steps.
    """
    del training
    held = _held(parts, name, mask, len(x.shape))
    steps, states = _loop(parts, layer, name, x, _states(initial_state), held)
    y = _sequence(parts, name, steps) if layer.return_sequences else steps[-1]
    return [y, *_returned(parts, name, y, states)] if layer.return_state else y


def bidirectional(
    parts: Parts,
    layer: keras.layers.Bidirectional,
    name: str,
    x: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,
) -> Any:
    """A loop from either end, "<name>_forward" and "<name>_backward", and what merges them."""
    del training
    given = _states(initial_state)
    half = len(given) // 2
    loops = (layer.forward_layer, given[:half]), (layer.backward_layer, given[half:])
    ends, all_states, held = [], [], _held(parts, name, mask, len(x.shape))
    for way, (loop, first) in zip(("forward", "backward"), loops, strict=True):
        own = parts.name(name, way)
        steps, states = _loop(parts, loop, own, x, first, held, way)
        # Keras turns the backward one round, so that equal steps meet.
        ordered = steps[::-1] if way == "backward" else steps
        ends.append(_sequence(parts, own, ordered) if loop.return_sequences else steps[-1])
        all_states += states
    y = _merged(parts, layer.merge_mode, name, ends)
    if not layer.return_state:
        return y
    return [*(y if isinstance(y, list) else [y]), *_returned(parts, name, y, all_states)]


MERGES = {"sum": L.Add, "mul": L.Multiply, "ave": L.Average, "concat": L.Concatenate}


def _merged(parts: Parts, mode: str | None, name: str, ends: list) -> Any:
    return ends if mode is None else parts.call(MERGES[mode](name=name, dtype="float32"), ends)


def _held(parts: Parts, name: str, mask: Any, rank: int) -> list:
    """For each step, whether a sample has it: `(samples, 1, ...)`; none where all have all."""
    if mask is None:
        return []
    condition = masks.condition(parts, name, mask)
    condition = reshaped(parts, name, condition, (condition.shape[1], *(1,) * (rank - 2)), "held")
    # TFLite Micro has no UNPACK of them.
    return [condition[:, i] for i in range(condition.shape[1])]


def _states(given: Any) -> list:
    """The first states of a call, as Keras takes them: a tensor, or a list of lists."""
    return [state for state in keras.tree.flatten(given) if state is not None]


def _returned(parts: Parts, name: str, y: Any, states: list) -> list:
    """The states that a call returns."""
    # Each output of a model is a tensor of its own: the last step may be one already.
    return [
        parts.call(L.Identity(name=parts.name(name, "last"), dtype="float32"), state)
        if any(state is end for end in keras.tree.flatten(y))
        else state
        for state in states
    ]


def _sequence(parts: Parts, name: str, steps: list) -> Any:
    return parts.call(Stack(1, name=name, dtype="float32"), steps)


def _loop(
    parts: Parts,
    layer: keras.layers.RNN,
    name: str,
    x: Any,
    states: list,
    held: list,
    way: str = "",
) -> tuple[list, list]:
    """What each step of a recurrent layer returns, and the last states."""
    cells = fits.cells(layer)
    if layer.go_backwards:
        held = held[::-1]
    last: list = []
    for i, cell in enumerate(cells):
        is_last = i == len(cells) - 1
        own = name if len(cells) == 1 else parts.name(name, f"cell_{i + 1}")
        size = len(keras.tree.flatten(cell.state_size))
        given, states = states[:size], states[size:]
        loop = _LOOPS.get(type(cell), _Loop)(
            parts=parts,
            cell=cell,
            name=own,
            key=f"{way}_{i}",
            end=name if is_last and not layer.return_sequences else "",
            held=held,
            is_given=bool(given),
            masked=_masked(layer, held, given) if is_last else "states",
            trainable=layer.trainable and cell.trainable,
            is_backward=layer.go_backwards and i == 0,
        )
        steps, found = _CELLS[type(cell)](loop, _dropped(parts, own, x, cell.dropout), given)
        steps = loop.returned(steps)
        last += found
        if not is_last:
            x = _sequence(parts, parts.name(own, "steps"), steps)
    return steps, last


def _dropped(parts: Parts, name: str, x: Any, rate: float) -> Any:
    """A sequence some of whose features are 0 in training: Dropout, "<name>_dropout"."""
    return parts.call(input_dropout(rate, parts.name(name, "dropout"), x), x) if rate else x


def input_dropout(rate: float, name: str, x: Any) -> keras.layers.Dropout:
    """Dropout of the same features in all steps of a sequence, as cells do."""
    return L.Dropout(rate, noise_shape=(None, 1, *x.shape[2:]), name=name, dtype="float32")


def _masked(layer: keras.layers.RNN, held: list, given: list) -> str:
    """What masked steps return: see `_Loop`."""
    if not held:
        return "states"
    if layer.zero_output_for_mask:
        return "zeros"
    # Before the first step that is none a layer returns zeros, whatever its first states are.
    return "outputs" if given else "states"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loop:
    """The calls that a cell is made of.

    Attributes:
        parts: of the user's layer.
        cell: the cell.
        name: what the names of the parts begin with.
        key: the cell among those of the user's layer.
        end: what the layer that returns the last step is called; "" for a name as any other.
        held: for each step, in the order in which they come, whether a sample has it; none where
            all have all.
        is_given: whether first states are.
        masked: what masked steps return: "states", "zeros", or the last of the "outputs".
        trainable: whether the weights train.
        is_backward: whether the last step comes first.
    """

    parts: Parts
    cell: Any
    name: str
    key: str
    end: str
    held: list
    is_given: bool
    masked: str
    trainable: bool
    is_backward: bool

    def call(
        self, part: str, layer: type, x: Any, *args: Any, name: str = "", **options: Any
    ) -> Any:
        """A layer of a step: those of one part share weights and ranges."""
        weights = options.pop("weights", None)
        name = name or self.parts.name(self.name, part)
        made = layer(*args, name=name, dtype="float32", **options)
        if weights is not None:  # Before the call, as parts of a Conv3D are made of them.
            made.build(x.shape)
            made.set_weights(weights)
        return self.parts.repeated(f"{self.key}_{part}", lambda: self.parts.call(made, x))

    def add(self, part: str, *x: Any, name: str = "") -> Any:
        """The sum of two tensors."""
        return self.call(part, L.Add, [*x], name=name)

    def multiply(self, part: str, *x: Any, name: str = "") -> Any:
        """The product of two tensors."""
        return self.call(part, L.Multiply, [*x], name=name)

    def activate(self, part: str, function: Any, x: Any, name: str = "") -> Any:
        """An activation; nothing where it is linear, and none is to be named."""
        return self.call(part, L.Activation, x, function, name=name)

    def weighted(self, part: str, kernel: np.ndarray, bias: np.ndarray | None, x: Any) -> Any:
        """What the input, or a state, adds to the gates."""
        kind = "kernel" if part == "input" else "recurrent"
        options = {
            "kernel_regularizer": getattr(self.cell, f"{kind}_regularizer"),
            "kernel_constraint": getattr(self.cell, f"{kind}_constraint"),
            "bias_regularizer": self.cell.bias_regularizer,
            "bias_constraint": self.cell.bias_constraint,
            "use_bias": bias is not None,
            "trainable": self.trainable,
        }
        make, own = self._product(part, kernel)
        weights = [kernel] if bias is None else [kernel, bias]
        return self.call(part, make, x, kernel.shape[-1], weights=weights, **own, **options)

    def _product(self, part: str, kernel: np.ndarray) -> tuple[type, dict]:
        """The layer that multiplies by a kernel, and options of its own."""
        del part, kernel
        return L.Dense, {}

    def inputs(self, kernel: np.ndarray, bias: np.ndarray | None, x: Any) -> list:
        """For each step, what the input adds to the gates, as a sum reads it."""
        return self.steps(self.widened("wide_input", self.weighted("input", kernel, bias, x)))

    def steps(self, x: Any) -> list:
        """The steps of a sequence, in the order in which they come."""
        found = keras.ops.unstack(x, axis=1)
        return found[::-1] if self.is_backward else found

    def wide(self) -> AbstractContextManager[None]:
        """Layers that are called inside have values of 16 bits: 8 are too few for states."""
        return self.parts.wide()

    def widened(self, part: str, x: Any) -> Any:
        """What a product has added to gates, as a sum reads it."""
        with self.wide():
            return self.call(part, Requantize, x)

    def narrowed(self, h: Any, is_last: bool) -> Any:
        """A state as the next step's Dense, and other layers, read it."""
        return self.call("state", Requantize, h, name=self.name_of("state", is_last))

    def name_of(self, part: str, is_last: bool) -> str:
        """The name of a layer that makes a state."""
        is_end = self.end and is_last and self.masked == "states"
        return self.end if is_end else self.parts.name(self.name, part)

    def kept(self, step: int, part: str, new: Any, before: Any | None, name: str = "") -> Any:
        """A state behind a step: where that is masked the one before, zeros for None."""
        if not self.held:
            return new
        # First states may be larger than those that come of them.
        kind = Select if self.is_given else Held
        values = [new] if before is None else [new, before]
        return self.call(part, kind, [self.held[step], *values], name=name)

    def returned(self, states: list) -> list:
        """What steps return, whose states these are."""
        if self.masked == "states":
            return states
        found: list = []
        for i, state in enumerate(states):
            before = found[-1:] if self.masked == "outputs" else []
            is_end = self.end and i == len(states) - 1
            name = self.end if is_end else self.parts.name(self.name, "output")
            found.append(self.call("output", Held, [self.held[i], state, *before], name=name))
        return found

    def zeros(self, part: str, x: Any) -> Any:
        """The first state, where none is given, of the shape of `x`: on the grid of the others."""
        shape = (self.cell.units,)
        return self.call(part, Constant, x, shape, constant=True, weights=[np.zeros(shape)])


class _ConvLoop(_Loop):
    """The calls that the cell of a ConvLSTM is made of (Shi et al. 2015, arXiv 1506.04214)."""

    def _product(self, part: str, kernel: np.ndarray) -> tuple[type, dict]:
        rank, cell = kernel.ndim - 2, self.cell
        own = {"kernel_size": kernel.shape[:rank], "padding": "same"}
        if part == "input":
            own |= {"padding": cell.padding, "strides": cell.strides}
            own["dilation_rate"] = cell.dilation_rate
        return (L.Conv1D, L.Conv2D, L.Conv3D)[rank - 1], own

    def inputs(self, kernel: np.ndarray, bias: np.ndarray | None, x: Any) -> list:
        """As of its base; an operator for each step, since images have no axis for them."""
        return [
            self.widened("wide_input", self.weighted("input", kernel, bias, step))
            for step in self.steps(x)
        ]


_LOOPS = {CONV_CELL: _ConvLoop}


def _weights(cell: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The kernels of a cell, of input and state, and its bias; None without one."""
    kernel, recurrent, *bias = cell.get_weights()
    return kernel, recurrent, bias[0] if bias else None


def _simple(loop: _Loop, x: Any, states: list) -> tuple[list, list]:
    """SimpleRNNCell: `h = f(x W + b + h U)`."""
    cell = loop.cell
    kernel, recurrent, bias = _weights(cell)
    h, found = (states or [None])[0], []
    added = loop.steps(loop.weighted("input", kernel, bias, x))
    for i, total in enumerate(added):
        if h is not None:
            total = loop.add("sum", total, loop.weighted("recurrent", recurrent, None, h))
        name = loop.name_of("state", i == len(added) - 1)
        part, own = ("next_state", "") if loop.held else ("state", name)
        new = loop.activate(part, cell.activation, total, name=own)
        h = loop.kept(i, "kept_state", new, h, name=name)
        found.append(h)
    return found, [h]


def _lstm(loop: _Loop, x: Any, states: list) -> tuple[list, list]:
    """LSTMCell (Hochreiter & Schmidhuber 1997), with a forget gate.

    c = sigmoid(f) c + sigmoid(i) tanh(g)
    h = sigmoid(o) tanh(c)
    """
    cell, gate = loop.cell, loop.cell.recurrent_activation
    kernel, recurrent, bias = _weights(cell)
    h, c = states or (None, None)
    added = loop.inputs(kernel, bias, x)
    narrow, found = h, []
    for i, total in enumerate(added):
        if narrow is not None:
            state = loop.widened(
                "wide_recurrent", loop.weighted("recurrent", recurrent, None, narrow)
            )
        with loop.wide():
            if narrow is not None:
                total = loop.add("sum", total, state)
            # XNNPACK has SPLIT, and no operator for the activations of a part of a tensor.
            entry, forget, candidate, output = keras.ops.split(total, 4, axis=-1)
            entry = loop.activate("input_gate", gate, entry)
            candidate = loop.activate("candidate", cell.activation, candidate)
            if c is None:
                new = loop.multiply("cell", entry, candidate)
            else:
                kept = loop.multiply("kept", loop.activate("forget_gate", gate, forget), c)
                new = loop.add("cell", kept, loop.multiply("entry", entry, candidate))
            output = loop.activate("output_gate", gate, output)
            squashed = loop.activate("squashed", cell.activation, new)
            h = loop.kept(i, "kept_state", loop.multiply("wide_state", output, squashed), h)
            c = loop.kept(i, "kept_cell", new, c)
        narrow = loop.narrowed(h, is_last=i == len(added) - 1)
        found.append(narrow)
    return found, [narrow, c]


def _gru(loop: _Loop, x: Any, states: list) -> tuple[list, list]:
    """GRUCell (Cho et al. 2014, arXiv 1406.1078), whose reset gate is before the product or behind.

    h = g + sigmoid(z) (h - g)
    g = tanh(x W + b + r (h U + c)), or with `reset_after=False` tanh(x W + b + (r h) U)
    """
    cell, gate = loop.cell, loop.cell.recurrent_activation
    kernel, recurrent, bias = _weights(cell)
    own, inner = bias if bias is not None and cell.reset_after else (bias, None)
    added = loop.widened("wide_input", loop.weighted("input", kernel, own, x))
    added = keras.ops.split(added, 3, axis=-1)
    steps = [*zip(*map(loop.steps, added), strict=True)]
    h = narrow = states[0] if states else loop.zeros("state", steps[0][0])
    if not states:
        with loop.wide():
            h = loop.zeros("wide_state", steps[0][0])
    found = []
    for i, (update, reset, candidate) in enumerate(steps):
        if cell.reset_after:
            state = loop.widened(
                "wide_recurrent", loop.weighted("recurrent", recurrent, inner, narrow)
            )
            *to_gates, to_candidate = keras.ops.split(state, 3, axis=-1)
        else:
            state = loop.weighted("recurrent", recurrent[:, : 2 * cell.units], None, narrow)
            state = loop.widened("wide_recurrent", state)
            to_gates = keras.ops.split(state, 2, axis=-1)
        with loop.wide():
            update = loop.activate("update_gate", gate, loop.add("update", update, to_gates[0]))
            reset = loop.activate("reset_gate", gate, loop.add("reset", reset, to_gates[1]))
            if cell.reset_after:
                kept = loop.multiply("kept", reset, to_candidate)
            else:
                kept = loop.multiply("kept", reset, h)
        if not cell.reset_after:
            kept = loop.call("narrow_kept", Requantize, kept)
            kept = loop.weighted("recurrent_candidate", recurrent[:, 2 * cell.units :], None, kept)
            kept = loop.widened("wide_candidate", kept)
        with loop.wide():
            candidate = loop.add("inner", candidate, kept)
            candidate = loop.activate("candidate", cell.activation, candidate)
            change = loop.call("difference", L.Subtract, [h, candidate])
            new = loop.add("wide_state", candidate, loop.multiply("change", update, change))
            h = loop.kept(i, "kept_state", new, h)
        narrow = loop.narrowed(h, is_last=i == len(steps) - 1)
        found.append(narrow)
    return found, [h]


# By class of a cell, what makes its steps of a loop, a sequence and the first states.
_CELLS: dict[type, Callable[[_Loop, Any, list], tuple[list, list]]] = {
    L.LSTMCell: _lstm,
    CONV_CELL: _lstm,
    L.GRUCell: _gru,
    L.SimpleRNNCell: _simple,
}

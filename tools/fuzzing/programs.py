"""Random programs that build a small model, quantize it, calibrate, export and compare it.

A program is a text: what fails is printed as it ran. Keras says which layers fit together: what it
refuses to build is left out while a program is drawn.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from kerasq import layers as own_layers
from kerasq import registry
from kerasq.calibration.observers import OBSERVERS
from kerasq.layer_rules import OPERATIONS, RULES
from kerasq.prepare import operations
from kerasq.quantize import BATCH_NORMS
from kerasq.quantizers.weights import WEIGHTS
from kerasq.rule import Output
from tools.fuzzing import arguments, checks

L = keras.layers
HEADER = """import keras
import kerasq
import numpy as np
from keras import layers as L, ops
from kerasq import layers as K
from tools.fuzzing import checks
"""
SCHEMES = (
    *("w8a8", "w8a8", "w8a8", "w8a16", "w4a8", "w4a16", "w2a8", "w8a4", "w2a3", "w1a8"),
    *("w3a16", "w5a6", "w8a8", "w8a16", "w4a8", "w4a16", "w2a8", "float"),
)
# Arguments of quantize_model that are mostly left out.
SELDOM = {
    "target": ["tflm", "tflm", "litert-x86-64"],
    "scales": ["power_of_two"],
    "granularity": ["per_tensor"],
    "recurrence": ["fused"],
}
# Parts that passes make, where they fit: nobody calls them.
_PARTS = {
    own_layers.GridMean,
    own_layers.InverseRoot,
    own_layers.Requantize,
    own_layers.SequenceLSTM,
    own_layers.UnitAdd,
    own_layers.UnitMatmul,
}
# Rows of the table weigh alike, however many classes they have.
_ROWS = [[*classes] for classes in RULES if not _PARTS & {*classes}] + [[L.Activation]]
_OPERATORS = (
    *("{a} + {b}", "{a} * {b}", "{a} - {b}", "{a} @ {b}", "{a} / {b}", "{a} + {c}", "{c} - {a}"),
    *("{a} * {c}", "{a} / {c}", "{c} / {a}", "{a} ** 2", "-{a}", "abs({a})", "{a}[:, 1:]"),
    *("{a}[:, 0]", "{a}[..., ::-1]", "{a}[..., :1]", "{a}[:, None]", "{a}[:, ::2]"),
)
# The sizes of axes of inputs.
_SIZE = st.sampled_from([1, 2, 3, 4, 5, 7])


def _snake(name: str) -> str:
    """The name of a function of keras.ops, from that of its class."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# Functions that the tables know, and all others that read tensors alone.
KNOWN = sorted({_snake(x) for x in (*operations._TABLE, *OPERATIONS)} & {*vars(keras.ops)})
_NOT_OF_VALUES = (
    *("array", "convert_to_numpy", "convert_to_tensor", "dtype", "is_tensor", "ndim", "shape"),
    *("size", "bartlett", "blackman", "hamming", "hanning", "view"),
    *("unravel_index", "isreal"),  # The latter is the same for all values.
)
OTHERS = sorted(
    name
    for name, function in vars(keras.ops).items()
    if callable(function) and name not in KNOWN and name[0] != "_" and name not in _NOT_OF_VALUES
)


class _Builder:
    """The lines of a program so far, and what they have made."""

    def __init__(self, draw: Callable[[st.SearchStrategy], Any]) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {}
        exec(HEADER, self.scope)
        self.inputs: list[str] = []
        self.tensors: list[str] = []
        self.layers: list[str] = []
        self.used: set[str] = set()

    def shape(self, name: str) -> arguments.Shape:
        """The shape of a tensor."""
        return tuple(self.scope[name].shape)

    def add_input(self) -> None:
        """An input of one to four axes."""
        name, rank = f"x{len(self.inputs)}", self.draw(st.sampled_from([1, 2, 3, 3, 4]))
        shape = tuple(self.draw(_SIZE) for _ in range(rank))
        self._run(f'{name} = keras.Input({shape}, name="{name}")')
        self.inputs.append(name)
        self.tensors.append(name)

    def add_indices(self) -> None:
        """An input of integers, and the rows that an Embedding picks by them."""
        self._run('indices = keras.Input((4,), name="indices")')
        self.inputs.append("indices")
        width = self.draw(st.integers(1, 4))
        self._add(f"L.Embedding({checks.INDICES}, {width}, name={{name!r}})(indices)", ())

    def add_step(self) -> None:
        """A call of a layer, of an operation or operator, or of a layer once more."""
        kinds = [self._layer] * 6 + [self._operation] * 3 + [self._operator, self._again]
        step = self.draw(st.sampled_from(kinds))
        for _ in range(4):  # Most of what is drawn blindly, Keras refuses.
            if step(self.draw(st.sampled_from(self.tensors))):
                return

    def _run(self, line: str) -> bool:
        try:
            exec(line, self.scope)
        except Exception:
            return False
        self.lines.append(line)
        return True

    def _add(self, call: str, used: tuple[str, ...]) -> bool:
        """A line that makes a tensor; False where that is none to go on with."""
        name = f"y{len(self.tensors)}"
        if not self._run(f"{name} = {call.format(name=f'f{len(self.tensors)}')}"):
            return False
        if isinstance(self.scope[name], (list, tuple)) and self.scope[name]:
            self.lines[-1] += "[-1]"
            self.scope[name] = self.scope[name][-1]
        if not _is_batch(self.scope[name]):
            self.lines.pop()
            return False
        self.tensors.append(name)
        self.used |= {*used}
        return True

    def _other(self, x: str) -> str:
        """A second tensor, of the same shape where there is one."""
        alike = [y for y in self.tensors if self.shape(y) == self.shape(x)]
        return self.draw(st.sampled_from(alike)) if self.draw(st.integers(0, 3)) else self.any()

    def any(self) -> str:
        """Any tensor."""
        return self.draw(st.sampled_from(self.tensors))

    def _layer(self, x: str) -> bool:
        cls = self.draw(st.sampled_from(self.draw(st.sampled_from(_ROWS))))
        found = arguments.rows(cls.__init__, cls.__name__, given=1)
        if cls is L.Embedding or not _suits(cls, len(self.shape(x))) or found is None:
            return False
        home = "K" if cls.__module__ == own_layers.__name__ else "L"
        options = arguments.text(self.draw, found, self.shape(x))
        reads = self._reads(cls, x)
        layer = f"{home}.{cls.__name__}({options[2:]}{', ' * bool(options)}name={{name!r}})"
        made = self._add(f"{layer}({_arguments(cls, reads)})", reads)
        if made and _has_scheme(checks.layer_of(self.scope[self.tensors[-1]])):
            self.layers.append(f"f{len(self.tensors) - 1}")
        return made

    def _reads(self, cls: type, x: str) -> tuple[str, ...]:
        """The tensors that a layer is called on."""
        if not _is_join(cls):
            return (x,)
        more = 1 if cls in (L.Dot, L.Subtract, own_layers.Matmul) else 2
        count = self.draw(st.integers(1, more))
        return (x, *(self._other(x) for _ in range(count)))

    def _operation(self, x: str) -> bool:
        rare = self.draw(st.integers(0, 4)) == 0
        name = self.draw(st.sampled_from(OTHERS if rare else KNOWN))
        function = getattr(keras.ops, name)
        if name == "concatenate":
            both = (x, self._other(x))
            return self._add(f"ops.concatenate([{', '.join(both)}], axis=-1)", both)
        pair = [*inspect.signature(function).parameters][:2] == ["x1", "x2"]
        found = arguments.rows(function, name, given=2 if pair else 1)
        if found is None:
            return False
        other = self._other(x) if pair and self.draw(st.booleans()) else None
        second = f", {other or self._constant(x)}" if pair else ""
        options = arguments.text(self.draw, found, self.shape(x))
        return self._add(f"ops.{name}({x}{second}{options})", (x, other or x))

    def _operator(self, x: str) -> bool:
        template = self.draw(st.sampled_from(_OPERATORS))
        other = self._other(x) if "{b}" in template else x
        constant = self._constant(x) if "{c}" in template else ""
        return self._add(template.format(a=x, b=other, c=constant), (x, other))

    def _constant(self, x: str) -> str:
        """A number, or one for each channel of a tensor."""
        channels = self.shape(x)[-1] or 1
        if self.draw(st.booleans()):
            return repr(self.draw(arguments.NUMBERS))
        values = self.draw(st.lists(arguments.NUMBERS, min_size=channels, max_size=channels))
        return f'np.array({values}, "float32")'

    def _again(self, x: str) -> bool:
        """A call of a layer that was called before: it shares its weights."""
        if not self.layers:
            return False
        found = [y for y in self.lines if f"name='{self.draw(st.sampled_from(self.layers))}'" in y]
        # Its line makes the layer, so that this one refers to what made the tensor.
        return bool(found) and self._add(f"checks.layer_of({found[0].split()[0]})({x})", (x,))


def _is_batch(made: Any) -> bool:
    """Whether something is a tensor of samples that are not too large."""
    if not isinstance(made, keras.KerasTensor) or len(made.shape) < 2:
        return False
    first, *rest = made.shape
    # One step after the other makes tensors larger.
    return first is None and None not in rest and np.prod(rest) <= 2000


def _suits(cls: type, rank: int) -> bool:
    """Whether a layer is for tensors of a rank, by the number in its name."""
    named = re.search(r"([123])D", cls.__name__)
    return named is None or int(named[1]) + 2 == rank


def _has_scheme(layer: keras.Layer) -> bool:
    """Whether `overrides` may name a layer."""
    rule = registry.find(layer)
    return rule is not None and rule.output not in (Output.PASS_THROUGH, Output.FUSED)


def _is_join(cls: type) -> bool:
    names = [base.__name__ for base in cls.__mro__]
    return "Merge" in names or "Attention" in cls.__name__ or cls is own_layers.Matmul


def _arguments(cls: type, reads: tuple[str, ...]) -> str:
    """What a layer is called on, as text."""
    joined = ", ".join(reads)
    by_place = not _is_join(cls) or cls in (L.MultiHeadAttention, L.GroupQueryAttention)
    return joined if by_place else f"[{joined}]"


@st.composite
def programs(draw: Callable, steps: int = 6) -> str:
    """Programs of models of at most so many steps."""
    builder = _Builder(draw)
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 1, 2, 3]))):
        builder.add_input()
    if draw(st.integers(0, 9)) == 0:
        builder.add_indices()
    for _ in range(draw(st.integers(1, steps))):
        builder.add_step()
    made = [name for name in builder.tensors if name not in builder.inputs]
    assume(made)
    inputs, outputs = ", ".join(builder.inputs), ", ".join(_outputs(draw, made, builder.used))
    model = f"model = keras.Model([{inputs}], [{outputs}])"
    return "\n".join([HEADER, *builder.lines, model, *_rest(draw, builder)]) + "\n"


def _outputs(draw: Callable, made: list[str], used: set[str]) -> list[str]:
    """What nothing reads, and sometimes a tensor in the middle of the graph as well."""
    outputs = [name for name in made if name not in used] or made[-1:]
    if draw(st.integers(0, 4)):
        return outputs
    return outputs + [name for name in made if name not in outputs][:1]


def _rest(draw: Callable, builder: _Builder) -> list[str]:
    """What is done with a model."""
    seed = draw(st.integers(0, 3))
    weights, values = (draw(st.sampled_from(checks.KINDS)) for _ in range(2))
    count = draw(st.sampled_from([1, 2, 5, 40]))
    lines = [
        f"checks.fill(model, {weights!r}, seed={seed})",
        f"x = checks.samples(model, {values!r}, count={count}, seed={seed})",
        "checks.run(model, x)",
        f"q = kerasq.quantize_model(model{_options(draw, builder)})",
    ]
    fate = draw(st.sampled_from(["calibrated"] * 7 + ["trained", "both", "neither"]))
    if fate in ("calibrated", "both"):
        method = draw(st.sampled_from([None, *OBSERVERS]))
        lines.append(f"kerasq.calibrate(q, x, method={method!r})")
    if fate in ("trained", "both"):
        lines.append("checks.train(q, x)")
    lines.append(f"lite = kerasq.export_tflite(q{_export_options(draw)})")
    return [*lines, "checks.compare(q, lite, x)"]


def _options(draw: Callable, builder: _Builder) -> str:
    """Arguments of quantize_model."""
    kind = draw(st.sampled_from(["uniform"] * 5 + [*WEIGHTS]))
    # Of the widths that it has, besides 1 and 8 bits.
    schemes = [x for x in SCHEMES if x == "float" or int(x[1]) in (1, 8, *WEIGHTS[kind].widths)]
    text = f", {draw(st.sampled_from(schemes))!r}"
    names = [*builder.layers, *builder.inputs]
    keys = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    if keys:
        text += f", overrides={ {key: draw(st.sampled_from(schemes)) for key in keys} }"
    text += f", weights={kind!r}" if kind != "uniform" else ""
    for name, seldom in SELDOM.items():
        value = draw(st.sampled_from([None] * 5 + seldom))
        text += f", {name}={value!r}" if value else ""
    return text + (f", batch_norm={BATCH_NORMS[-1]!r}" if draw(st.booleans()) else "")


def _export_options(draw: Callable) -> str:
    """Arguments of export_tflite."""
    text = ""
    if draw(st.integers(0, 2)) == 0:
        text += f", batch_size={draw(st.integers(2, 3))}"
    for name in ("input_dtype", "output_dtype"):
        dtype = draw(st.sampled_from([*[None] * 14, *["float32"] * 4, "uint8", "int16"]))
        text += f", {name}={dtype!r}" if dtype else ""
    return text

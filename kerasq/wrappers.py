"""Wrappers: any Keras layer, run as the integer kernel that it becomes on the device.

A wrapper does one of two things:

- in training, the float layer on fake-quantized weights, then fake-quant of the output: fast, and
  differentiable by the straight-through estimator;
- in inference, the integer kernel itself (`kerasq.kernels`), bit for bit; its gradient is that of
  the training path.
"""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import fake_quant, graph, kernels, one_grid, plan, registry, scheme, targets
from kerasq.grid import Grid
from kerasq.layer_rules import QUANTIZE
from kerasq.layers import IN_FRONT, Compare, Constant, InputScale
from kerasq.litert.operators import fuses_relu
from kerasq.litert.preprocessing import Preprocessing
from kerasq.quantizers import activations, threshold
from kerasq.scales import FREE, SCALES, Scales, is_power_of_two

# The one limit of a ReLU that operators have.
_RELU6 = 6.0


@keras.saving.register_keras_serializable("kerasq")
class QuantizeWrapper(keras.layers.Wrapper):
    """Runs `layer` and puts its output on a quantization grid.

    The wrapper carries the name of the layer, so that names stay those of the float model. It
    learns the grids of its inputs from the layers that it is called on.

    Args:
        layer: the layer to run; one that `kerasq.registry` has a rule for.
        scheme: name of the scheme, see `kerasq.scheme.resolve`.
        relu: whether a ReLU behind the layer is part of it.
        limit: upper limit of that ReLU, or None.
        range_gradient: gradient of the output's range: "lsq", "clip", "none", or None: by width
            (`kerasq.fake_quant.range_gradient_at`); of scales that are powers of two that of their
            thresholds, or "none".
        source: name of the layer of the user's model that this is a part or a call of; by default
            the wrapper's own.
        output_bits: width of the output, where that has a range of its own; by default what
            `kerasq.plan.written_bits` says where a reader wants few bits.
        target: whose integer kernels inference computes as, by name or as an object.
        output_quantizer: the quantizer of the wrappers whose range the output shares, as steps of a
            recurrent layer do; by default one of its own.
        scales: which scales are powers of two, see `kerasq.scales`.
        range_penalty: L2 penalty on the ends of the output's range, where it learns.

    Raises:
        ValueError: for a ReLU whose limit no grid of a power of two, and no operator, cuts at.
    """

    # Whether its inputs may be float values, and are inputs of the model.
    reads_float = False
    is_input = False

    def __init__(
        self,
        layer: keras.Layer,
        scheme: str = "w8a8",
        relu: bool = False,
        limit: float | None = None,
        range_gradient: str | None = None,
        source: str | None = None,
        output_bits: int | None = None,
        target: str | targets.Target = targets.DEFAULT,
        output_quantizer: activations.ActivationQuantizer | None = None,
        scales: str = FREE,
        range_penalty: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # float32 under any policy: bfloat16 does not hold an 8-bit code times a scale.
        super().__init__(layer, **{"name": layer.name, "dtype": "float32", **kwargs})
        self.target = targets.find(target)
        self.source = source or self.name
        self.scheme = scheme
        self.relu = relu
        self.limit = limit
        self.range_gradient = range_gradient
        self.scales = scales
        self.range_penalty = range_penalty
        self._check_limit()
        self._producers = Wrappers()
        self.output_quantizer = output_quantizer
        if output_quantizer is None and self.rule.output == registry.Output.LEARNED:
            bits = output_bits or plan.written_bits(self.bits, self.is_cut, True)
            self.output_quantizer = threshold.activation_quantizer(
                bits,
                range_gradient,
                self.powers.activations,
                relu=relu,
                limit=limit,
                is_input=self.is_input,
                range_penalty=range_penalty,
                trainable=self.trainable,
                name="output",
                dtype="float32",
            )
        if self.output_quantizer is not None:
            self.output_quantizer.uses += 1
            # Many small operators in a row: XLA takes long to compile them, and wins nothing.
            if self.output_quantizer.uses > 1:
                self.supports_jit = False

    @property
    def bits(self) -> scheme.Scheme:
        """The widths of weights and activations."""
        return scheme.resolve(self.scheme)

    @property
    def powers(self) -> Scales:
        """Which scales are powers of two."""
        return SCALES[self.scales]

    def _check_limit(self) -> None:
        """Raises a ValueError where nothing cuts at the limit of a ReLU."""
        limit = self.limit
        if limit is None or not self.powers.activations or is_power_of_two(limit):
            return
        if limit != _RELU6 or not fuses_relu(self.rule.operator):
            raise ValueError(
                "Where scales are powers of two, the limit of a ReLU must be one as well, which "
                "its grid then ends at, or 6 right behind a convolution, Dense or sum, whose "
                f"operator has a ReLU6. Received: limit {limit:g} at layer {self.name!r}, which "
                f"is {self.rule.op}. Change the limit, leave the layer in float with `overrides`, "
                'or take scales="power_of_two_weights".'
            )

    @property
    def is_cut(self) -> bool:
        """Whether a ReLU, or a boundary, cuts the range of the output."""
        return self.relu or registry.relu_limit(self.layer)[0]

    @property
    def rule(self) -> registry.Rule:
        """The layer's row in the registry."""
        return registry.rule(self.layer)

    @property
    def quantizer(self) -> activations.ActivationQuantizer | None:
        """What quantizes the output; None where the grid is fixed."""
        if self.rule.output == registry.Output.INPUT:
            return self._producers[0].quantizer
        return self.output_quantizer

    @property
    def output_bits(self) -> int:
        """The width of the output's codes."""
        return self.bits.code_bits if self.quantizer is None else self.quantizer.bits

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; on symbolic tensors, also notes which layers they come from."""
        if producers := producers_of(args, kwargs):
            self._producers = producers
            if not self.reads_float and None in producers:
                names = [graph.origin(x)[0].name for x in on_grids(graph.symbolic((args, kwargs)))]
                raise ValueError(
                    f"Layer {self.name!r} must read quantized values. Received: float ones among "
                    f"the outputs of {names}. Build the model with `kerasq.quantize_model`."
                )
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer and the range of its output."""
        super().build(input_shape)
        # Keras loads variables only into what is built, before anything is called.
        if self.output_quantizer is not None and not self.output_quantizer.built:
            self.output_quantizer.build()

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape that the layer gives; quantization changes none."""
        try:
            return self.layer.compute_output_shape(input_shape)
        # A user's layer may not say: Keras finds out, by tracing it.
        except NotImplementedError:
            return self.layer.compute_output_spec(keras.KerasTensor(input_shape)).shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "scheme": self.scheme,
            "relu": self.relu,
            "limit": self.limit,
            "range_gradient": self.range_gradient,
            "source": self.source,
            "output_bits": self.output_quantizer and self.output_quantizer.bits,
            "target": self.target.name,
            "output_quantizer": self._shared_quantizer(),
            "scales": self.scales,
            "range_penalty": self.range_penalty,
        }

    def _shared_quantizer(self) -> dict | None:
        """The configuration of a quantizer that several wrappers share; None for one's own."""
        if self.output_quantizer is None or self.output_quantizer.uses == 1:
            return None
        return shared_config(self.output_quantizer)

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "QuantizeWrapper":
        """The wrapper that `get_config` describes."""
        config = with_quantizer(current_config(config), custom_objects)
        return _old_boundary(config) or super().from_config(config, custom_objects)

    def grid(self) -> Grid:
        """The grid that the output lies on, as tensors."""
        if self.rule.grids:
            return self.rule.grids[self.bits.code_bits]
        if self.output_quantizer is not None:
            return self.output_quantizer.grid()
        grid = self._producers[0].grid()
        derive = self.rule.derive
        return grid if derive is None else derive(self.layer, grid, self.target)

    @property
    def producers(self) -> tuple["QuantizeWrapper | None", ...]:
        """The wrappers that made the inputs; None for one that is float."""
        return tuple(self._producers)

    def input_grids(self) -> list[Grid]:
        """The grids that the inputs lie on; none where it reads float values.

        As a boundary may, and a constant, which is rounded when the file is written.
        """
        if isinstance(self.layer, Constant):
            return []
        return [producer.grid() for producer in self._producers if producer is not None]

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Quantized output, as real values: see the module."""
        if training:
            return self._smooth(inputs, training)
        # Inference has a gradient as well: integer kernels have none, so it is that of training.
        ranges = [] if self.quantizer is None else self.quantizer.trainable_variables
        variables = {id(v): v for v in (*self.trainable_variables, *ranges)}
        exact = self.run_integer(inputs)
        return fake_quant.straight_through_of(self._smooth, inputs, [*variables.values()], exact)

    def _smooth(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """The layer in float, on fake-quantized weights, its output fake-quantized as well."""
        # Fixed grids (softmax, sigmoid, tanh) are left out: a probability that rounds to 0 would
        # get no gradient from a cross-entropy.
        return self.on_grid(self.run_fake_quant(inputs, training), training)

    def on_grid(self, y: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Fake-quant of what `run_fake_quant` returned; in training the range may move."""
        if self.output_quantizer is not None:
            return self.output_quantizer(y, training=training)
        # Average pooling rounds to the grid of its input.
        return y if self.quantizer is None else self.quantizer.fake_quant(y)

    def run_float(self, inputs: Any) -> tf.Tensor:
        """The layer in float, on float weights, as it was before quantization."""
        inputs = graph.without_masks(inputs)
        if isinstance(self.layer, keras.layers.Add):
            # Keras's sum takes (1, 6, 1) for a bias, and adds it along the last axis.
            return functools.reduce(tf.add, inputs)
        return self.layer(inputs)

    def float_output(self, inputs: Any) -> tf.Tensor:
        """`run_float` with the ReLU that was fused: the values that the output's range holds."""
        return self.clamp(self.run_float(inputs))

    def clamp(self, y: tf.Tensor) -> tf.Tensor:
        """Values behind the ReLU that is part of the layer."""
        return y if self.output_quantizer is None else self.output_quantizer.clamp(y)

    def run_fake_quant(self, inputs: Any, training: bool | None) -> tf.Tensor:
        """The layer in float on fake-quantized weights; the output is not quantized yet."""
        del training
        return self.run_float(inputs)

    def run_integer(self, inputs: Any) -> tf.Tensor:
        """What the integer kernel computes, as real values on the output's grid."""
        grids = self.input_grids()
        out = grids[0] if self.rule.output == registry.Output.INPUT else self.checked_grid()
        return self.run_on_grids(inputs, grids, out)

    def run_on_grids(
        self, inputs: Any, grids: list[Grid], out: Grid, bits: scheme.Scheme | None = None
    ) -> tf.Tensor:
        """What the integer kernel computes between any grids, as real values.

        Args:
            inputs: real values on `grids`; where there are none, float values.
            grids: those of the inputs.
            out: that of the output.
            bits: the scheme; by default the wrapper's own.
        """
        del bits  # Grids say it all, but for weights.
        conditions, codes = parted(keras.tree.flatten(inputs), len(grids))
        if grids:
            codes = [kernels.centre(x, grid) for x, grid in zip(codes, grids, strict=True)]
        operator, layer = self.rule.operator_at(out.bits, self.target), self.layer
        if conditions:  # Which come first, and are no codes.
            codes = self.target.run(operator, lambda y: layer([*conditions, *y]), codes, grids, out)
        else:
            codes = self.target.run(operator, layer, codes, grids, out)
        return self._clamped(codes, out) * out.scale

    def _clamped(self, codes: tf.Tensor, out: Grid) -> tf.Tensor:
        """The ReLU; its upper limit is the end of the range, unless `ends_at_six`."""
        codes = tf.nn.relu(codes) if self.relu else codes
        return tf.minimum(codes, tf.round(_RELU6 / out.scale)) if self.ends_at_six else codes

    @property
    def ends_at_six(self) -> bool:
        """Whether the operator's own ReLU6 cuts, since no power of two makes a grid end there."""
        return self.powers.activations and self.relu and self.limit == _RELU6

    def checked_grid(self) -> Grid:
        """`grid()`, where data has given it a meaning.

        Raises:
            UncalibratedError: where none has.
        """
        quantizer = self.output_quantizer
        # Symbolic calls build the model, which is before any data.
        if quantizer is not None and not quantizer.has_seen_data() and not graph.is_symbolic():
            raise UncalibratedError(
                f"The range of layer {self.name!r} has seen no data, so its output has no "
                "meaning yet. Call kerasq.calibrate(model, data) or fit the model first."
            )
        return self.grid()


def infer(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
    """What a call returns in inference, without what only its gradient needs."""
    if isinstance(node.layer, QuantizeWrapper):
        return node.layer.run_integer(args[0])
    # Not the layer itself: an exported RandomFlip does nothing, but it would flip.
    return graph.infer(node.layer, *args, **kwargs)


def infer_float(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
    """What a call returns in inference where wrappers run their layers in float.

    Not on fake-quantized weights and values: noise of the ranges of today would get into these.
    """
    if isinstance(node.layer, QuantizeWrapper):
        return node.layer.float_output(*args)
    if isinstance(node.layer, CompareCodes):
        return node.layer.run_float(*args)
    return graph.infer(node.layer, *args, **kwargs)


class UncalibratedError(graph.PlainError, ValueError):
    """A quantized model was run before its ranges came from data."""


@keras.saving.register_keras_serializable("kerasq")
class Boundary(QuantizeWrapper):
    """Puts values onto a grid of another width, or float values onto one: QUANTIZE on the device.

    Args:
        bits: width of the grid.
        is_input: whether the values are an input of the model. Its range stays as it is after the
            first batches: it is a convention with whoever feeds the model.
        range_gradient: gradient of the range, where it is not that of an input.
        **kwargs: `name`, `target` and what `keras.layers.Layer` takes.
    """

    rule = QUANTIZE
    reads_float = True
    is_cut = True

    def __init__(
        self,
        bits: int = 8,
        is_input: bool = False,
        range_gradient: str | None = None,
        **kwargs: Any,
    ) -> None:
        # Before the quantizer of the output is made, which asks for it.
        self.is_input = is_input
        inner = keras.layers.Identity(name=kwargs.get("name"), dtype="float32")
        super().__init__(inner, scheme=f"w8a{bits}", range_gradient=range_gradient, **kwargs)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        config = super().get_config()
        kept = (
            "name",
            "trainable",
            "dtype",
            "range_gradient",
            "source",
            "target",
            "output_quantizer",
            "scales",
            "range_penalty",
        )
        own = {"bits": self.bits.activation_bits, "is_input": self.is_input}
        return {key: config[key] for key in kept} | own

    def run_on_grids(
        self, inputs: Any, grids: list[Grid], out: Grid, bits: scheme.Scheme | None = None
    ) -> tf.Tensor:
        """As `QuantizeWrapper.run_on_grids`; inputs of a model may be of any type."""
        values = inputs if grids else tf.cast(inputs, tf.float32)
        return super().run_on_grids(values, grids, out, bits)

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Boundary":
        """The boundary that `get_config` describes."""
        return cls(**with_quantizer(current_config(config), custom_objects))


# Keras's files number layers by the names of their classes. In files of version 0.1.0 a boundary
# counts as one more QuantizeWrapper, and must do so when it is loaded, and saved again.
_OldBoundary: type[Boundary] = keras.saving.register_keras_serializable("kerasq", "OldBoundary")(
    type("QuantizeWrapper", (Boundary,), {"__module__": __name__})
)


def _old_boundary(config: dict) -> Boundary | None:
    """The boundary that a configuration of a QuantizeWrapper describes; None for another layer."""
    if config["layer"]["class_name"] != "Identity":
        return None
    kept = {key: config[key] for key in ("name", "trainable", "source")}
    # That of an input was one more gradient.
    is_input = config["range_gradient"] == "fixed"
    if not is_input:
        kept["range_gradient"] = config["range_gradient"]
    bits = scheme.resolve(config["scheme"]).activation_bits
    return _OldBoundary(bits=bits, is_input=is_input, **kept)


# Arguments as version 0.1.0 called them.
_RENAMED = {"owner": "source"}


def current_config(config: dict) -> dict:
    """A wrapper's configuration in the form of today; version 0.1.0 may have written it."""
    config = {_RENAMED.get(key, key): value for key, value in config.items()}
    # It said so of an output that has all 8 bits.
    if config.pop("wide", False):
        config["output_bits"] = scheme.resolve(config["scheme"]).code_bits
    return config


def shared_config(layer: keras.Layer) -> dict:
    """The configuration of a layer that several wrappers hold: read back, it is one object."""
    # What Keras writes into the second of two equal objects; this may be the first.
    return keras.saving.serialize_keras_object(layer) | {"shared_object_id": id(layer)}


def with_quantizer(config: dict, custom_objects: dict | None) -> dict:
    """A wrapper's configuration with the quantizer that it shares, one object for all."""
    shared = config.get("output_quantizer")
    if not isinstance(shared, dict):
        return config
    found = keras.saving.deserialize_keras_object(shared, custom_objects)
    return {**config, "output_quantizer": found}


class Wrappers:
    """Wrappers that another one holds, such as those that made its inputs.

    Keras would track layers held in a plain list, and save their variables twice.
    """

    def __init__(self, wrappers: Any = ()) -> None:
        self._wrappers = tuple(wrappers)

    def __iter__(self) -> Any:
        return iter(self._wrappers)

    def __getitem__(self, index: int) -> QuantizeWrapper:
        return self._wrappers[index]


@keras.saving.register_keras_serializable("kerasq")
class CompareCodes(Compare):
    """A `Compare` of a quantized model: its numbers are put on the grid of what it reads.

    What is -1.0 before it is quantized is equal to -1.0 behind it.
    """

    stands_for = Compare

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._producers: Wrappers | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; on symbolic tensors, also notes which wrapper they come from."""
        self._producers = producers_of(args, kwargs) or self._producers
        return super().__call__(*args, **kwargs)

    def call(self, x: Any) -> Any:
        """The answers, bool."""
        if (grid := self.input_grid()) is None:
            return super().call(x)
        # In training, values may lie beside their codes.
        return self.answers(kernels.centre(x, grid), kernels.nearest(self.value, grid))

    def run_float(self, x: Any, numbers: Any = None) -> Any:
        """The answers on values that lie on no grid; where `numbers` are given, by those."""
        return super().call(x) if numbers is None else self.answers(x, numbers)

    def input_grid(self) -> Grid | None:
        """The grid of what is compared; None where that is float."""
        (producer,) = self._producers or (None,)
        return None if producer is None else producer.grid()


def producers_of(args: tuple, kwargs: dict) -> Wrappers | None:
    """The wrappers that made what a layer is called on; None where nothing of it is symbolic.

    Only symbolic tensors know; those of a step or of eager calls must come from the same.
    """
    inputs = on_grids(graph.symbolic((args, kwargs)))
    return Wrappers(quantized_by(x) for x in inputs) if inputs else None


def quantized_by(tensor: keras.KerasTensor) -> QuantizeWrapper | None:
    """The wrapper whose grid `tensor` lies on, found through layers that pass values through.

    None where the values are float.
    """
    layer, inputs = graph.origin(tensor)
    if isinstance(layer, QuantizeWrapper):
        return layer
    return quantized_by(inputs[0]) if registry.passes_through(layer) else None


def on_grids(tensors: list) -> list:
    """Those of the inputs of a layer that lie on grids: all but conditions, which are bool."""
    return [x for x in tensors if "float" in keras.backend.standardize_dtype(x.dtype)]


def parted(values: list, count: int) -> tuple[list, list]:
    """The inputs of a layer as conditions, which come first, and the `count` that lie on grids.

    Where none does, all are of the second kind: values of a layer that reads floats.
    """
    start = len(values) - count if count else 0
    return values[:start], values[start:]


def input_boundaries(model: keras.Model) -> dict[int, Boundary]:
    """The boundary behind each input of a model, by id of the input; none where it stays float."""
    return {
        id(input_of(layer)): layer
        for layer in model.layers
        if isinstance(layer, Boundary) and layer.is_input
    }


def input_of(boundary: Boundary) -> keras.KerasTensor:
    """The input of the model that a boundary stands behind."""
    (x,) = graph.origin(boundary.output)[1]
    layer, read = graph.origin(x)
    return read[0] if isinstance(layer, IN_FRONT) else x


def preprocessing_of(boundary: Boundary | None) -> Preprocessing | None:
    """What is computed of an input in float in front of its boundary, where it has one."""
    scale = boundary and _input_scale(boundary)
    if scale is None:
        return None
    gain, shift = (np.asarray(v, np.float32) for v in scale.gain_and_shift)
    return Preprocessing(gain=gain, shift=shift)


def _input_scale(boundary: Boundary) -> InputScale | None:
    layer = graph.origin(graph.origin(boundary.output)[1][0])[0]
    return layer if isinstance(layer, InputScale) else None


def wrapped(model: keras.Model) -> list[QuantizeWrapper]:
    """The layers of a model that have a grid."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeWrapper)]


def ranged(model: keras.Model) -> dict[str, activations.ActivationQuantizer]:
    """The quantizers of a model that have a range, by layer name.

    One that several layers share has the name of the first of them.
    """
    found = {
        id(layer.output_quantizer): (layer.name, layer.output_quantizer)
        for layer in reversed(wrapped(model))
        if layer.output_quantizer is not None
    }
    return dict(reversed(found.values()))


def sharing_ranges(model: keras.Model) -> dict[str, list[str]]:
    """By name of a layer that shares its range, those whose values it is to hold.

    That is all of them, or the concatenation (`kerasq.one_grid`), which has the values of all.
    """
    sharers: dict[int, list[QuantizeWrapper]] = {}
    for layer in wrapped(model):
        if layer.output_quantizer is not None:
            sharers.setdefault(id(layer.output_quantizer), []).append(layer)
    shared = [layers for layers in sharers.values() if len(layers) > 1]
    return {x.name: [y.name for y in _holders(layers)] for layers in shared for x in layers}


def _holders(layers: list[QuantizeWrapper]) -> list[QuantizeWrapper]:
    return layers[-1:] if joins(layers[-1]) else layers


def joins(wrapper: QuantizeWrapper) -> bool:
    """Whether a wrapper's operator shares its range with what only it reads."""
    return wrapper.rule.operator in one_grid.OPERATORS


def range_variables(model: keras.Model) -> list[keras.Variable]:
    """The variables of those, which calibration sets."""
    return [v for quantizer in ranged(model).values() for v in quantizer.variables]


def target_of(model: keras.Model) -> targets.Target:
    """The target of a quantized model, which all its wrappers have in common."""
    return next(layer.target for layer in model.layers if isinstance(layer, QuantizeWrapper))


def scales_of(model: keras.Model) -> str:
    """Which scales of a quantized model are powers of two: `quantize_model(scales=...)`."""
    return next(layer.scales for layer in model.layers if isinstance(layer, QuantizeWrapper))


def require_quantized(model: Any) -> None:
    """Raises a ValueError unless `model` came from `quantize_model`."""
    if not isinstance(model, keras.Model) or not ranged(model):
        found = f"model {model.name!r}" if isinstance(model, keras.Model) else repr(model)
        inner = [x.name for x in getattr(model, "layers", ()) if _is_quantized(x)]
        way = (
            f"Its layers {inner} are quantized models: give these, one at a time, or put the float "
            "ones together and quantize the whole"
            if inner
            else "Call kerasq.quantize_model first"
        )
        raise ValueError(
            f"`model` must be a quantized model. Received: {found:.80}, which has no ranges. {way}."
        )


def _is_quantized(layer: keras.Layer) -> bool:
    """Whether a layer is a quantized model."""
    return isinstance(layer, keras.Model) and bool(ranged(layer))

"""`quantize_model`: from a float Keras model to one that trains and predicts on integer grids."""

import math
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import legacy, registry, targets, unsupported
from kerasq.fake_quant import RANGE_GRADIENTS
from kerasq.layers import Scale
from kerasq.lstm_wrapper import LstmWrapper
from kerasq.plan import Plan
from kerasq.prepare import fused_recurrence, fusion
from kerasq.prepare.decompose import decompose
from kerasq.prepare.passes import prepare
from kerasq.prepare.preprocessing import MODES, scale_inputs
from kerasq.quantizers import weights as weight_quantizers
from kerasq.quantizers.base import WeightQuantizer
from kerasq.scales import FREE, SCALES, Scales, is_power_of_two
from kerasq.scheme import check_overrides, fitting, per_layer
from kerasq.support.finite import check_finite, check_variances
from kerasq.wrap import Kernels, wrap
from kerasq.wrappers import QuantizeWrapper, ranged, wrapped

# What a class of models has of its own that changes how they are trained.
_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
BATCH_NORMS = ("keep", "fold")
# What of a kernel shares a scale.
GRANULARITIES = ("per_channel", "per_tensor")


def quantize_model(
    model: keras.Model,
    scheme: str = "w8a8",
    *,
    overrides: dict[str, str] | None = None,
    batch_norm: str = "keep",
    preprocessing: str = "auto",
    range_gradient: str | None = None,
    weights: str | dict[str, Any] | WeightQuantizer = "uniform",
    granularity: str = "per_channel",
    keep_zeros: bool = False,
    keep_clusters: bool = False,
    target: str | targets.Target = targets.DEFAULT,
    recurrence: str = "auto",
    scales: str = FREE,
    range_penalty: float = 0.0,
) -> keras.Model:
    """Returns a copy of `model` that computes as the integer-only model on the device will.

    The copy is a plain Functional model with the same inputs, outputs and order of layers.
    Layers keep their names; BatchNormalization and ReLU become part of the layer before them.
    Layers that have no integer kernel stay float, and are printed with the reason.
    Train it with `compile` and `fit`, and export it with `kerasq.export_tflite`.

    Args:
        model: a built Keras 3 model: Sequential, Functional, or subclassed where its `call` runs
            on symbolic inputs; or a Sequential or Functional one of `tf_keras`. It is not changed.
            Models inside it are opened; each further call of a layer has the layer's name with a
            number behind, and shares its weights.
        scheme: bits of weights and activations: "w8a8", "w8a16", "w4a8", "w4a16", or "float"; or
            narrower ones, such as "w2a3", which run as int8 codes (`kerasq.scheme`).
            A layer at a16 reads and writes int16; where neighbours differ, a boundary layer
            (`<name>_int8`, `<name>_int16`) with a range of its own becomes one QUANTIZE. A layer
            at "float" stays as it is, BatchNormalization and ReLU behind it included.
        overrides: schemes of layers that differ from `scheme`, by layer name, shell pattern of
            names ("block2_*"), layer class, or a model inside this one. The name of an input gives
            its width.
        batch_norm: "keep" keeps BatchNormalization trainable, normalizes by the batch in training,
            and folds it into the kernel before it in inference and at export: rates that suit the
            float model suit this one. "fold" folds it for good: the fastest step, as robust as the
            float model with its statistics frozen, which wants smaller rates. Where constraints or
            regularizers are meant for the unfolded weights, it is kept all the same.
        preprocessing: where a layer that alone reads a float input and only scales it, such as a
            Normalization, is computed. "integer": on codes of the input. "float": in front of the
            input's grid, by the file at `input_dtype="float32"`, else by whoever feeds it
            (`TFLiteModel.inputs[0].preprocessing`): features that differ by orders of magnitude,
            or lie far from 0, then share one grid without loss. "auto": in float where on codes the
            least feature would have fewer than 16, by the layer's own numbers; that is printed.
        range_gradient: how ranges learn: "lsq" (Esser et al. 2020), "clip" (PACT, Choi et al.
            2018), or "none" (they follow the data while training). None is
            "lsq" for ranges of less than 8 bits and "none" for others. Ranges that the data has
            left are mended in any case (`kerasq.quantizers.activations`).
        weights: how weights of fewer than 8 bits lie: "uniform", "dorefa" (Zhou S. et al. 2016),
            "power_of_two" (2 to 5 bits: INQ, see `kerasq.IncrementalQuantization`), and at 2 bits
            "ternary" (Li & Liu 2016) or "trained_ternary" (Zhu et al. 2017). Weights of one bit
            are binary (Rastegari et al. 2016). "a2q" is for all widths: weights whose sums fit
            narrow accumulators (`kerasq.A2Q`). Or a `kerasq.WeightQuantizer`, such as
            `kerasq.Ternary(threshold=0.5)`, of which each kernel gets a copy, or its configuration;
            one of your own holds at the widths of its `widths`, 2 to 8 bits by default.
        granularity: what of a kernel shares a scale: "per_channel", each output channel, or
            "per_tensor", all of it, for compilers and NPUs that take nothing else. Kernels are then
            quantized as BatchNormalization is folded into them, in training too: channels of small
            gains have few codes. Where it is kept, weights must be uniform.
        keep_zeros: weights that are 0 stay 0 in training and are code 0 in the file, in every layer
            with weights: for what was pruned, in any pattern, and for
            `kerasq.MagnitudePruning`. BatchNormalization, folded or not, leaves them 0. What it
            saves: `kerasq.compression`.
        keep_clusters: weights of a clustered kernel (of at most 255 values beside 0) that are equal
            stay equal in training, and move by the mean of their gradients. All channels then have
            one range, before BatchNormalization, which follows the weights, so that the file has as
            many codes as there are clusters; up to twice that where gains of BatchNormalization are
            negative. With batch_norm="fold" or granularity="per_tensor" it is so in each channel
            alone. 0 is a value as any other, unless zeros are kept too.
        target: whose integer kernels it computes as: "litert", LiteRT's default ones on any
            processor; "litert-x86-64" or "litert-arm64", which pack all weights of up to 4 bits;
            "tflm", TFLite Micro's; "ethos-u", Arm's NPU; or a target of your own
            (`kerasq.targets`). The model keeps it, through saving too.
        recurrence: what an LSTM becomes. "unrolled": a chain of operators for each step, as all
            other recurrent layers. "fused": UNIDIRECTIONAL_SEQUENCE_LSTM of LiteRT or TFLite Micro,
            where it is at w8a8, has tanh and sigmoid, starts from zeros, returns no states and is
            called once, backwards and in a Bidirectional too; the others are unrolled. Its file is
            a fraction of the size, and quantized and traced in a fifth of the time; TFLite Micro
            needs a twentieth of the memory for it, but on x86-64 LiteRT's kernel takes several
            times as long. "auto": fused for the target "tflm", where `weights`, `granularity`,
            `keep_clusters` and `scales`, which a fused one does not have, are the default ones.
        scales: "free", any real numbers; "power_of_two", for weights and activations, or
            "power_of_two_weights" or "power_of_two_activations" for these alone. Rescaling is then
            a shift, zero points are 0 (softmax and sigmoid keep their kernels' grid: 1/256, zero
            point -128), and behind a ReLU half of the codes is not used: for ESP-DL and DSPs that
            ask for it. Scales follow from thresholds that train as in TQT, at 8 bits as well
            (Jain et al. 2020, arXiv 1903.08066), or follow the data with range_gradient="none".
            Kernels are quantized as BatchNormalization is folded into them, as per tensor. What
            cannot keep to it is printed.
        range_penalty: the loss has this number times the squared ends of all ranges of activations
            that learn: PACT's L2 regularizer of the clipping level (Choi et al. 2018, section 3),
            which takes that of weights. Of ranges that follow the data there is none.

    Returns:
        The quantized model, of the class of `model` where that has a `train_step` of its own, and
        takes inputs and outputs as `keras.Model` does. Its ranges take their first values from
        `kerasq.calibrate` or from the first batches of training.

    Raises:
        ValueError: where `model` is not a built Keras 3 model, has NaN weights or layers that no
            file can have (each is named), `overrides` gives integers to a layer that has no integer
            kernel, an option is unknown (the legal ones are listed), weights of one scale per
            tensor that are not uniform stand in front of a BatchNormalization that is kept, zeros
            or clusters are to be kept by weights that cannot, or scales are to be powers of two
            of activations below 8 bits, of weights that are not uniform, or behind a ReLU whose
            limit nothing cuts at; or weights that fit narrow accumulators, of 1 bit or of one scale
            per tensor.

    References:
        Jacob et al. 2018 (arXiv 1712.05877); LiteRT 8-bit quantization specification.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> [layer.name for layer in q.layers[2:]]
        ['head']
    """
    model = float_model(model)
    # Before anything that takes time.
    _check_option("batch_norm", batch_norm, BATCH_NORMS)
    _check_option("preprocessing", preprocessing, MODES)
    _check_option("range_gradient", range_gradient, (*RANGE_GRADIENTS, None))
    _check_option("granularity", granularity, GRANULARITIES)
    _check_option("recurrence", recurrence, fused_recurrence.MODES)
    _check_option("scales", scales, tuple(SCALES))
    _check_gradient(range_gradient, SCALES[scales])
    check_overrides(overrides)
    _check_penalty(range_penalty, range_gradient, SCALES[scales])
    weight_quantizers.find(weights)
    target = targets.find(target)
    graph = graphs.read(model, lambda layer: unsupported.is_closed(layer, overrides))
    graph = _without_lost(graph)
    check_finite(graph.model)
    _say_unknown_shapes(graph.model)
    check_variances(graph.model)
    symmetric = SCALES[scales].activations
    if recurrence == "auto":
        is_default = (weights, granularity, scales) == ("uniform", "per_channel", FREE)
        is_fused = target.fuses_lstm and is_default and not keep_clusters
    else:
        is_fused = recurrence == "fused"
    plan = _plan(graph, scheme, overrides, batch_norm, preprocessing, target, is_fused, symmetric)
    if narrow := plan.narrowed():
        print(f"Run at int8, for want of an int16 kernel: {'; '.join(narrow)}.")
    kernels = Kernels(
        weights=weights,
        granularity=granularity,
        keep_zeros=keep_zeros,
        keep_clusters=keep_clusters,
    )
    quantized = of_class(model, wrap(plan, range_gradient, kernels, scales, range_penalty))
    if not ranged(quantized):
        raise ValueError(
            "At least one layer must be quantized. Received: a model whose layers all stay float "
            f"(scheme={scheme!r}). Give some of them another scheme with `overrides`."
        )
    if lost := unsupported.lost_rules(graph, quantized):
        print(f"Left out in training: regularizers or constraints of weights of {', '.join(lost)}.")
    if others := _not_powers(quantized):
        print(f"Have scales that are no powers of two, as their kernels ask: {', '.join(others)}.")
    if any(node.source.training_dtype == "float16" for node in graph.nodes):
        # By this policy `compile` scales the loss: small gradients are 0 in float16.
        quantized.dtype_policy = "mixed_float16"
    return quantized


def _say_unknown_shapes(model: keras.Model) -> None:
    """Says what an export would: a file has fixed shapes."""
    unknown = [f"{x.name!r} of shape {x.shape}" for x in model.inputs if None in x.shape[1:]]
    if unknown:
        print(
            f"No file can be made of it, which has fixed shapes: {', '.join(unknown)}. Build the "
            "float model with a fixed `keras.Input(shape=...)` before you train: where the shape "
            "of a sample is known, layers become other ones, with other weights."
        )


def of_class(model: keras.Model, quantized: keras.Model) -> keras.Model:
    """The quantized model as one of the class of the float one, where that has steps of its own.

    That it is not, is printed where the class makes its model by itself.
    """
    kind = type(model)
    own = [name for name in _STEPS if getattr(kind, name) is not getattr(keras.Model, name)]
    if not own:
        return quantized
    if _makes_itself(kind):
        print(
            f"Not kept: {', '.join(own)} of the class {kind.__name__!r}. Train the quantized model "
            "by a model of such a class that calls it, and give kerasq's functions the inner one."
        )
        return quantized
    made = kind(quantized.input, quantized.output, name=quantized.name)
    # Such as the weight of a loss, which its step reads.
    for name in vars(model).keys() - vars(made).keys():
        if name[0] != "_":
            setattr(made, name, getattr(model, name))
    return made


def _makes_itself(kind: type[keras.Model]) -> bool:
    """Whether a class of models takes anything else than inputs and outputs."""
    users = {x for x in kind.__mro__ if not x.__module__.startswith("keras.")} - {object}
    has_own = any({"__init__", "call"} & {*vars(x)} for x in users)
    return has_own or issubclass(kind, keras.Sequential)


def _without_lost(graph: graphs.Graph) -> graphs.Graph:
    """The graph without what the quantized model does not train with, of which it prints."""
    if graph.unread:
        print(
            "Left out in training, as what is computed of weights alone is a constant: "
            f"{', '.join(graph.unread)}."
        )
    if graph.masked:
        print(
            "Left out in training: masks of outputs, by which Keras leaves steps out of losses and "
            f"metrics; give `sample_weight` instead. Outputs: {', '.join(graph.masked)}."
        )
    graph, lost = unsupported.without_lost_regularizers(graph)
    if lost:
        print(f"Left out in training: activity_regularizer of {', '.join(map(repr, lost))}.")
    return graph


def float_model(model: Any) -> Any:
    """The model in Keras 3; a ValueError where it is quantized already."""
    if legacy.is_legacy(model):
        return legacy.rebuild(model)
    if isinstance(model, keras.Model) and ranged(model):
        raise ValueError(
            f"`model` must be a float model. Received: {model.name!r}, which is quantized already. "
            "Take the model that it was made from."
        )
    return model


def _plan(
    graph: graphs.Graph,
    scheme: str,
    overrides: dict[str, str] | None,
    batch_norm: str,
    preprocessing: str,
    target: targets.Target,
    is_fused: bool,
    symmetric: bool,
) -> Plan:
    """What becomes of each call of the user's graph, once it is prepared."""
    # A user knows layers, not calls or parts: keys of `overrides` fit no "<name>_2".
    layers = {x.name: x for x in map(lambda x: graphs.origin(x)[0], graph.model.inputs)}
    models: dict[str, tuple[keras.layers.Layer, ...]] = {}
    for node in graph.nodes:
        layers.setdefault(node.source.name, node.layer)
        models.setdefault(node.source.name, node.source.models)
    schemes = per_layer(scheme, overrides, layers, models)
    schemes |= {node.layer.name: schemes[node.source.name] for node in graph.nodes}
    named = {key: fitting(key, layers) for key in overrides or {}}
    schemes, floats = _floats(graph, schemes, named, symmetric)
    if dropped := unsupported.dropped_states(graph, floats):
        print(f"Left out in training: recurrent_dropout of {', '.join(map(repr, dropped))}.")
    fused = graph
    if is_fused:
        fused = fused_recurrence.fuse(graph, floats, schemes, target)
        schemes |= {node.layer.name: schemes[node.source.name] for node in fused.nodes}
    skip = ("fold",) if batch_norm == "keep" else ()
    prepared = scale_inputs(prepare(fused, floats, skip), graph, schemes, floats, preprocessing)
    plan = Plan(prepared, schemes, floats, target, symmetric)
    plan.check_overrides(named)
    plan.check_kernels()
    return plan


def _floats(
    graph: graphs.Graph, schemes: dict[str, str], named: dict[Any, list[str]], symmetric: bool
) -> tuple[dict[str, str], frozenset[str]]:
    """The schemes, "float" where there is no integer kernel, and all layers that stay float.

    Those without a kernel are printed; an error where a key of `overrides` (`named`: the layers by
    key) asks for their integers, and of what a file cannot have in float either.
    """
    # A ReLU or BatchNormalization has the scheme of what it becomes part of, "float" as well.
    fused = fusion.find(graph, schemes, symmetric=symmetric).into
    asked = unsupported.asked_float(graph, schemes, fused)
    lacking = unsupported.without_kernel(graph, asked)
    unsupported.check_asked(named, schemes, lacking)
    # What has no remark to print, such as Embedding, stays a float layer of its scheme: the rows
    # that it picks may become integers.
    named_float = {name: "float" for name, text in lacking.items() if text}
    floats = unsupported.asked_float(graph, schemes | named_float, fused) | {*lacking}
    # A layer of which only a part stays float, its activation, keeps its scheme.
    parted = {node.source.name for node in graph.nodes if node.layer.name not in floats}
    schemes = schemes | {name: "float" for name in named_float if name not in parted}
    unsupported.check(graph, floats)
    texts = [text for text in lacking.values() if text]
    texts += unsupported.float_activations(graph, floats)
    if texts:
        print(f"Stay in float, for want of an integer kernel: {'; '.join(texts)}.")
    return schemes, floats


def first_and_last(model: keras.Model) -> tuple[str, str]:
    """Names of the first and the last layer with weights that are quantized, in order of calls.

    What networks of few bits keep at 8 (Zhou S. et al. 2016; Choi et al. 2018):
    `overrides=dict.fromkeys(kerasq.first_and_last(model), "w8a8")`.

    Raises:
        ValueError: for a model without such layers.
    """
    model = legacy.rebuild(model) if legacy.is_legacy(model) else model
    graph = graphs.read(model, unsupported.is_closed)
    floats = frozenset(unsupported.without_kernel(graph, frozenset()))
    # Only then weights of attention, or in a TimeDistributed, are those of layers with a kernel.
    parts = decompose(graph, floats)
    names = [
        node.source.name
        for node in parts.nodes
        if node.layer.name not in floats and _has_weights(node.layer)
    ]
    if not names:
        raise ValueError(
            "`model` must have layers with weights that are quantized. "
            f"Received: model {model.name!r} without any."
        )
    return names[0], names[-1]


def _has_weights(layer: keras.Layer) -> bool:
    """Whether a layer multiplies by weights; a Scale stands for constants and statistics."""
    rule = registry.find(layer)
    return rule is not None and rule.kernel is not None and not isinstance(layer, Scale)


def _not_powers(model: keras.Model) -> list[str]:
    """Names of the layers whose scales are to be powers of two, and are not."""
    return [
        layer.name
        for layer in wrapped(model)
        if (layer.powers.activations and _is_free(layer))
        or (layer.powers.weights and isinstance(layer, LstmWrapper))
    ]


def _is_free(layer: QuantizeWrapper) -> bool:
    """Whether the grid of an output has another scale than a power of two."""
    # Of masked values it may be that of what they were; of a derived one nothing says so.
    fixed = layer.rule.grids.get(layer.bits.code_bits)
    return layer.rule.derive is not None or (
        fixed is not None and not is_power_of_two(float(fixed.scale))
    )


def _check_penalty(penalty: float, range_gradient: str | None, powers: Scales) -> None:
    if not 0.0 <= penalty < math.inf:
        raise ValueError(
            f"`range_penalty` must be at least 0, such as 1e-4. Received: range_penalty={penalty}."
        )
    if penalty and (range_gradient == "none" or powers.activations):
        raise ValueError(
            "A penalty is for ranges of activations that learn, of free scales. Received: "
            f"range_penalty={penalty} where they "
            f"{'are thresholds' if powers.activations else 'follow the data'}. Set "
            "range_gradient='clip' and scales='free', or leave it out."
        )


def _check_gradient(range_gradient: str | None, powers: Scales) -> None:
    if powers.weights and powers.activations and range_gradient in ("lsq", "clip"):
        raise ValueError(
            "Thresholds of powers of two must learn as TQT has it, range_gradient=None, or follow "
            f'the data, "none". Received: range_gradient={range_gradient!r}.'
        )


def _check_option(name: str, value: Any, legal: tuple[Any, ...]) -> None:
    if value not in legal:
        raise ValueError(f"`{name}` must be one of {list(legal)}. Received: {name}={value!r}.")

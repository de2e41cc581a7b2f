"""First half of the export: a quantized Keras model to a marked float flatbuffer.

TFLiteConverter rewrites a graph that has fake-quant ops: it moves them behind reshapes, repeats
them behind operators that could keep a grid, merges them. So none are put there. Layers run in
float, and every tensor that lies on a grid goes through a marker: an operator that TFLite does not
have, which the converter therefore leaves where it is, with the number of the mark as its second
operand.
"""

import collections
import dataclasses
import functools
import math
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph, kernels, registry, targets
from kerasq.export import marks
from kerasq.export.converter import converter
from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.kernels.lstm import LstmWeights
from kerasq.layer_rules import QUANTIZE
from kerasq.layers import Constant, FrameConv2D, InputScale, InverseRoot, Scale
from kerasq.lstm_wrapper import LstmWrapper
from kerasq.wrappers import Boundary, CompareCodes, QuantizeWrapper, target_of, wrapped

# Of all operators without a TFLite form, this one takes a tensor of any type, gives its shape, and
# has a second operand for a number. It has no kernel here, so that the converter cannot compute it
# of a constant, and side effects, so that it merges none.
MARKER = "CollectivePermute"
_SCOPE = "kerasq_layer{}_"
_SCOPES = re.compile(_SCOPE.format(r"(\d+)"))


def marked(x: tf.Tensor, number: int) -> tf.Tensor:
    """A tensor behind a marker of a number."""
    return tf.raw_ops.CollectivePermute(input=x, source_target_pairs=[[number, number]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """What `convert` returns.

    Attributes:
        content: the float flatbuffer. The signature's inputs are called "input_0", ..., its
            outputs "output_0", ..., in the model's order.
        marks: the marks, by number.
        layers: names of the layers, by the number in the scope of their operators.
        target: the model's target.
        schemes: how many layers have each scheme.
        training: what has trained the model, as `metadata.Made` has it.
    """

    content: bytes
    marks: list[marks.Mark]
    layers: list[str]
    target: targets.Target
    schemes: dict[str, int] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def layer_of(self, tensor_name: str) -> str | None:
        """The layer that an operator's output belongs to."""
        found = _SCOPES.search(tensor_name)
        return self.layers[int(found.group(1))] if found else None


class Marker:
    """Runs the layers of a model in float, and marks their outputs.

    Args:
        model: a quantized model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.marks: list[marks.Mark] = []
        self.layers: list[str] = []
        self._target = target_of(model)
        self._outputs = {id(y) for y in model.outputs}
        self._readers: dict[int, list[keras.Layer]] = {}
        for node in graph.calls(model):
            for x in node.inputs:
                self._readers.setdefault(id(x), []).append(node.layer)

    def _mark(self, x: tf.Tensor, mark: marks.Mark) -> tf.Tensor:
        self.marks.append(mark)
        return marked(x, len(self.marks) - 1)

    def _mark_float(self, x: tf.Tensor, mark: marks.Mark) -> tf.Tensor:
        """The tensor marked, where it is float32: others lie on no grid."""
        return self._mark(x, mark) if x.dtype == tf.float32 else x

    def run(self, node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        """The output of a call, marked."""
        layer = node.layer
        self.layers.append(node.name)
        # The converter keeps scopes in the names of tensors, which so lead back to their layer.
        with tf.name_scope(_SCOPE.format(len(self.layers) - 1)):
            if isinstance(layer, QuantizeWrapper):
                return self._wrapper(layer, *args)
            if registry.is_dropped(layer):
                return args[0]
            return self._float(node, args, kwargs)

    def _float(self, node: graph.Node, args: tuple, kwargs: dict) -> list[tf.Tensor]:
        """The outputs of a layer that is no wrapper."""
        if not _fuses(node.layer):
            args, kwargs = self._apart((args, kwargs))
        outputs = keras.tree.flatten(_infer_on_constants(node.layer, args, kwargs, self._target))
        if self._is_fused_away(node):
            return outputs
        return [
            self._mark_float(y, marks.Named(name=graph.tensor_name(symbol)))
            for y, symbol in zip(outputs, node.outputs, strict=True)
        ]

    def _is_fused_away(self, node: graph.Node) -> bool:
        """Whether the converter makes a call one with the next, which a marker would prevent."""
        readers = self._readers.get(id(node.outputs[0]), [])
        is_output = id(node.outputs[0]) in self._outputs
        if is_output or registry.passes_through(node.layer):
            return False
        return len(readers) == 1 and _fuses(readers[0])

    def _apart(self, inputs: Any) -> Any:
        """Marks inputs, so that equal operators are not merged, nor `x + x` rewritten."""
        return keras.tree.map_structure(
            lambda x: self._mark_float(x, marks.Separator()) if tf.is_symbolic_tensor(x) else x,
            inputs,
        )

    def _wrapper(self, wrapper: QuantizeWrapper, inputs: Any) -> tf.Tensor:
        """The output of a layer on a grid, in float, or its input where the lowering makes it."""
        # Grids are variables of the model; see `_infer_on_constants`.
        with tf.init_scope():
            grid = wrapper.grid().numpy()
        if wrapper.rule is QUANTIZE:
            reads_float = wrapper.producers[0] is None
            mark = marks.Quantized(name=wrapper.name, grid=grid, reads_float=reads_float)
            return self._mark(inputs, mark)
        if isinstance(wrapper, KernelWrapper):
            return self._kernel(wrapper, inputs, grid)
        if isinstance(wrapper, LstmWrapper):
            return self._recurrent(wrapper, inputs, grid)
        if made := _made(wrapper, grid):
            if isinstance(made, marks.Constant):
                inputs = _of_shape(inputs, made.codes.shape)
            # Marked is the input: the converter would compute the marker of a constant, and has
            # no operator of its own for the others.
            return self._mark(inputs, made)
        inputs = self._apart(inputs)
        is_relu = registry.relu_limit(wrapper.layer)[0]
        y = _relu(inputs if is_relu else wrapper.run_float(inputs), wrapper, grid, is_relu)
        return self._mark(y, marks.Computed(name=wrapper.name, grid=grid))

    def _kernel(self, wrapper: KernelWrapper, x: tf.Tensor, grid: Grid) -> tf.Tensor:
        """The layer on constants: weights that lie on their grid already."""
        # The converter may move or merge such constants, but rounds none, so that the lowering
        # finds each value on the grid of its mark.
        with tf.init_scope():
            weights = wrapper.integer_weights()
            kernel = (weights.codes * weights.grid.scale).numpy()
            bias = weights.bias.numpy().astype(np.int64)
        x = self._apart(x)
        # What is broadcast has sizes that only the model knows, where samples have no number.
        x.set_shape((x.shape[0], *wrapper.input.shape[1:]))
        # The lowering takes the bias from the mark. Convolutions are converted without: that of one
        # channel would be an ADD behind a RESHAPE. A product has any bias but 0: without, it would
        # be a MUL where there is one feature.
        is_product = wrapper.rule.operator == "FULLY_CONNECTED"
        any_bias = tf.ones(bias.shape) if is_product else None
        is_scale = isinstance(wrapper.layer, Scale)
        kernel = tf.constant(kernel)
        # A ReLU behind what a layer moves would not be the operator's.
        relu = functools.partial(_relu, wrapper=wrapper, grid=grid)
        moves = isinstance(wrapper.layer, FrameConv2D)
        mark = marks.Weighted(name=wrapper.name, grid=grid, kernel=weights.grid.numpy(), bias=bias)
        with graph.replaced(wrapper.layer, **({"activation": relu} if moves else {})):
            if is_product and x.shape[-1] == 1 and len(x.shape) > 2:
                # Of one feature, and with a ReLU, the converter makes a MUL and an ADD, but not of
                # matrices.
                rows = wrapper.run_on(tf.reshape(x, (-1, 1)), kernel, any_bias)
                y = tf.reshape(relu(rows), (-1, *x.shape[1:-1], rows.shape[-1]))
                return self._mark(y, mark)
            y = _scale(x, kernel) if is_scale else wrapper.run_on(x, kernel, any_bias)
        return self._mark(y if moves else relu(y), mark)

    def _recurrent(self, wrapper: LstmWrapper, x: tf.Tensor, grid: Grid) -> tf.Tensor:
        """What has the shape of the output, and is one operator: the lowering takes its place."""
        with tf.init_scope():
            found = wrapper.integer_weights()
            arrays = {key: np.asarray(value) for key, value in vars(found).items()}
            bits = int(wrapper.cell_bits())
        x = self._apart(x)
        x.set_shape((x.shape[0], *wrapper.input.shape[1:]))
        features, channels = arrays["kernel"].shape
        # With a bias: else it would be a MUL where there is one feature.
        y = tf.matmul(x, tf.ones((features, channels // 4))) + tf.ones(channels // 4)
        weights = LstmWeights(**arrays)
        mark = marks.Recurrent(name=wrapper.name, grid=grid, weights=weights, cell_bits=bits)
        return self._mark(y, mark)


def _of_shape(x: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Floats that the converter cannot compute: the first of `x`, of floats or conditions."""
    first = tf.reshape(tf.cast(x, tf.float32), [-1])[:1]
    return tf.broadcast_to(first, shape)


def _made(wrapper: QuantizeWrapper, grid: Grid) -> marks.Made | None:
    """The mark of a layer that the lowering makes, not the converter; None for any other."""
    if isinstance(wrapper.layer, Constant):
        with tf.init_scope():
            codes = grid.quantize(wrapper.layer.value.numpy()[None], wrapper.target.away)
        return marks.Constant(name=wrapper.name, grid=grid, codes=codes)
    operator = wrapper.rule.operator_at(grid.bits, wrapper.target)
    if operator == "GATHER":
        return marks.LookedUp(name=wrapper.name, grid=grid, table=_table(wrapper, grid))
    if wrapper.rule.options is not None:
        options = wrapper.rule.options(wrapper.layer)
        return marks.Emitted(name=wrapper.name, grid=grid, op=operator, options=options)
    return None


def _table(wrapper: QuantizeWrapper, grid: Grid) -> np.ndarray:
    """What the target's kernel makes of every code that the input can have, in order: codes."""
    with tf.init_scope():
        (source,) = wrapper.input_grids()
        lowest = 0 if isinstance(wrapper.layer, InverseRoot) else source.qmin
        every = tf.range(lowest, source.qmax + 1, dtype=tf.float32)
        codes = [every - tf.cast(source.zero_point, tf.float32)]
        table = wrapper.target.run("GATHER", wrapper.layer, codes, [source], grid).numpy()
    # Kernels write codes from the zero point on, files from the lowest integer on.
    return (table + grid.zero_point).astype(grid.dtype)


def _infer_on_constants(
    layer: keras.Layer, args: tuple, kwargs: dict, target: targets.Target
) -> Any:
    """What a layer computes, its variables as constants: the file has no variables."""
    arguments = keras.tree.flatten((args, kwargs))
    variables = [x for x in arguments if isinstance(x, keras.Variable)]
    variables += getattr(layer, "variables", [])
    # A function that is being traced cannot read values: they are read outside of it.
    with tf.init_scope():
        constants = [(v, tf.constant(v.numpy())) for v in variables]
    with keras.StatelessScope(state_mapping=constants):
        return _infer(layer, target, *args, **kwargs)


def _infer(layer: keras.Layer, target: targets.Target, *args: Any, **kwargs: Any) -> Any:
    """`graph.infer`, by the operators that the runtime has."""
    if isinstance(layer, keras.layers.Embedding) and not target.negative_places:
        # Keras's has operators for places counted from the end, which the runtime lacks.
        return tf.gather(layer.embeddings, tf.cast(args[0], tf.int32))
    if isinstance(layer, CompareCodes):
        return layer.run_float(args[0], _numbers(layer))
    if isinstance(layer, InputScale):
        # Two operators, each of which rounds.
        return tf.cast(args[0], tf.float32) * layer.kernel + layer.bias
    if isinstance(layer, keras.layers.PReLU) and args[0].shape.rank > 4:
        # The converter makes one operator of Keras's, which broadcasts slopes along four axes.
        return tf.maximum(args[0], 0.0) + layer.alpha * tf.minimum(args[0], 0.0)
    is_nearest = registry.passes_through(layer) and isinstance(layer, keras.layers.UpSampling2D)
    if is_nearest:
        return tf.image.resize(args[0], layer.compute_output_shape(args[0].shape)[1:3], "nearest")
    return graph.infer(layer, *args, **kwargs)


def _numbers(layer: CompareCodes) -> np.ndarray | None:
    """The numbers that values are compared with, as the grid of the values has them."""
    with tf.init_scope():
        grid = layer.input_grid()
        return None if grid is None else (kernels.nearest(layer.value, grid) * grid.scale).numpy()


def _scale(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`kerasq.layers.Scale` without bias as a depthwise convolution of one pixel."""
    image = (
        x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, math.prod(x.shape[1:-1]), x.shape[-1]])
    )
    kernel = tf.reshape(kernel, [1, 1, -1, 1])
    y = tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], "VALID")
    return y if x.shape.rank == 4 else tf.reshape(y, [-1, *x.shape[1:]])


def _relu(y: tf.Tensor, wrapper: QuantizeWrapper, grid: Grid, always: bool = False) -> tf.Tensor:
    """The ReLU of a layer, where the grid does not do the same.

    An asymmetric grid of all codes starts at 0 behind a ReLU, where the kernel clamps anyway.
    Symmetric grids have codes below, and those of few levels stand at the upper end of int8.
    """
    is_cut = grid.levels is None and int(grid.zero_point) == grid.qmin
    if not always and (is_cut or not wrapper.relu):
        return y
    return tf.nn.relu6(y) if wrapper.ends_at_six else tf.nn.relu(y)


def _fuses(layer: keras.Layer) -> bool:
    """Whether the converter can fuse a float layer into the one before it."""
    if isinstance(layer, QuantizeWrapper):
        return False
    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    return is_norm or registry.relu_limit(layer)[0]


def convert(model: keras.Model, batch_size: int) -> Converted:
    """Converts `model` to a float flatbuffer with markers.

    Args:
        model: a quantized model whose ranges are known.
        batch_size: the fixed number of samples a call takes.
    """
    marker = Marker(model)

    def run(inputs: Any) -> list[Any]:
        # A function may be traced more than once, and numbers count from 0.
        marker.marks.clear()
        marker.layers.clear()
        # The file has its operators in this order.
        return graph.run(model, inputs, marker.run, graph.branch_by_branch)

    found = converter(model, batch_size, run)
    found.allow_custom_ops = True  # Markers are.
    return Converted(
        content=found.convert(),
        marks=marker.marks,
        layers=marker.layers,
        target=target_of(model),
        schemes=_schemes(model),
        training=_training(model),
    )


def _schemes(model: keras.Model) -> dict[str, int]:
    """How many layers have each scheme, without those that only put values on another grid."""
    layers = [layer for layer in wrapped(model) if not isinstance(layer, Boundary)]
    return dict(collections.Counter(layer.scheme for layer in layers))


def _training(model: keras.Model) -> dict[str, Any]:
    """What has trained a model; empty where nothing has, or it does not say."""
    # Not the losses: they are those of the last epoch, whose weights another callback may have put
    # back to those of the best one; and a model that was loaded has none.
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # Of mixed precision.
    steps = 0 if optimizer is None else int(optimizer.iterations.numpy())
    return {"optimizer": type(optimizer).__name__, "steps": steps} if steps else {}

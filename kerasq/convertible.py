"""Which float layers a file can have: TFLiteConverter is asked before anything is trained."""

import re
from typing import Any

import keras
import tensorflow as tf

from kerasq import graph as graphs
from kerasq.litert import flatbuffer
from kerasq.litert.runtime import TFLiteModel


def refusals(nodes: list[graphs.Node]) -> dict[str, str]:
    """By name of the layer, why LiteRT cannot run a call in float; of those that it cannot.

    Args:
        nodes: calls of layers and operations. What has no fixed size is left to the export.
    """
    fixed = [x for x in nodes if all(None not in y.shape[1:] for y in x.inputs)]
    # All at once, as nearly always there is nothing to refuse, and each takes a fifth of a second.
    if not fixed or _refusal(fixed) is None:
        return {}
    found = {x.layer.name: _refusal([x]) for x in fixed}
    return {name: text for name, text in found.items() if text is not None}


def _refusal(nodes: list[graphs.Node]) -> str | None:
    # Two samples: what sums over them may run for one.
    specs = [
        tf.TensorSpec([2 if x.shape[0] is None else x.shape[0], *x.shape[1:]], x.dtype)
        for node in nodes
        for x in node.inputs
    ]

    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        left = iter(tensors)

        def value(x: Any) -> Any:
            return next(left) if isinstance(x, keras.KerasTensor) else x

        outputs = []
        for node in nodes:
            args, kwargs = keras.tree.map_structure(value, (node.args, node.kwargs))
            outputs.append(graphs.infer(node.layer, *args, **kwargs))
        return keras.tree.flatten(outputs)

    try:
        function = tf.function(run, specs, autograph=False).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        converter.allow_custom_ops = True  # So that they have names.
        converter.exclude_conversion_metadata = True
        content = converter.convert()
    except Exception as error:  # TensorFlow's, or of a user's `call`: of any class.
        text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())  # Keras writes in bold.
        return f"cannot be converted: {type(error).__name__}: {text:.200}"
    codes = flatbuffer.read(content).operatorCodes
    names = sorted({x.customCode.decode() for x in codes if x.customCode is not None})
    if names:
        return f"TensorFlow's {', '.join(names)} is no operator of LiteRT"
    try:
        TFLiteModel(content)
    except ValueError as error:
        reason = str(error).splitlines()[0].rpartition("refuses: ")[2]
        return f"LiteRT does not run what becomes of it: {reason:.300}"
    return None

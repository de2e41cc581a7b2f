"""Knowledge distillation: a quantized model learns from the float model as well as from labels."""

from typing import Any

import keras
from keras import ops

from kerasq import graph, registry
from kerasq.graph import functional
from kerasq.support.numbers import check_number
from kerasq.unsupported import is_closed
from kerasq.wrappers import QuantizeWrapper


def distill(
    student: keras.Model, teacher: keras.Model, *, weight: float = 0.5, temperature: float = 4.0
) -> keras.Model:
    """A model of the student's layers, to be compiled and trained in the student's place.

    `student` is an attribute of it. Its loss is, with p and q the class probabilities of teacher
    and student (Hinton et al. 2015, arXiv 1503.02531, section 2)::

        (1 - weight) * loss + weight * T^2 * KL(softmax(log p / T) || softmax(log q / T))

    `loss` is that of `compile`, with the losses that layers add. Both models must end in a
    softmax. Weights are shared: what is trained is the student. Metrics and the loss of `evaluate`
    are those of `compile`.

    Args:
        student: the quantized model, or any other Functional one.
        teacher: a model with the same inputs and outputs; it stays as it is.
        weight: share of the teacher, 0 to 1.
        temperature: T, above 0; more of it makes more of small probabilities.

    Raises:
        ValueError: for a weight or temperature out of bounds, models that differ in shapes, or
            one that does not end in a softmax.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "softmax")])
        >>> q = kerasq.quantize_model(model)
        >>> learner = kerasq.distill(q, model, weight=0.7)
        >>> learner.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> x = np.random.default_rng(0).normal(size=(32, 8))
        >>> _ = learner.fit(x, np.zeros(32), verbose=0)
    """
    check_number("weight", weight)
    check_number("temperature", temperature)
    if not 0.0 <= weight <= 1.0:
        raise ValueError(
            f"`weight`, the teacher's share, must be in [0, 1]. Received: weight={weight}."
        )
    if not temperature > 0.0:
        raise ValueError(f"`temperature` must be above 0. Received: temperature={temperature}.")
    for model in (student, teacher):
        functional.check(model)
    if (student.input_shape, student.output_shape) != (teacher.input_shape, teacher.output_shape):
        raise ValueError(
            "Teacher and student must have the same inputs and outputs. Received: "
            f"{teacher.input_shape} to {teacher.output_shape} and {student.input_shape} to "
            f"{student.output_shape}. Teach with the model that was quantized, or one like it."
        )
    for model in (student, teacher):
        if len(model.outputs) > 1 or not ends_in_softmax(model):
            raise ValueError(
                "Teacher and student must have one output, class probabilities of a softmax. "
                f"Received: model {model.name!r} with outputs {[y.name for y in model.outputs]}. "
                "Give models that end in logits a keras.layers.Softmax, before quantize_model."
            )
    learner = _Learner(student.inputs, student.outputs[0], name=student.name)
    # `compile` looks at it for whether losses are to be scaled, as mixed_float16 needs.
    learner.dtype_policy = student.dtype_policy
    learner.teach(student, teacher, weight, temperature)
    return learner


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether the first output of a model, quantized or not, is made by a softmax.

    That may be a layer, an activation or `keras.ops.softmax`, also inside a model or a layer.
    """
    layer = _last(model)
    if isinstance(layer, QuantizeWrapper):
        layer = layer.layer
    elif not is_closed(layer):
        layer = _last(graph.read(model, is_closed).model)
    return registry.activation_name(layer) == "softmax" or type(layer).__name__ == "Softmax"


def _last(model: keras.Model) -> keras.Layer:
    """The layer that makes the first output, before those that only move values."""
    layer, inputs = graph.origin(model.outputs[0])
    while registry.passes_through(layer):
        layer, inputs = graph.origin(inputs[0])
    return layer


class _Learner(keras.Model):
    """A Functional model with a teacher's part in its loss."""

    def teach(
        self, student: keras.Model, teacher: keras.Model, weight: float, temperature: float
    ) -> None:
        """Sets who teaches whom."""
        self._models = _Untracked(student, teacher)
        self._weight, self._temperature = weight, temperature

    @property
    def student(self) -> keras.Model:
        """The model whose layers these are."""
        return self._models.student

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Saves the student, as what trains is no model to load: `ModelCheckpoint` calls it."""
        self.student.save(*args, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of `compile`, in training mixed with the divergence from the teacher.

        The arguments are those of `keras.Model.compute_loss`; `x` goes to the teacher as well.
        """
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:  # Validation compares with runs that have no teacher.
            return loss
        target = self._softened(self._models.teacher(x, training=False))
        # Keras computes losses in floatx, of which float16 holds no small probabilities.
        divergence = keras.losses.KLDivergence(dtype="float32")(
            target, self._softened(y_pred), sample_weight
        )
        # T^2, since gradients of softened probabilities fall with 1 / T^2 (section 2).
        return (1.0 - self._weight) * loss + self._weight * self._temperature**2 * divergence

    def _softened(self, probabilities: Any) -> Any:
        """`softmax(log p / T)`."""
        # Up to a constant the logarithm is the logit, which a model that ends in a softmax hides.
        logs = ops.log(ops.maximum(probabilities, keras.config.epsilon()))
        return ops.softmax(logs / self._temperature)


class _Untracked:
    """Holds models that shall not count as parts of the one that it is an attribute of.

    Keras takes every model that is an attribute for a part, whose weights are trained and saved.
    """

    def __init__(self, student: keras.Model, teacher: keras.Model) -> None:
        self.student, self.teacher = student, teacher

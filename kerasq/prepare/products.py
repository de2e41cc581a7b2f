"""Operations that multiply: matrix products and Einstein sums, of tensors or by weights."""

from typing import Any

import keras
import numpy as np

from kerasq import registry
from kerasq.fits import as_matrix, as_product, matmul_fits, terms
from kerasq.graph import Node, symbolic
from kerasq.layers import Einsum, Matmul
from kerasq.prepare.parts import Called

L = keras.layers


def value(constant: Any) -> np.ndarray:
    """A constant operand, or a variable's value."""
    return np.asarray(keras.ops.convert_to_numpy(constant), np.float32)


def is_learned(constant: Any) -> bool:
    """Whether a constant operand is a variable that trains."""
    return isinstance(constant, keras.Variable) and constant.trainable


def matmul(node: Node, args: tuple, options: dict) -> Called:
    """A product of two tensors; or of a tensor and a matrix of weights, a Dense."""
    x, y = args
    if len(symbolic((x, y))) == 2:
        fits = len(x.shape) == len(y.shape) >= 3 and x.shape[1:-2] == y.shape[1:-2]
        made = Matmul(**options)
        return (made, [x, y]) if fits and matmul_fits(made, [x, y]) else None
    if not symbolic(x):
        return _product_from_left(x, y, options)
    if len(y.shape) != 2 or len(x.shape) < 2:
        return None
    return weighted(L.Dense(y.shape[1], use_bias=False, **options), x, y)


def _product_from_left(matrix: Any, x: keras.KerasTensor, options: dict) -> Called:
    """A matrix of weights times each matrix of a tensor."""
    rank = len(x.shape)
    if len(matrix.shape) != 2 or rank < 3:
        return None
    others = "abcdefgh"[: rank - 2]
    return _einsum_dense(f"{others}yz,xy->{others}xz", x, matrix, options)


def einsum(node: Node, args: tuple, options: dict) -> Called:
    """An Einstein sum of two tensors, or of a tensor and weights, in either order."""
    inputs, arrow, output = node.layer.subscripts.replace(" ", "").partition("->")
    # Without an arrow the axes of the output follow from NumPy's rule, which is rare.
    if len(args) != 2 or not arrow:
        return None
    operands = inputs.split(",")
    x, y = args
    if not symbolic(x):
        x, y, operands = y, x, operands[::-1]
    equation = f"{operands[0]},{operands[1]}->{output}"
    if not symbolic(y):
        return _einsum_dense(equation, x, y, options)
    is_known = None not in (*x.shape[1:], *y.shape[1:])
    fits = is_known and as_product(equation, len(x.shape)) is not None
    return (Einsum(equation, **options), [x, y]) if fits else None


def _einsum_dense(equation: str, x: keras.KerasTensor, weights: Any, options: dict) -> Called:
    """An EinsumDense of constant weights."""
    matrix = as_matrix(equation, len(x.shape))
    if matrix is None or None in x.shape[1:]:
        return None
    # The layer wants all sizes but that of the samples, and of an ellipsis none.
    equation = "{},{}->{}".format(*terms(equation, len(x.shape)))
    sizes = [x.shape[i] for i in matrix.rows[: -matrix.taken]]
    sizes += [weights.shape[i] for i in matrix.kernel[matrix.taken :]]
    shape = [sizes[i] for i in matrix.output[1:]]
    return weighted(L.EinsumDense(equation, shape, **options), x, weights)


def weighted(layer: keras.Layer, x: keras.KerasTensor, *weights: Any) -> Called:
    """A layer with constant weights, or variables, where it has an integer kernel."""
    if registry.complaint(layer):
        return None
    layer.build(x.shape)
    layer.set_weights([value(v) for v in weights])
    variables = [v for v in weights if isinstance(v, keras.Variable)]
    layer.trainable = any(v.trainable for v in variables)
    return layer, x

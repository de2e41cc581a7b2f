"""Arm's Ethos-U NPUs, by way of its compiler, Vela: TFLite Micro's rounding, with exceptions.

Functions that TFLite Micro lacks are operators here, as the NPU has them by tables; its compiler
has no INT4. Labels, comparisons, L2_NORMALIZATION, LOG_SOFTMAX and functions without an operator
run on the processor beside the NPU: `python -m tools.vela` prints what does.
"""

import dataclasses
import math

from kerasq.kernels import Kernel, ethos_u
from kerasq.litert.operators import OPERATORS as ALL
from kerasq.targets.tflm import TFLM

# Which Vela makes tables of, 256 codes of the rounded function.
_FUNCTIONS: dict[tuple[str, int], Kernel] = {
    ("ELU", 8): ethos_u.elu,
    ("EXP", 8): ethos_u.pointwise,
    ("GELU", 8): ethos_u.pointwise,
}
# Which leave the NPU, as RESHAPE and TRANSPOSE do not; and an LSTM, which Vela takes apart into
# operators that nothing here simulates.
_MISSING = ("DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "UNIDIRECTIONAL_SEQUENCE_LSTM")

OPERATORS = {
    name: dataclasses.replace(known, int4={}, int4_by="")
    for name, known in TFLM.operators.items()
    if name not in _MISSING
} | {name: dataclasses.replace(ALL[name], int16=None) for name, _ in _FUNCTIONS}
# On int16 it leaves the NPU of U55 and U65.
OPERATORS["BATCH_MATMUL"] = dataclasses.replace(OPERATORS["BATCH_MATMUL"], by_others=True)

ETHOS_U = dataclasses.replace(
    TFLM,
    name="ethos-u",
    runtime=None,
    fuses_lstm=False,
    operators=OPERATORS,
    kernels={
        **{key: kernel for key, kernel in TFLM.kernels.items() if key[0] not in _MISSING},
        **_FUNCTIONS,
        ("AVERAGE_POOL_2D", 8): ethos_u.average_pool,
        ("AVERAGE_POOL_2D", 16): ethos_u.average_pool,
        ("BATCH_MATMUL", 16): ethos_u.matmul,
        ("RSQRT", 16): ethos_u.inverse_root,
        ("MEAN", 8): ethos_u.mean,
        ("MEAN", 16): ethos_u.mean,
        ("SUM", 8): ethos_u.total,
        ("SUM", 16): ethos_u.total,
    },
    # Where the first chord of a table ends. Softmax is operators of the NPU's own.
    limits=dataclasses.replace(
        TFLM.limits, least_root=128, root=math.inf, softmax_values=None, fixed_point={}
    ),
    accumulator_kernels={k: v for k, v in TFLM.accumulator_kernels.items() if k[2] != 4},
)

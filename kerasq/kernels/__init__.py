"""LiteRT's integer kernels in TensorFlow: what the device computes, bit for bit.

Every function takes and returns *centred codes*, `code - zero_point`, as float32 tensors: integers
below 2^24, on which float32 arithmetic is exact. They follow LiteRT's default kernels: XNNPACK
where its delegate takes the op, LiteRT's own where it does not. The rounding rules were read off
LiteRT 2.3 on x86-64, and are checked against the interpreter in tests/test_kernels.py.

There are two signatures, `Kernel` and `AccumulatorKernel`: operators without weights, and with.
Which function an operator runs on at which width is the target's to say (`kerasq.targets`).
"""

from kerasq.kernels.accumulators import IntegerWeights, accumulate
from kerasq.kernels.codes import centre, clip, nearest, quantize, quantize_weights
from kerasq.kernels.kernel import AccumulatorKernel, Kernel

__all__ = [
    "AccumulatorKernel",
    "IntegerWeights",
    "Kernel",
    "accumulate",
    "centre",
    "clip",
    "nearest",
    "quantize",
    "quantize_weights",
]

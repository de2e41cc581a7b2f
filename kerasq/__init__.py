"""kerasq: what you trained is what runs."""

# First of all: in a shell it keeps TensorFlow quiet.
from kerasq.support import shell as _shell  # noqa: F401

# isort: split
from kerasq.analysis.allocate import Allocation, allocate
from kerasq.analysis.compression import Compression, LayerCompression, compression
from kerasq.analysis.fixed_point import FixedPoint, LayerFixedPoint, fixed_point
from kerasq.analysis.latency import latency
from kerasq.analysis.operator_latency import (
    KindTime,
    OperatorLatency,
    OperatorTime,
    operator_latency,
)
from kerasq.analysis.search import Point
from kerasq.analysis.sensitivity import Sensitivity, sensitivity
from kerasq.analysis.summary import LayerSummary, Summary, summary
from kerasq.analysis.trouble import Trouble
from kerasq.calibration.aciq import Aciq
from kerasq.calibration.best import Best
from kerasq.calibration.calibrate import calibrate
from kerasq.calibration.deviations import StandardDeviations
from kerasq.calibration.entropy import Entropy
from kerasq.calibration.extremes import Average, MinMax, MovingAverage
from kerasq.calibration.histogram import MeanSquaredError, Percentile
from kerasq.calibration.observer import Observer
from kerasq.calibration.without_data import calibrate_without_data
from kerasq.comparison.compare import compare
from kerasq.comparison.report import LayerReport, Report
from kerasq.encodings import load_encodings, save_encodings
from kerasq.equalization.absorb import Absorption, absorb_biases
from kerasq.equalization.equalize import Equalization, equalize
from kerasq.export.float_tflite import export_float_tflite
from kerasq.export.tflite import export_tflite
from kerasq.firmware.kit import deploy
from kerasq.grid import Grid
from kerasq.legacy import load_model
from kerasq.litert.contents import Op, Tensor
from kerasq.litert.runtime import TFLiteModel
from kerasq.probes.check import KernelReport, check_kernels
from kerasq.ptq.adaround import Rounding, adaround
from kerasq.ptq.bias_correction import BiasCorrection, correct_biases
from kerasq.ptq.post_training import PostTraining, PostTrainingStep, post_training
from kerasq.ptq.seq_mse import WeightRanges, seq_mse
from kerasq.quantize import first_and_last, quantize_model
from kerasq.quantizers.a2q import A2Q
from kerasq.quantizers.base import WeightQuantizer
from kerasq.quantizers.binary import Binary
from kerasq.quantizers.dorefa import DoReFa
from kerasq.quantizers.power_of_two import PowerOfTwo
from kerasq.quantizers.ternary import Ternary, TrainedTernary
from kerasq.quantizers.uniform import Uniform
from kerasq.registry import register_layer
from kerasq.reporting.advice import Advice
from kerasq.reporting.build import report
from kerasq.reporting.difference import compare_reports
from kerasq.reporting.verdict import Verdict
from kerasq.requantization import Multiplier, Multipliers, multipliers
from kerasq.retargeting import retarget
from kerasq.training.batches import epoch_batches
from kerasq.training.check_training import CheckTraining
from kerasq.training.curves import plot_clipped, plot_curves
from kerasq.training.distill import distill
from kerasq.training.distribute import MultiWorkerStrategy
from kerasq.training.epoch_backup import EpochBackup
from kerasq.training.freeze import FreezeRanges
from kerasq.training.inq import IncrementalQuantization
from kerasq.training.log_ranges import LogRanges
from kerasq.training.pruning import MagnitudePruning
from kerasq.training.schedule import schedule

__all__ = [
    "A2Q",
    "Absorption",
    "Aciq",
    "Advice",
    "Allocation",
    "Average",
    "Best",
    "BiasCorrection",
    "Binary",
    "CheckTraining",
    "Compression",
    "DoReFa",
    "Entropy",
    "EpochBackup",
    "Equalization",
    "FixedPoint",
    "FreezeRanges",
    "Grid",
    "IncrementalQuantization",
    "KernelReport",
    "KindTime",
    "LayerCompression",
    "LayerFixedPoint",
    "LayerReport",
    "LayerSummary",
    "LogRanges",
    "MagnitudePruning",
    "MeanSquaredError",
    "MinMax",
    "MovingAverage",
    "MultiWorkerStrategy",
    "Multiplier",
    "Multipliers",
    "Observer",
    "Op",
    "OperatorLatency",
    "OperatorTime",
    "Percentile",
    "Point",
    "PostTraining",
    "PostTrainingStep",
    "PowerOfTwo",
    "Report",
    "Rounding",
    "Sensitivity",
    "StandardDeviations",
    "Summary",
    "TFLiteModel",
    "Tensor",
    "Ternary",
    "TrainedTernary",
    "Trouble",
    "Uniform",
    "Verdict",
    "WeightQuantizer",
    "WeightRanges",
    "absorb_biases",
    "adaround",
    "allocate",
    "calibrate",
    "calibrate_without_data",
    "check_kernels",
    "compare",
    "compare_reports",
    "compression",
    "correct_biases",
    "deploy",
    "distill",
    "epoch_batches",
    "equalize",
    "export_float_tflite",
    "export_tflite",
    "first_and_last",
    "fixed_point",
    "latency",
    "load_encodings",
    "load_model",
    "multipliers",
    "operator_latency",
    "plot_clipped",
    "plot_curves",
    "post_training",
    "quantize_model",
    "register_layer",
    "report",
    "retarget",
    "save_encodings",
    "schedule",
    "sensitivity",
    "seq_mse",
    "summary",
]
__version__ = "0.1.0"

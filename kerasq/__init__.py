"""kerasq: what you trained is what runs."""

from kerasq.analysis.allocate import Allocation, allocate
from kerasq.analysis.compare import Report, compare
from kerasq.analysis.sensitivity import Sensitivity, sensitivity
from kerasq.analysis.summary import Summary, summary
from kerasq.calibration import calibrate
from kerasq.export.tflite import export_tflite
from kerasq.grid import Grid
from kerasq.legacy import load_model
from kerasq.litert.runtime import TFLiteModel
from kerasq.quantize import first_and_last, quantize_model
from kerasq.registry import register_layer
from kerasq.training.distill import distill
from kerasq.training.distribute import MultiWorkerStrategy
from kerasq.training.freeze import FreezeRanges
from kerasq.training.inq import IncrementalQuantization
from kerasq.training.log_ranges import LogRanges

__all__ = [
    "Allocation",
    "FreezeRanges",
    "Grid",
    "IncrementalQuantization",
    "LogRanges",
    "MultiWorkerStrategy",
    "Report",
    "Sensitivity",
    "Summary",
    "TFLiteModel",
    "allocate",
    "calibrate",
    "compare",
    "distill",
    "export_tflite",
    "first_and_last",
    "load_model",
    "quantize_model",
    "register_layer",
    "sensitivity",
    "summary",
]
__version__ = "0.1.0"

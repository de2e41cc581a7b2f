"""kerasq: what you trained is what runs."""

from kerasq.allocate import Allocation, allocate
from kerasq.calibration import calibrate
from kerasq.compare import Report, compare
from kerasq.distill import distill
from kerasq.distribute import MultiWorkerStrategy
from kerasq.export.tflite import export_tflite
from kerasq.freeze import FreezeRanges
from kerasq.grid import Grid
from kerasq.inq import IncrementalQuantization
from kerasq.legacy import load_model
from kerasq.log_ranges import LogRanges
from kerasq.quantize import first_and_last, quantize_model
from kerasq.registry import register_layer
from kerasq.runtime import TFLiteModel
from kerasq.sensitivity import Sensitivity, sensitivity
from kerasq.summary import Summary, summary

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

"""kerasq: what you trained is what runs."""

from kerasq.allocate import Allocation, allocate
from kerasq.calibration import calibrate
from kerasq.compare import Report, compare
from kerasq.export.tflite import export_tflite
from kerasq.grid import Grid
from kerasq.legacy import load_model
from kerasq.quantize import quantize_model
from kerasq.registry import register_layer
from kerasq.runtime import TFLiteModel
from kerasq.sensitivity import Sensitivity, sensitivity
from kerasq.summary import Summary, summary

__all__ = [
    "Allocation",
    "Grid",
    "Report",
    "Sensitivity",
    "Summary",
    "TFLiteModel",
    "allocate",
    "calibrate",
    "compare",
    "export_tflite",
    "load_model",
    "quantize_model",
    "register_layer",
    "sensitivity",
    "summary",
]
__version__ = "0.1.0"

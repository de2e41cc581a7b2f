"""kerasq: what you trained is what runs."""

from kerasq.calibration import calibrate
from kerasq.compare import Report, compare
from kerasq.export.tflite import export_tflite
from kerasq.grid import Grid
from kerasq.quantize import quantize_model
from kerasq.runtime import TFLiteModel

__all__ = [
    "Grid",
    "Report",
    "TFLiteModel",
    "calibrate",
    "compare",
    "export_tflite",
    "quantize_model",
]
__version__ = "0.1.0"

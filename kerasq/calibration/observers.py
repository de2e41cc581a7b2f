"""One table: the observers that `calibrate(method=...)` knows by name."""

from typing import Any

from kerasq.calibration.aciq import Aciq
from kerasq.calibration.best import Best
from kerasq.calibration.deviations import StandardDeviations
from kerasq.calibration.entropy import Entropy
from kerasq.calibration.extremes import Average, MinMax, MovingAverage
from kerasq.calibration.histogram import MeanSquaredError, Percentile
from kerasq.calibration.observer import Observer
from kerasq.support import identifiers

OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "average": Average,
    "moving_average": MovingAverage,
    "std": StandardDeviations,
    "percentile": Percentile,
    "mse": MeanSquaredError,
    "entropy": Entropy,
    "aciq": Aciq,
    "best": Best,
}


def find(method: str | dict[str, Any] | Observer) -> Observer:
    """The prototype that `calibrate(method=...)` stands for.

    Raises:
        ValueError: for anything but a name, a configuration or an instance.
    """
    return identifiers.find("method", method, Observer, OBSERVERS)

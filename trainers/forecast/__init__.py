"""What a training will take, before anything is loaded: the real lessons on tensors without numbers."""

from __future__ import annotations

from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.fit import Fitted, check_fits, fit
from studio.trainers.forecast.plan import forecast, plan
from studio.trainers.forecast.table import compare

__all__ = ["Asked", "Fitted", "check_fits", "compare", "fit", "forecast", "plan"]

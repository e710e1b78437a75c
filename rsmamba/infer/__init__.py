"""Maps from scenes: tile grid, windowed reading, prediction, blending, atomic output."""

from rsmamba.infer.predict import Predictor, load_predictor
from rsmamba.infer.run import MapReport, map_scene

__all__ = ["MapReport", "Predictor", "load_predictor", "map_scene"]

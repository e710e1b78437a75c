"""Maps from scenes: tile grid, windowed reading, prediction, blending, atomic output."""

from rsmamba.infer.embed import Embedder, EmbedReport, embed_scene, load_embedder
from rsmamba.infer.predict import Predictor, load_predictor
from rsmamba.infer.report import MapReport
from rsmamba.infer.run import map_scene

__all__ = [
    "EmbedReport",
    "Embedder",
    "MapReport",
    "Predictor",
    "embed_scene",
    "load_embedder",
    "load_predictor",
    "map_scene",
]

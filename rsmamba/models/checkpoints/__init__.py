"""Weights in and out: published files to our names, safe reading, loading with coverage."""

from rsmamba.models.checkpoints.conversion import ConversionReport, convert_file
from rsmamba.models.checkpoints.loading import LoadReport, load_backbone
from rsmamba.models.checkpoints.published import Source, convert
from rsmamba.models.checkpoints.writing import save_safetensors
from rsmamba.weights_file import read_checkpoint, read_spec

__all__ = [
    "ConversionReport",
    "LoadReport",
    "Source",
    "convert",
    "convert_file",
    "load_backbone",
    "read_checkpoint",
    "read_spec",
    "save_safetensors",
]

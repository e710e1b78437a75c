"""What a run's result depends on: the scene and the model, told by sizes, times and hashes."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsmamba.data.splits import sha256
from rsmamba.gis.raster import RasterGrid
from rsmamba.infer.predict import Model, Predictor


def source_identity(path: str | Path, grid: RasterGrid, bands: int) -> dict[str, Any]:
    """A scene as JSON values: for files also size and time of change; a URL cannot be asked."""
    identity: dict[str, Any] = {
        "path": str(path),
        "size": [grid.width, grid.height],
        "bands": bands,
        "transform": list(grid.transform[:6]),
    }
    file = Path(path)
    if file.is_file():
        stat = file.stat()
        identity |= {"path": str(file.resolve()), "bytes": stat.st_size, "mtime": stat.st_mtime_ns}
    return identity


def model_identity(model: "Model | Predictor", predictor: Predictor) -> dict[str, Any] | None:
    """A model as JSON values; None for a function, of which only its name is known."""
    spec = None
    if predictor.spec is not None:
        spec = hashlib.sha256(predictor.spec.to_json().encode()).hexdigest()
    if isinstance(model, str | Path):
        return {"spec": spec, "weights": sha256(Path(model))}
    if isinstance(model, nn.Module):
        weights = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {"spec": spec, "weights": weights.hexdigest()}
    return None

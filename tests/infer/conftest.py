from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from rsmamba.spec import ModelSpec

NORTH_UP = Affine(10.0, 0.0, 300000.0, 0.0, -10.0, 5000000.0)


@pytest.fixture
def make_scene(tmp_path: Path) -> Callable[..., Path]:
    """Write (C, H, W) pixels as a GeoTIFF."""

    def make(
        pixels,
        name="scene.tif",
        *,
        crs="EPSG:32633",
        transform=NORTH_UP,
        nodata=None,
        mask=None,
        alpha=False,
        names=None,
        **options,
    ):
        pixels = np.asarray(pixels)
        count, height, width = pixels.shape
        path = tmp_path / name
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path,
                "w",
                driver="GTiff",
                height=height,
                width=width,
                count=count,
                dtype=pixels.dtype,
                crs=crs,
                transform=transform,
                nodata=nodata,
                **options,
            ) as target,
        ):
            if alpha:
                target.colorinterp = [ColorInterp.gray] * (count - 1) + [ColorInterp.alpha]
            if names:
                target.descriptions = names
            target.write(pixels)
            if mask is not None:
                target.write_mask(mask)
        return path

    return make


def spec(**changes) -> ModelSpec:
    """A spec of three bands and three classes."""
    values = {
        "task": "segmentation",
        "task_class": "rsmamba.tasks.SemanticSegmentation",
        "task_kwargs": {},
        "architecture": "none",
        "bands": ("red", "green", "blue"),
        "mean": (10.0, 20.0, 30.0),
        "std": (2.0, 4.0, 5.0),
        "classes": ("water", "field", "wood"),
    }
    return ModelSpec(**(values | changes))


def brightest(images: torch.Tensor) -> torch.Tensor:
    """Scores of three classes: the share of each of three bands."""
    return images / images.sum(dim=1, keepdim=True).clamp_min(1e-6)


def leftovers(folder: Path) -> list[str]:
    """Files in a folder, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())

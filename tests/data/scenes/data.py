"""Fake scenes: small GeoTIFFs on one grid, with polygons and masks that agree."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from affine import Affine

CRS = "EPSG:32636"
#: Upper left corner of the first scene, in metres; pixels are one metre.
EAST, NORTH = 500_000.0, 40_000.0


def write(
    path: Path,
    pixels: np.ndarray,
    east: float = EAST,
    north: float = NORTH,
    crs: str | None = CRS,
    transform: Affine | None = None,
    **profile,
) -> Path:
    """Write (C, H, W) as a GeoTIFF with pixels of one metre."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=pixels.dtype,
        crs=crs,
        transform=transform or Affine(1, 0, east, 0, -1, north),
        **profile,
    ) as dst:
        dst.write(pixels)
    return path


def noise(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """Random bytes from 1 to 254."""
    return np.random.default_rng(seed).integers(1, 255, (bands, height, width), np.uint8)


def make(root: Path, rows: int = 2, cols: int = 3, size: int = 64) -> Path:
    """A grid of touching scenes, and polygons of two kinds.

    Scene r, c holds a "house" that fills its pixels [8:24, 8:40] and a "shed" in [40:48, 40:48].
    """
    shapes, kinds = [], []
    for r in range(rows):
        for c in range(cols):
            east, north = EAST + c * size, NORTH - r * size
            write(root / "images" / f"s{r}{c}.tif", noise(size, size, seed=10 * r + c), east, north)
            shapes.append(shapely.box(east + 8, north - 24, east + 40, north - 8))
            shapes.append(shapely.box(east + 40, north - 48, east + 48, north - 40))
            kinds += ["house", "shed"]
    labels = gpd.GeoDataFrame({"kind": kinds, "code": range(len(kinds))}, geometry=shapes, crs=CRS)
    labels.to_file(root / "labels.gpkg")
    return root


def expected_mask(size: int = 64) -> np.ndarray:
    """Classes (background, house, shed) of every scene that :func:`make` writes."""
    mask = np.zeros((size, size), np.int64)
    mask[8:24, 8:40] = 1
    mask[40:48, 40:48] = 2
    return mask

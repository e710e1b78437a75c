"""Pixel grids: coordinates of pixels, and whether two rasters have the same ones."""

from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray

from rsmamba.errors import GridMismatchError

#: Largest offset of a corner that still counts as the same grid, in pixels.
_TOLERANCE = 0.01


def require_same_grid(other: Any, source: Any, remedy: str) -> None:
    """Refuse a raster that is not on another's grid.

    Args:
        other: Open raster to check.
        source: Open raster whose grid it must have.
        remedy: What to do about it.

    Raises:
        GridMismatchError: If CRS, size or transform differ.
    """
    if other.crs != source.crs:
        differs = f"it is in {crs_name(other)}, the map in {crs_name(source)}"
    elif (other.width, other.height) != (source.width, source.height):
        differs = (
            f"it has {other.width} x {other.height} pixels, the map {source.width} x "
            f"{source.height}"
        )
    elif (offset := grid_offset(other, source)) > _TOLERANCE:
        differs = f"its pixels lie up to {offset:.3g} pixels beside those of the map"
    else:
        return
    raise GridMismatchError(
        f"{other.name} is not on the grid of {source.name}: {differs}; {remedy}"
    )


def grid_offset(other: Any, source: Any) -> float:
    """Largest distance between the same corner of two rasters of one size, in pixels."""
    back = ~source.transform
    corners = [(c, r) for c in (0, source.width) for r in (0, source.height)]
    moved = [back @ (other.transform @ corner) for corner in corners]
    return float(np.abs(np.subtract(moved, corners)).max())


def transform_points(transform: Any, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) points, each x and y, by an affine transform: pixel (column, row) to map, say."""
    a, b, c, d, e, f = transform[:6]
    x, y = points[:, 0], points[:, 1]
    return np.stack([c + a * x + b * y, f + d * x + e * y], axis=1)


def crs_name(source: Any) -> str:
    """Short name of the CRS of an open raster."""
    if not source.crs:
        return "no coordinate reference system"
    code = source.crs.to_epsg()
    return f"EPSG:{code}" if code else f"{pyproj.CRS.from_wkt(source.crs.to_wkt()).name!r}"

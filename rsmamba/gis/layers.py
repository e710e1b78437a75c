"""Polygons of vector files, on the pixel grid of a map."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataSourceError
from pyproj.exceptions import ProjError
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.windows import Window

from rsmamba.errors import CRSError, DataNotFoundError, ImageReadError, LabelError, one_line
from rsmamba.gis.grids import transform_points

# An edge of a polygon is bent in reprojection so many times over the width of the map.
_BENDS = 256


class PixelShapes:
    """Polygons in the pixel coordinates of a map, found by window.

    Args:
        polygons: Polygons in the CRS of the map.
        source: The open map.
    """

    def __init__(self, polygons: Iterable[shapely.Geometry], source: Any) -> None:
        back = ~source.transform
        self.shapes = np.array(list(polygons), dtype=object)
        self.shapes = shapely.transform(self.shapes, lambda xy: transform_points(back, xy))
        self._tree = shapely.STRtree(self.shapes)

    def within(self, window: Window) -> NDArray[np.int64]:
        """Numbers of the polygons that reach into a window, in the order of the layer."""
        left, top = window.col_off, window.row_off
        return np.sort(
            self._tree.query(shapely.box(left, top, left + window.width, top + window.height))
        )

    def mask(self, number: int, window: Window) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
        """The part of a window that a polygon's bounds fill, and its pixels there."""
        low_x, low_y, high_x, high_y = self.shapes[number].bounds
        left, top = max(0, int(low_x) - window.col_off), max(0, int(low_y) - window.row_off)
        right = min(window.width, int(np.ceil(high_x)) - window.col_off)
        bottom = min(window.height, int(np.ceil(high_y)) - window.row_off)
        part = slice(top, max(top, bottom)), slice(left, max(left, right))
        if bottom <= top or right <= left:
            return part, np.zeros((max(0, bottom - top), max(0, right - left)), dtype=bool)
        burnt = rasterize(
            [self.shapes[number]],
            out_shape=(bottom - top, right - left),
            transform=Affine.translation(window.col_off + left, window.row_off + top),
            dtype=np.uint8,
        )
        return part, burnt > 0


def read_layer(path: str | Path, source: Any) -> geopandas.GeoDataFrame:
    """Polygons of a vector file in the CRS of an open map; invalid ones are repaired.

    Edges are bent before they are reprojected: a straight line in one CRS is a curve in another.

    Raises:
        DataNotFoundError: If there is no such file.
        ImageReadError: If it cannot be read.
        CRSError: If it, or the map, has no CRS, or there is no way from one to the other.
        LabelError: If it holds other geometries than polygons.
    """
    if not Path(path).exists():
        raise DataNotFoundError(f"{path}: no such file; check the path")
    try:
        if Path(path).suffix.lower() == ".parquet":
            layer = geopandas.read_parquet(path)
        else:
            layer = geopandas.read_file(path)
    except (DataSourceError, ValueError, OSError) as error:
        raise ImageReadError(
            f"{path}: no vector layer that GDAL can read ({one_line(error)})"
        ) from error
    if not isinstance(layer, geopandas.GeoDataFrame):
        raise LabelError(f"{path} is a table without geometries: name a layer of polygons")
    if layer.crs is None or source.crs is None:
        missing = path if layer.crs is None else source.name
        raise CRSError(
            f"{missing} has no coordinate reference system: assign one (gdal_edit.py or ogr2ogr "
            "-a_srs)"
        )
    layer = layer[~(layer.geometry.isna() | layer.geometry.is_empty)]
    if kinds := set(layer.geom_type) - {"Polygon", "MultiPolygon"}:
        raise LabelError(f"{path} must hold polygons, it has {', '.join(sorted(kinds))}")
    layer = layer.set_geometry(layer.geometry.make_valid(method="structure"))
    crs = pyproj.CRS.from_wkt(source.crs.to_wkt())
    if pyproj.CRS(layer.crs).equals(crs, ignore_axis_order=True):
        return layer
    try:
        step = _step(source, layer.crs)
        placed = layer.set_geometry(layer.geometry.segmentize(step)).to_crs(crs)
    except ProjError as error:
        raise CRSError(f"{path} cannot be brought to {source.crs}: {one_line(error)}") from error
    # what has no place in the CRS of the map is not on the map
    return placed[np.isfinite(placed.bounds.to_numpy()).all(axis=1)]


def _step(source: Any, crs: Any) -> float:
    """Longest edge in a CRS that is kept straight: a small share of the extent of the map."""
    middle = source.transform @ (source.width / 2, source.height / 2)
    corner = source.transform @ (0, 0)
    way = pyproj.Transformer.from_crs(source.crs.to_wkt(), crs, always_xy=True)
    x, y = way.transform([middle[0], corner[0]], [middle[1], corner[1]], errcheck=True)
    # beside the antimeridian the distance is too long, and the edges only less bent
    distance = float(np.hypot(x[1] - x[0], y[1] - y[0]))
    return max(2 * distance / _BENDS, 1e-9)


def columns(layer: geopandas.GeoDataFrame) -> str:
    """Names of the attributes, for people."""
    return ", ".join(c for c in layer.columns if c != layer.geometry.name) or "none"

"""Footprints: where a raster lies, in longitude and latitude, valid at the antimeridian and poles.

GeoJSON's rules (RFC 7946, https://www.rfc-editor.org/rfc/rfc7946): edges are straight in longitude
and latitude (3.1.1); what crosses the antimeridian is cut there into a MultiPolygon (3.1.9), and
its bounding box then has a west greater than its east (5.2).
"""

import math
from collections.abc import Iterable

import numpy as np
import pyproj
import shapely
import shapely.affinity
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from rsmamba.gis.raster import RasterGrid

Floats = NDArray[np.float64]

# decimals of a degree: about a millimetre, and coarser than PROJ's rounding
_DECIMALS = 8
_GRAIN = 10.0**-_DECIMALS
# longest step in longitude between two points of an outline: tells one way round from the other
_STEP = 20.0
# how far an outline may stray from the true edge, as a share of the raster's diagonal, and of its
# shorter side
_STRAY, _STRAY_SHORT = 1e-4, 0.01
# halvings of a quarter of a side, down to where float64 ends
_HALVINGS = 40
# points after which an outline is fine enough, whatever a projection's inverse does
_MOST = 10_000
# shrinks an outline whose edge runs through a pole, where longitude is undefined
_SHRINK = 1e-7
# a piece narrower than this share of the whole is rounding: a map of the world that ends at 180
_SLIVER = 1e-6
# cells per side of a raster that does not lie on Earth throughout; odd, so that a pole in the
# raster's centre is inside a cell
_CELLS = 63


class _Locator:
    """Pixel coordinates of a grid to longitude and latitude (WGS 84).

    Raises:
        ProjError: If the CRS has no way there.
    """

    def __init__(self, grid: RasterGrid) -> None:
        crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        self._transformer = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        self._affine = grid.transform[:6]

    def __call__(self, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Longitude and latitude of positions in pixels; infinite where there is no such place."""
        a, b, c, d, e, f = self._affine
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        lon, lat = self._transformer.transform(x, y)
        return np.asarray(lon), np.asarray(lat)


def footprint(grid: RasterGrid) -> Polygon | MultiPolygon | None:
    """Outline of a raster in longitude and latitude (WGS 84), longitudes from -180 to 180.

    Curved edges get as many points as they need to stay within a ten-thousandth of the raster's
    diagonal. A raster that crosses the antimeridian is cut there; one that encloses a pole reaches
    it along a line of latitude 90. Of a raster that leaves the Earth (the corners of a world map)
    the part on Earth is outlined, coarsely.

    Args:
        grid: Size and georeferencing; any orientation, any CRS.

    Returns:
        A valid polygon or multipolygon with counter-clockwise shells; None for a local CRS.
    """
    try:
        locate = _Locator(grid)
    except ProjError:
        return None
    mirrored = grid.transform.determinant > 0  # south-up
    ring = _outline(locate, grid.height, grid.width)
    if ring is not None:
        parts = _cut(_unroll(*ring, mirrored))
    else:
        parts = [part for cell in _cells(locate, grid) for part in _cut(_unroll(*cell, mirrored))]
    return _tidy(parts)


def bounding_box(geometries: Iterable[BaseGeometry]) -> list[float]:
    """West, south, east and north of footprints, as GeoJSON has them: west > east across 180.

    The box is the narrowest on the circle of longitudes that holds all of them; from -180 to 180 if
    they leave no gap.

    Args:
        geometries: At least one footprint, see :func:`footprint`.
    """
    bounds = np.array([part.bounds for shape in geometries for part in _polygons(shape)])
    spans = sorted((west, east) for west, _, east, _ in bounds.tolist())
    # the widest gap between spans lies outside the box; the one across 180 comes first
    reach = spans[0][1]
    west, east = spans[0][0], max(high for _, high in spans)
    widest = west + 360 - east
    for low, high in spans[1:]:
        if low - reach > widest:
            widest, west, east = low - reach, low, reach
        reach = max(reach, high)
    if widest < _SLIVER * 360:
        west, east = -180.0, 180.0
    return [west, float(bounds[:, 1].min()), east, float(bounds[:, 3].max())]


def _outline(locate: _Locator, height: int, width: int) -> tuple[Floats, Floats] | None:
    """Longitudes and latitudes along the edge, closed; None if a part of it is not on Earth.

    An edge through a pole jumps in longitude, however finely it is cut; the outline is then taken a
    hair inside the raster.
    """
    for margin in (0.0, _SHRINK):
        lon, lat = _densify(locate, height, width, margin)
        if not np.isfinite(lon + lat).all():
            return None
        if np.abs(_turn(np.diff(lon))).max() <= _STEP:
            break
    return lon, lat


def _densify(locate: _Locator, height: int, width: int, margin: float) -> tuple[Floats, Floats]:
    """The edge with points where it turns or bends; incomplete if one is not on Earth."""

    def at(t: Floats) -> tuple[Floats, Floats]:
        # t runs from 0 to 4, a side each: top, right, bottom, left
        corner = np.array([margin, 1 - margin, 1 - margin, margin, margin])
        cols = np.interp(t, np.arange(5), corner) * width
        rows = np.interp((t - 1) % 4, np.arange(5), corner) * height
        return locate(cols, rows)

    t = np.linspace(0, 4, 17)
    lon, lat = at(t)
    if not np.isfinite(lon + lat).all():
        return lon, lat
    scale = np.cos(np.radians(lat.mean()))
    diagonal = math.hypot(np.ptp(lat), np.ptp(np.unwrap(lon, period=360)) * scale)
    slender = min(height, width) / math.hypot(height, width)
    tolerance = max(_GRAIN, diagonal * min(_STRAY, _STRAY_SHORT * slender))
    for _ in range(_HALVINGS):
        middle = (t[:-1] + t[1:]) / 2
        lon_middle, lat_middle = at(middle)
        if not np.isfinite(lon_middle + lat_middle).all():
            return lon_middle, lat_middle
        step = _turn(np.diff(lon))
        across = _turn(lon_middle - lon[:-1]) - step / 2
        along = lat_middle - (lat[:-1] + lat[1:]) / 2
        stray = np.hypot(across * np.cos(np.radians(lat_middle)), along)
        coarse = np.flatnonzero((np.abs(step) > _STEP) | (stray > tolerance))
        if not len(coarse) or len(t) > _MOST:
            break
        t = np.insert(t, coarse + 1, middle[coarse])
        lon = np.insert(lon, coarse + 1, lon_middle[coarse])
        lat = np.insert(lat, coarse + 1, lat_middle[coarse])
    return lon, lat


def _cells(locate: _Locator, grid: RasterGrid) -> list[tuple[Floats, Floats]]:
    """Closed outlines of the cells of a raster whose corners are all on Earth."""
    ticks = np.linspace(0, 1, _CELLS + 1)
    cols, rows = np.meshgrid(ticks * grid.width, ticks * grid.height)
    lon, lat = locate(cols, rows)
    found = []
    for i in range(_CELLS):
        for j in range(_CELLS):
            ring = [i, i, i + 1, i + 1, i], [j, j + 1, j + 1, j, j]
            if np.isfinite(lon[ring] + lat[ring]).all():
                found.append((lon[ring], lat[ring]))
    return found


def _turn(degrees: Floats) -> Floats:
    """A difference of longitudes the short way round, from -180 to 180."""
    return (degrees + 180) % 360 - 180


def _unroll(lon: Floats, lat: Floats, mirrored: bool) -> BaseGeometry:
    """A closed ring as a polygon with longitudes that run on past 180.

    A ring around a pole ends 360 degrees from its start, and is closed along that pole. Going east
    with the inside on the left, it is the north pole.
    """
    points = np.column_stack([np.unwrap(lon, period=360), lat])
    points = np.round(points, _DECIMALS)
    around = 360.0 * round((points[-1, 0] - points[0, 0]) / 360)
    if around == 0:
        return shapely.make_valid(Polygon(points))
    # In pixels the ring runs clockwise as seen, unless rows go north.
    pole = 90.0 if (around > 0) == mirrored else -90.0
    # The ring may swing back over the meridian that it starts at: three laps, of which the ends,
    # where it is closed, are cut off.
    laps = np.vstack([np.add(points[:-1], (around * lap, 0)) for lap in (-1, 0, 1)])
    closed = Polygon([*laps.tolist(), (laps[-1, 0], pole), (laps[0, 0], pole)])
    middle = 360.0 * round((points[0, 0] + around / 2) / 360)
    return shapely.make_valid(closed) & shapely.box(middle - 180, -90, middle + 180, 90)


def _cut(shape: BaseGeometry) -> list[Polygon]:
    """The pieces between the antimeridians, brought to -180 to 180."""
    if shape.is_empty:
        return []
    low, _, high, _ = shape.bounds
    pieces = []
    for lap in range(math.floor((low + 180) / 360), math.ceil((high - 180) / 360) + 1):
        # a grid of pixel centres may reach beyond the poles
        window = shapely.box(360 * lap - 180, -90, 360 * lap + 180, 90)
        piece = shapely.affinity.translate(shape & window, -360 * lap)
        pieces += [p for p in _polygons(piece) if np.ptp(p.bounds[::2]) > _SLIVER * (high - low)]
    return pieces


def _tidy(parts: list[Polygon]) -> Polygon | MultiPolygon | None:
    """One valid geometry of the pieces, on the grid of kept decimals, shells counter-clockwise."""
    whole = shapely.union_all(parts, grid_size=_GRAIN).simplify(_GRAIN)
    polygons = [shapely.geometry.polygon.orient(part) for part in _polygons(whole)]
    if not polygons:
        return None
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def _polygons(geometry: BaseGeometry) -> list[Polygon]:
    """The polygons with an area in any geometry."""
    parts = shapely.get_parts(geometry).tolist()
    return [
        p
        for part in parts
        for p in (_polygons(part) if hasattr(part, "geoms") else [part])
        if isinstance(p, Polygon) and p.area > 0
    ]

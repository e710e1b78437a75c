"""The regions of a class map as polygons, strip by strip, in memory that does not grow with it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine
from rasterio.windows import Window

from rsmamba.errors import BandMismatchError, ImageReadError, one_line
from rsmamba.gis.raster import GDAL_ERRORS
from rsmamba.gis.seams import Pieces, Seam, from_regions

# pixels of a strip: GDAL and Python hold all the polygons of one strip
_STRIP = 2**20


def regions(
    source: Any, wanted: frozenset[int] | None = None, scores: Any | None = None
) -> Iterator[Pieces]:
    """The 4-connected regions of equal class, whole, however many strips they cross.

    Strips go through GDALPolygonize one by one; what ends on a seam is held until it is complete.
    Memory is that of a strip and of the outlines of the regions that are not yet complete.

    Args:
        source: Open class map: one band of integers.
        wanted: Classes to give; None for all. Nodata is never given.
        scores: Open raster on the same grid with a band per class; None for no scores.

    Yields:
        Regions in pixel coordinates (column, row), a batch per strip and seam.

    Raises:
        ImageReadError: If a raster cannot be read.
        BandMismatchError: If a class has no band among the scores.
    """
    seam = Seam(source.width)
    height = max(1, _STRIP // source.width)
    for top in range(0, source.height, height):
        bottom = min(top + height, source.height)
        window = Window(0, top, source.width, bottom - top)
        classes = _read(source, 1, window)
        mask = np.ones(classes.shape, dtype=bool)
        if source.nodata is not None:
            mask &= classes != source.nodata
        if wanted is not None:
            mask &= np.isin(classes, list(wanted))
        pieces = _pieces(classes, mask, top, scores, window)
        low, high = shapely.bounds(pieces.polygons)[:, [1, 3]].T if len(pieces) else (0, 0)
        is_open = np.zeros(len(pieces), dtype=bool)
        if top > 0:
            is_open |= low == top
        if bottom < source.height:
            is_open |= high == bottom
        yield pieces.take(~is_open)
        yield from_regions(seam.add(pieces.take(is_open), top, bottom))
    yield from_regions(seam.finish(source.height))


def _read(source: Any, band: int, window: Window) -> NDArray[Any]:
    """A window of a band.

    Raises:
        ImageReadError: If it cannot be read.
    """
    try:
        values: NDArray[Any] = source.read(band, window=window)
    except GDAL_ERRORS as error:
        raise ImageReadError(
            f"cannot read {source.name}: {one_line(error)}; the file looks damaged or truncated, "
            "make it again"
        ) from error
    return values


def _pieces(
    classes: NDArray[Any], mask: NDArray[np.bool_], top: int, scores: Any | None, window: Window
) -> Pieces:
    """Polygons of one strip, with the sums of their scores."""
    values: list[int] = []
    rings: list[NDArray[np.float64]] = []
    owner: list[int] = []  # polygon of each ring, shell first
    if mask.any():
        for geometry, value in shapes(classes, mask, transform=Affine.translation(0, top)):
            found = [np.array(ring) for ring in geometry["coordinates"]]
            owner += [len(values)] * len(found)
            rings += found
            values.append(int(value))
    polygons = _build(rings, owner)
    if scores is None or not values:
        nothing = np.zeros(len(values))
        return Pieces(np.array(values, dtype=np.int64), polygons, nothing, nothing.astype(np.int64))
    chosen, known = _scores(scores, classes, mask, window)
    scored = np.rint(_sums(polygons, known, top)).astype(np.int64)
    # scaled after the sum, which is exact for the bytes of a score raster
    scales, offsets = np.array(scores.scales)[values], np.array(scores.offsets)[values]
    sums = _sums(polygons, chosen, top) * scales + scored * offsets
    return Pieces(np.array(values, dtype=np.int64), polygons, sums, scored)


def _build(rings: list[NDArray[np.float64]], owner: list[int]) -> NDArray[np.object_]:
    """Polygons with shells counterclockwise, of closed rings; in one go, for there are many."""
    if not rings:
        return np.zeros(0, dtype=object)
    sizes = [len(ring) for ring in rings]
    number = np.repeat(np.arange(len(rings)), sizes)
    lines: Any = shapely.linearrings(np.concatenate(rings), indices=number)
    return np.asarray(shapely.orient_polygons(shapely.polygons(lines, indices=owner)))


def _scores(
    source: Any, classes: NDArray[Any], mask: NDArray[np.bool_], window: Window
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Stored score of each pixel's class, 0 where it has none, and where it has one."""
    chosen = np.zeros(classes.shape)
    known = np.zeros(classes.shape, dtype=bool)
    for value in np.unique(classes[mask]).tolist():
        if not 0 <= value < source.count:
            raise BandMismatchError(
                f"{source.name} holds the scores of {source.count} classes, but the map has "
                f"class {value}: give the scores that were written with the map"
            )
        band = _read(source, value + 1, window)
        here = mask & (classes == value)
        if (nodata := source.nodatavals[value]) is not None:
            here &= band != nodata
        if band.dtype.kind == "f":
            here &= np.isfinite(band)
        chosen[here] = band[here]
        known |= here
    return chosen, known


def _sums(polygons: NDArray[np.object_], image: NDArray[Any], top: int) -> NDArray[np.float64]:
    """(N,) sum of the pixels (h, w) in each polygon, of which each holds whole pixels.

    Green's theorem: the sum over a region is one over its outline, of the image's integral along
    both axes. No pixel needs to know its polygon.
    """
    height, width = image.shape
    integral = np.zeros((height + 1, width + 1))
    np.cumsum(np.cumsum(image, axis=1, dtype=np.float64), axis=0, out=integral[1:, 1:])
    _, coordinates, (ring_ends, polygon_ends) = shapely.to_ragged_array(polygons)
    points = coordinates.astype(np.int64)
    at = integral[points[:, 1] - top, points[:, 0]]
    vertical = points[1:, 0] == points[:-1, 0]
    parts = np.where(vertical, np.diff(at), 0.0)
    starts = ring_ends[polygon_ends]  # first point of each polygon, and the end of all
    vertical_joint = ring_ends[1:-1] - 1  # from one ring to the next is no edge
    parts[vertical_joint] = 0.0
    owner = np.repeat(np.arange(len(polygons)), np.diff(starts))
    return np.asarray(np.bincount(owner[:-1], weights=parts, minlength=len(polygons)), dtype=float)

"""Outlines of pixels made smooth, without a gap or an overlap between neighbours."""

from collections.abc import Iterable

import numpy as np
import shapely
from numpy.typing import NDArray

from rsmamba.errors import ConfigError
from rsmamba.gis.seams import Pieces

#: Longest outline of all polygons together, in pixels, that is simplified. Borders are simplified
#: jointly, so all polygons are in memory at once, at about 100 bytes per pixel of outline.
LIMIT = 10_000_000


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that means nothing.

    Raises:
        ConfigError: If it is not a positive number of pixels.
    """
    if not 0 < tolerance < float("inf"):
        raise ConfigError(f"simplify must be a number of pixels above 0, got {tolerance}")


def collect(batches: Iterable[Pieces], name: str) -> Pieces:
    """All polygons of a map, as long as there is room for them.

    Args:
        batches: Batches of polygons in pixel coordinates.
        name: The map, for the message.

    Raises:
        ConfigError: If their outlines are longer than :data:`LIMIT`.
    """
    kept: list[Pieces] = []
    length = 0.0
    for batch in batches:
        length += float(shapely.length(batch.polygons).sum())
        if length > LIMIT:
            raise ConfigError(
                f"{name}: the outlines are longer than {LIMIT:,} pixels, too many to simplify "
                "together: leave out --simplify, raise --min-area, choose --classes, or cut the map"
            )
        kept.append(batch)
    return Pieces(
        np.concatenate([b.values for b in kept]),
        np.concatenate([b.polygons for b in kept]),
        np.concatenate([b.scores for b in kept]),
        np.concatenate([b.scored for b in kept]),
    )


def simplify_coverage(polygons: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Polygons in pixel coordinates with fewer corners; borders stay shared.

    Visvalingam and Whyatt's method on the borders, not the polygons (GEOS' coverage
    simplification, https://shapely.readthedocs.io/en/stable/reference/shapely.coverage_simplify.html):
    a border between two polygons is simplified once, and points in which three meet stay.

    Args:
        polygons: (N,) polygons of whole pixels that do not overlap.
        tolerance: In pixels: corners go whose triangle is smaller than its square. Staircases of
            one pixel go from 1 on.

    Returns:
        (N,) valid polygons, each with at least three corners.
    """
    if len(polygons) == 0:
        return polygons
    # A long edge lacks the points where neighbours meet beyond it: GEOS needs them in both.
    dense = shapely.transform(shapely.segmentize(polygons, 1.0), np.rint)
    simple: NDArray[np.object_] = shapely.coverage_simplify(dense, tolerance)
    return simple

"""Outlines from GeoJSON, drawn on the pixel grid of an image, quickly enough for each sample."""

import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError as ProjCRSError
from rasterio.features import is_valid_geom, rasterize
from shapely.geometry import shape

from rsmamba.data.areas import footprint, same_crs
from rsmamba.data.images import Region, Scene
from rsmamba.data.labels import Mask
from rsmamba.errors import CRSError, LabelError, one_line

#: What GeoJSON without a "crs" member is in (RFC 7946, section 4).
GEOJSON_CRS = "OGC:CRS84"


def read_outlines(path: Path, scene: Scene, region: Region) -> Mask:
    """Pixels whose centre lies in a polygon, as 1 in (H, W).

    Args:
        path: GeoJSON; empty, or without features, where there are no polygons.
        scene: The georeferenced image that it belongs to, in any CRS.
        region: Part of the image to draw.

    Raises:
        LabelError: If the file is not GeoJSON.
        CRSError: If its CRS is unknown, or its polygons lie elsewhere.
    """
    assert scene.transform is not None  # noqa: S101 - callers ask for georeferenced images
    assert scene.crs is not None  # noqa: S101
    shapes, crs = _read_polygons(path)
    mask: Mask = np.zeros((region.height, region.width), np.uint8)
    if not shapes:
        return mask
    if not _same(crs, scene.crs):
        shapes = _reproject([shape(s) for s in shapes], crs, scene.crs)
    if shapes:
        transform = scene.transform @ Affine.translation(region.col, region.row)
        # Polygons that intersect themselves are filled by the even-odd rule, as when made valid.
        rasterize(shapes, out=mask, transform=transform)
    if not mask.any():
        _check_place(path, shapes, crs, scene)
    return mask


@lru_cache(maxsize=64)
def _same(a: CRS, b: CRS) -> bool:
    return same_crs(a, b)


def _reproject(shapes: list[shapely.Geometry], crs: CRS, target: CRS) -> list[shapely.Geometry]:
    """Polygons in another CRS; those that it cannot express are left out."""
    parts = gpd.GeoSeries(shapes, crs=crs).make_valid().explode(index_parts=False).to_crs(target)
    finite = np.isfinite(parts.bounds.to_numpy()).all(1)
    return list(parts[finite & (parts.geom_type == "Polygon").to_numpy()])


def _read_polygons(path: Path) -> tuple[list[Any], CRS]:
    """Polygons of a GeoJSON file as they are there, and their CRS."""
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if text.strip() else {"type": "FeatureCollection"}
        if content["type"] != "FeatureCollection":
            raise ValueError(f"a {content['type']}, not a FeatureCollection")
        found = [g for f in content.get("features") or [] if (g := f.get("geometry"))]
        name = ((content.get("crs") or {}).get("properties") or {}).get("name", GEOJSON_CRS)
        polygons = [g for g in found if g["type"] in ("Polygon", "MultiPolygon")]
        valid = [g for g in polygons if is_valid_geom(g)]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise LabelError(
            f"{path}: not readable as GeoJSON ({one_line(error)}); unpack or download it again"
        ) from error
    if len(polygons) < len(found):
        warnings.warn(
            f"{path}: {len(found) - len(polygons)} geometries are no polygons", stacklevel=2
        )
    return valid, _crs(path, str(name))


@lru_cache(maxsize=64)
def _known_crs(name: str) -> CRS:
    return CRS.from_user_input(name)


def _crs(path: Path, name: str) -> CRS:
    try:
        return _known_crs(name)
    except ProjCRSError as error:
        raise CRSError(
            f"{path}: its CRS {name!r} is unknown; correct the file's crs member"
        ) from error


def _check_place(path: Path, shapes: Sequence[Any], crs: CRS, scene: Scene) -> None:
    """Refuse polygons that lie farther from the scene than the scene is wide."""
    own = footprint(scene)
    minx, miny, maxx, maxy = own.bounds
    around = own.buffer(max(maxx - minx, maxy - miny))
    drawn = (s if isinstance(s, shapely.Geometry) else shape(s) for s in shapes)
    if not any(around.intersects(polygon) for polygon in drawn):
        raise CRSError(
            f"{path}: its polygons lie elsewhere than {scene.path.name}; is their CRS "
            f"({crs.to_string()}) right? Correct the file's crs member"
        )

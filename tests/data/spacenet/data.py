"""Fake SpaceNet 1: a raster of small adjoining tiles with the oddities of the real ones."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

#: Degrees to the pixel (0.5 m), and the corner of the north-western tile.
STEP, WEST, NORTH = 4.5e-6, -43.7, -22.9
HEIGHT, WIDTH = 40, 44
#: Pixels that neighbouring tiles share.
SHARED = 1
PREFIX = "AOI_1_RIO_img"
BANDS = {"3band": 3, "8band": 8}
FACTOR = {"3band": 1, "8band": 4}
#: Two buildings that touch: rows and columns (first, end) in pixels of three bands.
BUILDINGS = ((8, 20, 8, 16), (8, 20, 16, 28))
#: Tiles with something special, by number.
ZERO_BYTES, NO_FEATURES, NULLS, BLANK, HALF = 1, 2, 3, 4, 5


def transform(number: int, cols: int) -> Affine:
    """Where a tile lies; numbers run from west to east, then from north to south."""
    row, col = divmod(number, cols)
    x, y = col * (WIDTH - SHARED), row * (HEIGHT - SHARED)
    return Affine(STEP, 0, WEST + x * STEP, 0, -STEP, NORTH - y * STEP)


def rectangle(where: Affine, top: float, bottom: float, left: float, right: float) -> list:
    """Ring of a rectangle of pixels, with heights as in the real files."""
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    return [[*(where @ corner), 0.0] for corner in corners]


def polygon(ring: list) -> dict:
    """A GeoJSON geometry."""
    return {"type": "Polygon", "coordinates": [ring]}


def collection(geometries: list, crs: str | None = "urn:ogc:def:crs:OGC:1.3:CRS84") -> str:
    """A GeoJSON file."""
    content = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": {}, "geometry": g} for g in geometries],
    }
    if crs is not None:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    return json.dumps(content)


def labels(number: int, cols: int) -> str:
    """The GeoJSON of a tile."""
    where = transform(number, cols)
    geometries = [polygon(rectangle(where, *b)) for b in BUILDINGS]
    if number == ZERO_BYTES:
        return ""
    if number == NO_FEATURES:
        return collection([])
    if number == NULLS:
        bowtie = [where @ p for p in ((30, 24), (38, 36), (38, 24), (30, 36), (30, 24))]
        outside = polygon(rectangle(where, -9, -5, 3, 6))
        return collection([None, *geometries, polygon([list(p) for p in bowtie]), outside])
    return collection(geometries)


def write_tile(path: Path, pixels: np.ndarray, where: Affine, crs: str = "EPSG:4326") -> None:
    """A GeoTIFF without a nodata tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    options = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=where, **options) as out:
        out.write(pixels)


def make(root: Path, rows: int = 4, cols: int = 6, product: str = "3band", test: int = 0) -> Path:
    """Write a raster of labelled tiles and some without labels below a folder, and return it."""
    rng = np.random.default_rng(0)
    factor = FACTOR[product]
    base = root / "SN1_buildings"
    for number in range(rows * cols + test):
        part = "train" if number < rows * cols else "test"
        # Widths differ by a pixel, as in the real set.
        size = (HEIGHT // factor, WIDTH // factor - number % 2)
        dtype = np.uint8 if product == "3band" else np.uint16
        pixels = rng.integers(1, 250, (BANDS[product], *size)).astype(dtype)
        if number == BLANK:
            pixels[:] = 0
        if number == HALF:
            pixels[:, :, : size[1] // 2] = 0
        pixels[0, 0, 0] = 0  # one band alone is no sign of nodata
        where = transform(number, cols) @ Affine.scale(factor)
        write_tile(base / part / product / f"{product}_{PREFIX}{number}.tif", pixels, where)
        if part == "train":
            folder = base / "train" / "geojson"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"Geo_{PREFIX}{number}.geojson").write_text(labels(number, cols))
    return root


def archives(source: Path, root: Path, product: str = "3band") -> dict[str, str]:
    """Pack the tiles as they are published; MD5 by name of the archive."""
    sums = {}
    for part, name, content in (
        ("train", product, product),
        ("train", "geojson_buildings", "geojson"),
        ("test", product, product),
    ):
        path = root / f"SN1_buildings/{part}/SN1_buildings_{part}_AOI_1_Rio_{name}.tar.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as out:
            out.add(source / "SN1_buildings" / part / content, content)
        sums[path.name] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return sums

"""Class maps and score rasters as Cloud Optimized GeoTIFFs: georeferencing, tags, colour table.

A raster is written in two steps. Pixels go block by block into plain GeoTIFFs; when all are there,
a virtual raster joins them and GDAL's own COG driver copies it. That driver keeps colour table,
tags, nodata and the float64 transform as they are, and orders the file as the COG layout wants.
"""

import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import pyproj
import rasterio
import rasterio.shutil
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window

from rsmamba import __version__
from rsmamba.errors import ConfigError, OutputNotWritableError
from rsmamba.files import check_output
from rsmamba.gis.style import CLASS_NODATA, colour_table

#: Tag of a class map that lists the class names by pixel value, as JSON.
CLASS_NAMES_TAG = "class_names"
#: Score rasters store round(score * 254), so that 255 stays free for nodata.
SCORE_SCALE = 1 / 254
#: What rasterio raises: its own errors, and GDAL's where it does not translate them (copies).
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
_BLOCK = 512
# share by which the metres of a projection may differ from those on the ground
_TRUE_TO = 0.01


@dataclass(frozen=True)
class RasterGrid:
    """Where the pixels of a raster lie.

    Attributes:
        height: Number of rows.
        width: Number of columns.
        crs: Coordinate reference system.
        transform: Pixel (column, row) to CRS coordinates, float64; may be rotated or south-up.
    """

    height: int
    width: int
    crs: CRS
    transform: Affine

    def gsd(self) -> float | None:
        """Metres to the pixel, mean of both directions at the centre; None for a local CRS.

        Those of a projected CRS where they are true to a percent; else they are measured on the
        WGS 84 ellipsoid: a web map's stretched metres are no ground metres.
        """
        cols = self.width / 2 + np.array([0.0, 1.0, 0.0])
        rows = self.height / 2 + np.array([0.0, 0.0, 1.0])
        a, b, c, d, e, f = self.transform[:6]
        try:
            to_geographic = pyproj.Transformer.from_crs(
                pyproj.CRS.from_wkt(self.crs.to_wkt()), "EPSG:4326", always_xy=True
            )
            lon, lat = to_geographic.transform(a * cols + b * rows + c, d * cols + e * rows + f)
        except ProjError:
            return None
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return None
        geod = pyproj.Geod(ellps="WGS84")
        across, down = (geod.inv(lon[0], lat[0], lon[i], lat[i])[2] for i in (1, 2))
        ground = float(across + down) / 2
        if not self.crs.is_projected:
            return ground
        a, b, _, d, e, _ = self.transform[:6]
        nominal = (math.hypot(a, d) + math.hypot(b, e)) / 2 * self.crs.linear_units_factor[1]
        return nominal if abs(nominal / ground - 1) < _TRUE_TO else ground

    def area_km2(self) -> float | None:
        """Area on the WGS 84 ellipsoid, in km²; None where the CRS has no way there.

        The grid is cut into 16 x 16 pieces whose geodesic areas are added up, so that it holds at
        any size, near the poles and across the antimeridian.
        """
        cols, rows = np.meshgrid(np.linspace(0, self.width, 17), np.linspace(0, self.height, 17))
        a, b, c, d, e, f = self.transform[:6]
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        try:
            to_geographic = pyproj.Transformer.from_crs(
                pyproj.CRS.from_wkt(self.crs.to_wkt()), "EPSG:4326", always_xy=True
            )
            lon, lat = to_geographic.transform(x, y)
        except ProjError:
            return None
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            return None
        geod = pyproj.Geod(ellps="WGS84")
        corners = ((0, 0), (0, 1), (1, 1), (1, 0))
        area = 0.0
        for i in range(16):
            for j in range(16):
                lons = [lon[i + a, j + b] for a, b in corners]
                lats = [lat[i + a, j + b] for a, b in corners]
                area += abs(geod.polygon_area_perimeter(lons, lats)[0])
        return area / 1e6


def check_raster_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a raster output that cannot be written, before any work is done for it.

    Args:
        path: GeoTIFF that is to be written.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        OutputExistsError: If it exists and may not be replaced.
        OutputNotWritableError: If its folder is missing or not writable, or it is remote.
        ConfigError: If its name does not end in .tif or .tiff.
    """
    text = str(path)
    if "://" in text or text.startswith("/vsi"):
        raise OutputNotWritableError(
            f"cannot write {text}: renaming is not atomic on remote storage; write to a local file "
            "and copy it (rio cp, aws s3 cp, gsutil cp)"
        )
    if Path(path).suffix.lower() not in {".tif", ".tiff"}:
        raise ConfigError(f"cannot write {text}: the output is a GeoTIFF, end its name in .tif")
    return check_output(path, overwrite=overwrite)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` for everything unfinished, removed in the end.

    It lies on the same file system as ``path``, so that a finished file moves there by a rename.

    Raises:
        OutputNotWritableError: If the folder cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputNotWritableError(
            f"cannot write {path}: {error.strerror} in folder {path.parent}"
        ) from error
    with folder as name:
        yield Path(name)


def publish(finished: Path, path: Path) -> None:
    """Give a finished file its name, atomically, with its bytes on the disk."""
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    finished.replace(path)


@dataclass(frozen=True)
class Layer:
    """What a uint8 raster with nodata 255 holds, and how it is dressed.

    Attributes:
        descriptions: One name per band.
        overviews: GDAL's resampling of the overviews, e.g. ``"mode"`` for classes.
        tags: Tags of the dataset.
        colours: Pixel value to (red, green, blue, alpha); empty for none.
        scale: Factor from stored values to what they mean; None for 1.
    """

    descriptions: tuple[str, ...]
    overviews: str
    tags: Mapping[str, str]
    colours: Mapping[int, tuple[int, int, int, int]]
    scale: float | None = None


def class_layer(classes: Sequence[str], colours: Sequence[str], tags: Mapping[str, str]) -> Layer:
    """Class indices, with class names and a colour table.

    Args:
        classes: Class names by pixel value.
        colours: ``#rrggbb`` per class; empty for the default palette.
        tags: Further tags.
    """
    named = {CLASS_NAMES_TAG: json.dumps(list(classes))}
    table = colour_table(len(classes), colours)
    return Layer(("class",), "mode", {**tags, **named}, table)


def score_layer(names: Sequence[str], tags: Mapping[str, str]) -> Layer:
    """Values from 0 to 1, one band per name, stored as round(254 * value)."""
    return Layer(tuple(names), "average", tags, {}, SCORE_SCALE)


@contextmanager
def part(path: Path, count: int, height: int, width: int) -> Iterator[Any]:
    """A part of a layer, to be written by windows; :func:`write_mosaic` joins parts.

    It has its name when the block ends without an error, and is not there otherwise.

    Args:
        path: GeoTIFF to write, without georeferencing.
        count: Bands.
        height: Rows.
        width: Columns.

    Yields:
        rasterio's dataset writer.
    """
    unfinished = path.with_name(f".{path.name}")
    try:
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.open(
                unfinished,
                "w",
                driver="GTiff",
                height=height,
                width=width,
                count=count,
                dtype="uint8",
                nodata=CLASS_NODATA,
                tiled=True,
                blockxsize=_BLOCK,
                blockysize=_BLOCK,
                interleave="band",
                compress="deflate",
                zlevel=1,  # short-lived: speed before size
                sparse_ok=True,
                bigtiff="if_safer",
            ) as target,
        ):
            yield target
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_mosaic(
    path: Path,
    grid: RasterGrid,
    layer: Layer,
    parts: Iterable[tuple[Path, tuple[int, int, int, int]]],
) -> None:
    """Write a GDAL virtual raster (VRT) that joins files; what none covers reads as nodata.

    Args:
        path: ``.vrt`` to write, in the folder of the files.
        grid: Size and georeferencing.
        layer: What it holds.
        parts: Files and where they lie: row, column, height, width.
    """
    root = Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    SubElement(root, "SRS", dataAxisToSRSAxisMapping="1,2").text = grid.crs.to_wkt()
    a, b, c, d, e, f = grid.transform[:6]
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in (c, a, b, f, d, e))
    metadata = SubElement(root, "Metadata")
    version = {"TIFFTAG_SOFTWARE": f"rsmamba {__version__}", "rsmamba_version": __version__}
    for key, value in {**version, **layer.tags}.items():
        SubElement(metadata, "MDI", key=key).text = value
    files = list(parts)
    for number, description in enumerate(layer.descriptions, 1):
        band = SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number))
        SubElement(band, "Description").text = description
        SubElement(band, "NoDataValue").text = str(CLASS_NODATA)
        _dress(band, layer, number)
        for file, (row, col, height, width) in files:
            source = SubElement(band, "SimpleSource")
            SubElement(source, "SourceFilename", relativeToVRT="1").text = file.name
            SubElement(source, "SourceBand").text = str(number)
            size = {"xSize": str(width), "ySize": str(height)}
            SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
            SubElement(source, "DstRect", {"xOff": str(col), "yOff": str(row), **size})
    path.write_bytes(tostring(root, encoding="utf-8"))


def _dress(band: Element, layer: Layer, number: int) -> None:
    """Colour table, scale and interpretation of a band of a VRT."""
    if layer.colours:
        SubElement(band, "ColorInterp").text = "Palette"
        table = SubElement(band, "ColorTable")
        transparent = (0, 0, 0, 0)
        for value in range(CLASS_NODATA + 1):
            c1, c2, c3, c4 = layer.colours.get(value, transparent)
            SubElement(table, "Entry", c1=str(c1), c2=str(c2), c3=str(c3), c4=str(c4))
    else:  # three or four classes are not a picture
        SubElement(band, "ColorInterp").text = "Gray" if number == 1 else "Undefined"
    if layer.scale is not None:
        SubElement(band, "Offset").text = "0"
        SubElement(band, "Scale").text = repr(layer.scale)


def read_class_names(source: Any) -> tuple[str, ...] | None:
    """Class names by pixel value of an open class map; None if it does not carry them."""
    text = source.tags().get(CLASS_NAMES_TAG)
    return tuple(json.loads(text)) if text else None


def write_cog(source: Path, path: Path, *, overviews: str) -> None:
    """Copy a raster to a Cloud Optimized GeoTIFF with overviews and band statistics.

    Args:
        source: Raster to copy.
        path: Name of the copy.
        overviews: GDAL's resampling of the overviews, e.g. ``"mode"`` for classes.
    """
    rasterio.shutil.copy(
        source,
        path,
        driver="COG",
        compress="deflate",
        blocksize=_BLOCK,
        overview_resampling=overviews,
        statistics="yes",
        bigtiff="if_safer",
        num_threads="all_cpus",
    )


def count_valid(path: Path) -> int:
    """Number of values that are not nodata, over all bands of a uint8 raster of ours."""
    with rasterio.open(path, num_threads="all_cpus") as source:
        return sum(
            int(np.count_nonzero(source.read(window=window) != CLASS_NODATA))
            for window in row_windows(source)
        )


def row_windows(source: Any) -> Iterator[Window]:
    """An open raster in strips as high as the internal tiles of ours."""
    for top in range(0, source.height, _BLOCK):
        yield Window(0, top, source.width, min(_BLOCK, source.height - top))

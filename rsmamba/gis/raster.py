"""Class maps and score rasters as Cloud Optimized GeoTIFFs: georeferencing, tags, colour table.

A raster is written in two steps. Pixels go block by block into a plain tiled GeoTIFF in a scratch
folder; when all are there, GDAL's own COG driver copies it. That driver keeps colour table, tags,
nodata and the float64 transform as they are, and orders the file as the COG layout wants.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import rasterio.shutil
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
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


def create_tiled(
    path: Path,
    grid: RasterGrid,
    *,
    count: int,
    tags: Mapping[str, str],
    descriptions: Sequence[str],
) -> Any:
    """Open a new tiled uint8 GeoTIFF for writing by window; unwritten tiles read as nodata.

    Args:
        path: File to create.
        grid: Size and georeferencing.
        count: Number of bands.
        tags: Tags of the dataset.
        descriptions: One per band.

    Returns:
        rasterio's dataset writer.
    """
    target = rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=grid.height,
        width=grid.width,
        count=count,
        dtype="uint8",
        crs=grid.crs,
        transform=grid.transform,
        nodata=CLASS_NODATA,
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        interleave="band",
        compress="deflate",
        zlevel=1,  # short-lived: speed before size
        sparse_ok=True,
        bigtiff="if_safer",
    )
    target.update_tags(
        TIFFTAG_SOFTWARE=f"rsmamba {__version__}", rsmamba_version=__version__, **tags
    )
    target.descriptions = tuple(descriptions)
    return target


def make_class_map(target: Any, classes: Sequence[str], colours: Sequence[str]) -> None:
    """Give a new uint8 raster the colour table and the class names of a class map.

    Args:
        target: rasterio dataset open for writing, no pixels written yet.
        classes: Class names by pixel value.
        colours: ``#rrggbb`` per class; empty for the default palette.
    """
    target.write_colormap(1, colour_table(len(classes), colours))
    target.update_tags(**{CLASS_NAMES_TAG: json.dumps(list(classes))})


def make_score_raster(target: Any) -> None:
    """Declare scale and offset of a new uint8 raster that holds scores from 0 to 1."""
    target.scales = (SCORE_SCALE,) * target.count
    target.offsets = (0.0,) * target.count
    # three or four classes are not a picture
    target.colorinterp = (ColorInterp.gray,) + (ColorInterp.undefined,) * (target.count - 1)


def read_class_names(source: Any) -> tuple[str, ...] | None:
    """Class names by pixel value of an open class map; None if it does not carry them."""
    text = source.tags().get(CLASS_NAMES_TAG)
    return tuple(json.loads(text)) if text else None


def write_cog(tiled: Path, path: Path, *, overviews: str) -> None:
    """Copy a closed GeoTIFF to a Cloud Optimized GeoTIFF with overviews and band statistics.

    Args:
        tiled: GeoTIFF to copy.
        path: Name of the copy.
        overviews: GDAL's resampling of the overviews, e.g. ``"mode"`` for classes.
    """
    rasterio.shutil.copy(
        tiled,
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

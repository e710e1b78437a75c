"""Many class maps as one: a virtual raster (VRT) over their files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import SubElement, parse

import numpy as np
import rasterio
from rasterio.transform import Affine

from rsmamba.errors import (
    ConfigError,
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
    one_line,
)
from rsmamba.files import atomic_path, check_output
from rsmamba.gis.raster import (
    GDAL_ERRORS,
    Layer,
    RasterGrid,
    class_layer,
    read_class_names,
    write_mosaic,
)
from rsmamba.gis.style import CLASS_NODATA
from rsmamba.spec import SPEC_KEY

# how far a pixel's corner may lie from where the common grid has it, in pixels
_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Map:
    """What a mosaic needs to know of a class map."""

    path: Path
    grid: RasterGrid
    names: tuple[str, ...]
    layer: Layer


def mosaic_vrt(maps: Iterable[str | Path], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a virtual raster over class maps of one grid, which QGIS and GDAL open as one map.

    It keeps classes, colours and nodata. Where maps overlap, the last one with a class there shows.
    The files are found relative to the mosaic: move them together.

    Args:
        maps: Class maps, as :func:`rsmamba.infer.map_scene` writes them, of one CRS, pixel size and
            alignment, and with the same classes.
        path: ``.vrt`` file.
        overwrite: Replace an existing file.

    Returns:
        The path.

    Raises:
        ConfigError: If the name does not end in .vrt.
        DataNotFoundError: If there is no map, or a file is missing.
        ImageReadError: If GDAL cannot read a file.
        LabelError: If a file is no class map, or has other classes than the first.
        CRSError: If a map is in another CRS than the first.
        GridMismatchError: If a map has another pixel size, orientation or alignment.
        OutputExistsError: If the file exists.
        OutputNotWritableError: If its folder is missing or cannot be written.
    """
    if Path(path).suffix.lower() != ".vrt":
        raise ConfigError(
            f"cannot write {path}: a mosaic is a virtual raster, end its name in .vrt"
        )
    path = check_output(path, overwrite=overwrite)
    found = [_inspect(Path(file)) for file in maps]
    if not found:
        raise DataNotFoundError(f"no maps for {path}: give at least one class map (.tif)")
    first = found[0]
    places = np.array([_place(other, first) for other in found])  # row, column, height, width
    top, left = places[:, :2].min(axis=0).tolist()
    bottom, right = (places[:, :2] + places[:, 2:]).max(axis=0).tolist()
    grid = RasterGrid(
        bottom - top,
        right - left,
        first.grid.crs,
        first.grid.transform @ Affine.translation(left, top),
    )
    places[:, :2] -= top, left
    tags = {
        key: value
        for key, value in first.layer.tags.items()
        if all(other.layer.tags.get(key) == value for other in found)
    }
    layer = Layer(first.layer.descriptions, first.layer.overviews, tags, first.layer.colours)
    parts = [(m.path, (r, c, h, w)) for m, (r, c, h, w) in zip(found, places.tolist(), strict=True)]
    with atomic_path(path) as temporary:
        write_mosaic(temporary, grid, layer, parts)
        _let_overlap(temporary, [m.path for m in found])
    return path


def _inspect(path: Path) -> _Map:
    """Grid, classes and dress of a class map."""
    if not path.exists():
        raise DataNotFoundError(f"{path}: no such map; check the path, or map the scene first")
    try:
        with rasterio.open(path) as source:
            names = read_class_names(source)
            kind = source.count, source.dtypes[0], source.nodata
            if names is None or kind != (1, "uint8", CLASS_NODATA):
                raise LabelError(
                    f"{path} is no class map of rsmamba (one band of uint8, nodata 255, with class "
                    "names): make it with `rsmamba map`"
                )
            grid = RasterGrid(source.height, source.width, source.crs, source.transform)
            tags = source.tags()
            return _Map(path, grid, names, _layer(source, names, tags))
    except GDAL_ERRORS as error:
        raise ImageReadError(
            f"{path}: no raster that GDAL can read ({one_line(error)}); make it again"
        ) from error


def _layer(source: Any, names: tuple[str, ...], tags: dict[str, str]) -> Layer:
    """The layer as :func:`class_layer` has it, in the colours of the file."""
    try:
        table = source.colormap(1)
    except ValueError:  # a map without one
        table = {}
    colours = ["#" + "".join(f"{c:02x}" for c in table[i][:3]) for i in range(len(names)) if table]
    return class_layer(names, colours, {SPEC_KEY: tags[SPEC_KEY]} if SPEC_KEY in tags else {})


def _place(other: _Map, first: _Map) -> tuple[int, int, int, int]:
    """Row, column, height and width of a map in pixels of the first one's grid.

    Raises:
        CRSError: If it is in another CRS.
        GridMismatchError: If its pixels are not pixels of that grid.
        LabelError: If its classes are others.
    """
    if other.grid.crs != first.grid.crs:
        raise CRSError(
            f"{other.path} is in {other.grid.crs.to_string()}, {first.path} in "
            f"{first.grid.crs.to_string()}: warp it there (gdalwarp -t_srs ... -r near), or make a "
            "mosaic per CRS"
        )
    if other.names != first.names:
        raise LabelError(
            f"{other.path} has the classes {', '.join(other.names)}, {first.path} "
            f"{', '.join(first.names)}: a mosaic needs maps of one model"
        )
    size = np.array([other.grid.width, other.grid.height])
    way = ~first.grid.transform @ other.grid.transform
    start, end = np.array(way @ (0, 0)), np.array(way @ tuple(size.tolist()))
    # also the other two corners, or a transposed map would pass
    sides = np.array([way @ (size[0], 0), way @ (0, size[1])])
    expected = start + np.array([(size[0], 0), (0, size[1])])
    if max(np.abs(end - start - size).max(), np.abs(sides - expected).max()) > _TOLERANCE:
        raise GridMismatchError(
            f"{other.path} has pixels of {_pixel(other.grid)}, {first.path} of "
            f"{_pixel(first.grid)}: warp it to the same (gdalwarp -tr ... -tap -r near)"
        )
    if np.abs(start - np.round(start)).max() > _TOLERANCE:
        shift = ", ".join(f"{v:.3g}" for v in start - np.round(start))
        raise GridMismatchError(
            f"{other.path} lies ({shift}) pixels beside the grid of {first.path}: warp both to one "
            "(gdalwarp -tr ... -tap -r near)"
        )
    col, row = np.round(start).astype(int).tolist()
    return row, col, other.grid.height, other.grid.width


def _pixel(grid: RasterGrid) -> str:
    """Pixel size, and orientation where it is not the usual one."""
    a, b, _, d, e, _ = grid.transform[:6]
    plain = b == d == 0
    return f"{a:.12g} x {e:.12g}" if plain else f"({a:.12g}, {d:.12g}) x ({b:.12g}, {e:.12g})"


def _let_overlap(path: Path, files: list[Path]) -> None:
    """Make the sources of a VRT transparent where they are nodata, and find them in any folder.

    A ComplexSource with NODATA is what gdalbuildvrt writes:
    https://gdal.org/en/stable/drivers/raster/vrt.html
    """
    tree = parse(path)  # noqa: S314 - written a moment ago
    folder = path.absolute().parent
    for source, file in zip(list(tree.iter("SimpleSource")), files, strict=True):
        source.tag = "ComplexSource"
        name = source.find("SourceFilename")
        if name is not None:
            name.text = file.absolute().relative_to(folder, walk_up=True).as_posix()
        SubElement(source, "NODATA").text = str(CLASS_NODATA)
    tree.write(path, encoding="utf-8")

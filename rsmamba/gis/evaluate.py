"""Compare a class map with the truth, as a whole and by area, in bounded memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from rsmamba.errors import (
    ConfigError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
    one_line,
)
from rsmamba.gis.layers import PixelShapes, columns, read_layer
from rsmamba.gis.raster import GDAL_ERRORS, read_class_names
from rsmamba.gis.scores import Evaluation, LeftOut
from rsmamba.gis.truth import UNKNOWN, Truth, open_truth

_BLOCK = 1024
# A VRT may carry Python code: it is never run.
_GDAL_OPTIONS: dict[str, Any] = {"GDAL_CACHEMAX": 64 * 2**20, "GDAL_VRT_ENABLE_PYTHON": "NO"}


def evaluate(
    class_map: str | Path,
    truth: str | Path,
    *,
    attribute: str | None = None,
    outside: str | None = None,
    ignore: Sequence[int] = (255,),
    align: bool = False,
    areas: str | Path | None = None,
    area_name: str | None = None,
) -> Evaluation:
    """Compare a class map with a truth raster or with truth polygons.

    Reads blocks of 1024 px, so memory does not grow with the map; polygons are held in memory. A
    pixel counts if the map has a class there and its true class is known; the others are counted
    in :attr:`Evaluation.left_out`. A polygon covers the pixels whose centres lie in it.

    Args:
        class_map: Single-band raster of class indices; class names are read from its
            ``class_names`` tag (a JSON list) if it has one.
        truth: Raster of class values on the same grid, or a vector layer in any CRS. A raster
            with a ``class_names`` tag of its own is matched by name.
        attribute: Column of the vector layer that holds class names or values; an empty value is
            unknown truth. Without it every polygon is class 1, the rest class 0, and the map must
            have two classes.
        outside: Class outside all polygons. By default these pixels are class 0 without
            ``attribute``, and unknown with it.
        ignore: Values of a truth raster that do not count, beside its nodata.
        align: Warp a truth raster of another grid or CRS by nearest neighbour.
        areas: Vector layer of areas of interest, in any CRS, each evaluated by itself. They may
            overlap.
        area_name: Column of their names; areas of one name are one. None to number them.

    Returns:
        The comparison.

    Raises:
        DataNotFoundError: If a file is missing.
        ImageReadError: If a file cannot be read.
        CRSError: If polygons and map cannot be brought together.
        GridMismatchError: If a truth raster has another grid, or there is no pixel to compare.
        LabelError: If an attribute or a class is unknown, or a file holds no classes or polygons.
        ConfigError: If ``area_name`` is given without ``areas``.
    """
    if area_name is not None and areas is None:
        raise ConfigError("--area-name names a column of --areas FILE: give that too")
    for path in (class_map, truth):
        if not Path(path).exists():
            raise DataNotFoundError(f"{path}: no such file; check the path")
    try:
        with rasterio.Env(**_GDAL_OPTIONS), rasterio.open(class_map) as source:
            classes = class_names(source)
            regions = _Areas(areas, area_name, source) if areas is not None else None
            with open_truth(
                truth,
                source,
                classes,
                attribute=attribute,
                outside=outside,
                ignore=ignore,
                align=align,
            ) as known:
                result = _compare(source, known, classes, regions)
    except GDAL_ERRORS as error:
        raise ImageReadError(
            f"{class_map} or {truth}: damaged or truncated, or no raster ({one_line(error)})"
        ) from error
    if result.pixels == 0:
        raise GridMismatchError(
            f"no pixel of {class_map} has both a class and a known truth in {truth}: do they show "
            "the same place?"
        )
    return result


def class_names(source: Any) -> tuple[str, ...]:
    """Class names of an open class map: its tag, else a name for every value up to the largest.

    Raises:
        LabelError: If the raster is no class map (one uint8 band).
    """
    if source.count != 1 or source.dtypes[0] != "uint8":
        raise LabelError(
            f"{source.name} is no class map: {source.count} band(s) of {source.dtypes[0]}, "
            "expected one of uint8 as `rsmamba map` writes it"
        )
    if names := read_class_names(source):
        return names
    top = 1
    for window in _windows(source.width, source.height):
        values = source.read(1, window=window)
        values = values[values != source.nodata] if source.nodata is not None else values
        top = max(top, int(values.max(initial=0)))
    return tuple(f"class_{i}" for i in range(top + 1))


def _windows(width: int, height: int) -> Iterator[Window]:
    for row in range(0, height, _BLOCK):
        for col in range(0, width, _BLOCK):
            yield Window(col, row, min(_BLOCK, width - col), min(_BLOCK, height - row))


class _Areas:
    """Areas of interest on the grid of the map."""

    def __init__(self, path: str | Path, column: str | None, source: Any) -> None:
        layer = read_layer(path, source)
        if len(layer) == 0:
            raise DataNotFoundError(f"{path}: holds no areas")
        if column is None:
            names = [f"area {n}" for n in range(1, len(layer) + 1)]
        elif column in layer.columns:
            names = [str(name) for name in layer[column]]
        else:
            raise LabelError(f"{path} has no column {column!r}; it has {columns(layer)}")
        self.names = tuple(dict.fromkeys(names))
        parts: dict[str, list[Any]] = {name: [] for name in names}
        for name, polygon in zip(names, layer.geometry, strict=True):
            parts[name].append(polygon)
        # what two polygons of one name cover counts once
        self.shapes = PixelShapes(map(shapely.union_all, parts.values()), source)


class _Counts:
    """Confusion and what was left out, added up."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)
        self.left_out = LeftOut()

    def add(self, expected: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        """Count pixels, (n,) or (h, w) classes; :data:`UNKNOWN` where there is none."""
        known, mapped = expected != UNKNOWN, predicted != UNKNOWN
        both = known & mapped
        count = len(self.confusion)
        pairs = np.bincount(expected[both] * count + predicted[both], minlength=count**2)
        self.confusion += pairs.reshape(count, count)
        self.left_out += LeftOut(
            int(np.count_nonzero(known & ~mapped)),
            int(np.count_nonzero(mapped & ~known)),
            int(np.count_nonzero(~known & ~mapped)),
        )


def _compare(
    source: Any, truth: Truth, classes: tuple[str, ...], areas: _Areas | None
) -> Evaluation:
    """Count all windows."""
    total = _Counts(len(classes))
    by_area = [_Counts(len(classes)) for _ in (areas.names if areas else ())]
    for window in _windows(source.width, source.height):
        predicted = source.read(1, window=window).astype(np.int64)
        predicted[source.read_masks(1, window=window) == 0] = UNKNOWN
        if (top := int(predicted.max())) >= len(classes):
            raise LabelError(
                f"{source.name} has pixels of value {top}, but names {len(classes)} classes "
                f"({', '.join(classes)}): declare its nodata (gdal_edit.py -a_nodata)"
            )
        expected = truth.read(window)
        total.add(expected, predicted)
        if areas is not None:
            for number in areas.shapes.within(window).tolist():
                part, inside = areas.shapes.mask(number, window)
                by_area[number].add(expected[part][inside], predicted[part][inside])
    truth.check()
    return Evaluation(
        classes,
        total.confusion,
        total.left_out,
        {
            name: Evaluation(classes, counts.confusion, counts.left_out)
            for name, counts in zip(areas.names if areas else (), by_area, strict=True)
        },
    )

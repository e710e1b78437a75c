"""What the ground is known to be: truth rasters and polygons, window by window on a map's grid."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from rsmamba.errors import CRSError, LabelError
from rsmamba.gis.grids import require_same_grid
from rsmamba.gis.layers import PixelShapes, columns, read_layer
from rsmamba.gis.raster import GDAL_ERRORS, read_class_names

#: Value of a pixel whose class is not known.
UNKNOWN = -1
_RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".img", ".png"})
# values without a class that are named in a message
_NAMED = 8
# and so many are no truth but an image: no need to read on
_ENOUGH = 256


class TruthRaster:
    """A raster of classes on the grid of the map.

    Args:
        source: Open raster, warped or not.
        name: Its name.
        own: Class names that it brings; they are matched with those of the map.
        classes: Class names of the map.
        ignore: Values that do not count, beside nodata.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        own: Sequence[str] | None,
        classes: Sequence[str],
        ignore: Sequence[int],
    ) -> None:
        self._source, self._name, self._ignore = source, name, list(ignore)
        index = {name: i for i, name in enumerate(classes)}
        self._class_of = {
            value: index[name] for value, name in enumerate(own or classes) if name in index
        }
        self._own, self._classes = own, classes
        self._strange: dict[str, int] = {}

    def read(self, window: Window) -> NDArray[np.int64]:
        """(h, w) class of each pixel; :data:`UNKNOWN` where it is not known.

        Raises:
            LabelError: If the raster is an image rather than classes.
        """
        raw = self._source.read(1, window=window)
        known = self._source.read_masks(1, window=window) > 0
        if raw.dtype.kind == "f":
            known &= np.isfinite(raw)
        known &= ~np.isin(raw, self._ignore)
        found = np.full(raw.shape, UNKNOWN, dtype=np.int64)
        values, position, counts = np.unique(raw[known], return_inverse=True, return_counts=True)
        codes = np.array([self._class_of.get(v, UNKNOWN) for v in values.tolist()], dtype=np.int64)
        for i in np.flatnonzero(codes == UNKNOWN):
            value, count = values[i].item(), int(counts[i])
            own = self._own or ()
            whole = value == int(value)
            name = own[int(value)] if whole and 0 <= value < len(own) else f"{value:g}"
            self._strange[name] = self._strange.get(name, 0) + count
        if len(self._strange) > _ENOUGH:
            self.check()
        found[known] = codes[position] if len(values) else UNKNOWN
        return found

    def check(self) -> None:
        """Say which values had no class, when all was read.

        Raises:
            LabelError: If there were any.
        """
        if self._strange:
            _refuse_classes(self._name, self._strange, self._classes)


class TruthPolygons:
    """Polygons with a class, burnt into the grid of the map; where they overlap, the last one.

    Args:
        path: Vector file in any CRS.
        source: Open class map.
        classes: Class names of the map.
        attribute: Column of class names or values; None if the polygons are class 1, the rest 0.
        outside: Class where there is no polygon; None for class 0 without attribute, and for
            unknown with one.
    """

    def __init__(
        self,
        path: str | Path,
        source: Any,
        classes: Sequence[str],
        attribute: str | None,
        outside: str | None,
    ) -> None:
        layer = read_layer(path, source)
        if attribute is None and len(classes) != 2:
            raise LabelError(
                f"{path}: the map has {len(classes)} classes ({', '.join(classes)}), so name the "
                "column that says which one each polygon is with --attribute (there are: "
                f"{columns(layer)})"
            )
        self._outside = 0 if attribute is None else UNKNOWN
        if outside is not None:
            self._outside = _index(outside, classes)
        if attribute is None:
            self._values = np.ones(len(layer), dtype=np.int32)
        else:
            self._values = _polygon_classes(layer, attribute, classes, path)
        self._shapes = PixelShapes(layer.geometry, source)

    def read(self, window: Window) -> NDArray[np.int64]:
        """(h, w) class of each pixel; :data:`UNKNOWN` where it is not known."""
        burnt = np.full((window.height, window.width), self._outside, dtype=np.int32)
        numbers = self._shapes.within(window)
        if len(numbers):
            rasterize(
                zip(self._shapes.shapes[numbers], self._values[numbers].tolist(), strict=True),
                out=burnt,
                transform=Affine.translation(window.col_off, window.row_off),
            )
        return burnt.astype(np.int64)

    def check(self) -> None:
        """Classes are checked when the file is read."""


Truth = TruthRaster | TruthPolygons


@contextmanager
def open_truth(
    path: str | Path,
    source: Any,
    classes: Sequence[str],
    *,
    attribute: str | None,
    outside: str | None,
    ignore: Sequence[int],
    align: bool,
) -> Iterator[Truth]:
    """The truth beside an open class map; see :func:`rsmamba.gis.evaluate.evaluate`."""
    if not _is_raster(path):
        yield TruthPolygons(path, source, classes, attribute, outside)
        return
    if attribute is not None or outside is not None:
        option = "--attribute" if attribute is not None else "--outside"
        raise LabelError(f"{path} is a raster: {option} is for polygons, leave it out")
    with rasterio.open(path) as other:
        alpha = other.colorinterp[-1] == ColorInterp.alpha
        if other.count - alpha != 1:
            raise LabelError(
                f"{path} is no truth raster: {other.count} bands, expected one of classes"
            )
        facts = other.name, read_class_names(other), classes, ignore
        if not align:
            require_same_grid(other, source, "pass --align to warp it there by nearest neighbour")
            yield TruthRaster(other, *facts)
            return
        if not other.crs or not source.crs:
            missing = source.name if other.crs else path
            raise CRSError(
                f"{missing} has no coordinate reference system, so it cannot be aligned: assign "
                "one (gdal_edit.py -a_srs)"
            )
        with WarpedVRT(
            other,
            crs=source.crs,
            transform=source.transform,
            width=source.width,
            height=source.height,
            resampling=Resampling.nearest,
            # without nodata, what lies outside would read as class 0
            add_alpha=other.nodata is None and not alpha,
            warp_mem_limit=64,
        ) as warped:
            yield TruthRaster(warped, *facts)


def _is_raster(path: str | Path) -> bool:
    """Whether a file is read as a raster."""
    if Path(path).suffix.lower() in _RASTER_SUFFIXES:
        return True
    try:
        with rasterio.open(path):
            return True
    except GDAL_ERRORS:
        return False


def _polygon_classes(
    layer: geopandas.GeoDataFrame, attribute: str, classes: Sequence[str], path: str | Path
) -> NDArray[np.int32]:
    """(N,) class of each polygon; unknown where the column is empty."""
    if attribute not in layer.columns:
        raise LabelError(f"{path} has no column {attribute!r}; it has {columns(layer)}")
    codes: dict[Any, int] = {}
    strange: dict[str, int] = {}
    for value, count in layer[attribute].value_counts(dropna=True).items():
        try:
            codes[value] = _index(value, classes)
        except LabelError:
            strange[str(value)] = int(count)
    if strange:
        _refuse_classes(path, strange, classes, "polygons")
    return np.array([UNKNOWN if pd.isna(v) else codes[v] for v in layer[attribute]], dtype=np.int32)


def _index(value: Any, classes: Sequence[str]) -> int:
    """Class by name or pixel value.

    Raises:
        LabelError: If it is neither.
    """
    if str(value) in classes:
        return list(classes).index(str(value))
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise LabelError(f"the map has no class {value!r}; it has {', '.join(classes)}")


def _refuse_classes(
    path: str | Path, strange: Mapping[str, int], classes: Sequence[str], what: str = "pixels"
) -> None:
    """Name what the map does not know."""
    listed = [f"{name} ({count:,} {what})" for name, count in list(strange.items())[:_NAMED]]
    more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
    known = ", ".join(f"{i} {name}" for i, name in enumerate(classes))
    raise LabelError(
        f"{path} holds classes that the map does not know: {', '.join(listed)}{more}; it knows "
        f"{known}: recode them, or leave values of a raster out with --ignore"
    )

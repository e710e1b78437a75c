"""Compare a class map with the truth: accuracy, F1 and IoU, beside trivial answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from numpy.typing import NDArray
from pyogrio.errors import DataSourceError
from rasterio.errors import RasterioIOError
from rasterio.features import rasterize
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from rsmamba.errors import (
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
    one_line,
)

_BLOCK = 2048
_RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt"})


@dataclass(frozen=True)
class Evaluation:
    """Counts of a comparison and what follows from them.

    Attributes:
        classes: Class names by index.
        confusion: (K, K) pixel counts, rows truth, columns prediction.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def pixels(self) -> int:
        """Number of compared pixels."""
        return int(self.confusion.sum())

    @property
    def overall_accuracy(self) -> float:
        """Share of pixels with the right class."""
        return float(np.trace(self.confusion) / max(1, self.pixels))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; 0 where a class is in neither map nor truth."""
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        return np.divide(hit, union, out=np.zeros(len(hit)), where=union > 0)

    @property
    def f1(self) -> NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall: 2 IoU / (1 + IoU)."""
        return 2 * self.iou / (1 + self.iou)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance."""
        total = max(1, self.pixels)
        chance = float((self.confusion.sum(0) @ self.confusion.sum(1)) / total**2)
        return (self.overall_accuracy - chance) / (1 - chance) if chance < 1 else 0.0

    def constant(self, index: int) -> "Evaluation":
        """The same truth against an answer of one class everywhere: a baseline to beat."""
        confusion = np.zeros_like(self.confusion)
        confusion[:, index] = self.confusion.sum(axis=1)
        return Evaluation(self.classes, confusion)

    @property
    def majority(self) -> int:
        """Index of the truth's most frequent class."""
        return int(self.confusion.sum(axis=1).argmax())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready report, baselines included."""
        return {
            "pixels": self.pixels,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            **self._figures(),
            "majority_class": self.classes[self.majority],
            "constant_answers": {
                name: self.constant(i)._figures() for i, name in enumerate(self.classes)
            },
        }

    def _figures(self) -> dict[str, Any]:
        return {
            "overall_accuracy": self.overall_accuracy,
            "kappa": self.kappa,
            "mean_iou": float(self.iou.mean()),
            "iou": dict(zip(self.classes, self.iou.tolist(), strict=True)),
            "f1": dict(zip(self.classes, self.f1.tolist(), strict=True)),
        }


def evaluate(
    class_map: str | Path,
    truth: str | Path,
    *,
    attribute: str | None = None,
    ignore: int = 255,
) -> Evaluation:
    """Compare a class map with a truth raster or with truth polygons.

    Reads blocks of 2048 px, so memory does not grow with the map. Pixels that are nodata in the
    map, or ``ignore`` or nodata in the truth, do not count.

    Args:
        class_map: Single-band raster of class indices; class names are read from its
            ``class_names`` tag (a JSON list) if it has one.
        truth: Raster on the same grid, or a vector layer in any CRS. Polygons carry the class
            name in ``attribute``; without it every polygon is class 1 of a map of two classes, the
            rest class 0.
        attribute: Column of the vector layer that holds class names.
        ignore: Truth value that does not count.

    Returns:
        The comparison.

    Raises:
        DataNotFoundError: If a file is missing.
        ImageReadError: If a file cannot be read.
        CRSError: If polygons and map cannot be brought together.
        GridMismatchError: If a truth raster has another grid.
        LabelError: If the attribute or a class is unknown.
    """
    for path in (class_map, truth):
        if not Path(path).exists():
            raise DataNotFoundError(f"{path}: no such file; check the path")
    try:
        with rasterio.open(class_map) as source:
            classes = class_names(source)
            if Path(truth).suffix.lower() in _RASTER_SUFFIXES:
                pairs = _raster_pairs(source, truth)
            else:
                pairs = _vector_pairs(source, truth, classes, attribute)
            return Evaluation(classes, _confusion(pairs, len(classes), source.nodata, ignore))
    except RasterioIOError as error:
        raise ImageReadError(
            f"{class_map} or {truth}: damaged or truncated, or no raster ({one_line(error)})"
        ) from error


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
    text = source.tags().get("class_names")
    if text:
        return tuple(json.loads(text))
    top = 1
    for window in _windows(source.width, source.height):
        values = source.read(1, window=window)
        values = values[values != source.nodata] if source.nodata is not None else values
        top = max(top, int(values.max(initial=0)))
    return tuple(f"class_{i}" for i in range(top + 1))


Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


def _windows(width: int, height: int) -> Iterator[Window]:
    for row in range(0, height, _BLOCK):
        for col in range(0, width, _BLOCK):
            yield Window(col, row, min(_BLOCK, width - col), min(_BLOCK, height - row))


def _raster_pairs(source: Any, truth: str | Path) -> Iterator[Pair]:
    with rasterio.open(truth) as other:
        same = (other.width, other.height) == (source.width, source.height)
        same = same and other.transform.almost_equals(source.transform)
        if not same or other.crs != source.crs:
            raise GridMismatchError(
                f"{truth} ({other.width} x {other.height}, {other.crs}) is not on the grid of "
                f"{source.name} ({source.width} x {source.height}, {source.crs}): warp it first "
                "(gdalwarp -te/-tr/-t_srs)"
            )
        for window in _windows(source.width, source.height):
            expected = other.read(1, window=window).astype(np.int64)
            if other.nodata is not None:
                expected[expected == other.nodata] = -1
            yield expected, source.read(1, window=window).astype(np.int64)


def _vector_pairs(
    source: Any, truth: str | Path, classes: tuple[str, ...], attribute: str | None
) -> Iterator[Pair]:
    try:
        layer = geopandas.read_file(truth)
    except DataSourceError as error:
        raise ImageReadError(
            f"{truth}: no vector layer that GDAL can read ({one_line(error)})"
        ) from error
    if layer.crs is None or source.crs is None:
        missing = truth if layer.crs is None else source.name
        raise CRSError(
            f"{missing} has no coordinate reference system: assign one (gdal_edit.py -a_srs)"
        )
    values = np.ones(len(layer), dtype=np.int64)
    if attribute is None and len(classes) > 2:
        columns = ", ".join(c for c in layer.columns if c != layer.geometry.name) or "none"
        raise LabelError(
            f"{truth}: which of {', '.join(classes)} a polygon is, is not said: name the column "
            f"with --attribute (there are: {columns})"
        )
    if attribute is not None:
        values = _class_values(layer, attribute, classes, truth)
    layer = layer.to_crs(source.crs)
    for window in _windows(source.width, source.height):
        expected = np.zeros((int(window.height), int(window.width)), dtype=np.uint8)
        if len(layer):
            rasterize(
                zip(layer.geometry, values, strict=True),
                out=expected,
                transform=window_transform(window, source.transform),
            )
        yield expected.astype(np.int64), source.read(1, window=window).astype(np.int64)


def _class_values(
    layer: geopandas.GeoDataFrame, attribute: str, classes: tuple[str, ...], truth: str | Path
) -> NDArray[np.int64]:
    if attribute not in layer.columns:
        raise LabelError(f"{truth} has no column {attribute!r}; it has {', '.join(layer.columns)}")
    index = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(map(str, layer[attribute])) - set(index)):
        raise LabelError(
            f"{truth} holds classes that the map does not know: {', '.join(unknown[:8])} "
            f"(known: {', '.join(classes)})"
        )
    return np.array([index[str(value)] for value in layer[attribute]], dtype=np.int64)


def _confusion(
    pairs: Iterator[Pair], count: int, nodata: float | None, ignore: int
) -> NDArray[np.int64]:
    confusion = np.zeros((count, count), dtype=np.int64)
    for expected, predicted in pairs:
        valid = (expected != ignore) & (expected >= 0)
        if nodata is not None:
            valid &= predicted != int(nodata)
        expected, predicted = expected[valid], predicted[valid]
        if expected.size and max(expected.max(), predicted.max()) >= count:
            raise LabelError(
                f"class value {max(expected.max(), predicted.max())} but only {count} classes: "
                "check the truth's coding"
            )
        confusion += np.bincount(expected * count + predicted, minlength=count**2).reshape(
            count, count
        )
    return confusion

"""Polygons from class maps, without seams and in bounded memory."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    CRSError,
    DataNotFoundError,
    ImageReadError,
    LabelError,
    one_line,
)
from rsmamba.files import check_output
from rsmamba.gis.grids import require_same_grid, transform_points
from rsmamba.gis.polygons import regions
from rsmamba.gis.raster import GDAL_ERRORS, publish, read_class_names, scratch_folder
from rsmamba.gis.seams import Pieces
from rsmamba.gis.simplify import check_tolerance, collect, simplify_coverage
from rsmamba.gis.vector_write import driver_of, polygon_schema, write_polygons

# Longest edge, in metres, that is taken for straight in the equal-area projection: along a parallel
# at 60 degrees it leaves the arc by 14 cm. No edge is cut shorter than a pixel.
_STRAIGHT = 2000.0
# A VRT may carry Python code: it is never run. The cache need not hold more than a row of tiles.
_GDAL_OPTIONS: dict[str, Any] = {"GDAL_CACHEMAX": 32 * 2**20, "GDAL_VRT_ENABLE_PYTHON": "NO"}


@dataclass
class VectorReport:
    """What was written.

    Attributes:
        source: The class map.
        output: The vector file.
        crs: Coordinate reference system of both.
        polygons: Number of polygons.
        too_small: Number of polygons left out for their area.
        count: Polygons per class name.
        area_m2: Area per class name, in m².
        seconds: Wall time.
    """

    source: str
    output: str
    crs: str
    polygons: int = 0
    too_small: int = 0
    count: dict[str, int] = field(default_factory=dict)
    area_m2: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(asdict(self), indent=2)


def vectorize(
    map_path: str | Path,
    out_path: str | Path,
    *,
    classes: Sequence[str | int] | None = None,
    min_area: float = 0.0,
    simplify: float | None = None,
    scores: str | Path | None = None,
    overwrite: bool = False,
) -> VectorReport:
    """Turn a class map into polygons, one per 4-connected region of equal class.

    A region is one polygon however many tiles and blocks it crosses. Columns: ``class`` (pixel
    value), ``name``, ``area_m2``, with ``scores`` also ``mean_score``, and ``geometry``. The layer
    has the map's CRS. Areas are those of the pixels, measured in the Lambert azimuthal equal-area
    projection (WGS 84) centred on the map, with long edges densified, which holds near the poles
    and across the antimeridian, for maps up to the size of a continent.

    The map is read in strips. Memory is that of a strip and of the outlines that are not yet
    complete, about 300 bytes for each corner of the largest polygon; it does not grow with the map.
    ``simplify`` needs all polygons at once and refuses outlines of more than
    :data:`rsmamba.gis.simplify.LIMIT` pixels in all, which take about 1 GB.

    Args:
        map_path: Class map with a single integer band, as :func:`rsmamba.infer.map_scene` writes
            it; names come from its ``class_names`` tag.
        out_path: ``.gpkg`` (GeoPackage), ``.fgb`` (FlatGeobuf) or ``.parquet`` (GeoParquet 1.1).
        classes: Classes to keep, by name or value; None for all.
        min_area: Smallest area to keep, in m².
        simplify: Smooth the staircases: corners go whose triangle is smaller than the square of
            this many pixels. Borders between polygons stay shared, without gap or overlap. A
            polygon of few pixels may end as a triangle. None leaves the outlines of the pixels.
        scores: Score raster of the same map, as ``map_scene(scores=...)`` writes it: a band per
            class. ``mean_score`` is the mean of the polygon's own class over its pixels, nodata
            left out; null where no pixel has a score.
        overwrite: Replace an existing file.

    Returns:
        The report. A layer without a polygon is a valid, empty layer.

    Raises:
        ConfigError: If the suffix is none of these, the area is negative, the tolerance is no
            positive number, or there is too much to simplify.
        OutputExistsError: If the output exists.
        OutputNotWritableError: If its folder is missing or cannot be written.
        DataNotFoundError: If there is no such map or score raster.
        ImageReadError: If the map cannot be read or is no class map.
        CRSError: If it has no CRS in which areas can be measured.
        GridMismatchError: If the score raster is not on the grid of the map.
        BandMismatchError: If its bands are not the classes of the map.
        LabelError: If a class is unknown.
    """
    started = time.perf_counter()
    out_path = Path(out_path)
    driver_of(out_path)
    if not min_area >= 0:
        raise ConfigError(f"min_area must be at least 0 m², got {min_area}")
    if simplify is not None:
        check_tolerance(simplify)
    check_output(out_path, overwrite=overwrite)
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**_GDAL_OPTIONS))
        source = stack.enter_context(_open_map(map_path))
        names = read_class_names(source)
        wanted = _wanted(classes, names, str(map_path))
        score_source = None
        if scores is not None:
            score_source = stack.enter_context(_open_scores(scores, source, names))
        report = VectorReport(str(map_path), str(out_path), source.crs.to_string())
        layer = _Layer(source, names, min_area, simplify, report, scored=scores is not None)
        folder = stack.enter_context(scratch_folder(out_path))
        unfinished = folder / out_path.name
        rows = layer.rows(regions(source, wanted, score_source))
        write_polygons(unfinished, rows, layer.schema, source.crs.to_wkt(), name=out_path)
        publish(unfinished, out_path)
    layer.sum_up()
    report.seconds = round(time.perf_counter() - started, 4)
    return report


def _open(path: str | Path, what: str, remedy: str) -> Any:
    """A raster, opened.

    Raises:
        DataNotFoundError: If there is none.
        ImageReadError: If GDAL cannot read it.
    """
    if not Path(path).exists():
        raise DataNotFoundError(f"{path}: no such {what}; {remedy}")
    try:
        return rasterio.open(path)
    except GDAL_ERRORS as error:
        raise ImageReadError(f"{path}: no raster that GDAL can read ({one_line(error)})") from error


def _open_map(path: str | Path) -> Any:
    """The class map, opened and checked."""
    source = _open(path, "map", "`rsmamba map` writes one")
    if source.count != 1 or np.dtype(source.dtypes[0]).kind not in "iu":
        found = f"{source.count} bands of {source.dtypes[0]}"
        source.close()
        raise ImageReadError(
            f"{path} is no class map ({found}): one band of integers is needed, as "
            "`rsmamba map` writes it"
        )
    if not source.crs:
        source.close()
        raise CRSError(f"{path} has no coordinate reference system: assign one (gdal_edit -a_srs)")
    return source


def _open_scores(path: str | Path, source: Any, names: tuple[str, ...] | None) -> Any:
    """The score raster of a class map, opened and checked."""
    remedy = "give the scores that `rsmamba map --scores` wrote with the map"
    scores = _open(path, "score raster", remedy)
    try:
        require_same_grid(scores, source, remedy)
        if names is not None and len(names) != scores.count:
            raise BandMismatchError(
                f"{path} has {scores.count} bands, but the map {len(names)} classes: {remedy}"
            )
        described = tuple(scores.descriptions)
        if names is not None and all(described) and described != names:
            raise BandMismatchError(
                f"{path} holds the scores of {', '.join(described)}, but the classes of the map "
                f"are {', '.join(names)}: {remedy}"
            )
    except BaseException:
        scores.close()
        raise
    return scores


def _wanted(
    classes: Sequence[str | int] | None, names: tuple[str, ...] | None, path: str
) -> frozenset[int] | None:
    """Pixel values to keep; None for all. A number may be written as text, unless it is a name."""
    if classes is None:
        return None
    index = {name: value for value, name in enumerate(names or ())}
    values = set()
    for item in classes:
        if item in index:
            values.add(index[str(item)])
        elif str(item).isdecimal() and (names is None or int(item) < len(names)):
            values.add(int(item))
        else:
            known = ", ".join(names) if names else "no names, only values"
            raise LabelError(f"{path} has no class {item!r}; it has: {known}")
    return frozenset(values)


class _EqualArea:
    """Areas in m² of polygons in the pixel coordinates of a map."""

    def __init__(self, source: Any) -> None:
        crs = pyproj.CRS.from_wkt(source.crs.to_wkt())
        x, y = source.xy(source.height / 2, source.width / 2, offset="ul")
        try:
            lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
                x, y, errcheck=True
            )
            local = pyproj.CRS.from_dict(
                {"proj": "laea", "lat_0": lat, "lon_0": lon, "datum": "WGS84", "units": "m"}
            )
            self._to_local = pyproj.Transformer.from_crs(crs, local, always_xy=True)
        except ProjError as error:
            raise CRSError(
                f"{source.name}: no areas can be measured in {source.crs.to_string()}: {error}"
            ) from error
        self._transform = source.transform
        middle = np.array([source.width / 2, source.height / 2])
        steps = np.array([[0, 0], [1, 0], [0, 1]])
        corners = transform_points(source.transform, middle + steps)
        place = np.stack(self._to_local.transform(*corners.T), axis=1)
        pixel = float(np.linalg.norm(place[1:] - place[0], axis=1).max())
        self._longest = max(1.0, _STRAIGHT / pixel)

    def __call__(self, polygons: NDArray[np.object_]) -> NDArray[np.float64]:
        """Area of each polygon; shells and holes run in opposite directions."""
        if len(polygons) == 0:
            return np.zeros(0)
        dense = shapely.segmentize(polygons, self._longest)
        _, points, (ring_ends, polygon_ends) = shapely.to_ragged_array(dense)
        del dense
        x, y = self._to_local.transform(*transform_points(self._transform, points).T)
        firsts = ring_ends[polygon_ends]
        sizes = np.diff(firsts)
        # from a corner of its own: far from the centre, small polygons would drown in rounding
        x -= np.repeat(x[firsts[:-1]], sizes)
        y -= np.repeat(y[firsts[:-1]], sizes)
        cross = x[:-1] * y[1:] - x[1:] * y[:-1]
        cross[ring_ends[1:-1] - 1] = 0.0  # from one ring to the next is no edge
        owner = np.repeat(np.arange(len(polygons)), sizes)[:-1]
        return np.abs(np.bincount(owner, weights=cross, minlength=len(polygons))) / 2


class _Layer:
    """Rows of the layer, counted in the report as they pass."""

    def __init__(
        self,
        source: Any,
        names: tuple[str, ...] | None,
        min_area: float,
        tolerance: float | None,
        report: VectorReport,
        *,
        scored: bool,
    ) -> None:
        self._names, self._min_area, self._tolerance = names, min_area, tolerance
        self._report, self._scored, self._path = report, scored, source.name
        self._transform, self._area = source.transform, _EqualArea(source)
        self._totals: dict[int, tuple[int, float]] = {}  # class -> polygons, area
        fields = [("class", pa.int32()), ("name", pa.string()), ("area_m2", pa.float64())]
        self.schema = polygon_schema(fields + [("mean_score", pa.float64())] * scored)

    def rows(self, batches: Iterator[Pieces]) -> Iterator[pa.RecordBatch]:
        """Batches of rows for batches of polygons in pixel coordinates."""
        if self._tolerance is None:
            for batch, areas in map(self._large_enough, batches):
                yield self._record(batch, batch.polygons, areas)
            return
        kept_areas: list[NDArray[np.float64]] = []

        def kept() -> Iterator[Pieces]:
            for batch, sizes in map(self._large_enough, batches):
                kept_areas.append(sizes)
                yield batch

        everything = collect(kept(), self._path)
        polygons = simplify_coverage(everything.polygons, self._tolerance)
        yield self._record(everything, polygons, np.concatenate(kept_areas))

    def sum_up(self) -> None:
        """Put the totals into the report, in the order of the classes."""
        for value, (count, area) in sorted(self._totals.items()):
            self._report.polygons += count
            self._report.count[self._label(value)] = count
            self._report.area_m2[self._label(value)] = area

    def _label(self, value: int) -> str:
        """Name of a class."""
        names = self._names or ()
        return names[value] if 0 <= value < len(names) else f"class_{value}"

    def _large_enough(self, batch: Pieces) -> tuple[Pieces, NDArray[np.float64]]:
        """The polygons that are kept, with their areas."""
        areas = self._area(batch.polygons)
        keep = areas >= self._min_area
        self._report.too_small += int((~keep).sum())
        return (batch, areas) if keep.all() else (batch.take(keep), areas[keep])

    def _record(
        self, batch: Pieces, polygons: NDArray[np.object_], areas: NDArray[np.float64]
    ) -> pa.RecordBatch:
        """Rows of one batch."""
        for value in np.unique(batch.values).tolist():
            mine = batch.values == value
            count, size = self._totals.get(value, (0, 0.0))
            self._totals[value] = count + int(mine.sum()), size + float(areas[mine].sum())
        placed = shapely.transform(
            polygons, lambda points: transform_points(self._transform, points)
        )
        labels = [self._label(value) for value in batch.values.tolist()]
        columns: list[Any] = [batch.values, labels, areas]
        if self._scored:
            known = batch.scored > 0
            means = np.divide(batch.scores, batch.scored, out=np.zeros(len(known)), where=known)
            columns.append(pa.array(means, mask=~known))
        columns.append(shapely.to_wkb(placed).tolist())
        return pa.record_batch(
            [
                column if isinstance(column, pa.Array) else pa.array(column, type=field.type)
                for column, field in zip(columns, self.schema, strict=True)
            ],
            schema=self.schema,
        )

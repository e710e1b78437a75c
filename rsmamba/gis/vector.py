"""Polygons from class maps, without seams and in bounded memory."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from pyarrow import parquet
from pyproj.exceptions import ProjError
from rasterio.features import shapes
from shapely.geometry import shape

from rsmamba import __version__
from rsmamba.errors import (
    ConfigError,
    CRSError,
    DataNotFoundError,
    ImageReadError,
    LabelError,
    OutputNotWritableError,
    one_line,
)
from rsmamba.files import check_output
from rsmamba.gis.raster import (
    GDAL_ERRORS,
    publish,
    read_class_names,
    row_windows,
    scratch_folder,
)

_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".parquet": "GeoParquet"}
_LAYER = "classes"
# polygons held as Python objects at a time
_CHUNK = 4096
# longest edge, in pixels, that is taken for straight in the equal-area projection
_STRAIGHT = 32
_SCHEMA = pa.schema(
    [
        pa.field("class", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("area_m2", pa.float64()),
        pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"}),
    ]
)


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
    overwrite: bool = False,
) -> VectorReport:
    """Turn a class map into polygons, one per 4-connected region of equal class.

    The whole band is polygonised in one pass (GDALPolygonize), so a region is one feature however
    the map was tiled. Columns: ``class`` (pixel value), ``name``, ``area_m2``, ``geometry``. The
    layer has the map's CRS; areas are measured in the Lambert azimuthal equal-area projection
    (WGS 84) centred on the map, with long edges densified, which holds near the poles and across
    the antimeridian, for maps up to the size of a continent.

    Memory grows with the number of polygons inside GDAL, not with that of the pixels; Python
    holds a few thousand polygons at a time.

    Args:
        map_path: Class map with a single integer band, as :func:`rsmamba.infer.map_scene` writes
            it; names come from its ``class_names`` tag.
        out_path: ``.gpkg`` (GeoPackage), ``.fgb`` (FlatGeobuf) or ``.parquet`` (GeoParquet 1.1).
        classes: Classes to keep, by name or value; None for all.
        min_area: Smallest area to keep, in m².
        overwrite: Replace an existing file.

    Returns:
        The report. A layer without a polygon is a valid, empty layer.

    Raises:
        ConfigError: If the suffix is none of these or the area is negative.
        OutputExistsError: If the output exists.
        OutputNotWritableError: If its folder is missing or cannot be written.
        DataNotFoundError: If there is no such map.
        ImageReadError: If the map cannot be read or is no class map.
        CRSError: If it has no CRS in which areas can be measured.
        LabelError: If a class is unknown.
    """
    started = time.perf_counter()
    out_path = Path(out_path)
    driver = _DRIVERS.get(out_path.suffix.lower())
    if driver is None:
        raise ConfigError(
            f"cannot tell the format of {out_path}: end its name in {', '.join(_DRIVERS)}"
        )
    if not min_area >= 0:
        raise ConfigError(f"min_area must be at least 0 m², got {min_area}")
    check_output(out_path, overwrite=overwrite)
    with _open_map(map_path) as source:
        names = read_class_names(source)
        wanted = _wanted(classes, names, str(map_path))
        area = _EqualArea(source)
        _check_readable(source)
        report = VectorReport(str(map_path), str(out_path), source.crs.to_string())
        batches = _batches(source, wanted, names, area, min_area, report)
        with scratch_folder(out_path) as folder:
            unfinished = folder / out_path.name
            _write(driver, unfinished, batches, source, out_path)
            publish(unfinished, out_path)
    report.seconds = round(time.perf_counter() - started, 4)
    return report


def _open_map(path: str | Path) -> Any:
    """The class map, opened and checked."""
    if not Path(path).exists():
        raise DataNotFoundError(f"{path}: no such map; `rsmamba map` writes one")
    try:
        source = rasterio.open(path)
    except GDAL_ERRORS as error:
        raise ImageReadError(f"{path}: no raster that GDAL can read ({one_line(error)})") from error
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


def _check_readable(source: Any) -> None:
    """Read every pixel once: GDALPolygonize passes over what it cannot read without an error."""
    try:
        for window in row_windows(source):
            source.read(1, window=window)
    except GDAL_ERRORS as error:
        raise ImageReadError(
            f"cannot read {source.name}: {one_line(error)}; the file looks damaged or truncated, "
            "make it again"
        ) from error


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
    """Areas in m² of polygons in a map's CRS."""

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
        a, b, _, d, e, *_ = source.transform
        self._longest = _STRAIGHT * max(float(np.hypot(a, d)), float(np.hypot(b, e)))

    def __call__(self, polygons: NDArray[Any]) -> NDArray[np.float64]:
        """Area of each polygon."""
        dense = shapely.segmentize(polygons, self._longest)
        local = shapely.transform(dense, self._project)
        areas: NDArray[np.float64] = shapely.area(local)
        return areas

    def _project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) coordinates of the map in the equal-area projection."""
        return np.stack(self._to_local.transform(points[:, 0], points[:, 1]), axis=1)


def _polygons(
    source: Any, wanted: frozenset[int] | None
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Values and polygons, a chunk at a time."""
    values: list[int] = []
    polygons: list[Any] = []
    nodata = source.nodata
    for geometry, value in shapes(rasterio.band(source, 1), transform=source.transform):
        if value == nodata or (wanted is not None and int(value) not in wanted):
            continue
        values.append(int(value))
        polygons.append(shape(geometry))
        if len(values) == _CHUNK:
            yield values, np.array(polygons, dtype=object)
            values, polygons = [], []
    if values:
        yield values, np.array(polygons, dtype=object)


def _batches(
    source: Any,
    wanted: frozenset[int] | None,
    names: tuple[str, ...] | None,
    area: _EqualArea,
    min_area: float,
    report: VectorReport,
) -> Iterator[pa.RecordBatch]:
    """Rows to write, while the report is kept."""
    for values, polygons in _polygons(source, wanted):
        areas = area(polygons)
        keep = areas >= min_area
        report.too_small += int((~keep).sum())
        kept = [v for v, k in zip(values, keep, strict=True) if k]
        labels = [names[v] if names and v < len(names) else f"class_{v}" for v in kept]
        report.polygons += len(kept)
        for label, size in zip(labels, areas[keep].tolist(), strict=True):
            report.count[label] = report.count.get(label, 0) + 1
            report.area_m2[label] = report.area_m2.get(label, 0.0) + size
        columns = [kept, labels, areas[keep], shapely.to_wkb(polygons[keep]).tolist()]
        yield pa.record_batch(
            [pa.array(c, type=f.type) for c, f in zip(columns, _SCHEMA, strict=True)],
            schema=_SCHEMA,
        )


class _Relay:
    """Batches for Arrow's C stream, which swallows what goes wrong in Python; kept here."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches
        except BaseException as error:
            self.error = error
            raise


def _write(
    driver: str,
    path: Path,
    batches: Iterator[pa.RecordBatch],
    source: Any,
    out_path: Path,
) -> None:
    """Write all rows as they come."""
    relay = _Relay(batches)
    try:
        if driver == "GeoParquet":
            _write_parquet(path, relay, source)
        else:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(_SCHEMA, relay),
                path,
                layer=_LAYER,
                driver=driver,
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=source.crs.to_wkt(),
            )
    except BaseException as error:
        if relay.error is not None:
            raise relay.error from None
        if isinstance(error, RuntimeError | OSError):  # pyogrio's errors are RuntimeErrors
            raise OutputNotWritableError(f"cannot write {out_path}: {one_line(error)}") from error
        raise


def _write_parquet(path: Path, batches: Iterable[pa.RecordBatch], source: Any) -> None:
    """GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/), a row group per batch.

    By pyarrow, because pyogrio's wheels lack GDAL's Parquet driver and geopandas writes in one go.
    """
    crs = pyproj.CRS.from_wkt(source.crs.to_wkt())
    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs.to_json_dict()}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    schema = pa.schema(
        [f.remove_metadata() for f in _SCHEMA],
        metadata={"geo": json.dumps(geo), "rsmamba_version": __version__},
    )
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch.cast(schema))

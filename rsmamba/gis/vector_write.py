"""Polygons to GeoPackage, FlatGeobuf or GeoParquet, as they come."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyogrio
import pyproj
from pyarrow import parquet

from rsmamba import __version__
from rsmamba.errors import ConfigError, OutputNotWritableError, one_line

#: Name of the layer in a GeoPackage or FlatGeobuf.
LAYER = "classes"
_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".parquet": "GeoParquet"}
# rows and bytes of a batch, which is a row group in GeoParquet
_ROWS, _BYTES = 4096, 2**22


def driver_of(path: Path) -> str:
    """Format by the suffix of a name.

    Raises:
        ConfigError: If it is none that is written here.
    """
    try:
        return _DRIVERS[path.suffix.lower()]
    except KeyError:
        raise ConfigError(
            f"cannot tell the format of {path}: end its name in {', '.join(_DRIVERS)}"
        ) from None


def polygon_schema(fields: Iterable[tuple[str, pa.DataType]]) -> pa.Schema:
    """Columns of a layer: attributes, then the polygon as WKB."""
    geometry = pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"})
    return pa.schema([*(pa.field(name, kind) for name, kind in fields), geometry])


def write_polygons(
    path: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema, crs: str, *, name: Path
) -> None:
    """Write all rows as they come.

    Args:
        path: File to write; its suffix is the format.
        batches: Rows; may be none.
        schema: Their columns, of :func:`polygon_schema`.
        crs: Coordinate reference system, as WKT.
        name: Name to complain about.

    Raises:
        OutputNotWritableError: If it cannot be written (disk full).
    """
    relay = _Relay(_even(batches, schema))
    driver = driver_of(path)
    try:
        if driver == "GeoParquet":
            _write_parquet(path, relay, schema, crs)
        else:
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(schema, relay),
                path,
                layer=LAYER,
                driver=driver,
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=crs,
            )
    except BaseException as error:
        if relay.error is not None:
            raise relay.error from None
        if isinstance(error, RuntimeError | OSError):  # pyogrio's errors are RuntimeErrors
            raise OutputNotWritableError(f"cannot write {name}: {one_line(error)}") from error
        raise


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


def _even(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of one size: small row groups make slow files."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= _ROWS or sum(b.nbytes for b in held) >= _BYTES:
            yield from _merge(held, schema)
            held = []
    yield from _merge(held, schema)


def _merge(held: list[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows of some batches in batches of at most the one size."""
    return iter(
        pa.Table.from_batches(held, schema).combine_chunks().to_batches(max_chunksize=_ROWS)
    )


def _write_parquet(
    path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, crs: str
) -> None:
    """GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/), a row group per batch.

    By pyarrow, because pyogrio's wheels lack GDAL's Parquet driver and geopandas writes in one go.
    """
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": pyproj.CRS.from_wkt(crs).to_json_dict(),
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    plain = pa.schema(
        [f.remove_metadata() for f in schema],
        metadata={"geo": json.dumps(geo), "rsmamba_version": __version__},
    )
    with parquet.ParquetWriter(path, plain, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch.cast(plain))

"""Maps as STAC items (https://github.com/radiantearth/stac-spec, 1.1) and a collection of them.

An item of a map follows the MLM extension's advice for what a model made: it links to the model's
own item (``derived_from``) and is of processing level 4. It does not declare that extension, whose
schema wants of every item the asset of a model. Nothing here is fetched from the network.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pyproj
import pystac
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, RasterBand, RasterExtension
from shapely.geometry import mapping, shape

from rsmamba import __version__
from rsmamba.errors import ConfigError, DataNotFoundError, one_line
from rsmamba.files import check_output, write_text
from rsmamba.gis.footprint import bounding_box, footprint
from rsmamba.gis.mlm import TASKS, class_objects, model_name, multihash
from rsmamba.gis.raster import SCORE_SCALE, RasterGrid
from rsmamba.gis.style import CLASS_NODATA
from rsmamba.spec import ModelSpec

_PROCESSING = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"
_CLASSIFICATION = ClassificationExtension.get_schema_uri()
_MEDIA_TYPES = {
    ".tif": pystac.MediaType.COG,
    ".tiff": pystac.MediaType.COG,
    ".qml": pystac.MediaType.XML,
    ".vrt": pystac.MediaType.XML,
    ".json": pystac.MediaType.JSON,
    ".gpkg": pystac.MediaType.GEOPACKAGE,
    ".fgb": pystac.MediaType.FLATGEOBUF,
    ".parquet": "application/vnd.apache.parquet",
    ".png": pystac.MediaType.PNG,
}
_TITLES = {
    "class": "Classes",
    "scores": "Scores of all classes",
    "uncertainty": "Entropy of the scores",
    "style": "QGIS style of the classes",
}
# GDAL's names of remote files, and what others call them
_REMOTE = {"/vsicurl/": "", "/vsis3/": "s3://", "/vsigs/": "gs://"}


def map_item(
    grid: RasterGrid,
    assets: Mapping[str, str | Path],
    *,
    source: str | Path,
    classes: Sequence[str],
    colours: Sequence[str] = (),
    spec: ModelSpec | None = None,
    model: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    acquired: datetime | None = None,
    created: datetime | None = None,
    item_id: str | None = None,
    checksums: bool = False,
) -> pystac.Item:
    """A STAC item of a class map and what lies beside it.

    Args:
        grid: Size and georeferencing of the rasters.
        assets: Files by name: ``"class"``, the class map; ``"scores"`` and ``"uncertainty"``, its
            score rasters; ``"style"``, its QML; others as wanted. Opened for checksums only.
        source: The scene that was mapped: a file, a URL or a GDAL dataset name.
        classes: Class names by pixel value.
        colours: ``#rrggbb`` per class; empty for the default palette.
        spec: The model's spec.
        model: File or URL of the model's own item, see :func:`rsmamba.gis.mlm.model_item`.
        parameters: Options of the run (JSON values).
        acquired: When the scene was taken, if known; else the item's date is that of its making.
        created: When the map was made; now if None. Without a time zone it is taken as UTC.
        item_id: Identifier; the class map's name without its suffix if None.
        checksums: Also record size and SHA-256 of the assets, which must be there.

    Returns:
        The item, for :func:`write_item`. Its geometry is None in a local CRS.

    Raises:
        ConfigError: If there is no asset ``"class"``.
        SpecError: If classes and colours do not fit.
        DataNotFoundError: If an asset that is to be hashed is missing.
    """
    if "class" not in assets:
        raise ConfigError("a map's item needs the class map: name it as the asset 'class'")
    objects = class_objects(classes, colours)
    made = (created or datetime.now(UTC)).replace(microsecond=0)
    outline = footprint(grid)
    item = pystac.Item(
        item_id or Path(assets["class"]).stem,
        None if outline is None else mapping(outline),
        None if outline is None else bounding_box([outline]),
        acquired or made,
        properties={},
    )
    item.common_metadata.created = made
    gsd = grid.gsd()
    item.common_metadata.gsd = None if gsd is None else float(f"{gsd:.6g}")
    _project(item, grid)
    _describe_run(item, source, spec, model, parameters)
    for name, path in assets.items():
        asset = pystac.Asset(
            _absolute(path),
            title=_TITLES.get(name),
            media_type=_MEDIA_TYPES.get(Path(path).suffix.lower()),
            roles=["style"] if name == "style" else ["data"],
        )
        item.add_asset(name, asset)
        _describe_bands(name, asset, objects)
        if checksums:
            _hash(asset, Path(path))
    if model is not None:
        item.assets["class"].extra_fields["processing:expression"] = {
            "format": "stac-mlm",
            "expression": _absolute(model),
        }
    return item


def write_item(item: pystac.Item, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an item as JSON, with links and assets relative to it, by atomic rename.

    Args:
        item: Of a map or a model; not changed.
        path: ``.json`` file.
        overwrite: Replace an existing file.

    Returns:
        The path.

    Raises:
        OutputExistsError: If it exists.
        OutputNotWritableError: If its folder is missing or cannot be written.
    """
    path = check_output(path, overwrite=overwrite)
    _write(item, path)
    return path


def write_collection(
    items: Iterable[str | Path],
    path: str | Path,
    *,
    collection_id: str,
    description: str = "Class maps made with rsmamba",
    assets: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
) -> pystac.Collection:
    """Write a STAC collection over items of maps, and enter it in them.

    Its extent is the narrowest box that holds the items, which may cross the antimeridian. Classes
    are listed if they are the same in all items. Doing it again with more items is safe.

    Args:
        items: JSON files that :func:`write_item` wrote.
        path: ``.json`` file of the collection.
        collection_id: Identifier.
        description: What the collection is.
        assets: Files of the collection itself, for example the mosaic.
        overwrite: Replace an existing file.

    Returns:
        The collection.

    Raises:
        DataNotFoundError: If there is no item, or a file is missing.
        ConfigError: If a file is no STAC item, or two have one identifier.
        OutputExistsError: If the collection exists.
        OutputNotWritableError: If its folder is missing or cannot be written.
    """
    path = check_output(path, overwrite=overwrite)
    found: dict[str, tuple[Path, pystac.Item]] = {}
    for file in map(Path, items):
        item = _read_item(file)
        check_output(file, overwrite=True)
        other, _ = found.setdefault(item.id, (file, item))
        if other.absolute() != file.absolute():
            raise ConfigError(
                f"{other} and {file} both have the id {item.id!r}: a collection's items need "
                "different ones, name the maps differently"
            )
    if not found:
        raise DataNotFoundError(f"no items for {path}: give the .json files of at least one map")
    members = [item for _, item in found.values()]
    collection = pystac.Collection(
        collection_id,
        description,
        _extent(members),
        href=str(path.absolute()),
        summaries=_summaries(members),
    )
    if "classification:classes" in collection.summaries.lists:
        collection.stac_extensions.append(_CLASSIFICATION)
    for name, asset in (assets or {}).items():
        media_type = _MEDIA_TYPES.get(Path(asset).suffix.lower())
        collection.add_asset(
            name, pystac.Asset(_absolute(asset), media_type=media_type, roles=["data"])
        )
    collection.set_root(collection)
    for file, item in found.values():
        item.set_root(collection)
        item.set_parent(collection)
        item.set_collection(collection)
        collection.add_link(pystac.Link.item(item, title=item.id))
        _write(item, file)
    _write(collection, path)
    return collection


def _project(item: pystac.Item, grid: RasterGrid) -> None:
    """The grid in the projection extension: the CRS by its code, or in full where it has none."""
    authority = grid.crs.to_authority()  # of an equivalent system, whatever its name
    code = None if authority is None else ":".join(authority)
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    cols, rows = grid.width * np.array([0, 1, 1, 0]), grid.height * np.array([0, 0, 1, 1])
    a, b, c, d, e, f = grid.transform[:6]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=code,
        wkt2=None if code else crs.to_wkt(),
        projjson=None if code else crs.to_json_dict(),
        bbox=[float(v) for v in (x.min(), y.min(), x.max(), y.max())],
        shape=[grid.height, grid.width],
        transform=[float(v) for v in grid.transform[:6]],
    )


def _describe_run(
    item: pystac.Item,
    source: str | Path,
    spec: ModelSpec | None,
    model: str | Path | None,
    parameters: Mapping[str, Any] | None,
) -> None:
    """What the map was made from, by what, and how."""
    item.stac_extensions.append(_PROCESSING)
    by = "" if spec is None else f" by {model_name(spec)}"
    item.properties |= {
        "processing:level": "L4",  # "model output", so the processing extension
        "processing:lineage": f"Classes predicted{by} from {_base_name(source)}",
        "processing:software": {"rsmamba": __version__},
        "rsmamba:parameters": dict(parameters or {}),
    }
    if spec is not None:
        item.properties |= {
            "mlm:name": model_name(spec),
            "mlm:architecture": spec.architecture,
            "mlm:tasks": [task.value for task in TASKS[spec.task]],
            "rsmamba:spec_sha256": hashlib.sha256(spec.to_json().encode()).hexdigest(),
        }
    if (href := _source_href(source)) is not None:
        # derived_from is for STAC items: clients read them as such
        item.add_link(pystac.Link("via", href, title="The scene that was mapped"))
    if model is not None:
        link = pystac.Link(
            pystac.RelType.DERIVED_FROM,
            _absolute(model),
            media_type=pystac.MediaType.GEOJSON,
            title="The model",
            extra_fields={"processing:level": "L4"},
        )
        if spec is not None:
            link.extra_fields["mlm:name"] = model_name(spec)
        item.add_link(link)


def _describe_bands(name: str, asset: pystac.Asset, classes: list[Classification]) -> None:
    """How the pixels of the map and its score rasters are stored."""
    if name == "class":
        names, scale = ["class"], None
        ClassificationExtension.ext(asset, add_if_missing=True).apply(classes=classes)
    elif name == "scores":
        names, scale = [c.title or c.name for c in classes], SCORE_SCALE
    elif name == "uncertainty":
        names, scale = ["uncertainty"], SCORE_SCALE
    else:
        return
    bands = []
    for band_name in names:
        band = RasterBand.create(nodata=CLASS_NODATA, data_type=DataType.UINT8, scale=scale)
        band.properties["name"] = band_name
        bands.append(band)
    RasterExtension.ext(asset, add_if_missing=True).apply(bands=bands)


def _hash(asset: pystac.Asset, path: Path) -> None:
    """Record size and SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataNotFoundError(
            f"{path}: no such file to take a checksum of; write it first"
        ) from error
    FileExtension.ext(asset, add_if_missing=True).apply(
        checksum=multihash(digest), size=path.stat().st_size
    )


def _extent(items: list[pystac.Item]) -> pystac.Extent:
    """Where and when the items lie."""
    outlines = [shape(item.geometry) for item in items if item.geometry is not None]
    box = bounding_box(outlines) if outlines else [-180.0, -90.0, 180.0, 90.0]
    times = [item.datetime for item in items if item.datetime is not None]
    return pystac.Extent(
        pystac.SpatialExtent([box]),
        pystac.TemporalExtent([[min(times, default=None), max(times, default=None)]]),
    )


def _summaries(items: list[pystac.Item]) -> pystac.Summaries:
    """What the items have in common, as lists of the values that occur."""
    found: dict[str, list[Any]] = {}
    for key in ("proj:code", "gsd", "processing:level", "mlm:name", "mlm:architecture"):
        values = [item.properties[key] for item in items if item.properties.get(key) is not None]
        if values:
            found[key] = sorted(set(values))
    first, *others = (item.assets["class"].extra_fields for item in items if "class" in item.assets)
    classes = first.get("classification:classes")
    if classes and all(other.get("classification:classes") == classes for other in others):
        found["classification:classes"] = classes
    return pystac.Summaries(found, maxcount=256)


def _read_item(path: Path) -> pystac.Item:
    """An item from its file."""
    try:
        return pystac.Item.from_dict(
            json.loads(path.read_text(encoding="utf-8")), str(path.absolute())
        )
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such STAC item; map the scene first") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        pystac.STACError,
        pystac.STACTypeError,
    ) as error:
        raise ConfigError(
            f"{path}: no STAC item ({one_line(error)}); give the .json beside a map"
        ) from error


def _write(thing: pystac.Item | pystac.Collection, path: Path) -> None:
    """Write JSON in which local files are relative to its folder."""
    folder = path.absolute().parent
    values = thing.to_dict(include_self_link=False, transform_hrefs=False)
    for entry in [*values["links"], *values.get("assets", {}).values()]:
        entry["href"] = _relative(entry["href"], folder)
        expression = entry.get("processing:expression", {})
        if expression.get("format") == "stac-mlm":
            expression = expression | {"expression": _relative(expression["expression"], folder)}
            entry["processing:expression"] = expression
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _relative(href: str, folder: Path) -> str:
    """A local path as seen from a folder; what is no absolute path stays."""
    if not href.startswith("/"):
        return href
    way = Path(href).relative_to(folder, walk_up=True).as_posix()
    return way if way.startswith("../") else f"./{way}"


def _absolute(path: str | Path) -> str:
    """A local path in full; URLs stay."""
    return str(path) if "://" in str(path) else str(Path(path).absolute())


def _source_href(source: str | Path) -> str | None:
    """Where a scene is, without the keys that a signed URL carries; None if only GDAL can tell."""
    text = str(source)
    for name, scheme in _REMOTE.items():
        if text.startswith(name):
            text = scheme + text.removeprefix(name)
    if "://" in text:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    if text.startswith("/vsi") or re.match(r"\w+:", text):
        return None
    return str(Path(text).absolute())


def _base_name(source: str | Path) -> str:
    """Last part of a path or URL; the whole of another name that GDAL knows."""
    href = _source_href(source)
    return str(source) if href is None else href.rpartition("/")[2]

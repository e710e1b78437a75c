"""Labels of scenes: mask rasters or polygons, on the pixel grid of the image."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import rasterio
import shapely
from affine import Affine
from pyproj import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.windows import Window

from rsmamba.data.areas import (
    check_places,
    footprint,
    reproject,
    require_georeferencing,
    same_crs,
)
from rsmamba.data.images import IGNORE, Region, Scene, quiet, undecodable
from rsmamba.data.listing import Paths, find_files, some
from rsmamba.errors import CRSError, GridMismatchError, ImageReadError, LabelError, one_line

VECTOR_SUFFIXES = frozenset({".gpkg", ".geojson", ".json", ".fgb", ".shp", ".parquet"})
MASK_SUFFIXES = frozenset({".tif", ".tiff", ".png"})
#: Longest edge that is kept straight when polygons are reprojected: metres, or degrees.
EDGE_METRES, EDGE_DEGREES = 1000.0, 0.01

#: Value in the labels -> class name, None to ignore; or the class names alone.
Classes = Mapping[Any, str | None] | Sequence[str]
Mask = npt.NDArray[np.uint8]


class Labels(Protocol):
    """What a data set asks of its labels."""

    classes: tuple[str, ...]
    files: list[Path]

    def read(self, scene: Scene, region: Region) -> Mask:
        """Class indices (H, W) of a region, 255 where nothing is known."""


def load_labels(
    labels: Paths,
    scenes: Sequence[Scene],
    *,
    attribute: str | None = None,
    classes: Classes | None = None,
    background: str | None = "background",
) -> Labels:
    """Open mask rasters or vector layers, whichever ``labels`` holds.

    Args:
        labels: Folder, glob pattern, file or list of masks (GeoTIFF, PNG) or of vector layers
            (GeoPackage, GeoJSON, FlatGeobuf, Shapefile, GeoParquet).
        scenes: The images that they belong to.
        attribute: Column that holds a polygon's class; one foreground class if None.
        classes: Names of the classes, see :class:`VectorLabels` and :class:`MaskLabels`.
        background: Name of class 0, for pixels outside all polygons; None leaves them unlabelled.

    Raises:
        DataNotFoundError: If there are no labels.
        LabelError: If they do not fit the images or the classes.
        CRSError: If polygons meet an image or a layer without a CRS.
        GridMismatchError: If a mask is not on the grid of its image.
    """
    images = {scene.path for scene in scenes}
    found = find_files(labels, VECTOR_SUFFIXES | MASK_SUFFIXES, "labels")
    files = [f for f in found if f not in images]
    if not files:
        raise LabelError(f"{labels}: holds the images, but no masks or vector layers")
    vectors = [f for f in files if f.suffix.lower() in VECTOR_SUFFIXES]
    if not vectors:
        if attribute is not None:
            raise LabelError(
                f"{labels}: holds masks, which have no column {attribute!r}: leave attribute out, "
                "or name a vector layer"
            )
        return MaskLabels(files, scenes, classes)
    if len(vectors) < len(files):
        raise LabelError(
            f"{labels}: holds vector layers ({vectors[0].name}) and rasters; name those of one kind"
        )
    return VectorLabels(vectors, scenes, attribute, classes, background)


def _key(value: Any) -> str | None:
    """One spelling for values that YAML, GeoPackage and GeoJSON type differently (1, 1.0, "1")."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _table(classes: Classes, first: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in order, and value -> index; values mapped to None are ignored."""
    pairs = classes.items() if isinstance(classes, Mapping) else [(name, name) for name in classes]
    names = list(dict.fromkeys([*first, *(name for _, name in pairs if name is not None)]))
    if len(names) > IGNORE:
        raise LabelError(f"{len(names)} classes; a mask holds {IGNORE} at most")
    index = {name: i for i, name in enumerate(names)}
    lookup: dict[str, int] = {}
    for value, name in pairs:
        # YAML 1.1 reads OpenStreetMap's `yes` and `no` as booleans.
        also = [["no", "yes"][value]] if isinstance(value, bool) else []
        for key in [_key(value), *also]:
            if key is not None:
                lookup[key] = IGNORE if name is None else index[name]
    return tuple(names), lookup


class MaskLabels:
    """One mask raster per image: same stem, or stem + ``.mask``, on the same grid.

    ``classes`` as a list names the values 0, 1, 2, ...; then 255 and the mask's nodata are
    unlabelled. As a mapping it names any values, also 255: ``{0: background, 255: building}``.

    Args:
        files: Mask rasters of one band.
        scenes: The images.
        classes: Names of the values.

    Raises:
        LabelError: If classes are not given, or an image has no mask or several.
        CRSError: If a mask has another coordinate system than its image, or an image has
            coordinates that its own has not.
        GridMismatchError: If a mask is not on the grid of its image.
        ImageReadError: If a mask cannot be read.
    """

    def __init__(
        self, files: Sequence[Path], scenes: Sequence[Scene], classes: Classes | None
    ) -> None:
        if not classes:
            raise LabelError(
                f"{files[0]}: name the values of the masks, e.g. classes=['background', 'building']"
            )
        if isinstance(classes, Mapping):
            self.classes, self._lookup = _table(classes, ())
        else:
            self.classes, _ = _table(classes, ())
            self._lookup = {str(i): i for i in range(len(self.classes))}
        self._lookup.setdefault(str(IGNORE), IGNORE)
        check_places(scenes)
        self._masks = _match(files, scenes)
        for scene in scenes:
            _check_grid(scene, self._masks[scene.path])
        self.files = sorted(set(self._masks.values()))

    def read(self, scene: Scene, region: Region) -> Mask:
        """Class indices (H, W) of a region.

        Raises:
            LabelError: If the mask holds a value that no class has.
            ImageReadError: If it cannot be decoded.
        """
        path = self._masks[scene.path]
        window = Window(region.col, region.row, region.width, region.height)
        try:
            with quiet(), rasterio.open(path) as src:
                values = src.read(1, window=window)
                known = None
                if MaskFlags.all_valid not in src.mask_flag_enums[0]:
                    known = src.read_masks(1, window=window) > 0
        except RasterioError as error:
            raise undecodable(path, error) from error
        found, inverse = np.unique(values, return_inverse=True)
        indices = np.array([self._lookup.get(_key(v) or "", -1) for v in found.tolist()])
        mask = indices[inverse].reshape(values.shape)
        if known is not None:
            mask[~known] = IGNORE
        if (mask < 0).any():
            unknown = sorted({str(v) for v in values[mask < 0].tolist()})
            raise LabelError(
                f"{path}: value {some(unknown)} belongs to no class; classes are "
                f"{', '.join(f'{k}={self._name(v)}' for k, v in self._lookup.items())}"
            )
        return mask.astype(np.uint8)

    def _name(self, index: int) -> str:
        return "(ignored)" if index == IGNORE else self.classes[index]


def _match(files: Sequence[Path], scenes: Sequence[Scene]) -> dict[Path, Path]:
    """Image -> mask of the same stem."""
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem.removesuffix(".mask"), []).append(file)
    matched: dict[Path, Path] = {}
    missing = []
    for scene in scenes:
        found = by_stem.get(scene.path.stem, [])
        if len(found) > 1:
            raise LabelError(f"{scene.path}: several masks, {some([str(f) for f in found])}")
        if found:
            matched[scene.path] = found[0]
        else:
            missing.append(scene.path.name)
    if missing:
        raise LabelError(
            f"no mask in {files[0].parent} for {some(missing)}: expected the image's stem, with or "
            "without .mask"
        )
    return matched


def _check_grid(scene: Scene, path: Path) -> None:
    try:
        with quiet(), rasterio.open(path) as src:
            shape, count, transform, crs = src.shape, src.count, src.transform, src.crs
    except RasterioError as error:
        raise ImageReadError(f"{path}: not a readable mask ({one_line(error)})") from error
    if count != 1:
        raise LabelError(f"{path}: has {count} bands; a mask has one, of class values")
    wrong_crs = (
        crs is not None
        and scene.crs is not None
        and not same_crs(CRS.from_user_input(crs), scene.crs)
    )
    placed = scene.transform is not None and transform != Affine.identity()
    remedy = _remedy(scene, placed, wrong_crs)
    if shape != (scene.height, scene.width):
        raise GridMismatchError(
            f"{path}: {shape[0]} x {shape[1]} px, but {scene.path.name} has "
            f"{scene.height} x {scene.width}: {remedy}"
        )
    if scene.transform is None or not placed:
        return
    if wrong_crs and scene.crs is not None:
        raise CRSError(
            f"{path}: is in {crs.to_string()}, but {scene.path.name} in {scene.crs.to_string()}: "
            f"{remedy}"
        )
    for corner in ((0, 0), (scene.width, scene.height)):
        col, row = ~scene.transform @ (transform @ corner)
        if max(abs(col - corner[0]), abs(row - corner[1])) > 0.5:
            raise GridMismatchError(f"{path}: lies elsewhere than {scene.path.name}: {remedy}")


def _remedy(scene: Scene, placed: bool, wrong_crs: bool) -> str:
    """How a mask comes onto the grid of its image, with the command."""
    size = f"{scene.width} {scene.height}"
    t = scene.transform
    if t is None or not placed:  # sizes differ, and nothing says where the mask lies
        return (
            "if both show the same ground, resize the mask, "
            f"`gdal_translate -r nearest -outsize {size} MASK NEW`"
        )
    srs = f"-t_srs {quote(scene.crs.to_string())} " if wrong_crs and scene.crs is not None else ""
    if t.b or t.d or t.a < 0 or t.e > 0:
        return (
            "the image is turned: warp it, `gdalwarp IMAGE NEW`, and then the mask onto the grid "
            "that this gives it"
        )
    (left, top), (right, bottom) = t @ (0, 0), t @ (scene.width, scene.height)
    extent = " ".join(f"{v:.15g}" for v in (left, bottom, right, top))
    return f"warp the mask, `gdalwarp -r near {srs}-te {extent} -ts {size} MASK NEW`"


class VectorLabels:
    """Polygons, reprojected to each image and drawn on its grid by pixel centres.

    Without ``attribute`` every polygon is one foreground class: ``classes=["building"]``, or
    "foreground". With it, ``classes`` maps the column's values to names (None to ignore), lists
    the values that are names themselves, or is taken from the data, sorted. ``background`` comes
    first. Where polygons overlap, the later one in the layer counts.

    Args:
        files: Vector layers, used together.
        scenes: The images.
        attribute: Column that holds the class.
        classes: Names of its values.
        background: Name of class 0, for pixels outside all polygons; None leaves them unlabelled.

    Raises:
        LabelError: If layers are empty, lie elsewhere, are not polygons, or lack the attribute
            or a class.
        CRSError: If an image or a layer has no CRS.
    """

    def __init__(
        self,
        files: Sequence[Path],
        scenes: Sequence[Scene],
        attribute: str | None,
        classes: Classes | None,
        background: str | None,
    ) -> None:
        require_georeferencing(scenes, "polygon labels")
        self.files = list(files)
        frames = [f for f in (_read_layer(path, attribute) for path in files) if not f.empty]
        if not frames:
            raise LabelError(
                f"{some([str(f) for f in files], 3)}: no polygons for the {len(scenes)} images in "
                f"{scenes[0].path.parent}"
            )
        target = CRS(frames[0].crs)
        shapes = [np.asarray(_to_crs(frame.geometry, target).values) for frame in frames]
        self._shapes = gpd.GeoSeries(np.concatenate(shapes), crs=target)
        first = [] if background is None else [background]
        self._outside = IGNORE if background is None else 0
        if attribute is None:
            names = list(classes) if classes else ["foreground"]
            if isinstance(classes, Mapping) or len(names) != 1:
                raise LabelError(
                    f"classes={classes}: without attribute all polygons are one class; name one, "
                    "or set attribute to the column that tells them apart"
                )
            self.classes, lookup = _table(names, first)
            self._values = np.full(len(self._shapes), lookup[names[0]], np.uint8)
        else:
            keys = [_key(v) for frame in frames for v in frame[attribute].tolist()]
            chosen = classes or sorted({k for k in keys if k is not None})
            self.classes, lookup = _table(chosen, first)
            self._values = _values(keys, lookup, attribute, files)
        self._by_crs: dict[str, tuple[npt.NDArray[Any], shapely.STRtree]] = {}
        if not any(len(self._query(s, s.whole)) for s in scenes):
            raise LabelError(
                f"{some([str(f) for f in files], 3)}: none of the {len(self._shapes)} polygons "
                f"touches any of the {len(scenes)} images in {scenes[0].path.parent}; is their CRS "
                f"({target.to_string()}) right?"
            )

    def read(self, scene: Scene, region: Region) -> Mask:
        """Class indices (H, W) of a region."""
        assert scene.transform is not None  # noqa: S101 - checked on construction
        hits = self._query(scene, region)
        shape = (region.height, region.width)
        if not len(hits):
            return np.full(shape, self._outside, np.uint8)
        shapes, _ = self._in_crs_of(scene)
        return rasterize(
            zip(shapes[hits], self._values[hits].tolist(), strict=True),
            out_shape=shape,
            transform=scene.transform @ Affine.translation(region.col, region.row),
            fill=self._outside,
            dtype="uint8",
        )

    def _query(self, scene: Scene, region: Region) -> npt.NDArray[np.int64]:
        """Positions of the polygons that touch a region, in the order of the layer."""
        _, tree = self._in_crs_of(scene)
        return np.sort(tree.query(footprint(scene, region), "intersects"))

    def _in_crs_of(self, scene: Scene) -> tuple[npt.NDArray[Any], shapely.STRtree]:
        assert scene.crs is not None  # noqa: S101 - checked on construction
        key = scene.crs.to_wkt()
        if key not in self._by_crs:
            shapes = np.asarray(_to_crs(self._shapes, scene.crs).values)
            self._by_crs[key] = shapes, shapely.STRtree(shapes)
        return self._by_crs[key]


def _to_crs(shapes: gpd.GeoSeries, target: CRS) -> gpd.GeoSeries:
    geographic = CRS(shapes.crs).is_geographic
    return reproject(shapes, target, EDGE_DEGREES if geographic else EDGE_METRES)


def _read_layer(path: Path, attribute: str | None) -> gpd.GeoDataFrame:
    """Polygons of one file, valid and not empty.

    Raises:
        LabelError: If the file is unreadable, has several layers, lacks the attribute, or holds
            other geometries.
        CRSError: If it has no CRS.
    """
    try:
        if path.suffix.lower() == ".parquet":
            frame = gpd.read_parquet(path)
        else:
            layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
            if len(layers) > 1:
                raise LabelError(
                    f"{path}: has layers {some(layers)}; keep one, `ogr2ogr one.gpkg FILE LAYER`"
                )
            frame = gpd.read_file(path)
    except (pyogrio.errors.DataSourceError, OSError, ValueError) as error:
        raise LabelError(f"{path}: not a readable vector layer ({one_line(error)})") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise LabelError(f"{path}: has no geometries")
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if frame.empty:
        return frame
    if attribute is not None and attribute not in frame.columns:
        columns = [str(c) for c in frame.columns if c != frame.geometry.name]
        raise LabelError(f"{path}: no attribute {attribute!r}; it has {some(columns, 20)}")
    if frame.crs is None:
        raise CRSError(f"{path}: has no CRS; assign one with `ogr2ogr -a_srs EPSG:<code>`")
    if other := sorted(set(frame.geom_type) - {"Polygon", "MultiPolygon"}):
        raise LabelError(f"{path}: holds {', '.join(other)}; labels are polygons, buffer it first")
    return frame.set_geometry(frame.geometry.make_valid())


def _values(
    keys: Sequence[str | None], lookup: dict[str, int], attribute: str, files: Sequence[Path]
) -> npt.NDArray[np.uint8]:
    """Class index of each polygon."""
    unknown = [key for key in keys if key not in lookup]
    if unknown:
        names = sorted({"(none)" if key is None else key for key in unknown})
        raise LabelError(
            f"{files[0]}: {len(unknown)} polygons have {attribute} = {some(names)}, which classes "
            f"does not name; it names {some(list(lookup), 20)} (map a value to null to ignore it)"
        )
    return np.array([lookup[key] for key in keys if key is not None], np.uint8)

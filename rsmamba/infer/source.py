"""Scenes: any raster that GDAL reads, as float32 windows with nodata filled and a valid mask."""

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError as RasterioCRSError
from rasterio.features import geometry_mask
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from rsmamba.data.areas import Area, read_area, reproject
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    CRSError,
    DataNotFoundError,
    ImageReadError,
    ResolutionError,
    one_line,
)
from rsmamba.gis.bands import stored_names
from rsmamba.gis.nodata import observed
from rsmamba.gis.raster import GDAL_ERRORS, RasterGrid
from rsmamba.infer.grid import Box, reflect
from rsmamba.infer.reader import GDAL_OPTIONS, Pixels, RawReader
from rsmamba.sensors import check_bands, labels_of
from rsmamba.spec import ModelSpec

#: Share by which resolutions may differ and be called the same.
SAME_RESOLUTION = 0.01
#: Share by which a scene's resolution may differ from that of the training data.
RESOLUTION_TOLERANCE = 0.25


class SceneSource:
    """A raster open for windowed reading.

    A pixel is valid if any band holds data there by GDAL's masks: nodata per band, NaN, an alpha
    band, an internal or external mask. An alpha band is a mask and not data. In a scene that
    declares nothing of the kind, the model's own ``spec.nodata`` marks nodata.

    Single missing values of valid pixels are filled as well, so that a -9999 in one band does not
    poison a tile. One exception: a declared nodata of 0 in a pixel whose other bands hold data is
    a dark value and stays.

    Args:
        path: File, URL or GDAL dataset name.
        assume_crs: CRS of a file that has none, e.g. ``"EPSG:32633"``.
        strict: Whether a part that cannot be read is an error; else it is left out as nodata and
            named in :attr:`Pixels.failed`.
        bands: 1-based bands to read, in the model's order; all but alpha if None. One that is
            declared as alpha counts as data if it is listed.

    Attributes:
        grid: Size and georeferencing; those of the area after :meth:`restrict`.
        count: Number of data bands, without alpha.

    Raises:
        DataNotFoundError: If there is no such file.
        ImageReadError: If GDAL cannot open it or its pixels are complex numbers.
        CRSError: If it has no CRS and none is assumed, or it has another one than assumed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        assume_crs: str | None = None,
        bands: Sequence[int] | None = None,
        strict: bool = True,
    ) -> None:
        self.path, self._strict = str(path), strict
        self._asked = None if bands is None else list(bands)
        self._spec: ModelSpec | None = None
        self._area: BaseGeometry | None = None
        self._row = self._col = 0
        self._opened = ExitStack()
        if ":" not in self.path and not self.path.startswith("/vsi") and not Path(path).exists():
            raise DataNotFoundError(f"{self.path}: no such scene; check the path")
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                self._dataset = self._opened.enter_context(rasterio.open(self.path))
        except GDAL_ERRORS as error:
            raise ImageReadError(
                f"{self.path}: no raster that GDAL can read ({one_line(error)}); is it complete, "
                "and of a format that `rsmamba doctor` lists?"
            ) from error
        try:
            self._inspect(assume_crs)
        except BaseException:
            self._opened.close()
            raise

    def _inspect(self, assume_crs: str | None) -> None:
        """Find the data bands, the kind of mask and the georeferencing."""
        dataset = self._dataset
        colours = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
        alpha = [i for i, c in colours.items() if c == ColorInterp.alpha]
        if absent := [i for i in self._asked or () if i not in colours]:
            raise BandMismatchError(
                f"{self.path}: band {absent[0]} was asked for, there are {len(colours)}"
            )
        self._bands = self._asked or [i for i in colours if i not in alpha]
        # The file's masks are made of its alpha band, which is none if it is read as data.
        self._alpha_is_data = bool(set(alpha) & set(self._bands))
        self._has_alpha = bool(alpha) and not self._alpha_is_data
        self.count = len(self._bands)
        if not self._bands or any(np.dtype(t).kind == "c" for t in dataset.dtypes):
            raise ImageReadError(
                f"{self.path}: {'complex pixels' if self._bands else 'no data bands'}: "
                "a scene needs bands of real numbers"
            )
        flags = [f for i, f in enumerate(dataset.mask_flag_enums) if i + 1 in self._bands]
        self._shared_mask = any(MaskFlags.per_dataset in f for f in flags)
        self._masked = any(MaskFlags.all_valid not in f for f in flags)
        if self._alpha_is_data:
            self._shared_mask = self._masked = False
        declared = [dataset.nodatavals[i - 1] for i in self._bands]
        self._nodata = [] if self._shared_mask else declared
        masks = [] if not self._masked else self._bands[:1] if self._shared_mask else self._bands
        self._reader = RawReader(dataset, self.path, self._bands, masks, self._strict)
        self.grid = self._whole = RasterGrid(
            dataset.height, dataset.width, self._find_crs(assume_crs), dataset.transform
        )

    def _find_crs(self, assume_crs: str | None) -> CRS:
        """The file's CRS, or the assumed one."""
        declared: CRS | None = self._dataset.crs
        if assume_crs is None:
            if declared:
                return declared
            if self._dataset.gcps[0]:
                raise CRSError(
                    f"{self.path} is georeferenced by ground control points only: warp it first "
                    "(gdalwarp SCENE WARPED.tif)"
                )
            raise CRSError(
                f"{self.path} has no coordinate reference system: name it with "
                "--assume-crs EPSG:..."
            )
        try:
            assumed = CRS.from_user_input(assume_crs)
        except (RasterioCRSError, ValueError) as error:
            raise CRSError(
                f"--assume-crs {assume_crs}: not a coordinate reference system; "
                "write it like EPSG:32633"
            ) from error
        if declared and declared != assumed:
            raise CRSError(
                f"{self.path} is in {declared.to_string()}, not in {assume_crs}: --assume-crs is "
                "for files without a reference system; leave it out"
            )
        return assumed

    def expect(self, spec: ModelSpec | None) -> None:
        """Check the bands against a model's, and fill missing pixels with its means from now on.

        Args:
            spec: What the model expects; None fills missing pixels with 0.

        Raises:
            BandMismatchError: If the bands are not the model's in number, or by what the file says
                of them in name or order. A file that says nothing is taken at its number of bands.
        """
        self._spec = spec
        if spec is None:
            return
        names = stored_names(self._dataset)
        shown = [names[i - 1] or self._dataset.colorinterp[i - 1].name for i in self._bands]
        found = f"{self.count} ({', '.join(shown)}{' and alpha' if self._has_alpha else ''})"
        expected = f"{spec.in_channels} ({', '.join(spec.bands)})"
        chosen = _by_name(names, spec.bands)
        order = " ".join(map(str, chosen)) if chosen else "..."
        remedy = f"pick and order them with --bands {order}"
        # An order that somebody has asked for is checked against what people wrote alone.
        other = chosen not in (None, self._bands) and not self._asked
        if self.count != spec.in_channels or other:
            raise BandMismatchError(
                f"{self.path} has {found} bands, the model expects {expected}: {remedy}"
            )
        texts = [self._dataset.descriptions[i - 1] for i in self._bands]
        check_bands(texts, spec.bands, self.path, remedy=remedy, described=True)

    def resample(self, resolution: float) -> None:
        """Read the scene at another ground sampling distance from now on; :attr:`grid` changes.

        Pixels are averaged where they become larger and interpolated (bilinear) where they become
        smaller. The orientation of the grid and its upper left corner stay.

        Args:
            resolution: Metres to the pixel.

        Raises:
            ConfigError: If it is not positive.
            CRSError: If the scene's CRS leads to no place on Earth, where metres could be measured.
        """
        if not resolution > 0:
            raise ConfigError(f"resolution={resolution}: metres to the pixel, more than 0")
        gsd = self.grid.gsd()
        if gsd is None:
            raise CRSError(
                f"{self.path} is in a local system ({self.grid.crs.to_string()}): its resolution "
                "in metres is not known, leave out --resolution"
            )
        factor = resolution / gsd
        if abs(factor - 1) < SAME_RESOLUTION:
            return
        whole = self._whole
        resampled = RasterGrid(
            max(1, math.floor(whole.height / factor)),
            max(1, math.floor(whole.width / factor)),
            whole.crs,
            whole.transform @ Affine.scale(factor),
        )
        self.warp_to(resampled, Resampling.average if factor > 1 else Resampling.bilinear)

    def warp_to(self, grid: RasterGrid, resampling: Resampling = Resampling.bilinear) -> None:
        """Read the scene on another grid from now on; what it does not cover is not valid.

        Args:
            grid: Size and georeferencing wanted.
            resampling: How pixels are made from pixels.
        """
        # Of a scene that declares nodata or alpha, these also say what lies outside it.
        declared = self._has_alpha or any(v is not None for v in self._dataset.nodatavals)
        self._dataset = self._opened.enter_context(
            WarpedVRT(
                self._dataset,
                src_crs=self._whole.crs,
                crs=grid.crs,
                transform=grid.transform,
                width=grid.width,
                height=grid.height,
                resampling=resampling,
                add_alpha=not declared,
            )
        )
        self._inspect(None)

    def restrict(self, area: Area, area_crs: str) -> None:
        """Map an area only: :attr:`grid` shrinks to it, pixels outside it are not valid.

        They are still read as context of those inside. A pixel is inside if its centre is.

        Args:
            area: Bounds [minx, miny, maxx, maxy], or a vector file of polygons.
            area_crs: CRS of bounds.

        Raises:
            DataNotFoundError: If the file is missing or empty, or the area holds no pixel.
            CRSError: If a CRS is missing or unknown.
            ConfigError: If bounds are not four numbers in order.
        """
        crs = pyproj.CRS.from_wkt(self.grid.crs.to_wkt())
        shape = reproject(read_area(area, area_crs), crs).iloc[0]
        whole = self._whole
        cols, rows = ~whole.transform @ shapely.get_coordinates(shape).T
        top, bottom = max(0, math.floor(rows.min())), min(whole.height, math.ceil(rows.max()))
        left, right = max(0, math.floor(cols.min())), min(whole.width, math.ceil(cols.max()))
        if top >= bottom or left >= right:
            raise DataNotFoundError(
                f"the area of interest does not touch {self.path}, which lies in "
                f"{whole.crs.to_string()}: check its coordinates and --area-crs"
            )
        self._area, self._row, self._col = shape, top, left
        transform = whole.transform @ Affine.translation(left, top)
        self.grid = RasterGrid(bottom - top, right - left, whole.crs, transform)

    def expect_resolution(self, spec: ModelSpec | None) -> None:
        """Refuse a ground sampling distance more than a quarter off the model's.

        Raises:
            ResolutionError: Names both and the remedy.
        """
        wanted, gsd = spec.gsd if spec else None, self.grid.gsd()
        if not wanted or gsd is None or abs(gsd / wanted - 1) <= RESOLUTION_TOLERANCE:
            return
        raise ResolutionError(
            f"{self.path} has {gsd:.3g} m to the pixel, the model was trained at {wanted:.3g} m: "
            f"--resolution {wanted:.3g} maps it at the model's, --resolution {gsd:.3g} as it is"
        )

    def read(self, box: Box) -> Pixels:
        """Read a window that may exceed the scene.

        Args:
            box: Window in pixels of :attr:`grid`.

        Returns:
            Pixels of the size of ``box``.

        Raises:
            ImageReadError: If the file is damaged or truncated there, and this source is strict.
        """
        box = Box(
            box.top + self._row, box.left + self._col, box.bottom + self._row, box.right + self._col
        )
        rows = reflect(box.top, box.bottom, self._whole.height)
        cols = reflect(box.left, box.right, self._whole.width)
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) + 1 - top, int(cols.max()) + 1 - left
        image, valid, failed = self._read_inside(Window(left, top, width, height))
        if (height, width) != (box.height, box.width) or box.top < 0 or box.left < 0:
            image = image[:, rows - top][:, :, cols - left]
            valid = valid[rows - top][:, cols - left]
            inside_rows = (np.arange(box.top, box.bottom) == rows)[:, None]
            inside_cols = np.arange(box.left, box.right) == cols
            valid &= inside_rows & inside_cols
        if self._area is not None:
            valid &= geometry_mask(
                [self._area],
                valid.shape,
                self._whole.transform @ Affine.translation(box.left, box.top),
                invert=True,
            )
        return Pixels(image, valid, failed)

    def _read_inside(
        self, window: Window
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[str]]:
        """Values and valid mask of a window inside the scene, missing values filled; failures."""
        # options are per thread, and reading ahead happens in another one
        with rasterio.Env(**GDAL_OPTIONS):
            found = self._reader.read(window)
            raw, masks, lost = found.values, found.masks, found.lost
        with np.errstate(over="ignore", invalid="ignore"):
            image = raw.astype(np.float32)
        if masks is None and self._spec is not None and self._spec.nodata is not None:
            masks = (raw != self._spec.nodata).any(axis=0, keepdims=True)
        if lost is not None:
            masks = ~lost[None] if masks is None else masks & ~lost
        known, valid = observed(image, masks, self._nodata)
        if not known.all():
            for band, fill in enumerate(self._fill):
                image[band][~known[band]] = fill
        return image, valid, found.failed

    @property
    def _fill(self) -> list[float]:
        """Raw value per band that the model's normalisation turns into 0."""
        if self._spec is None:
            return [0.0] * self.count
        return [mean / self._spec.scale for mean in self._spec.mean]

    def __enter__(self) -> "SceneSource":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()


def _by_name(names: Sequence[str | None], wanted: Sequence[str]) -> list[int] | None:
    """1-based bands of these names, or of these numbers (``band_4``); None unless all are there."""
    labels = labels_of(names)
    chosen = []
    for name, label in zip(wanted, labels_of(wanted), strict=True):
        number = re.fullmatch(r"band_(\d+)", name)
        if label is not None and labels.count(label) == 1:
            chosen.append(labels.index(label) + 1)
        elif number and 1 <= int(number.group(1)) <= len(names):
            chosen.append(int(number.group(1)))
        else:
            return None
    return chosen

"""Scenes: any raster that GDAL reads, as float32 windows with nodata filled and a valid mask."""

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError as RasterioCRSError
from rasterio.windows import Window

from rsmamba.errors import BandMismatchError, CRSError, DataNotFoundError, ImageReadError, one_line
from rsmamba.gis.bands import stored_names
from rsmamba.gis.raster import GDAL_ERRORS, RasterGrid
from rsmamba.infer.grid import Box, reflect
from rsmamba.sensors import check_bands, labels_of
from rsmamba.spec import ModelSpec

#: GDAL settings of every read and write here. A VRT may carry Python code: it is never run.
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": 256 * 2**20,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}


@dataclass(frozen=True)
class Pixels:
    """A window of a scene.

    Attributes:
        image: (C, H, W) float32 raw values, missing ones filled, mirrored beyond the border.
        valid: (H, W) True where the scene was observed; False beyond the border.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]


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
        bands: 1-based bands to read, in the model's order; all but alpha if None. One that is
            declared as alpha counts as data if it is listed.

    Attributes:
        grid: Size and georeferencing.
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
    ) -> None:
        self.path, self._asked = str(path), None if bands is None else list(bands)
        self._spec: ModelSpec | None = None
        if ":" not in self.path and not self.path.startswith("/vsi") and not Path(path).exists():
            raise DataNotFoundError(f"{self.path}: no such scene; check the path")
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                self._dataset = rasterio.open(self.path)
        except GDAL_ERRORS as error:
            raise ImageReadError(
                f"{self.path}: no raster that GDAL can read ({one_line(error)}); is it complete, "
                "and of a format that `rsmamba doctor` lists?"
            ) from error
        try:
            self._inspect(assume_crs)
        except BaseException:
            self._dataset.close()
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
        # bands in which a 0 beside data of other bands is a dark value
        self._zero_bands = [
            band
            for band, index in enumerate(self._bands)
            if dataset.nodatavals[index - 1] == 0 and not self._shared_mask
        ]
        self.grid = RasterGrid(
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

    def read(self, box: Box) -> Pixels:
        """Read a window that may exceed the scene.

        Args:
            box: Window in scene pixels.

        Returns:
            Pixels of the size of ``box``.

        Raises:
            ImageReadError: If the file is damaged or truncated there.
        """
        rows = reflect(box.top, box.bottom, self.grid.height)
        cols = reflect(box.left, box.right, self.grid.width)
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) + 1 - top, int(cols.max()) + 1 - left
        image, valid = self._read_inside(Window(left, top, width, height))
        if (height, width) != (box.height, box.width) or box.top < 0 or box.left < 0:
            image = image[:, rows - top][:, :, cols - left]
            valid = valid[rows - top][:, cols - left]
            inside_rows = (np.arange(box.top, box.bottom) == rows)[:, None]
            inside_cols = np.arange(box.left, box.right) == cols
            valid &= inside_rows & inside_cols
        return Pixels(image, valid)

    def _read_inside(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Values and valid mask of a window inside the scene, missing values filled."""
        try:
            # options are per thread, and reading ahead happens in another one
            with rasterio.Env(**GDAL_OPTIONS):
                raw = self._dataset.read(self._bands, window=window)
                masks = self._read_masks(window)
        except GDAL_ERRORS as error:
            raise ImageReadError(
                f"cannot read {self.path} at row {window.row_off}, column {window.col_off}: "
                f"{one_line(error)}; the file looks damaged or truncated, copy or download it again"
            ) from error
        with np.errstate(over="ignore", invalid="ignore"):
            image = raw.astype(np.float32)
        observed = np.isfinite(image)
        if masks is not None:
            observed &= masks
        elif self._spec is not None and self._spec.nodata is not None:
            observed &= (raw != self._spec.nodata).any(axis=0)
        valid: NDArray[np.bool_] = np.any(observed, axis=0)
        for band in self._zero_bands:
            observed[band] |= valid & (raw[band] == 0)
        if not observed.all():
            for band, fill in enumerate(self._fill):
                image[band][~observed[band]] = fill
        return image, valid

    def _read_masks(self, window: Window) -> NDArray[np.bool_] | None:
        """GDAL's masks, (C or 1, H, W); None if the file declares none."""
        if not self._masked:
            return None
        indexes = self._bands[:1] if self._shared_mask else self._bands
        masks: NDArray[np.bool_] = self._dataset.read_masks(indexes, window=window) > 0
        return masks

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
        self._dataset.close()


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


def read_ahead(read: Callable[[Box], Pixels], boxes: Iterable[Box]) -> Generator[Pixels]:
    """Read windows in order, each while the one before it is being worked on.

    Args:
        read: Function that reads a window; called in one other thread.
        boxes: The windows.

    Yields:
        The pixels of each window.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        pending: Future[Pixels] | None = None
        for box in boxes:
            following = pool.submit(read, box)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()

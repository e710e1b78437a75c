"""Opening images and reading windows of them with their valid pixels.

GeoTIFFs are read with rasterio, JPEG and PNG with Pillow, which decodes small files faster and
reports a truncated JPEG that GDAL reads as grey.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from PIL import Image
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from torch import Tensor

from rsmamba.data.listing import PHOTO_SUFFIXES, some
from rsmamba.errors import BandMismatchError, ImageReadError, one_line

#: Mask value of pixels that no loss and no metric counts.
IGNORE = 255

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of pixels: first row, first column, height, width."""

    row: int
    col: int
    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width


@dataclass
class Scene:
    """One image file: what its header says, and its pixels by windows.

    Attributes:
        path: The file.
        height: Rows.
        width: Columns.
        indexes: 1-based bands that are read.
        dtype: NumPy name of the stored type.
        crs: Coordinate reference system, None if the file has none.
        transform: Pixel to map coordinates, None if the file is not georeferenced.
        nodata: Value that means "no observation", None if the file declares none.
        masked: Whether any pixel can be invalid (nodata, alpha or a mask band).
        alpha: 1-based band that serves as a mask because the file declares it to be alpha.
    """

    path: Path
    height: int
    width: int
    indexes: tuple[int, ...]
    dtype: str
    crs: CRS | None = None
    transform: Affine | None = None
    nodata: float | None = None
    masked: bool = False
    alpha: int | None = None
    _cache: tuple[Pixels, Valid | None] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path, indexes: Sequence[int] | None = None) -> "Scene":
        """Read the header.

        Args:
            path: GeoTIFF, JPEG or PNG.
            indexes: 1-based bands to read; all but alpha if None. A band that is declared as alpha
                counts as data if it is listed.

        Raises:
            ImageReadError: If the file is not a readable image.
            BandMismatchError: If it lacks one of the bands.
        """
        if path.suffix.lower() in PHOTO_SUFFIXES:
            return cls._open_photo(path, indexes)
        try:
            with quiet(), rasterio.open(path) as src:
                return cls._from_dataset(path, src, indexes)
        except RasterioError as error:
            raise ImageReadError(f"{path}: not a readable image ({one_line(error)})") from error

    @classmethod
    def _open_photo(cls, path: Path, indexes: Sequence[int] | None) -> "Scene":
        try:
            with Image.open(path) as image:
                (width, height), mode = image.size, image.mode
        except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG as a SyntaxError
            raise ImageReadError(f"{path}: not a readable image ({one_line(error)})") from error
        deep = mode.startswith(("I", "F"))
        available = (1,) if deep else (1, 2, 3)
        dtype = {"F": "float32", "I": "int32"}.get(mode, "uint16") if deep else "uint8"
        return cls(
            path=path,
            height=height,
            width=width,
            indexes=_choose(path, indexes, available),
            dtype=dtype,
            masked="A" in mode,
        )

    @classmethod
    def _from_dataset(
        cls, path: Path, src: rasterio.DatasetReader, indexes: Sequence[int] | None
    ) -> "Scene":
        declared = zip(src.indexes, src.colorinterp, strict=True)
        alpha = next((i for i, colour in declared if colour == ColorInterp.alpha), None)
        if indexes is None:
            chosen = tuple(i for i in src.indexes if i != alpha)
        else:
            chosen = _choose(path, indexes, src.indexes)
        if not chosen:
            raise ImageReadError(f"{path}: has no band but alpha")
        if alpha in chosen:
            alpha, masked = None, src.nodata is not None
        else:
            masked = any(MaskFlags.all_valid not in flags for flags in src.mask_flag_enums)
        dtype = str(np.result_type(*src.dtypes))
        return cls(
            path=path,
            height=src.height,
            width=src.width,
            indexes=chosen,
            dtype=dtype,
            crs=CRS.from_user_input(src.crs) if src.crs else None,
            transform=None if src.transform == Affine.identity() else src.transform,
            nodata=src.nodata,
            masked=masked or np.dtype(dtype).kind == "f",
            alpha=alpha,
        )

    def alpha_looks_like_data(self) -> bool:
        """Whether the band declared as alpha holds more than "opaque" and "transparent".

        GDAL declares the fourth band of a byte file to be alpha unless told otherwise, so near
        infrared often goes by that name. Reads a small sample of the band.

        Raises:
            ImageReadError: If the file cannot be decoded.
        """
        if self.alpha is None:
            return False
        try:
            with quiet(), rasterio.open(self.path) as src:
                shape = (min(64, self.height), min(64, self.width))
                sample = src.read(self.alpha, out_shape=shape)
        except RasterioError as error:
            raise undecodable(self.path, error) from error
        opaque = np.iinfo(sample.dtype).max if sample.dtype.kind in "iu" else 1.0
        return bool(((sample != 0) & (sample != opaque)).mean() > 0.05)

    @property
    def whole(self) -> Region:
        """The region of all pixels."""
        return Region(0, 0, self.height, self.width)

    @property
    def kept(self) -> bool:
        """Whether the decoded pixels are in memory."""
        return self._cache is not None

    @property
    def nbytes(self) -> int:
        """Size of the decoded pixels."""
        return self.height * self.width * len(self.indexes) * np.dtype(self.dtype).itemsize

    @cached_property
    def gsd(self) -> float | None:
        """Metres to the pixel (mean of both axes, at the centre), None without a CRS."""
        if self.crs is None or self.transform is None:
            return None
        t = self.transform
        along, down = math.hypot(t.a, t.d), math.hypot(t.b, t.e)
        if self.crs.is_geographic:
            _, latitude = t @ (self.width / 2, self.height / 2)
            metres = math.radians(1) * 6371008.8
            return (along * math.cos(math.radians(latitude)) + down) / 2 * metres
        return (along + down) / 2 * self.crs.axis_info[0].unit_conversion_factor

    def read(self, region: Region | None = None) -> tuple[Pixels, Valid | None]:
        """Pixels (C, H, W) of a region in the stored type, and which of them are valid (H, W).

        A pixel is invalid where the file's nodata, mask or alpha says so, or where any band is not
        finite. None stands for "all valid".

        Raises:
            ImageReadError: If the file cannot be decoded, naming it.
        """
        region = region or self.whole
        if self._cache is not None:
            return _crop(self._cache, region)
        if self.path.suffix.lower() in PHOTO_SUFFIXES:
            return _crop(self._read_photo(), region)
        window = Window(region.col, region.row, region.width, region.height)
        try:
            with quiet(), rasterio.open(self.path) as src:
                pixels = src.read(list(self.indexes), window=window)
                valid = self._valid(src, window, pixels)
        except RasterioError as error:
            raise undecodable(self.path, error) from error
        if pixels.dtype.kind == "f":
            finite = np.isfinite(pixels).all(0)
            valid = finite if valid is None else valid & finite
        return pixels, None if valid is None or valid.all() else valid

    def _valid(self, src: rasterio.DatasetReader, window: Window, pixels: Pixels) -> Valid | None:
        """Which pixels the file calls valid; None for all."""
        if not self.masked:
            return None
        if ColorInterp.alpha in src.colorinterp and self.alpha is None:
            # That band is data here, and the file's own mask would be made of it.
            return None if self.nodata is None else (pixels != self.nodata).any(0)
        return src.dataset_mask(window=window) > 0

    def _read_photo(self) -> tuple[Pixels, Valid | None]:
        try:
            with Image.open(self.path) as image:
                if self.dtype != "uint8":
                    return np.asarray(image).astype(self.dtype)[None], None
                alpha = np.asarray(image.convert("RGBA"))[..., 3] if self.masked else None
                pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError) as error:
            raise undecodable(self.path, error) from error
        if self.indexes != (1, 2, 3):
            pixels = pixels[[i - 1 for i in self.indexes]]
        return np.ascontiguousarray(pixels), None if alpha is None else alpha > 0

    def keep(self) -> None:
        """Decode the file once and serve every later :meth:`read` from memory."""
        if self._cache is None:
            self._cache = self.read()


def _crop(decoded: tuple[Pixels, Valid | None], region: Region) -> tuple[Pixels, Valid | None]:
    rows = slice(region.row, region.row + region.height)
    cols = slice(region.col, region.col + region.width)
    pixels, valid = decoded
    return pixels[:, rows, cols], None if valid is None else valid[rows, cols]


def _choose(
    path: Path, wanted: Sequence[int] | None, available: tuple[int, ...]
) -> tuple[int, ...]:
    if wanted is None:
        return available
    if missing := [i for i in wanted if i not in available]:
        raise BandMismatchError(
            f"{path}: band {missing[0]} was asked for, there are {', '.join(map(str, available))}"
        )
    return tuple(wanted)


def quiet() -> "warnings.catch_warnings[None]":
    """A file without georeferencing is a normal case here, not worth a warning for each read."""
    return warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning)


def undecodable(path: str | Path, error: BaseException) -> ImageReadError:
    """The error for a file whose header can be read and whose pixels cannot."""
    return ImageReadError(
        f"{path}: cannot be decoded ({one_line(error)}); the file looks damaged or truncated, copy "
        "or download it again"
    )


def same_bands(scenes: Sequence[Scene]) -> int:
    """Number of bands that all scenes have.

    Raises:
        BandMismatchError: If they differ, naming files of each kind.
    """
    counts = Counter(len(s.indexes) for s in scenes)
    if len(counts) > 1:
        kinds = [
            f"{count} bands in {some([s.path.name for s in scenes if len(s.indexes) == count])}"
            for count in counts
        ]
        raise BandMismatchError(
            f"images differ in bands: {'; '.join(kinds)}: choose common ones with indexes=[...]"
        )
    return next(iter(counts))


def band_names(bands: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Names as given, or red, green, blue for three bands, or band_1, band_2, ...

    Raises:
        BandMismatchError: If there are not as many names as bands.
    """
    if bands is None:
        return (
            ("red", "green", "blue") if count == 3 else tuple(f"band_{i + 1}" for i in range(count))
        )
    if len(bands) != count:
        raise BandMismatchError(f"{len(bands)} band names ({', '.join(bands)}) for {count} bands")
    return tuple(bands)


def common_nodata(scenes: Sequence[Scene]) -> float | None:
    """The nodata value if all scenes declare the same one."""
    values = {s.nodata for s in scenes}
    return values.pop() if len(values) == 1 else None


def median_gsd(scenes: Sequence[Scene]) -> float | None:
    """Median ground sampling distance in metres of the georeferenced scenes."""
    known = [s.gsd for s in scenes if s.gsd is not None]
    return median(known) if known else None


def grid(region: Region, size: int) -> list[Region]:
    """Squares of ``size`` that cover a region once, row by row; the last ones stick out."""
    return [
        Region(row, col, size, size)
        for row in range(region.row, region.row + region.height, size)
        for col in range(region.col, region.col + region.width, size)
    ]


def clip(window: Region, region: Region) -> Region:
    """The part of a window that lies in a region that contains its first pixel."""
    return Region(
        window.row,
        window.col,
        min(window.height, region.row + region.height - window.row),
        min(window.width, region.col + region.width - window.col),
    )


def to_display(image: Tensor) -> npt.NDArray[np.float32]:
    """First three bands (or the first one) of (C, H, W), stretched to 0..1 for showing.

    Bytes are divided by 255; anything else is stretched between its 2nd and 98th percentile.
    """
    bands = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    array = bands.detach().cpu().numpy().astype(np.float32).transpose(1, 2, 0)
    low, high = (
        (0.0, 255.0)
        if 1 < array.max() <= 255 and array.min() >= 0
        else np.percentile(array, (2, 98))
    )
    return np.clip((array - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)

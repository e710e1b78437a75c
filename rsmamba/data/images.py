"""Opening images and reading windows of them with their valid pixels.

JPEG and PNG of 8 bits are decoded with torchvision and Pillow, which take half of GDAL's time for
small files; everything else is read with GDAL, by windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from PIL import Image
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window
from torch import Tensor
from torchvision.io import decode_image, read_file

from rsmamba.data.listing import PHOTO_SUFFIXES, VsiPath
from rsmamba.data.rasters import (
    GDAL_ERRORS,
    check_colours,
    inks,
    opened,
    undecodable,
    unreadable,
)
from rsmamba.data.rasters import quiet as quiet
from rsmamba.data.regions import Region
from rsmamba.data.regions import clip as clip
from rsmamba.data.regions import grid as grid
from rsmamba.errors import BandMismatchError, ImageReadError
from rsmamba.gis.bands import stored_names
from rsmamba.gis.nodata import observed

#: Mask value of pixels that no loss and no metric counts.
IGNORE = 255

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]


@dataclass
class Scene:
    """One image file: what its header says, and its pixels by windows.

    Attributes:
        path: The file.
        height: Rows.
        width: Columns.
        indexes: 1-based bands that are read.
        names: What the file calls them: descriptions, or colours; None for nothing.
        described: Their descriptions alone, which a person wrote.
        dtype: NumPy name of the stored type.
        crs: Coordinate reference system, None if the file has none.
        transform: Pixel to map coordinates, None if the file is not georeferenced.
        nodata: Value that means "no observation", None if the file declares none.
        masked: Whether any pixel can be invalid by what the file declares (nodata, alpha, mask).
        alpha: 1-based band that serves as a mask because the file declares it to be alpha.
        factor: What the stored values are multiplied by on reading.
        mode: Pillow's mode to decode a JPEG or PNG to, RGB or L; empty for what GDAL reads.
        plain: Whether it is stored in that mode, so that nothing needs converting.
        assumed: Value of all bands that means "no observation" though the file declares nothing.
        stored: Bands of the file behind ``indexes`` where these are others.
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
    factor: float = 1.0
    mode: str = "RGB"
    plain: bool = False
    assumed: float | None = None
    stored: tuple[int, ...] | None = None
    names: tuple[str | None, ...] = ()
    described: tuple[str | None, ...] = ()
    _cache: tuple[Pixels, Valid | None] | None = field(default=None, repr=False)
    _means: npt.NDArray[Any] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls, path: Path, indexes: Sequence[int] | None = None, *, convert: bool = False
    ) -> "Scene":
        """Read the header.

        JPEG and PNG have one band (grey) or three (colour, palettes included); an alpha channel is
        a mask.

        Args:
            path: GeoTIFF, JPEG, PNG, or whatever else GDAL reads.
            indexes: 1-based bands to read; all but alpha if None. A band that is declared as alpha
                counts as data if it is listed.
            convert: Whether a grey JPEG or PNG is given as three equal bands, and CMYK converted,
                which is refused otherwise.

        Raises:
            ImageReadError: If the file is not a readable image.
            BandMismatchError: If it lacks one of the bands, or its bands are printing inks.
        """
        if path.suffix.lower() in PHOTO_SUFFIXES and not isinstance(path, VsiPath):
            scene = cls._open_photo(path, indexes, convert)
            if scene is not None:
                return scene
        try:
            with opened(path) as src:
                return cls._from_dataset(path, src, indexes, convert)
        except GDAL_ERRORS as error:
            raise unreadable(path, error) from error

    @classmethod
    def _open_photo(
        cls, path: Path, indexes: Sequence[int] | None, convert: bool
    ) -> "Scene | None":
        """The header of a JPEG or PNG of 8 bits; None for others."""
        try:
            with Image.open(path) as image:
                (width, height), mode = image.size, image.mode
                transparent = "transparency" in image.info or mode in ("LA", "PA", "RGBA")
                # Pillow opens colour of 16 bits as "RGB" and drops half of each value.
                deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow reports a broken PNG as a SyntaxError
            raise unreadable(path, error) from error
        if deep or mode[0] in "IF":
            return None
        grey = mode in ("1", "L", "LA")
        if not grey and mode not in ("P", "PA", "RGB", "RGBA") and not convert:
            raise inks(path, mode)
        _check_size(path, height, width)
        decoded = "L" if grey and not convert else "RGB"
        chosen = _choose(path, indexes, (1,) if decoded == "L" else (1, 2, 3))
        colours = (None,) if decoded == "L" else ("red", "green", "blue")
        return cls(
            path=path,
            height=height,
            width=width,
            indexes=chosen,
            names=tuple(colours[i - 1] for i in chosen),
            dtype="uint8",
            masked=transparent,
            mode=decoded,
            plain=mode == decoded,
        )

    @classmethod
    def _from_dataset(
        cls,
        path: Path,
        src: rasterio.DatasetReader,
        indexes: Sequence[int] | None,
        convert: bool = False,
    ) -> "Scene":
        _check_size(path, src.height, src.width)
        declared = list(zip(src.indexes, src.colorinterp, strict=True))
        alpha = next((i for i, colour in declared if colour == ColorInterp.alpha), None)
        bands = tuple(i for i in src.indexes if i != alpha)
        if not bands:
            raise ImageReadError(f"{path}: has no band but alpha; leave it out")
        check_colours(path, src, convert)
        photo = path.suffix.lower() in PHOTO_SUFFIXES
        repeated = photo and convert and len(bands) == 1
        there = (1, 2, 3) if repeated else src.indexes
        chosen = (
            (there if repeated else bands) if indexes is None else _choose(path, indexes, there)
        )
        if alpha in chosen and not repeated:
            alpha, masked = None, src.nodata is not None
        else:
            masked = any(MaskFlags.all_valid not in flags for flags in src.mask_flag_enums)
        dtype = str(np.result_type(*src.dtypes))
        if np.dtype(dtype).kind not in "iuf":
            raise ImageReadError(
                f"{path}: holds {dtype}, not real numbers; convert or leave it out"
            )
        names = ("red", "green", "blue") if repeated else stored_names(src)
        texts = (None,) * 3 if repeated else src.descriptions
        return cls(
            path=path,
            height=src.height,
            width=src.width,
            indexes=chosen,
            dtype=dtype,
            crs=_crs(src.crs.to_wkt()) if src.crs else None,
            transform=None if src.transform == Affine.identity() else src.transform,
            nodata=src.nodata,
            masked=masked or np.dtype(dtype).kind == "f",
            alpha=alpha,
            mode="",
            stored=bands * len(chosen) if repeated else None,
            names=tuple(names[i - 1] for i in chosen),
            described=tuple(texts[i - 1] for i in chosen),
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
            with opened(self.path) as src:
                shape = (min(64, self.height), min(64, self.width))
                sample = src.read(self.alpha, out_shape=shape)
        except GDAL_ERRORS as error:
            raise undecodable(self.path, error) from error
        opaque = np.iinfo(sample.dtype).max if sample.dtype.kind in "iu" else 1.0
        return bool(((sample != 0) & (sample != opaque)).mean() > 0.05)

    def assume(self, nodata: float) -> None:
        """Take pixels whose bands all have a value for invalid, unless the file declares some."""
        if self.nodata is None and self.alpha is None:
            self.nodata = self.assumed = nodata

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
        return (
            self.height
            * self.width
            * len(self.indexes)
            * (np.dtype(self.dtype).itemsize if self.factor == 1 else 4)
        )

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

        With a ``factor`` they are float32 and multiplied by it. A pixel is invalid where the
        file's mask or alpha says so, or where no band was observed (nodata, NaN); a band that is
        missing in a valid pixel is given the image's mean. Maps follow the same rule
        (:func:`rsmamba.gis.nodata.observed`). None stands for "all valid".

        Raises:
            ImageReadError: If the file cannot be decoded, naming it.
        """
        region = region or self.whole
        if self._cache is not None:
            return _crop(self._cache, region)
        if self.photo:
            pixels, valid = _crop(self._read_photo(), region)
        else:
            pixels, valid = self._read_window(region)
        if self.assumed is not None:
            known = (pixels != self.assumed).any(0)
            valid = known if valid is None else valid & known
            valid = None if valid.all() else valid
        if self.factor != 1:
            pixels = pixels.astype(np.float32) * np.float32(self.factor)
        return pixels, valid

    @property
    def photo(self) -> bool:
        """Whether any window means decoding all of the file."""
        return bool(self.mode) and self.path.suffix.lower() in PHOTO_SUFFIXES

    def _read_window(self, region: Region) -> tuple[Pixels, Valid | None]:
        window = Window(region.col, region.row, region.width, region.height)
        bands = list(self.stored or self.indexes)
        try:
            with opened(self.path) as src:
                pixels = src.read(bands, window=window)
                masks = self._masks(src, window, pixels)
                if masks is None and pixels.dtype.kind != "f":
                    return pixels, None
                declared = [src.nodatavals[i - 1] for i in bands]
                known, valid = observed(pixels, masks, declared)
                if (missing := valid & ~known).any():
                    for band, fill in enumerate(self._fill(src, bands)):
                        pixels[band][missing[band]] = fill
        except GDAL_ERRORS as error:
            raise undecodable(self.path, error) from error
        return pixels, None if valid.all() else valid

    def _masks(
        self, src: rasterio.DatasetReader, window: Window, pixels: Pixels
    ) -> npt.NDArray[np.bool_] | None:
        """What the file says of its values, (C or 1, H, W); None for nothing."""
        if not self.masked:
            return None
        if ColorInterp.alpha in src.colorinterp and self.alpha is None:
            # That band is data here, and the file's own mask would be made of it.
            return None if self.nodata is None else pixels != self.nodata
        bands = list(self.stored or self.indexes)
        flags = src.mask_flag_enums[bands[0] - 1]
        if MaskFlags.nodata not in flags or MaskFlags.alpha in flags:
            return src.dataset_mask(window=window)[None] > 0
        return src.read_masks(bands, window=window) > 0

    def _fill(self, src: rasterio.DatasetReader, bands: list[int]) -> npt.NDArray[Any]:
        """Mean per band of a small copy of the image, for bands that are missing in a pixel.

        One -9999 would poison what a network makes of a whole window. The mean is the image's and
        not the window's: a pixel is the same in every window.
        """
        if self._means is None:
            shape = (len(bands), min(64, self.height), min(64, self.width))
            small = src.read(bands, out_shape=shape, masked=True)
            values = np.ma.masked_invalid(small.astype(np.float64)).mean(axis=(1, 2))
            self._means = np.ma.filled(values, 0.0).astype(small.dtype)
        return self._means

    def _read_photo(self) -> tuple[Pixels, Valid | None]:
        pixels, valid = self._decode()
        if self.indexes != tuple(range(1, len(pixels) + 1)):
            pixels = pixels[[i - 1 for i in self.indexes]]
        return pixels, valid

    def _decode(self) -> tuple[Pixels, Valid | None]:
        """All bands of a JPEG or PNG of 8 bits."""
        if self.plain and not self.masked:
            try:
                decoded = decode_image(read_file(str(self.path))).numpy()
            except RuntimeError:
                pass  # Pillow says in which way it is damaged, or reads what is named wrongly
            else:
                if len(decoded) == len(self.mode) and decoded.dtype == np.uint8:
                    return decoded, None
        try:
            with Image.open(self.path) as image:
                alpha = np.asarray(image.convert("RGBA"))[..., 3] if self.masked else None
                pixels = np.asarray(image.convert(self.mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise undecodable(self.path, error) from error
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return pixels, None if alpha is None else alpha > 0

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
            f"{path}: band {missing[0]} was asked for, there are {', '.join(map(str, available))}; "
            "choose others with indexes=[...]"
            + (", or set convert=True for three of grey" if available == (1,) else "")
        )
    return tuple(wanted)


def _check_size(path: Path, height: int, width: int) -> None:
    if max(height, width) < 2:
        raise ImageReadError(f"{path}: has a single pixel; copy or download it again, or remove it")


@lru_cache(maxsize=64)
def _crs(wkt: str) -> CRS:
    """Parsing takes longer than reading the header around it."""
    return CRS.from_user_input(wkt)


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

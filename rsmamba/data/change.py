"""Pairs of images of one place, and the labels that say what changed between them."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rsmamba.data.images import IGNORE, Pixels, Region, Scene, Valid, undecodable
from rsmamba.data.listing import PHOTO_SUFFIXES
from rsmamba.data.scene_facts import same_bands
from rsmamba.errors import BandMismatchError, CRSError, GridMismatchError, LabelError

Mask = npt.NDArray[np.uint8]

#: Classes of the masks.
CLASSES = ("no change", "change")
#: Images and label of a pair may differ in size by this share; they are cut to what is common.
TOLERANCE = 0.1
#: Grey levels by which the bands of a label may differ before it is a coloured picture.
TINT = 32


@dataclass
class Pair:
    """Two images of one place and the mask of what changed between them.

    Attributes:
        name: Of the place.
        before: The earlier image.
        after: The later image.
        label: File of the mask.
        height: Rows that all three have.
        width: Columns that all three have.
    """

    name: str
    before: Scene
    after: Scene
    label: Path
    height: int
    width: int
    _mask: Mask | None = field(default=None, repr=False)

    @classmethod
    def open(cls, name: str, before: Scene, after: Scene, label: Path) -> "Pair":
        """Compare the headers.

        Files of unequal size are cut at the bottom and on the right to what they have in common,
        with a warning.

        Raises:
            ImageReadError: If the label is not a readable image.
            BandMismatchError: If the images differ in bands.
            GridMismatchError: If the sizes, or the places of georeferenced files, differ by more
                than a tenth.
            CRSError: If georeferenced files differ in their coordinate reference system.
        """
        same_bands([before, after])
        header = Scene.open(label)
        check_place(name, (before, after, header))
        sizes = {s.path: (s.height, s.width) for s in (header, before, after)}
        height, width = (min(size[axis] for size in sizes.values()) for axis in (0, 1))
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{path} is {h} x {w}" for path, (h, w) in sizes.items())
            if any(
                h > (1 + TOLERANCE) * height or w > (1 + TOLERANCE) * width
                for h, w in sizes.values()
            ):
                raise GridMismatchError(
                    f"{name}: {listed} (rows x columns): these are not the same pixels, resample "
                    "them to the grid of the label"
                )
            warnings.warn(
                f"{name}: {listed} (rows x columns); all are cut at the bottom and on the right to "
                f"{height} x {width}",
                stacklevel=3,
            )
        return cls(name, before, after, label, height, width)

    @property
    def whole(self) -> Region:
        """The region of all pixels."""
        return Region(0, 0, self.height, self.width)

    @property
    def nbytes(self) -> int:
        """Size of the decoded pixels and mask."""
        return self.before.nbytes + self.after.nbytes + self.whole.area

    @property
    def kept(self) -> bool:
        """Whether the decoded pixels are in memory."""
        return self.before.kept and self.after.kept

    def keep(self) -> None:
        """Decode once and serve every later :meth:`read` from memory.

        Raises:
            ImageReadError, LabelError: As :meth:`read`.
        """
        self.before.keep()
        self.after.keep()
        self._mask = self.mask()

    def decoded(self) -> "Pair":
        """A copy that is in memory; the original keeps nothing."""
        pair = replace(self, before=copy.copy(self.before), after=copy.copy(self.after))
        pair.keep()
        return pair

    def mask(self) -> Mask:
        """The label (H, W): 0 no change, 1 change, 255 unknown; see :func:`read_label`."""
        if self._mask is None:
            return read_label(self.label)[: self.height, : self.width]
        return self._mask

    def sample(self) -> dict[str, Tensor]:
        """The whole pair: "image" float32 (2, C, H, W) and "mask" int64 (1, H, W).

        Raises:
            ImageReadError: If a file cannot be decoded.
            LabelError: If the label does not say what has changed.
        """
        pixels, mask = self.read(self.whole)
        return {
            "image": torch.from_numpy(pixels.astype(np.float32)),
            "mask": torch.from_numpy(mask.astype(np.int64))[None],
        }

    def read(self, region: Region) -> tuple[Pixels, Mask]:
        """Both images (2, C, h, w) in the stored type, and the mask (h, w) of a region.

        Pixels that are invalid on either date are 255 in the mask.

        Raises:
            ImageReadError: If a file cannot be decoded.
            LabelError: If the label does not say what has changed.
        """
        (before, valid), (after, also_valid) = self.before.read(region), self.after.read(region)
        rows = slice(region.row, region.row + region.height)
        mask = self.mask()[rows, region.col : region.col + region.width]
        for some in (valid, also_valid):
            if some is not None:
                mask = np.where(some, mask, np.uint8(IGNORE))
        return np.stack([before, after]), mask

    @property
    def files(self) -> list[tuple[Path, dict[str, Any]]]:
        """All files, with what each is."""
        dates = (("before", self.before), ("after", self.after))
        return [
            *(
                (path, {"scene": self.name, "role": role})
                for role, s in dates
                for path in band_files(s)
            ),
            (self.label, {"scene": self.name, "role": "label"}),
        ]

    def change(self) -> tuple[int, int]:
        """Number of pixels that changed, and of those that are known.

        Raises:
            ImageReadError, LabelError: As for reading.
        """
        mask = self.mask()
        return int((mask == 1).sum()), int((mask != IGNORE).sum())


def check_place(name: str, scenes: Sequence[Scene]) -> None:
    """Refuse images of a pair that are not of one place; those that do not say where pass.

    Raises:
        CRSError: If the coordinate reference systems differ.
        GridMismatchError: If corners are further apart than a tenth of the image.
    """
    placed = [s for s in scenes if s.crs is not None and s.transform is not None]
    for other in placed[1:]:
        first = placed[0]
        if not first.crs.equals(other.crs, ignore_axis_order=True):  # type: ignore[union-attr]
            raise CRSError(
                f"{name}: {first.path} and {other.path} differ in their coordinate reference "
                "system: warp one to the grid of the other"
            )
        for corner in ((0, 0), (other.width, other.height)):
            col, row = ~first.transform @ (other.transform @ corner)  # type: ignore[operator]
            apart = (
                abs(col - bool(corner[0]) * first.width),
                abs(row - bool(corner[1]) * first.height),
            )
            if apart[0] > TOLERANCE * first.width or apart[1] > TOLERANCE * first.height:
                raise GridMismatchError(
                    f"{name}: {first.path} and {other.path} show different places, their corners "
                    f"are {apart[0]:.0f} columns and {apart[1]:.0f} rows apart: warp one to the "
                    "grid of the other, or look for a mix-up of files"
                )


def band_files(scene: Scene) -> list[Path]:
    """The files of an image: several where each band has its own."""
    return [file.path for file in (scene.files if isinstance(scene, BandFiles) else (scene,))]


def read_label(path: Path) -> Mask:
    """What changed: 0 no, 1 yes, 255 where the file declares nodata.

    Three codings are told apart by the values: 1 and 2 (no change, change; also 1 alone), 0 and 1,
    0 and 255. Grey levels in between, left by lossy compression, are parted in the middle with a
    warning.

    Args:
        path: PNG, JPEG or GeoTIFF of one band (or of three equal ones).

    Returns:
        (H, W).

    Raises:
        ImageReadError: If the file cannot be decoded.
        LabelError: If it has colours, more than 8 bits, or values of no known coding.
    """
    values, known = _grey(path)
    present = set(np.unique(values if known is None else values[known]).tolist())
    highest = max(present, default=0)
    if 0 not in present and highest <= 2:
        mask = values - np.uint8(1)
    elif highest <= 1:
        mask = values
    elif highest == 2:
        raise LabelError(
            f"{path}: holds the values {', '.join(map(str, sorted(present)))}; expected 1 (no "
            "change) and 2 (change), or 0 and 1, or 0 and 255"
        )
    else:
        if present - {0, 255}:
            odd = int(((values > 0) & (values < 255)).sum())
            warnings.warn(
                f"{path}: {odd} pixels are grey, as lossy compression leaves them; those from 128 "
                "count as change",
                stacklevel=2,
            )
        mask = (values > 127).astype(np.uint8)
    return mask if known is None else np.where(known, mask, np.uint8(IGNORE))


def _grey(path: Path) -> tuple[Mask, npt.NDArray[np.bool_] | None]:
    """Values of a label (H, W), and where they are known; None for everywhere."""
    deep = f"{path}: more than one band of 8 bits, not a label; expected values of 0 to 255"
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        pixels, valid = Scene.open(path).read()
        known = pixels if valid is None else pixels[:, valid]
        if len(pixels) != 1 or ((known < 0) | (known > 255) | (known != np.round(known))).any():
            raise LabelError(deep)
        return np.nan_to_num(pixels[0]).astype(np.uint8), valid
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise LabelError(deep)
            if image.mode not in ("L", "1"):
                colours = np.asarray(image.convert("RGB")).astype(np.int16)
                if (colours.max(-1) - colours.min(-1)).max() > TINT:
                    raise LabelError(
                        f"{path}: has colours; expected a label in black and white, or of values "
                        "1 and 2"
                    )
            return np.array(image.convert("L")), None
    except (OSError, SyntaxError) as error:
        raise undecodable(path, error) from error


@dataclass
class BandFiles(Scene):
    """An image whose bands are files of their own.

    Attributes:
        files: One scene of one band each, in order.
    """

    files: tuple[Scene, ...] = ()

    @classmethod
    def of(cls, folder: Path, paths: Sequence[Path]) -> "BandFiles":
        """Read the headers.

        Raises:
            ImageReadError: If a file is not a readable image.
            BandMismatchError: If a file has more than one band.
            GridMismatchError: If the bands differ in size.
        """
        files = tuple(Scene.open(path) for path in paths)
        first = files[0]
        for file in files:
            if len(file.indexes) != 1:
                raise BandMismatchError(
                    f"{file.path}: has {len(file.indexes)} bands; expected one file per band"
                )
            if (file.height, file.width) != (first.height, first.width):
                raise GridMismatchError(
                    f"{file.path} is {file.height} x {file.width} (rows x columns), {first.path} "
                    f"{first.height} x {first.width}: resample the bands of a date to one grid"
                )
        return cls(
            path=folder,
            height=first.height,
            width=first.width,
            indexes=tuple(range(1, len(files) + 1)),
            dtype=str(np.result_type(*(file.dtype for file in files))),
            crs=first.crs,
            transform=first.transform,
            masked=any(file.masked for file in files),
            files=files,
        )

    def read(self, region: Region | None = None) -> tuple[Pixels, Valid | None]:
        """Pixels (C, H, W) of a region, and which are valid in all bands."""
        if self._cache is not None:
            return super().read(region)
        read = [file.read(region) for file in self.files]
        known = [valid for _, valid in read if valid is not None]
        pixels = np.concatenate([pixels for pixels, _ in read])
        return pixels, np.logical_and.reduce(known) if known else None

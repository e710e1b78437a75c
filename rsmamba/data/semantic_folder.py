"""Folders of images and folders of masks, as ADE20K has them."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.collate import flip, pad_sample
from rsmamba.data.images import IGNORE, undecodable
from rsmamba.data.labels import MASK_SUFFIXES, Mask
from rsmamba.data.listing import IMAGE_SUFFIXES, find_files, some
from rsmamba.data.photos import decode_rgb
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Lottery
from rsmamba.errors import ConfigError, GridMismatchError, LabelError
from rsmamba.samples import resolve

#: Pillow's modes in which a mask holds one number to the pixel.
_INDEXED = frozenset({"1", "L", "P", "I", "I;16"})
#: The longest side is at most so many times the short one that is asked for (mmsegmentation's
#: (2048, 512)): panoramas are not blown up.
LONGEST = 4


@dataclass(frozen=True)
class RandomCrop:
    """Random windows of images at random scales, as mmsegmentation trains on ADE20K.

    Attributes:
        size: Side of the windows in pixels.
        scale: Least and greatest factor, relative to ``short_side``.
        short_side: Size of the short side at factor 1; that of the image if None.
        most: A window is drawn anew, ten times at most, while one class has more than this share
            of its labelled pixels or none is labelled; 1 to take any.
        mirror: Whether half of the windows are mirrored left to right.
    """

    size: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    short_side: int | None = 512
    most: float = 0.75
    mirror: bool = True

    tries = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        low, high = self.scale
        if self.size < 1 or not 0 < low <= high or not 0 < self.most <= 1:
            raise ConfigError(
                f"crop_size={self.size}, scale={list(self.scale)}, max_share={self.most}: the size "
                "and the factors must be positive and in order, the share in (0, 1]"
            )


class SemanticFolder(NonGeoDataset):
    """Images and masks of the same names in two folders.

    Samples are ``{"image": float32 (3, H, W) in 0..255, "mask": int64 (H, W)}``, the mask 255 where
    nothing is known. An image belongs to the mask of the same path within its folder, whatever the
    suffixes. Images without ``masks`` have the key "image" only.

    Args:
        images: Folder of JPEG, PNG or TIFF images, searched at any depth.
        masks: Folder of masks (PNG, TIFF) of one band, whose values are the classes 0, 1, 2, ...
            and 255 for unlabelled; None for images to predict.
        classes: Names of the classes, or how many there are.
        reduce_zero_label: Whether 0 means unlabelled and classes start at 1, as in ADE20K.
        mask_suffix: What the name of a mask has more than that of its image, e.g. ``_mask``.
        short_side: Size to which the short side is resized, at most 4 times as much for the long
            one (images bilinear, masks nearest); None for images as they are.
        convert: Whether grey and CMYK images and such with alpha are converted to red, green and
            blue rather than refused.
        transforms: Applied to each sample.

    Attributes:
        names: Path of each image in its folder, without suffix.

    Raises:
        DataNotFoundError: If a folder is missing or empty.
        LabelError: If an image has no mask or several, or ``classes`` are too many.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path | None,
        classes: Sequence[str] | int,
        *,
        reduce_zero_label: bool = False,
        mask_suffix: str = "",
        short_side: int | None = None,
        convert: bool = False,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self.classes = names_of(classes)
        folder = resolve(images)
        found = {_name(p, folder): p for p in find_files(folder, IMAGE_SUFFIXES)}
        self.names, self.images = list(found), list(found.values())
        self.masks = [] if masks is None else _match(found, folder, resolve(masks), mask_suffix)
        self.short_side, self.convert, self.transforms = short_side, convert, transforms
        self.reduce_zero_label = reduce_zero_label
        self.crop: RandomCrop | None = None
        self.fill: Tensor | None = None
        self.lottery: Lottery | None = None

    def subset(self, names: Sequence[str]) -> "SemanticFolder":
        """The same folders, restricted to some images by name (see ``names``)."""
        view, wanted = copy.copy(self), frozenset(names)
        chosen = [i for i, name in enumerate(self.names) if name in wanted]
        view.names = [self.names[i] for i in chosen]
        view.images = [self.images[i] for i in chosen]
        view.masks = [self.masks[i] for i in chosen] if self.masks else []
        return view

    def random(self, crop: RandomCrop, seed: int, fill: Tensor | None = None) -> "SemanticFolder":
        """The same images in random windows, one of each in an epoch.

        Index ``i`` always gives the same window; indices go on from epoch to epoch.

        Args:
            crop: What to draw.
            seed: Seed of all draws.
            fill: Value per band (3,) beyond the border of an image; 0 if None.
        """
        view = copy.copy(self)
        view.crop, view.fill = crop, fill
        view.lottery = Lottery([1.0] * len(self), len(self), seed)
        return view

    @property
    def endless(self) -> bool:
        """Whether indices beyond ``len()`` are new windows."""
        return self.lottery is not None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """The sample of an index.

        Raises:
            ImageReadError: If a file cannot be decoded.
            BandMismatchError: If the image is not red, green and blue.
            GridMismatchError: If image and mask differ in size.
            LabelError: If the mask holds a value that no class has.
        """
        if self.lottery is None or self.crop is None:
            sample = self._whole(index)
        else:
            item, rng = self.lottery.draw(index)
            sample = self._random(item, rng, self.crop)
        return sample if self.transforms is None else self.transforms(sample)

    def _open(self, item: int) -> tuple[Image.Image, Image.Image | None]:
        """Image and mask of the same size."""
        image = Image.fromarray(decode_rgb(self.images[item], convert=self.convert))
        if not self.masks:
            return image, None
        mask = Image.fromarray(
            read_mask(self.masks[item], len(self.classes), self.reduce_zero_label)
        )
        if mask.size != image.size:
            raise GridMismatchError(
                f"{self.masks[item]}: {mask.height} x {mask.width} px, but its image "
                f"{self.images[item].name} has {image.height} x {image.width}; make both alike"
            )
        return image, mask

    def _whole(self, item: int) -> Sample:
        image, mask = self._open(item)
        if self.short_side is not None:
            factor = _factor(image.size, self.short_side)
            size = (_scaled(image.width, factor), _scaled(image.height, factor))
            image = image.resize(size, Image.Resampling.BILINEAR)
            mask = mask if mask is None else mask.resize(size, Image.Resampling.NEAREST)
        return _sample(image, mask)

    def _random(self, item: int, rng: np.random.Generator, crop: RandomCrop) -> Sample:
        image, mask = self._open(item)
        factor = rng.uniform(*crop.scale)
        if crop.short_side is not None:
            factor *= _factor(image.size, crop.short_side)
        width, height = _scaled(image.width, factor), _scaled(image.height, factor)
        size = (min(crop.size, width), min(crop.size, height))
        for _ in range(crop.tries):
            left = int(rng.integers(width - size[0] + 1))
            top = int(rng.integers(height - size[1] + 1))
            # The window on the grid of the file: only its pixels are interpolated.
            x, y = image.width / width, image.height / height
            box = (left * x, top * y, (left + size[0]) * x, (top + size[1]) * y)
            window = None if mask is None else mask.resize(size, Image.Resampling.NEAREST, box)
            if window is None or crop.most == 1 or _mixed(np.asarray(window), crop.most):
                break
        sample = _sample(image.resize(size, Image.Resampling.BILINEAR, box), window)
        sample = flip(sample, across=crop.mirror and rng.random() < 0.5)
        return pad_sample(sample, crop.size, crop.size, self.fill)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show image and mask, and the prediction if there is one.

        Args:
            sample: A sample of this data set, possibly with "prediction" (H, W).
            show_titles: Whether to title the panels.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample], classes=self.classes, show_titles=show_titles, suptitle=suptitle
        )


def names_of(classes: Sequence[str] | int) -> tuple[str, ...]:
    """Names as given, or the numbers 0, 1, 2, ... as names.

    Raises:
        LabelError: If there are none, or more than a mask can hold.
    """
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    if not 0 < len(names) <= IGNORE or isinstance(classes, str):
        raise LabelError(f"classes={classes!r}: list 1 to {IGNORE} names, or give their number")
    return names


def read_mask(path: Path, classes: int, reduce_zero_label: bool = False) -> Mask:
    """Class indices (H, W) of a mask file, 255 for unlabelled.

    Args:
        path: PNG or TIFF of one band; of a palette image, the indices.
        classes: How many classes there are.
        reduce_zero_label: Whether 0 means unlabelled and classes start at 1.

    Raises:
        ImageReadError: If the file cannot be decoded.
        LabelError: If it is not of one band, or holds a value that no class has.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _INDEXED:
                raise LabelError(
                    f"{path}: stores colours or fractions ({image.mode}), not one whole number to "
                    "the pixel; convert it to class indices"
                )
            values = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise undecodable(path, error) from error
    first = int(reduce_zero_label)
    known = (values >= first) & (values < first + classes) | (values == IGNORE)
    if reduce_zero_label:
        known |= values == 0
    if not known.all():
        bad = [str(v) for v in np.unique(values[~known]).tolist()]
        raise LabelError(
            f"{path}: value {some(bad)} belongs to no class; they are {first} to "
            f"{first + classes - 1}, unlabelled is {'0 or 255' if first else '255'}: correct the "
            "mask, classes or reduce_zero_label"
        )
    mask: Mask = values.astype(np.uint8)
    if reduce_zero_label:
        # 0 becomes 255 by itself; 255 must not become 254.
        mask = np.where(values == IGNORE, mask, mask - np.uint8(1))
    return mask


def _match(images: dict[str, Path], folder: Path, masks: Path, suffix: str) -> list[Path]:
    """The mask of each image."""
    found: dict[str, Path] = {}
    for path in find_files(masks, MASK_SUFFIXES, "masks"):
        name = _name(path, masks)
        if not name.endswith(suffix):
            continue
        name = name.removesuffix(suffix)
        if name in found:
            raise LabelError(f"{path}: {found[name].name} is a mask of the same image; remove one")
        found[name] = path
    if missing := [name for name in images if name not in found]:
        raise LabelError(
            f"{masks}: no mask for {some(missing)} of {folder}; expected {missing[0]}{suffix}.png"
        )
    if spare := [name for name in found if name not in images]:
        warnings.warn(f"{masks}: {len(spare)} masks have no image, e.g. {spare[0]}", stacklevel=3)
    return [found[name] for name in images]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _factor(size: tuple[int, int], short_side: int) -> float:
    return min(short_side / min(size), LONGEST * short_side / max(size))


def _scaled(side: int, factor: float) -> int:
    return max(1, round(side * factor))


def _mixed(mask: Mask, most: float) -> bool:
    """Whether no class has more than a share of the labelled pixels, and some are labelled."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return bool(counts.sum() and counts.max() < most * counts.sum())


def _sample(image: Image.Image, mask: Image.Image | None) -> Sample:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
    sample = {"image": pixels}
    if mask is not None:
        sample["mask"] = torch.from_numpy(np.array(mask)).long()
    return sample

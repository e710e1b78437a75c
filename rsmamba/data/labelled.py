"""A user's own scenes with masks or polygons: data set and data module for segmentation."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.areas import Part, tiles
from rsmamba.data.images import IGNORE, Region, clip, grid
from rsmamba.data.labels import Classes, Mask, load_labels
from rsmamba.data.listing import IMAGE_SUFFIXES, Paths, find_files
from rsmamba.data.normalisation import rgb_positions
from rsmamba.data.opening import BadFiles, Reading, open_scenes
from rsmamba.data.options import chosen_bands, distinct, positive
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Lottery
from rsmamba.data.scene_facts import band_names
from rsmamba.errors import DataNotFoundError, LabelError

#: Draws for one training window before giving up on finding a labelled pixel.
MAX_DRAWS = 100
#: Side of the blocks in which labels are counted.
COUNT_BLOCK = 1024


class LabelledScenes(NonGeoDataset):
    """Windows of images with the class of every pixel.

    A sample is ``{"image": float32 (C, S, S), "mask": int64 (S, S)}``, the image in pixel units.
    The mask is 255 where nothing is known: unlabelled pixels, invalid ones (nodata, alpha, NaN;
    their image values are ``fill``) and padding beyond the border. With ``length=None`` the windows
    are a grid that holds every pixel once; otherwise they are drawn at random by the area
    of the images, each with at least one labelled pixel; index ``i`` always gives the same one.

    Args:
        images: Folder, glob pattern, file or list of GeoTIFFs (JPEG and PNG with masks only), or
            ``sample:`` path. ``*.mask.tif`` are masks, not images.
        labels: Mask rasters (same stem as the image, with or without ``.mask``), or vector layers
            (GeoPackage, GeoJSON, FlatGeobuf, Shapefile, GeoParquet): folder, pattern, file or list.
        attribute: Column that holds the class of a polygon; one foreground class if None.
        classes: Label value -> class name (None to ignore), or the names alone.
        background: Name of class 0, for pixels outside all polygons; None leaves them unlabelled.
        patch_size: Side S of the windows in pixels.
        length: Random windows in an epoch; a grid over everything if None.
        seed: Seed of the random windows.
        indexes: 1-based bands to read; all but alpha if None.
        bands: Their names; red, green, blue for three if None.
        scales: What the values of each stored type are multiplied with, such as ``{uint8: 1,
            uint16: 0.0255}``; None for images of one type, as they are.
        nodata: Stored value that means "no observation" in images that declare nothing of the kind.
        convert: Convert grey and CMYK JPEGs and PNGs to red, green and blue, not refuse them.
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.
        transforms: Applied to each sample.

    Raises:
        DataNotFoundError: If there are no images or labels.
        ImageReadError: If an image or mask cannot be read.
        BandMismatchError: If the images differ in bands.
        LabelError: If the labels do not fit the images or the classes.
        CRSError: If polygons meet an image or layer without a CRS.
        GridMismatchError: If a mask is not on the grid of its image.
    """

    def __init__(
        self,
        images: Paths,
        labels: Paths,
        *,
        attribute: str | None = None,
        classes: Classes | None = None,
        background: str | None = "background",
        patch_size: int = 256,
        length: int | None = None,
        seed: int = 0,
        indexes: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        scales: Mapping[str, float] | None = None,
        nodata: float | None = None,
        convert: bool = False,
        cache: bool | Literal["auto"] = "auto",
        transforms: Any = None,
    ) -> None:
        positive("patch_size", patch_size)
        positive("length", length)
        chosen_bands("indexes", indexes)
        distinct("bands", bands)
        chosen = None if indexes is None else tuple(indexes)
        reading = Reading(chosen, scales, convert, nodata)
        found = find_files(images, IMAGE_SUFFIXES)
        paths = [p for p in found if not p.stem.endswith(".mask")]
        if not paths:
            raise DataNotFoundError(f"{images}: holds masks only, no images")
        self.scenes = open_scenes(paths, BadFiles(None), reading, cache)
        self.bands = band_names(bands, self.scenes)
        self.labels = load_labels(
            labels, self.scenes, attribute=attribute, classes=classes, background=background
        )
        self.classes = self.labels.classes
        self.patch_size, self.transforms = patch_size, transforms
        self.fill: Tensor | None = None
        self._masks: dict[int, Mask] = {}
        self._show([(i, s.whole) for i, s in enumerate(self.scenes)], length, seed)

    def _show(self, parts: Sequence[Part], length: int | None, seed: int) -> None:
        """Choose what the indices stand for."""
        self.parts = list(parts)
        self.windows = tiles(parts, self.patch_size) if length is None else None
        areas = [float(region.area) for _, region in parts]
        self.lottery = None if length is None else Lottery(areas, length, seed)

    def subset(
        self,
        parts: Sequence[Part],
        length: int | None = None,
        seed: int = 0,
        fill: Tensor | None = None,
    ) -> "LabelledScenes":
        """The same images and labels, restricted to parts of them.

        Args:
            parts: Position in ``scenes`` and region of each part.
            length: Random windows in an epoch; a grid if None.
            seed: Seed of the random windows.
            fill: Value per band (C,) for invalid pixels and padding; 0 if None.
        """
        view = copy.copy(self)
        view.fill = fill
        view._show(parts, length, seed)
        return view

    @property
    def endless(self) -> bool:
        """Whether indices beyond ``len()`` are new windows."""
        return self.lottery is not None

    def __len__(self) -> int:
        """Windows in an epoch."""
        return self.lottery.length if self.lottery is not None else len(self.windows or ())

    def __getitem__(self, index: int) -> Sample:
        """The window of an index.

        Raises:
            IndexError: If a grid has no such window.
            ImageReadError: If a file cannot be decoded.
            LabelError: If a label value is unknown, or no labelled pixel can be found.
        """
        if self.windows is not None:
            sample = self._read(*self.windows[index])
        else:
            sample = self._draw(index)
        return sample if self.transforms is None else self.transforms(sample)

    def _draw(self, index: int) -> Sample:
        assert self.lottery is not None  # noqa: S101 - either a grid or a lottery
        item, rng = self.lottery.draw(index)
        for _ in range(MAX_DRAWS):
            scene, part = self.parts[item]
            row = part.row + int(rng.integers(max(1, part.height - self.patch_size + 1)))
            col = part.col + int(rng.integers(max(1, part.width - self.patch_size + 1)))
            window = Region(row, col, self.patch_size, self.patch_size)
            sample = self._read(scene, window, part)
            if (sample["mask"] != IGNORE).any():
                return sample
            item = self.lottery.again(rng)
        raise LabelError(
            f"{self.scenes[scene].path}: no labelled pixel in {MAX_DRAWS} random windows; leave "
            "unlabelled images out"
        )

    def _read(self, item: int, window: Region, part: Region) -> Sample:
        """A window, padded where it leaves its part."""
        scene, region = self.scenes[item], clip(window, part)
        pixels, valid = scene.read(region)
        image = torch.from_numpy(pixels.astype(np.float32))
        mask = torch.from_numpy(self._mask(item, region).astype(np.int64))
        fill = torch.zeros(len(image)) if self.fill is None else self.fill
        if valid is not None:
            outside = torch.from_numpy(~valid)
            image = torch.where(outside, fill[:, None, None], image)
            mask = mask.masked_fill(outside, IGNORE)
        size = self.patch_size
        if region.height < size or region.width < size:
            padded = fill[:, None, None].repeat(1, size, size)
            padded[:, : region.height, : region.width] = image
            unknown = torch.full((size, size), IGNORE)
            unknown[: region.height, : region.width] = mask
            image, mask = padded, unknown
        return {"image": image, "mask": mask}

    def _mask(self, item: int, region: Region) -> Mask:
        """Class indices of a region, from memory where the image is in memory as well."""
        scene = self.scenes[item]
        if not scene.kept:
            return self.labels.read(scene, region)
        if item not in self._masks:
            self._masks[item] = self.labels.read(scene, scene.whole)
        rows = slice(region.row, region.row + region.height)
        return self._masks[item][rows, region.col : region.col + region.width]

    def class_balance(self) -> dict[str, float]:
        """Share of the pixels of each class, and of "(unlabelled)"; they sum to 1.

        Raises:
            ImageReadError, LabelError: As for reading.
        """
        counts = np.zeros(IGNORE + 1, np.int64)
        for item, part in self.parts:
            for window in grid(part, COUNT_BLOCK):
                region = clip(window, part)
                mask = self._mask(item, region)
                if self.scenes[item].masked:
                    _, valid = self.scenes[item].read(region)
                    mask = mask if valid is None else np.where(valid, mask, IGNORE)
                counts += np.bincount(mask.ravel(), minlength=IGNORE + 1)
        shares = counts / counts.sum()
        balance = {name: float(shares[i]) for i, name in enumerate(self.classes)}
        return {**balance, "(unlabelled)": float(shares[IGNORE])}

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show image and mask, and the prediction if there is one.

        Args:
            sample: A sample of this data set, possibly with "prediction" (S, S).
            show_titles: Whether to title the panels.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample],
            classes=self.classes,
            rgb=rgb_positions(self.bands),
            show_titles=show_titles,
            suptitle=suptitle,
        )

"""Unlabelled windows of any images, for pretraining."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.collection import SceneCollection
from rsmamba.data.images import Pixels, Region, Scene, Valid
from rsmamba.data.listing import Paths
from rsmamba.data.normalisation import rgb_positions
from rsmamba.data.opening import BAD, BadFiles, Cache, Reading
from rsmamba.data.options import chosen_bands, distinct, one_of, positive, share
from rsmamba.data.photos import resize
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Lottery, WindowGrid, shuffled
from rsmamba.data.scene_facts import band_names
from rsmamba.errors import ConfigError, DataNotFoundError

#: Aspect ratios of random crops, the field's habit since Inception.
ASPECT = (3 / 4, 4 / 3)
#: Draws for one sample before giving up on finding enough valid pixels.
MAX_DRAWS = 100

Windows = Literal["random", "grid"]
Weights = Literal["auto", "area", "equal"]


def check_windows(
    size: int,
    windows: Windows,
    stride: int | None,
    scale: Sequence[float],
    window: int | None,
    weights: Weights,
    max_nodata: float,
) -> None:
    """Refuse options of windows that make no sense; see :class:`ScenePatches`.

    Raises:
        ConfigError: If one does not.
    """
    positive("size", size)
    positive("stride", stride)
    positive("window", window)
    one_of("windows", windows, Windows)
    one_of("weights", weights, Weights)
    share("max_nodata", max_nodata)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"scale={tuple(scale)}: expected two shares in order, within (0, 1]")


class ScenePatches(NonGeoDataset):
    """Windows of unlabelled images, random or gridded, resized to one size.

    A sample is ``{"image": float32 (C, size, size)}`` in pixel units. Each random window is a
    resized crop: an area of ``scale`` times the image (or times ``window`` squared pixels where the
    image is larger, so that the ground resolution of a big scene varies within bounds), aspect
    ratio 3/4 to 4/3, then one of the eight flips and rotations of the square. Gridded windows
    are squares of ``size`` pixels that cover all images, the last row and column moved inwards;
    images that are smaller are covered by squares of their shorter side.

    Index ``i`` gives the same sample whenever, wherever and by whatever worker it is asked for;
    indices beyond ``len()`` belong to later epochs. A window with too many invalid pixels is drawn
    again, after ten times from another image. Where a file turns out to be bad, image
    and window are drawn afresh, with numbers that depend on seed and index alone. Invalid pixels
    (nodata, alpha, NaN) of a window are set to the mean of its valid ones.

    Up to 10,000 images (200 on servers) are opened at once, unreadable ones left out, and random
    windows drawn in proportion to the images' areas. Larger collections are listed once (see
    :func:`~rsmamba.data.corpus.find_images`) and opened image by image as they are drawn, each as
    often as any other.

    JPEG and PNG of 8 bits have one band (grey) or three (palettes are looked up).

    Args:
        root: Folder (any depth), glob pattern, file or list of GeoTIFF, JPEG and PNG images, of
            VRTs (by name or pattern), STAC items (a JSON file), URLs, GDAL's ``/vsi`` paths, or
            ``sample:`` path; or scenes that are open already.
        size: Side of the samples in pixels.
        length: Samples in an epoch of random windows; if None, as many as windows of ``size`` fit,
            or as there are images in a large collection.
        windows: "random", or "grid" for each window once in an epoch.
        stride: Distance of gridded windows in pixels; ``size`` if None.
        shuffle: Whether gridded windows come in another order in each epoch, not row by row.
        scale: Least and greatest share of the area that a random window takes.
        window: Side in pixels of the area that ``scale`` refers to in larger images; ``2 * size``
            if None.
        flips: Whether to flip and rotate.
        weights: Draw random windows by the "area" of the images, from all "equal"ly often, or
            "auto": as said above. "area" and gridded windows look up the sizes of a large
            collection, which takes a while, once.
        seed: Seed of all random choices.
        stream: Keeps several sets with the same seed apart.
        indexes: 1-based bands to read; all but alpha if None. A file that lacks one is a bad file.
        bands: Their names.
        scales: What the values of each stored type are multiplied with, such as ``{uint8: 1,
            uint16: 0.0255}``. Without it all images must store the same type.
        convert: Read grey JPEG and PNG as three equal bands and convert CMYK, which is a bad file
            otherwise.
        assets: Keys of the assets that make up one image per STAC item, in the order of its bands;
            if None, each asset that is an image (and no thumbnail or overview) is one.
        nodata: Value that means "no observation" where all bands of an image have it that declares
            nothing of the kind: 0 for undeclared black borders.
        max_nodata: Windows with a larger share of invalid pixels are drawn again.
        max_bad_files: Unreadable files to tolerate; each is named in a warning and in
            ``bad_files``, those that workers of a loader meet included.
        index: Parquet file that keeps the list of the images; by default in the user's cache folder
            for more than 10,000.
        refresh: List the images anew.
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.
        transforms: Applied to each sample.

    Raises:
        DataNotFoundError: If there are no images.
        ImageReadError: If more files are unreadable than tolerated.
        BandMismatchError: If the images differ in bands, or in the stored type without ``scales``.
        ConfigError: If options are out of range or contradict each other, or ``index`` cannot be
            used.
    """

    #: Indices beyond ``len()`` are new windows.
    endless = True

    def __init__(
        self,
        root: Paths | Sequence[Scene],
        size: int = 192,
        length: int | None = None,
        *,
        windows: Windows = "random",
        stride: int | None = None,
        shuffle: bool = False,
        scale: tuple[float, float] = (0.2, 1.0),
        window: int | None = None,
        flips: bool = True,
        weights: Weights = "auto",
        seed: int = 0,
        stream: int = 0,
        indexes: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        scales: Mapping[str, float] | None = None,
        convert: bool = False,
        assets: Sequence[str] | None = None,
        nodata: float | None = None,
        max_nodata: float = 0.5,
        max_bad_files: int = 0,
        index: str | Path | None = None,
        refresh: bool = False,
        cache: Cache = "auto",
        transforms: Any = None,
    ) -> None:
        check_windows(size, windows, stride, scale, window, weights, max_nodata)
        positive("length", length)
        chosen_bands("indexes", indexes)
        distinct("bands", bands)
        if windows == "grid" and length is not None:
            raise ConfigError(
                f"length={length}: a grid has as many windows as it has; leave it out"
            )
        if isinstance(root, SceneCollection):
            self.scenes = root
        elif not isinstance(root, str | Path) and all(isinstance(s, Scene) for s in root):
            self.scenes = SceneCollection.of(root, BadFiles(max_bad_files))  # type: ignore[arg-type]
        else:
            self.scenes = SceneCollection.find(
                root,  # type: ignore[arg-type]
                Reading(None if indexes is None else tuple(indexes), scales, convert, nodata),
                BadFiles(max_bad_files),
                assets=assets,
                index=index,
                refresh=refresh,
                cache=cache,
            )
        self.bands = band_names(bands, self.scenes.examples())
        self.size, self.scale, self.flips, self.shuffle = size, scale, flips, shuffle
        self.window = window or 2 * size
        self.max_nodata, self.transforms = max_nodata, transforms
        self.grid = (
            WindowGrid(self.scenes.sizes(), size, stride or size) if windows == "grid" else None
        )
        by_area = weights == "area" or (weights == "auto" and not self.scenes.large)
        sized = by_area or not self.scenes.large
        self.length = len(self.grid) if self.grid is not None else length or self._fitting(sized)
        areas = self.scenes.sizes().astype(np.int64).prod(1) if by_area else len(self.scenes)
        self.lottery = Lottery(areas, self.length, seed, stream)

    def _fitting(self, sized: bool) -> int:
        """How many windows of ``size`` fit into the images, at least one into each."""
        if not sized:
            return len(self.scenes)
        return int(np.maximum(1, (self.scenes.sizes() // self.size).prod(1)).sum())

    @property
    def bad_files(self) -> dict[Path, str]:
        """Unreadable files that were met so far, and why."""
        return self.scenes.bad.reasons

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Draw the sample of an index.

        Raises:
            ImageReadError: Or another error of a file that cannot be read, beyond the tolerated
                number of them.
            DataNotFoundError: If no window with enough valid pixels is found.
        """
        item, region, rng = self._draw(index)
        name: Path | str = ""
        for attempt in range(1, MAX_DRAWS + 1):
            try:
                scene = self.scenes[item]
                name = scene.path
                pixels, valid = scene.read(region or self._crop(scene, rng))
            except BAD as error:
                self.scenes.bad.add(self.scenes.paths(item)[0], error)
                # What has been drawn so far depends on where the file is broken.
                item, rng = self.lottery.redraw(index, attempt)
                item, region = (item, None) if self.grid is None else self._any_window(rng)
                continue
            if valid is None or 1 - valid.mean() <= self.max_nodata:
                return self._sample(pixels, valid, rng)
            if self.grid is not None:
                item, region = self._any_window(rng)
            elif attempt % 10 == 0:  # this scene may be empty altogether
                item = self.lottery.again(rng)
        raise DataNotFoundError(
            f"{name}: no window with less than {self.max_nodata:.0%} nodata in {MAX_DRAWS} "
            "draws; raise max_nodata or leave empty images out"
        )

    def _draw(self, index: int) -> tuple[int, Region | None, np.random.Generator]:
        """Image, its window where a grid gives it, and a generator for all further choices."""
        if self.grid is None:
            item, rng = self.lottery.draw(index)
            return item, None, rng
        epoch, position = divmod(index, self.length)
        key = (*self.lottery.key, epoch)
        place = shuffled(position, self.length, key) if self.shuffle else position
        return *self.grid[place], np.random.default_rng((*key, position))

    def _any_window(self, rng: np.random.Generator) -> tuple[int, Region]:
        """A window of the grid."""
        assert self.grid is not None  # noqa: S101 - asked for in a grid only
        return self.grid[int(rng.integers(len(self.grid)))]

    def _crop(self, scene: Scene, rng: np.random.Generator) -> Region:
        """A random window, whole if the image is smaller than what is asked for."""
        height, width = min(scene.height, self.window), min(scene.width, self.window)
        area = height * width * rng.uniform(*self.scale)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        h = max(1, min(height, round(math.sqrt(area / aspect))))
        w = max(1, min(width, round(math.sqrt(area * aspect))))
        row, col = rng.integers(scene.height - h + 1), rng.integers(scene.width - w + 1)
        return Region(int(row), int(col), h, w)

    def _sample(self, pixels: Pixels, valid: Valid | None, rng: np.random.Generator) -> Sample:
        """Fill, turn and resize."""
        # Bytes are resized as bytes: seven times as fast, and at most one grey level away.
        values = pixels if pixels.dtype == np.uint8 and valid is None else pixels.astype(np.float32)
        if valid is not None:
            np.copyto(values, 0, where=~valid)
            fill = values.sum((1, 2)) / max(1, np.count_nonzero(valid))
            np.copyto(values, fill[:, None, None], where=~valid)
        if self.flips:
            values = np.rot90(values, int(rng.integers(4)), axes=(1, 2))
            if rng.integers(2):
                values = values[:, :, ::-1]
        if values.dtype == np.uint8:  # interleaved, as that is fastest
            values = np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1)
        else:
            values = np.ascontiguousarray(values)
        image = resize(torch.from_numpy(values), self.size, self.size)
        sample: Sample = {"image": image.float().contiguous()}
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show one sample.

        Args:
            sample: A sample of this data set.
            show_titles: Whether the panel has a title.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample], rgb=rgb_positions(self.bands), show_titles=show_titles, suptitle=suptitle
        )

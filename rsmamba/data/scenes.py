"""Unlabelled windows of any images, for pretraining."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.datamodule import DataModule
from rsmamba.data.images import (
    Pixels,
    Region,
    Scene,
    Valid,
    band_names,
    common_nodata,
    median_gsd,
    same_bands,
    to_display,
)
from rsmamba.data.listing import IMAGE_SUFFIXES, Paths, common_root, find_files
from rsmamba.data.sampling import Lottery, Statistic, statistics
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import ConfigError, DataNotFoundError, ImageReadError

#: Sets that decode to less than this are kept in memory with ``cache="auto"``.
CACHE_BYTES = 512 * 2**20
#: Aspect ratios of random crops, the field's habit since Inception.
ASPECT = (3 / 4, 4 / 3)
#: Draws for one sample before giving up on finding enough valid pixels.
MAX_DRAWS = 100


class BadFiles:
    """Files that could not be read: named, counted, and tolerated up to a number.

    Args:
        limit: How many to tolerate.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[Path, str] = {}

    def add(self, path: Path, error: ImageReadError) -> None:
        """Count a bad file and warn of it.

        Raises:
            ImageReadError: If it is one more than tolerated.
        """
        if path in self.reasons:
            return
        self.reasons[path] = str(error)
        if len(self.reasons) > self.limit:
            raise ImageReadError(
                f"{error}; {len(self.reasons)} bad file(s), max_bad_files={self.limit}"
            ) from error
        warnings.warn(f"left out: {error}", stacklevel=3)


def open_scenes(
    paths: Sequence[Path],
    bad: BadFiles,
    indexes: Sequence[int] | None = None,
    cache: bool | Literal["auto"] = "auto",
) -> list[Scene]:
    """Read all headers, and all pixels of a set that is small enough to be kept in memory.

    Raises:
        ImageReadError: If more files are unreadable than tolerated.
        BandMismatchError: If the images differ in bands.
        DataNotFoundError: If no readable image is left.
    """
    scenes = []
    for path in paths:
        try:
            scenes.append(Scene.open(path, indexes))
        except ImageReadError as error:
            bad.add(path, error)
    if cache is True or (cache == "auto" and sum(s.nbytes for s in scenes) <= CACHE_BYTES):
        kept = []
        for scene in scenes:
            try:
                scene.keep()
                kept.append(scene)
            except ImageReadError as error:
                bad.add(scene.path, error)
        scenes = kept
    if not scenes:
        raise DataNotFoundError(f"none of the {len(paths)} images can be read, e.g. {paths[0]}")
    same_bands(scenes)
    with_alpha = next((s for s in scenes if s.alpha is not None), None)
    if with_alpha is not None and with_alpha.alpha_looks_like_data():
        warnings.warn(
            f"{with_alpha.path}: band {with_alpha.alpha} is declared as alpha and used as a mask, "
            "but looks like data; to read it, list it in indexes",
            stacklevel=3,
        )
    return scenes


class ScenePatches(NonGeoDataset):
    """Random windows of unlabelled images, resized to one size.

    A sample is ``{"image": float32 (C, size, size)}`` in pixel units. Each window is a random
    resized crop: an area of ``scale`` times the image (or times ``window`` squared pixels where the
    image is larger, so that the ground resolution of a big scene varies within bounds), aspect
    ratio 3/4 to 4/3, then one of the eight flips and rotations of the square. Images are drawn in
    proportion to their area. Index ``i`` gives the same sample whenever and wherever it is asked
    for; indices beyond ``len()`` belong to later epochs.

    Invalid pixels (nodata, alpha, NaN) are set to the mean of the window's valid ones.

    Args:
        root: Folder (any depth), glob pattern, file or list of GeoTIFF, JPEG and PNG images, or
            ``sample:`` path; or scenes that are open already.
        size: Side of the samples in pixels.
        length: Samples in an epoch; as many as windows of ``size`` fit if None.
        scale: Least and greatest share of the area that a window takes.
        window: Side in pixels of the area that ``scale`` refers to in larger images; ``2 * size``
            if None.
        flips: Whether to flip and rotate.
        seed: Seed of all random choices.
        stream: Keeps several sets with the same seed apart.
        indexes: 1-based bands to read; all but alpha if None.
        bands: Their names.
        max_nodata: Windows with a larger share of invalid pixels are drawn again.
        max_bad_files: Unreadable files to tolerate; each is named in a warning and in
            ``bad_files`` (with workers, each worker process counts what it meets).
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.
        transforms: Applied to each sample.

    Raises:
        DataNotFoundError: If there are no images.
        ImageReadError: If more files are unreadable than tolerated.
        BandMismatchError: If the images differ in bands.
        ConfigError: If ``size`` or ``scale`` make no sense.
    """

    #: Indices beyond ``len()`` are new windows.
    endless = True

    def __init__(
        self,
        root: Paths | Sequence[Scene],
        size: int = 192,
        length: int | None = None,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        window: int | None = None,
        flips: bool = True,
        seed: int = 0,
        stream: int = 0,
        indexes: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        max_nodata: float = 0.5,
        max_bad_files: int = 0,
        cache: bool | Literal["auto"] = "auto",
        transforms: Any = None,
    ) -> None:
        if size < 1 or not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(f"size={size} must be positive, scale={scale} within (0, 1]")
        self._bad = BadFiles(max_bad_files)
        self.scenes = _as_scenes(root, self._bad, indexes, cache)
        self.bands = band_names(bands, same_bands(self.scenes))
        self.size, self.scale, self.flips = size, scale, flips
        self.window = window or 2 * size
        self.max_nodata, self.transforms = max_nodata, transforms
        self.length = length or sum(
            max(1, (s.height // size) * (s.width // size)) for s in self.scenes
        )
        areas = [s.height * s.width for s in self.scenes]
        self.lottery = Lottery(areas, self.length, seed, stream)

    @property
    def bad_files(self) -> dict[Path, str]:
        """Unreadable files that were left out, and why."""
        return dict(self._bad.reasons)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Draw the sample of an index.

        Raises:
            ImageReadError: If a file cannot be decoded, beyond the tolerated number.
            DataNotFoundError: If no window with enough valid pixels is found.
        """
        item, rng = self.lottery.draw(index)
        for attempt in range(MAX_DRAWS):
            scene = self.scenes[item]
            region = self._crop(scene, rng)
            try:
                pixels, valid = scene.read(region)
            except ImageReadError as error:
                self._bad.add(scene.path, error)
                item = self.lottery.again(rng)
                continue
            if valid is None or 1 - valid.mean() <= self.max_nodata:
                return self._sample(pixels, valid, rng)
            if attempt % 10 == 9:  # this scene may be empty altogether
                item = self.lottery.again(rng)
        raise DataNotFoundError(
            f"{scene.path}: no window with less than {self.max_nodata:.0%} nodata in {MAX_DRAWS} "
            "draws; raise max_nodata or leave empty images out"
        )

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
        values = pixels.astype(np.float32)
        if valid is not None:
            fill = values[:, valid].mean(1) if valid.any() else np.zeros(len(values), np.float32)
            values = np.where(valid, values, fill[:, None, None])
        if self.flips:
            values = np.rot90(values, int(rng.integers(4)), axes=(1, 2))
            if rng.integers(2):
                values = values[:, :, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(values))
        if image.shape[1:] != (self.size, self.size):
            image = F.interpolate(
                image[None], (self.size, self.size), mode="bilinear", antialias=True
            )[0]
        sample: Sample = {"image": image}
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, suptitle: str | None = None) -> Figure:
        """Show one sample.

        Args:
            sample: A sample of this data set.
            suptitle: Title of the figure.
        """
        figure = Figure(figsize=(4, 4))
        axes = figure.subplots()
        axes.imshow(to_display(sample["image"]))
        axes.axis("off")
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure


def _as_scenes(
    root: Paths | Sequence[Scene],
    bad: BadFiles,
    indexes: Sequence[int] | None,
    cache: bool | Literal["auto"],
) -> list[Scene]:
    if not isinstance(root, str | os.PathLike) and all(isinstance(s, Scene) for s in root):
        return list(root)  # type: ignore[arg-type]
    return open_scenes(find_files(root, IMAGE_SUFFIXES), bad, indexes, cache)  # type: ignore[arg-type]


class ScenePatchesDataModule(DataModule):
    """Random windows of a folder of unlabelled images, for pretraining.

    Windows, flips and the choice of images depend on ``seed`` alone, not on the number of
    workers; batches are normalised on the device. Validation takes whole files, always the same
    windows of them.

    Args:
        root: Folder (any depth), glob pattern, file or list of GeoTIFF, JPEG and PNG images, or
            ``sample:`` path.
        size: Side of the samples in pixels.
        batch_size: Samples in a batch.
        num_workers: Worker processes that read windows.
        length: Training samples in an epoch; as many as windows of ``size`` fit if None.
        val_length: Validation samples; as for ``length`` if None.
        val_fraction: Share of the files (by their pixels) held back; 0 for none.
        seed: Seed of split and windows.
        scale: Least and greatest share of the area that a window takes.
        window: Side in pixels of the area that ``scale`` refers to in larger images; ``2 * size``
            if None.
        flips: Whether to flip and rotate training windows.
        indexes: 1-based bands to read; all but alpha if None.
        bands: Their names; red, green, blue for three if None.
        mean: Mean per band in pixel units; "auto": of the training files.
        std: Deviation per band in pixel units; "auto": of the training files.
        max_nodata: Windows with a larger share of invalid pixels are drawn again.
        max_bad_files: Unreadable files to tolerate; they are named and counted in ``bad_files``.
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.

    Raises:
        ConfigError: If options contradict each other.

    ``bands``, ``mean``, ``std``, ``gsd`` and ``nodata`` are those of the data after :meth:`setup`.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        root: Paths,
        size: int = 192,
        batch_size: int = 64,
        num_workers: int = 0,
        length: int | None = None,
        val_length: int | None = None,
        val_fraction: float = 0.05,
        seed: int = 0,
        scale: tuple[float, float] = (0.2, 1.0),
        window: int | None = None,
        flips: bool = True,
        indexes: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        mean: Statistic = "auto",
        std: Statistic = "auto",
        max_nodata: float = 0.5,
        max_bad_files: int = 0,
        cache: bool | Literal["auto"] = "auto",
    ) -> None:
        options: dict[str, Any] = {
            "scale": tuple(scale),
            "window": window,
            "max_nodata": max_nodata,
            "seed": seed,
        }
        super().__init__(ScenePatches, batch_size, num_workers, **options)
        self.root, self.size, self.seed, self.flips = root, size, seed, flips
        self.length, self.val_length, self.val_fraction = length, val_length, val_fraction
        self.indexes, self._bands = indexes, bands
        self._mean, self._std = mean, std
        self.max_bad_files, self.cache = max_bad_files, cache
        self.bands: tuple[str, ...] = ()
        self.gsd: float | None = None
        self.nodata: float | None = None
        self.bad_files: dict[Path, str] = {}
        self._splits: dict[str, list[Scene]] | None = None

    def splits(self) -> dict[str, list[Scene]]:
        """Scenes of "train" and "val"; opened once.

        Raises:
            DataNotFoundError: If there are no images.
            ImageReadError: If more files are unreadable than tolerated.
            BandMismatchError: If the images differ in bands.
            ConfigError: If a single file is to be divided.
        """
        if self._splits is None:
            paths = find_files(self.root, IMAGE_SUFFIXES)
            bad = BadFiles(self.max_bad_files)
            scenes = open_scenes(paths, bad, self.indexes, self.cache)
            self.bad_files = bad.reasons
            held: set[str] = set()
            base = common_root(paths)
            names = [s.path.relative_to(base).as_posix() for s in scenes]
            if self.val_fraction:
                sizes = {n: float(s.whole.area) for n, s in zip(names, scenes, strict=True)}
                held = take_share(sizes, self.val_fraction, self.seed)
            self._splits = {"train": [], "val": []}
            for name, scene in zip(names, scenes, strict=True):
                self._splits["val" if name in held else "train"].append(scene)
        return self._splits

    def setup(self, stage: str) -> None:
        """Open the images and build the data sets.

        Args:
            stage: "fit" or "validate".

        Raises:
            DataNotFoundError: If there are no images.
            ImageReadError: If more files are unreadable than tolerated.
            BandMismatchError: If the images differ in bands, or the statistics in number.
            ConfigError: If an epoch is shorter than a batch, or a single file is to be divided.
        """
        if self.train_dataset is not None:
            return
        split = self.splits()
        scenes = split["train"] + split["val"]
        self.bands = band_names(self._bands, same_bands(scenes))
        self.gsd, self.nodata = median_gsd(scenes), common_nodata(scenes)
        self.set_normalisation(
            *statistics(self._mean, self._std, [(s, s.whole) for s in split["train"]])
        )
        left = self.max_bad_files - len(self.bad_files)
        common = {**self.kwargs, "seed": self.seed, "bands": self.bands, "max_bad_files": left}
        self.train_dataset = ScenePatches(
            split["train"], self.size, self.length, flips=self.flips, **common
        )
        self._sized(self.train_dataset)
        if split["val"]:
            self.val_dataset = ScenePatches(
                split["val"], self.size, self.val_length, flips=False, stream=1, **common
            )

    def manifest(self) -> Manifest:
        """Files of each split.

        Raises:
            DataNotFoundError: If there are no images.
        """
        split = self.splits()
        return Manifest(
            "ScenePatches",
            root=common_root([s.path for part in split.values() for s in part]),
            settings={"val_fraction": self.val_fraction, "seed": self.seed},
            splits={name: [(s.path, {}) for s in part] for name, part in split.items()},
        )

"""What the data modules of pairs share: random windows to train on, whole scenes to score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.augment import SegmentationAugmentation, check_jitter
from rsmamba.data.change import CLASSES, Pair
from rsmamba.data.datamodule import DataModule
from rsmamba.data.images import IGNORE, Region, clip
from rsmamba.data.opening import CACHE_BYTES
from rsmamba.data.options import positive
from rsmamba.data.sampling import Lottery, Statistic, statistics
from rsmamba.errors import ConfigError, DataNotFoundError

Part = Literal["train", "val", "test"]


def spans(length: int, size: int, halo: int = 0) -> list[tuple[int, int, int]]:
    """Windows along one axis that count every position once.

    The last window is moved inward rather than padded, so that it holds real pixels.

    Args:
        length: Of the axis.
        size: Of a window.
        halo: Margin of a window that counts at the ends of the axis only.

    Returns:
        Per window its start, and the first position and the one after the last that count.
    """
    if length <= size:
        return [(0, 0, length)]
    found: list[tuple[int, int, int]] = []
    end = 0
    for start in [*range(0, length - size, size - 2 * halo), length - size]:
        begin, end = end, length if start == length - size else start + size - halo
        found.append((start, begin, end))
    return found


class PairWindows(NonGeoDataset):
    """Windows of pairs with what changed in them.

    A sample is ``{"image": float32 (2, C, S, S), "mask": int64 (1, S, S), "scene": int64 (),
    "origin": int64 (2,)}``: the image in pixel units, the scene by its number, and the row and
    column in it of the window's first pixel. Where a pixel is unknown, invalid on either date or
    padding, the mask is 255 and the image ``fill``.

    With ``length=None`` the windows are a grid. Where a side is no multiple of S the last window
    is moved inward, and the mask is 255 for what the one before has counted: over all windows, each
    pixel counts once. Otherwise they are drawn at random in proportion to the areas; index ``i``
    always gives the same one, indices beyond ``len()`` belong to later epochs.

    Args:
        pairs: The scenes.
        size: Side S of the windows in pixels.
        length: Random windows in an epoch; a grid if None.
        halo: Margin of the windows of a grid that is seen and not counted, except at the border
            of a scene.
        seed: Seed of the random windows.
        numbers: Number of each scene; its position if None.
        fill: Value per band (C,) for invalid pixels and padding; 0 if None.
        transforms: Applied to each sample.

    Raises:
        ConfigError: If the size is not positive, or the halo leaves nothing of a window.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        size: int,
        length: int | None = None,
        *,
        halo: int = 0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        fill: Tensor | None = None,
        transforms: Any = None,
    ) -> None:
        if size < 1 or halo < 0 or size <= 2 * halo:
            raise ConfigError(
                f"windows of {size} px with a margin of {halo} px on each side: the size must be "
                "at least 1, and more than twice the halo, which is at least 0"
            )
        self.pairs, self.size, self.transforms = list(pairs), size, transforms
        self.numbers = list(range(len(self.pairs)) if numbers is None else numbers)
        self.fill = fill
        self.lottery: Lottery | None = None
        self.windows: list[tuple[int, int, int, Region]] = []
        self._recent: tuple[int, Pair] | None = None
        if length is not None:
            areas = [float(pair.whole.area) for pair in self.pairs]
            self.lottery = Lottery(areas, length, seed)
            return
        for item, pair in enumerate(self.pairs):
            for row, top, bottom in spans(pair.height, size, halo):
                for col, left, right in spans(pair.width, size, halo):
                    counted = Region(top, left, bottom - top, right - left)
                    self.windows.append((item, row, col, counted))

    @property
    def endless(self) -> bool:
        """Whether indices beyond ``len()`` are new windows."""
        return self.lottery is not None

    def __len__(self) -> int:
        """Windows in an epoch."""
        return len(self.windows) if self.lottery is None else self.lottery.length

    def __getitem__(self, index: int) -> Sample:
        """The window of an index.

        Raises:
            IndexError: If a grid has no such window.
            ImageReadError: If a file cannot be decoded.
            LabelError: If a label does not say what has changed.
        """
        if self.lottery is None:
            sample = self._read(*self.windows[index])
        else:
            item, rng = self.lottery.draw(index)
            pair = self.pairs[item]
            row = int(rng.integers(max(1, pair.height - self.size + 1)))
            col = int(rng.integers(max(1, pair.width - self.size + 1)))
            sample = self._read(item, row, col)
        return sample if self.transforms is None else self.transforms(sample)

    def _read(self, item: int, row: int, col: int, counted: Region | None = None) -> Sample:
        pair = self._decoded(item)
        region = clip(Region(row, col, self.size, self.size), pair.whole)
        pixels, known = pair.read(region)
        image = torch.from_numpy(pixels.astype(np.float32))
        fill = torch.zeros(image.shape[1]) if self.fill is None else self.fill
        if (known == IGNORE).any():
            image = torch.where(torch.from_numpy(known == IGNORE), fill[:, None, None], image)
        if region.area < self.size**2:
            padded = fill[:, None, None].repeat(2, 1, self.size, self.size)
            padded[..., : region.height, : region.width] = image
            image = padded
        mask = torch.full((1, self.size, self.size), IGNORE)
        c = counted or region
        inside = (
            slice(c.row - row, c.row - row + c.height),
            slice(c.col - col, c.col - col + c.width),
        )
        mask[0][inside] = torch.from_numpy(known[inside].astype(np.int64))
        return {
            "image": image,
            "mask": mask,
            "scene": torch.tensor(self.numbers[item]),
            "origin": torch.tensor([row, col]),
        }

    def _decoded(self, item: int) -> Pair:
        """A pair in memory: for good, or the one that was read last."""
        pair = self.pairs[item]
        if pair.kept:
            return pair
        if self._recent is None or self._recent[0] != item:
            self._recent = (item, pair.decoded())
        return self._recent[1]


class ChangeDataModule(DataModule):
    """What the data modules of pairs share; a subclass opens the pairs of each split.

    Training windows are random, flipped and turned on the batch; validation and test windows are
    the grid of :class:`PairWindows`, over whole scenes. Predict runs over the test scenes.

    Args:
        dataset_class: Data set that is constructed with ``kwargs``.
        bands: Names of the bands of one date.
        gsd: Metres to the pixel.
        patch_size: Side of the training windows in pixels.
        batch_size: Windows in a batch.
        num_workers: Worker processes that read windows.
        length: Training windows in an epoch; as many as cover the scenes once if None.
        tile_size: Side of the validation and test windows; ``patch_size`` if None.
        halo: Margin of those windows that the network sees and that is not counted.
        scale_jitter: Zoom training windows by up to this much.
        colour_jitter: Vary contrast and brightness of training windows by up to this much, alike
            on both dates.
        seed: Seed of the training windows.
        mean: Mean per band in pixel units; "auto": of both dates of the training scenes.
        std: Deviation per band in pixel units; "auto": likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        cache: Keep decoded scenes in memory; "auto" does so below 512 MiB.
        **kwargs: Arguments of the data set.

    Raises:
        ConfigError: If options are out of range, or sizes contradict each other.
        BandMismatchError: If mean or deviation are not as many as the bands.
    """

    classes: tuple[str, ...] = CLASSES
    dates = 2
    #: Names of the scenes by the number that samples give; empty where they are too many to be
    #: scored one by one.
    scenes: tuple[str, ...] = ()

    def __init__(
        self,
        dataset_class: type[Any],
        *,
        bands: Sequence[str],
        gsd: float,
        patch_size: int,
        batch_size: int,
        num_workers: int,
        length: int | None,
        tile_size: int | None,
        halo: int,
        scale_jitter: float,
        colour_jitter: float,
        seed: int,
        mean: Statistic,
        std: Statistic,
        spec: str | Path | None,
        cache: bool | Literal["auto"],
        **kwargs: Any,
    ) -> None:
        sizes = {"patch_size": patch_size, "length": length, "tile_size": tile_size}
        for name, value in sizes.items():
            positive(name, value)
        check_jitter(colour_jitter, scale_jitter)
        super().__init__(dataset_class, batch_size, num_workers, seed=seed, **kwargs)
        self.bands, self.gsd = tuple(bands), gsd
        self.patch_size, self.tile_size, self.halo = patch_size, tile_size or patch_size, halo
        PairWindows((), patch_size)  # they refuse impossible sizes
        PairWindows((), self.tile_size, halo=halo)
        self.length, self.cache = length, cache
        self.scale_jitter, self.colour_jitter = scale_jitter, colour_jitter
        self._mean, self._std, self.spec = mean, std, spec
        self._pairs: dict[Part, list[Pair]] = {}
        self._automatic = spec is None and "auto" in (mean, std)
        if not self._automatic:
            self._normalise(mean, std)

    def _normalise(self, mean: Any, std: Any) -> None:
        self.set_normalisation(mean, std, self.spec)
        self.train_aug = SegmentationAugmentation(
            self.mean, self.std, self.scale_jitter, self.colour_jitter
        )

    def open_pairs(self, part: Part) -> dict[Part, list[Pair]]:
        """Open the pairs of a part, and of those that come with it.

        Raises:
            RsmambaError: If files are missing or do not fit.
        """
        raise NotImplementedError

    def pairs(self, part: Part) -> list[Pair]:
        """The scenes of "train", "val" or "test", opened once.

        Raises:
            RsmambaError: If files are missing or do not fit.
        """
        if part not in self._pairs:
            self._pairs |= self.open_pairs(part)
        return self._pairs[part]

    def setup(self, stage: str) -> None:
        """Open the scenes that a stage needs and build the data sets.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: If files are missing, unreadable or do not fit.
            ConfigError: If an epoch is shorter than a batch.
        """
        if self._automatic:
            train = self.pairs("train")
            regions = [(date, p.whole) for p in train for date in (p.before, p.after)]
            self._normalise(*statistics(self._mean, self._std, regions))
            self._automatic = False
        if stage == "fit":
            length = self.length or len(PairWindows(self.pairs("train"), self.patch_size))
            self.train_dataset = self._sized(self._windows("train", self.patch_size, length))
        if stage in ("fit", "validate") and self.pairs("val"):
            self.val_dataset = self._windows("val", self.tile_size)
        if stage == "test":
            self.test_dataset = self._windows("test", self.tile_size)
        if stage == "predict":
            self.predict_dataset = self._windows("test", self.tile_size)

    def _windows(self, part: Part, size: int, length: int | None = None) -> PairWindows:
        pairs = self.pairs(part)
        if self.cache is True or (
            self.cache == "auto" and sum(pair.nbytes for pair in pairs) <= CACHE_BYTES
        ):
            for pair in pairs:
                pair.keep()
        numbers = [self.scenes.index(p.name) for p in pairs] if self.scenes else None
        halo = self.halo if length is None else 0
        return PairWindows(
            pairs, size, length, halo=halo, seed=self.seed, numbers=numbers, fill=self.mean
        )

    def split_files(self) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
        """Files of each split, for :meth:`manifest`; a split that is not there is empty.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        missing: DataNotFoundError | None = None
        for part in get_args(Part):
            found[part] = []
            try:
                found[part] = [file for pair in self.pairs(part) for file in pair.files]
            except DataNotFoundError as error:  # the test labels alone are enough to test
                missing = error
        if missing is not None and not any(found.values()):
            raise missing
        return found

    def change_shares(self, part: Part) -> dict[str, float]:
        """Share of the known pixels of each scene that changed.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        counts = {pair.name: pair.change() for pair in self.pairs(part)}
        return {name: changed / max(1, known) for name, (changed, known) in counts.items()}

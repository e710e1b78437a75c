"""Random windows that depend on a seed and an index only, and statistics of bands.

An index names one sample of one epoch for good: results are the same with any number of workers,
and a sample can be drawn again to look at it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rsmamba.data.images import Region, Scene, clip, grid
from rsmamba.errors import ImageReadError

#: Side of the blocks in which statistics are read, and how many pixels are enough for them.
STATISTICS_BLOCK = 1024
STATISTICS_PIXELS = 2 * 10**8
#: Longer epochs are shuffled without a table of their order.
LONGEST_TABLE = 1 << 20

Statistic = Sequence[float] | Literal["auto"]
#: What is told of a file that cannot be decoded.
Failed = Callable[[Path, ImageReadError], None]


class EpochSampler(Sampler[int]):
    """The indices of one epoch after the other, in an order that a seed and the epoch determine.

    Lightning calls :meth:`set_epoch` before each epoch, so that a resumed run goes on with the
    samples it would have seen.

    Args:
        length: Samples in an epoch.
        seed: Seed of a permutation of 0 to ``length - 1`` for each epoch. None for sets whose
            indices go on: ``epoch * length`` to ``(epoch + 1) * length - 1``, in order.
    """

    def __init__(self, length: int, seed: int | None = None) -> None:
        self.length, self.seed = length, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """Indices of one epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if self.seed is None:
            return iter(range(epoch * self.length, (epoch + 1) * self.length))
        return iter(np.random.default_rng((self.seed, epoch)).permutation(self.length).tolist())


class Lottery:
    """Draws items in proportion to their weights, evenly over an epoch.

    Systematic sampling: the epoch's draws are spread at equal distances over the cumulated
    weights, in shuffled order. With equal weights and as many draws as items, each item is drawn
    exactly once.

    Args:
        weights: Positive weight of each item; or the number of items of equal weight, which needs
            no memory for each.
        length: Draws in an epoch.
        seed: Seed of all draws.
        stream: Number that keeps lotteries with the same seed apart.
    """

    def __init__(
        self,
        weights: Sequence[float] | npt.NDArray[Any] | int,
        length: int,
        seed: int,
        stream: int = 0,
    ) -> None:
        self.cumulated: npt.NDArray[np.float64] | None = None
        if isinstance(weights, int):
            self.items = weights
        else:
            cumulated = np.cumsum(np.asarray(weights, np.float64))
            self.items, self.cumulated = len(cumulated), cumulated / cumulated[-1]
        self.length, self.key = length, (seed, stream)

    def draw(self, index: int) -> tuple[int, np.random.Generator]:
        """The item of an index, and a generator for all further choices about it."""
        epoch, position = divmod(index, self.length)
        rng = np.random.default_rng((*self.key, epoch, position))
        place = shuffled(position, self.length, (*self.key, epoch))
        return self._item((place + rng.random()) / self.length), rng

    def redraw(self, index: int, attempt: int) -> tuple[int, np.random.Generator]:
        """Another item and generator for an index, the same for every ``attempt`` of that number.

        Unlike :meth:`again` it does not depend on what has been drawn before.
        """
        rng = np.random.default_rng((*self.key, *divmod(index, self.length), attempt))
        return self.again(rng), rng

    def again(self, rng: np.random.Generator) -> int:
        """Another item, for an index whose first one was of no use."""
        return self._item(rng.random())

    def _item(self, place: float) -> int:
        if self.cumulated is None:
            return min(int(place * self.items), self.items - 1)
        return min(int(np.searchsorted(self.cumulated, place, "right")), self.items - 1)


def shuffled(position: int, length: int, key: tuple[int, ...]) -> int:
    """The place of a position in a permutation of 0 to ``length - 1`` that the key determines."""
    if length <= LONGEST_TABLE:
        return int(_order(length, key)[position])
    # A Feistel network permutes the numbers below a power of four (Black and Rogaway, 2002,
    # "Ciphers with arbitrary finite domains"); those that leave the range go round again.
    half = (length.bit_length() + 1) // 2
    mask = (1 << half) - 1
    rounds = _rounds(key)
    while True:
        left, right = position >> half, position & mask
        for secret in rounds:
            mixed = (right ^ secret) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 >> 31 & mask)
        position = left << half | right
        if position < length:
            return position


@lru_cache(maxsize=8)
def _order(length: int, key: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Shuffled places of an epoch's draws."""
    return np.random.default_rng(key).permutation(length)


@lru_cache(maxsize=8)
def _rounds(key: tuple[int, ...]) -> tuple[int, ...]:
    """Secrets of the rounds."""
    secrets = np.random.default_rng(key).integers(0, 2**63, 6)
    return tuple(int(s) for s in secrets)


class WindowGrid:
    """Square windows that cover images, row by row, without a list of them.

    The last row and column of an image are moved inwards, so that all windows lie within it. An
    image that is smaller than a window is covered by squares of its own shorter side.

    Args:
        sizes: Height and width of each image (N, 2); an image of size 0 has no windows.
        size: Side of the windows in pixels.
        stride: Distance of neighbouring windows in pixels.
    """

    def __init__(self, sizes: npt.NDArray[Any], size: int, stride: int) -> None:
        shorter = np.minimum(sizes.min(1), size)
        self.sizes, self.side = sizes, shorter
        self.step = np.maximum(1, np.minimum(stride, shorter))
        self.columns = -(-(sizes[:, 1] - shorter) // self.step) + 1
        rows = -(-(sizes[:, 0] - shorter) // self.step) + 1
        counts = np.where(shorter > 0, rows.astype(np.int64) * self.columns, 0)
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        """Windows in all images."""
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[int, Region]:
        """Image and place of a window."""
        item = int(np.searchsorted(self.ends, index, "right"))
        within = index - (int(self.ends[item - 1]) if item else 0)
        row, column = divmod(within, int(self.columns[item]))
        side, step = int(self.side[item]), int(self.step[item])
        height, width = (int(s) for s in self.sizes[item])
        top, left = min(row * step, height - side), min(column * step, width - side)
        return item, Region(top, left, side, side)


@dataclass
class BandStatistics:
    """What one pass over the pixels tells of each band.

    Attributes:
        mean: Mean of the valid pixels (C,), in pixel units.
        std: Their standard deviation (C,).
        low: Their least value (C,).
        high: Their greatest value (C,).
        valid: Number of valid pixels.
        invalid: Number of others: nodata, masked, transparent, NaN.
        images: Number of images that were read.
    """

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    valid: int = 0
    invalid: int = 0
    images: int = 0

    @property
    def divisor(self) -> npt.NDArray[np.float64]:
        """The deviation, and 1 for a band without any, so that dividing by it does no harm."""
        return np.where(self.std > 0, self.std, 1.0)


class RunningStatistics:
    """Statistics of bands from one block of pixels after the other, without keeping any."""

    def __init__(self) -> None:
        self.count = self.invalid = self.images = 0
        self.mean = self.square = np.zeros(1)
        self.low, self.high = np.full(1, np.inf), np.full(1, -np.inf)

    def add(self, pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None) -> None:
        """Take in a block.

        Args:
            pixels: Values (C, H, W).
            valid: Which pixels count (H, W); None for all.
        """
        values = pixels.reshape(len(pixels), -1) if valid is None else pixels[:, valid]
        self.invalid += pixels[0].size - values.shape[1]
        for start in range(0, values.shape[1], STATISTICS_BLOCK**2):
            self._add(values[:, start : start + STATISTICS_BLOCK**2])

    def _add(self, values: npt.NDArray[Any]) -> None:
        n, values = values.shape[1], values.astype(np.float64)
        self.low = np.minimum(self.low, values.min(1))
        self.high = np.maximum(self.high, values.max(1))
        # Chan's update of mean and sum of squares: no cancellation, whatever the values' offset.
        block_mean = values.mean(1)
        delta, total = block_mean - self.mean, self.count + n
        self.square = self.square + values.var(1) * n + delta**2 * self.count * n / total
        self.mean = self.mean + delta * n / total
        self.count = total

    def result(self, bands: int) -> BandStatistics:
        """What has been found; zeros where nothing was."""
        mean, std = self.mean, np.sqrt(self.square / max(self.count, 1))
        low, high = (self.low, self.high) if self.count else (np.zeros(1), np.zeros(1))
        mean, std, low, high = (
            np.broadcast_to(value, bands).astype(np.float64) for value in (mean, std, low, high)
        )
        return BandStatistics(mean, std, low, high, self.count, self.invalid, self.images)


def measure(scenes: Iterable[Scene], failed: Failed | None = None) -> BandStatistics:
    """Statistics of whole images, one after the other, block by block.

    Args:
        scenes: Images with the same number of bands.
        failed: Called for an image that cannot be decoded, whose blocks up to there count; None to
            stop there.

    Raises:
        ImageReadError: If a file cannot be decoded and ``failed`` is None.
    """
    running, bands = RunningStatistics(), 1
    for scene in scenes:
        bands = len(scene.indexes)
        if all(_read(running, scene, block, failed) for block in blocks(scene, scene.whole)):
            running.images += 1
    return running.result(bands)


def _read(running: RunningStatistics, scene: Scene, block: Region, failed: Failed | None) -> bool:
    """Take in a block of an image; whether it could be read."""
    try:
        running.add(*scene.read(block))
    except ImageReadError as error:
        if failed is None:
            raise
        failed(scene.path, error)
        return False
    return True


def blocks(scene: Scene, region: Region) -> list[Region]:
    """Parts of a region that are read at a time: all of it where the file is decoded as a whole."""
    if scene.photo:
        return [region]
    return [clip(window, region) for window in grid(region, STATISTICS_BLOCK)]


def band_statistics(
    regions: Sequence[tuple[Scene, Region]], failed: Failed | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per band over the valid pixels of regions.

    Blocks are read one after the other; of more than 2e8 pixels, every k-th block. A band
    without variation is given a deviation of 1, so that dividing by it does no harm.

    Args:
        regions: Scenes and the part of each that counts; all with the same number of bands.
        failed: Called for a file that cannot be decoded; None to stop there.

    Returns:
        Mean (C,) and deviation (C,), float32, in pixel units.

    Raises:
        ImageReadError: If a file cannot be decoded and ``failed`` is None.
    """
    found = [(scene, block) for scene, region in regions for block in blocks(scene, region)]
    total = sum(block.area for _, block in found)
    running = RunningStatistics()
    for scene, block in found[:: max(1, -(-total // STATISTICS_PIXELS))]:
        _read(running, scene, block, failed)
    result = running.result(len(regions[0][0].indexes))
    return (
        torch.tensor(result.mean, dtype=torch.float32),
        torch.tensor(result.divisor, dtype=torch.float32),
    )


def statistics(
    mean: Statistic,
    std: Statistic,
    regions: Sequence[tuple[Scene, Region]],
    failed: Failed | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and deviation as given, or of the regions where "auto" is asked for."""
    if mean == "auto" or std == "auto":
        found_mean, found_std = band_statistics(regions, failed)
    return (
        found_mean if mean == "auto" else torch.tensor(mean, dtype=torch.float32),
        found_std if std == "auto" else torch.tensor(std, dtype=torch.float32),
    )

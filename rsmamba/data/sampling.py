"""Random windows that depend on a seed and an index only, and statistics of bands.

An index names one sample of one epoch for good: results are the same with any number of workers,
and a sample can be drawn again to look at it.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from rsmamba.data.images import Region, Scene, clip, grid

#: Side of the blocks in which statistics are read, and how many pixels are enough for them.
STATISTICS_BLOCK = 1024
STATISTICS_PIXELS = 2 * 10**8

Statistic = Sequence[float] | Literal["auto"]


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
        weights: Positive weight of each item.
        length: Draws in an epoch.
        seed: Seed of all draws.
        stream: Number that keeps lotteries with the same seed apart.
    """

    def __init__(self, weights: Sequence[float], length: int, seed: int, stream: int = 0) -> None:
        cumulated = np.cumsum(np.asarray(weights, np.float64))
        self.cumulated = cumulated / cumulated[-1]
        self.length, self.key = length, (seed, stream)

    def draw(self, index: int) -> tuple[int, np.random.Generator]:
        """The item of an index, and a generator for all further choices about it."""
        epoch, position = divmod(index, self.length)
        rng = np.random.default_rng((*self.key, epoch, position))
        place = (_order(self.length, *self.key, epoch)[position] + rng.random()) / self.length
        return self._item(place), rng

    def again(self, rng: np.random.Generator) -> int:
        """Another item, for an index whose first one was of no use."""
        return self._item(rng.random())

    def _item(self, place: float) -> int:
        return min(int(np.searchsorted(self.cumulated, place, "right")), len(self.cumulated) - 1)


@lru_cache(maxsize=8)
def _order(length: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """Shuffled places of an epoch's draws."""
    return np.random.default_rng((seed, stream, epoch)).permutation(length)


def band_statistics(regions: Sequence[tuple[Scene, Region]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per band over the valid pixels of regions.

    Blocks are read one after the other; of more than 2e8 pixels, every k-th block. A band
    without variation is given a deviation of 1, so that dividing by it does no harm.

    Args:
        regions: Scenes and the part of each that counts; all with the same number of bands.

    Returns:
        Mean (C,) and deviation (C,), float32, in pixel units.

    Raises:
        ImageReadError: If a file cannot be decoded.
    """
    blocks = [
        (scene, clip(window, region))
        for scene, region in regions
        for window in grid(region, STATISTICS_BLOCK)
    ]
    total = sum(block.area for _, block in blocks)
    step = max(1, -(-total // STATISTICS_PIXELS))
    count, mean, square = 0, np.zeros(1), np.zeros(1)
    for scene, block in blocks[::step]:
        pixels, valid = scene.read(block)
        values = pixels.reshape(len(pixels), -1) if valid is None else pixels[:, valid]
        if not (n := values.shape[1]):
            continue
        # Chan's update of mean and sum of squares: no cancellation, whatever the values' offset.
        values = values.astype(np.float64)
        block_mean = values.mean(1)
        delta = block_mean - mean
        square = square + values.var(1) * n + delta**2 * count * n / (count + n)
        mean = mean + delta * n / (count + n)
        count += n
    bands = len(regions[0][0].indexes)
    mean, deviation = np.broadcast_to(mean, bands), np.sqrt(square / max(count, 1))
    deviation = np.broadcast_to(np.where(deviation > 0, deviation, 1), bands)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(deviation, dtype=torch.float32)


def statistics(
    mean: Statistic, std: Statistic, regions: Sequence[tuple[Scene, Region]]
) -> tuple[Tensor, Tensor]:
    """Mean and deviation as given, or of the regions where "auto" is asked for."""
    if mean == "auto" or std == "auto":
        found_mean, found_std = band_statistics(regions)
    return (
        found_mean if mean == "auto" else torch.tensor(mean, dtype=torch.float32),
        found_std if std == "auto" else torch.tensor(std, dtype=torch.float32),
    )

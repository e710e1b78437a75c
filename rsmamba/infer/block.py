"""One block of a scene: tiles are predicted, blended and turned into bytes.

What a block gives depends on the scene, the model and the options alone, not on which blocks were
done before it, in which process: so blocks can be shared out and done again.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsmamba.errors import ConfigError
from rsmamba.gis.raster import SCORE_SCALE
from rsmamba.gis.style import CLASS_NODATA
from rsmamba.infer.grid import Box, Tile, TileGrid
from rsmamba.infer.predict import Predictor
from rsmamba.infer.reader import Pixels

_LOG = logging.getLogger(__name__)
# rows that are turned from scores into bytes at a time: bounds what is held beside the scores
_ROWS = 512
# how far rounding may carry a probability out of 0..1
_TOLERANCE = 1e-3

#: Stages of the work whose time is taken.
STAGES = ("read", "forward", "blend", "write")


@dataclass
class BlockFacts:
    """What was counted in a block.

    Attributes:
        classes: Class names; empty if no tile was predicted.
        pixels: Number of pixels per class.
        nodata: Pixels without observation.
        not_finite: Pixels for which the model gave NaN or infinity.
        uncertain: Pixels below the threshold of a map of several classes.
        predicted: Tiles predicted whose first pixel lies here.
        recomputed: Further forwards of tiles that straddle blocks.
        failed: What could not be read.
        seconds: Time per stage.
    """

    classes: tuple[str, ...] = ()
    pixels: list[int] = field(default_factory=list)
    nodata: int = 0
    not_finite: int = 0
    uncertain: int = 0
    predicted: int = 0
    recomputed: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BlockFacts":
        """Back from JSON values."""
        return cls(**{**values, "classes": tuple(values["classes"])})


#: Takes rows of a block: layer name, first row, values (bands, height, width).
Write = Callable[[str, int, NDArray[np.uint8]], None]


class BlockWorker:
    """Predicts blocks of one scene.

    Args:
        grid: The scene's tiles.
        predictor: The model.
        batch_size: Tiles per forward; halved for good when a device runs out of memory.
        layers: Which layers are wanted besides "class": "scores", "uncertainty".
        threshold: Score from which on a pixel counts: as the second of two classes, or at all if
            there are more. None for the best score.
    """

    def __init__(
        self,
        grid: TileGrid,
        predictor: Predictor,
        *,
        batch_size: int,
        layers: Sequence[str] = (),
        threshold: float | None = None,
    ) -> None:
        self.grid, self.predictor, self.batch_size = grid, predictor, batch_size
        self._layers, self._threshold = tuple(layers), threshold

    def run(
        self, box: Box, strips: Iterator[Pixels], write: Write, advance: Callable[[int], None]
    ) -> BlockFacts:
        """Predict a block and hand its rows to ``write``.

        Args:
            box: The block.
            strips: Pixels of :meth:`strips` of the block, in order.
            write: Takes rows of a layer; not called for a block without a valid pixel.
            advance: Told how many tiles have been dealt with.

        Returns:
            What was counted.

        Raises:
            ConfigError: If the model's scores do not suit the layers.
        """
        facts = BlockFacts()
        scores, valid = self._predict(box, strips, facts, advance)
        with clock(facts.seconds, "write"):
            if scores is None:
                facts.nodata = box.height * box.width
            else:
                self._write(scores, valid, write, facts)
        return facts

    def strips(self, box: Box) -> Iterator[Box]:
        """Windows that a block needs, one per row of tiles."""
        return (_strip(tiles) for tiles in self.grid.tile_rows(box))

    def _predict(
        self,
        box: Box,
        strips: Iterator[Pixels],
        facts: BlockFacts,
        advance: Callable[[int], None],
    ) -> tuple[Tensor | None, NDArray[np.bool_]]:
        """Blended scores (K, h, w) of a block, None if it has no valid pixel, and its mask."""
        valid = np.zeros((box.height, box.width), dtype=bool)
        scores: Tensor | None = None
        batch: list[tuple[Tile, NDArray[np.float32]]] = []
        for tiles in self.grid.tile_rows(box):
            with clock(facts.seconds, "read"):
                pixels = next(strips)
            facts.failed += pixels.failed
            strip = _strip(tiles)
            for tile in tiles:
                part = tile.support.intersect(box)
                valid[part.within(box)] = pixels.valid[part.within(strip)]
                if not pixels.valid[tile.support.within(strip)].any():
                    continue
                # A tile belongs to the block that holds its first pixel.
                home = box.top <= tile.support.top and box.left <= tile.support.left
                facts.predicted += home
                facts.recomputed += not home
                batch.append((tile, pixels.image[(slice(None), *tile.window.within(strip))]))
                if len(batch) >= self.batch_size:
                    scores = self._add(batch, box, scores, facts)
                    batch.clear()
            advance(len(tiles))
        if batch:
            scores = self._add(batch, box, scores, facts)
        return scores, valid

    def _add(
        self,
        batch: list[tuple[Tile, NDArray[np.float32]]],
        box: Box,
        scores: Tensor | None,
        facts: BlockFacts,
    ) -> Tensor:
        """Predict a batch of tiles and add their weighted scores to those of the block."""
        with clock(facts.seconds, "forward"):
            answer = self._forward(torch.from_numpy(np.stack([image for _, image in batch])))
        with clock(facts.seconds, "blend"):
            if scores is None:
                facts.classes = self.predictor.class_names(answer.shape[1])
                scores = answer.new_zeros((answer.shape[1], box.height, box.width))
            for (tile, _), values in zip(batch, answer, strict=True):
                part = tile.support.intersect(box)
                weights = torch.from_numpy(self.grid.weights(tile, part)).to(answer.device)
                inside = values[(slice(None), *part.within(tile.window))]
                scores[(slice(None), *part.within(box))].addcmul_(inside, weights)
            self.predictor.synchronize()
        return scores

    def _forward(self, images: Tensor) -> Tensor:
        """Scores of images, in smaller batches if the device has not the memory for all.

        Raises:
            ConfigError: If there is not enough for one image.
        """
        while True:
            try:
                parts = [self.predictor(part) for part in images.split(self.batch_size)]
                self.predictor.synchronize()
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise ConfigError(
                        "the device has not enough memory for a single tile: make --tile smaller, "
                        "try --bf16, or --device cpu"
                    ) from error
                parts = []
            self.batch_size //= 2
            self.predictor.free_memory()
            _LOG.warning("out of memory: going on with %d tiles per forward", self.batch_size)

    def _write(
        self, scores: Tensor, valid: NDArray[np.bool_], write: Write, facts: BlockFacts
    ) -> None:
        """Turn scores into bytes, a few rows at a time."""
        count = len(scores)
        facts.pixels = [0] * count
        for top in range(0, len(valid), _ROWS):
            rows = slice(top, top + _ROWS)
            values, inside = scores[:, rows], valid[rows]
            # not argmax: on the CPU, max gives the same indices several times faster
            best, index = values.max(dim=0)
            finite = best.isfinite().cpu().numpy()
            known = inside & finite
            facts.nodata += int(np.count_nonzero(~inside))
            facts.not_finite += int(np.count_nonzero(inside & ~finite))
            if self._threshold is not None and count == 2:
                index = values[1] >= self._threshold
            classes = index.to(torch.uint8).cpu().numpy()
            shown = known
            if self._threshold is not None and count > 2:
                shown = known & (best >= self._threshold).cpu().numpy()
                facts.uncertain += int(np.count_nonzero(known & ~shown))
            found = np.bincount(classes[shown], minlength=count)
            facts.pixels = [a + int(b) for a, b in zip(facts.pixels, found, strict=True)]
            write("class", top, np.where(shown, classes, np.uint8(CLASS_NODATA))[None])
            if "scores" in self._layers:
                write("scores", top, to_bytes(values, known))
            if "uncertainty" in self._layers:
                write("uncertainty", top, to_bytes(entropy(values, known), known))


@contextmanager
def clock(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block of code to a stage."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - begin


def _strip(tiles: list[Tile]) -> Box:
    """The window that covers a row of tiles."""
    first, last = tiles[0].window, tiles[-1].window
    return Box(first.top, first.left, first.bottom, last.right)


def to_bytes(scores: Tensor, known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scores (K, h, w) of 0..1 as bytes, nodata where they are not known.

    Raises:
        ConfigError: If they leave 0..1.
    """
    inside = torch.from_numpy(known).to(scores.device)
    wanted = torch.where(inside, scores, 0.0)
    low, high = float(wanted.min()), float(wanted.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ConfigError(
            f"the model gives scores from {low:.3g} to {high:.3g}, a score raster holds 0 to 1: "
            "return probabilities (softmax), or leave out the score raster"
        )
    scaled = (wanted.clamp(0, 1) / SCORE_SCALE).round().to(torch.uint8)
    return scaled.masked_fill(~inside, CLASS_NODATA).cpu().numpy()


def entropy(scores: Tensor, known: NDArray[np.bool_]) -> Tensor:
    """Shannon entropy of the scores (K, h, w) over its greatest value, log K: (1, h, w) in 0..1.

    Raises:
        ConfigError: If the scores are no probabilities: negative, or with another sum than 1.
    """
    inside = torch.from_numpy(known).to(scores.device)
    wanted = torch.where(inside, scores, 1 / len(scores))
    if (
        float(wanted.min()) < -_TOLERANCE
        or float((wanted.sum(0) - 1).abs().max()) > 10 * _TOLERANCE
    ):
        raise ConfigError(
            "uncertainty needs probabilities, and the model's scores do not add up to 1: return "
            "softmax probabilities, or leave out the uncertainty raster"
        )
    share = wanted.clamp(0, 1)
    greatest = math.log(max(len(scores), 2))
    return (-torch.xlogy(share, share).sum(0, keepdim=True) / greatest).clamp(0, 1)

"""From a scene to a map: blocks of tiles are read, predicted, blended and written."""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from rsmamba import __version__, samples
from rsmamba.errors import ConfigError
from rsmamba.gis.raster import SCORE_SCALE, check_raster_output
from rsmamba.gis.style import CLASS_NODATA
from rsmamba.infer.grid import Blend, Box, Tile, TileGrid
from rsmamba.infer.predict import Model, Predictor, load_predictor
from rsmamba.infer.sink import RasterSink
from rsmamba.infer.source import GDAL_OPTIONS, Pixels, SceneSource, read_ahead
from rsmamba.spec import ModelSpec

# rows that are turned from scores into bytes at a time: bounds what is held beside the scores
_ROWS = 512
# how far rounding may carry a probability out of 0..1
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class MapReport:
    """What was done, and what it took.

    Attributes:
        source: The scene.
        output: The class map.
        scores: The score raster, if one was asked for.
        width: Columns.
        height: Rows.
        crs: Coordinate reference system.
        area_km2: Area of the scene; None where the CRS leads to no place on Earth.
        tiles: Tiles of the grid.
        tiles_predicted: Tiles that went through the model.
        tiles_skipped: Tiles without a valid pixel, which did not.
        tiles_recomputed: Further forwards of tiles that straddle two blocks.
        pixels: Number of pixels per class name.
        pixels_nodata: Pixels without observation, and without class.
        pixels_not_finite: Pixels for which the model gave NaN or infinity; nodata in the map.
        seconds: Wall time of ``read`` (waiting for pixels, which are read ahead), ``forward``,
            ``blend``, ``write`` and ``total``.
        km2_per_second: ``area_km2`` over the total time.
        peak_rss_mb: Largest resident memory of the process so far, in MB.
        parameters: Options of the run.
        spec_sha256: Hash of the model's spec; None if it has none.
        rsmamba_version: Version of this package.
    """

    source: str
    output: str
    scores: str | None
    width: int
    height: int
    crs: str
    area_km2: float | None
    tiles: int
    tiles_predicted: int
    tiles_skipped: int
    tiles_recomputed: int
    pixels: dict[str, int]
    pixels_nodata: int
    pixels_not_finite: int
    seconds: dict[str, float]
    km2_per_second: float | None
    peak_rss_mb: float
    parameters: dict[str, Any]
    spec_sha256: str | None
    rsmamba_version: str = __version__

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(asdict(self), indent=2)


def map_scene(
    model: Model | Predictor,
    src: str | Path,
    dst: str | Path,
    *,
    spec: ModelSpec | str | Path | None = None,
    tile: int = 512,
    halo: int = 64,
    blend: Blend = "linear",
    batch_size: int = 4,
    block: int = 4096,
    scores: str | Path | None = None,
    bands: Sequence[int] | None = None,
    assume_crs: str | None = None,
    device: str | torch.device | None = None,
    bf16: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> MapReport:
    """Apply a segmentation model to a scene of any size and write a class map.

    The map is a Cloud Optimized GeoTIFF on exactly the scene's grid: uint8 class indices, nodata
    255, colour table, class names, the model's spec. It appears under its name when it is
    complete. Neither ``block`` nor ``batch_size`` changes the result (a network's own rounding
    may depend on the batch); memory is bounded by ``block`` and the number of classes.

    Args:
        model: Checkpoint, module with ``spec``, or callable on raw pixels; see
            :func:`rsmamba.infer.load_predictor`.
        src: Scene: a file, a URL, a GDAL dataset name or ``sample:...``.
        dst: Class map to write (.tif).
        spec: ModelSpec or its JSON file, for a model that carries none.
        tile: Side in pixels of what the model sees at once.
        halo: Context in pixels around a tile's core.
        blend: ``"linear"`` fades between neighbouring tiles; ``"crop"`` keeps the cores, which
            saves the forwards that blocks share.
        batch_size: Tiles per forward.
        block: Side in pixels of the units of work; takes 4 bytes per pixel and class.
        scores: Also write the scores of all classes to this raster (.tif): uint8, one band per
            class, scale 1/254, nodata 255.
        bands: 1-based bands of the scene in the model's order; all but alpha if None.
        assume_crs: CRS of a scene that has none, e.g. ``"EPSG:32633"``.
        device: Where the model runs; CUDA if there is one.
        bf16: Run the model under bfloat16 autocast.
        overwrite: Replace existing outputs.
        progress: Show a progress bar, if the standard error stream is a terminal.

    Returns:
        The report.

    Raises:
        RsmambaError: One of its subclasses, for whatever can be mended: outputs that exist or
            cannot be written, an unreadable scene, wrong bands, a missing CRS, a checkpoint that
            does not load. Nothing is written then.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if str(src).startswith("sample:"):
        src = samples.resolve(src)
    outputs = [check_raster_output(dst, overwrite=overwrite)]
    if scores is not None:
        outputs.append(check_raster_output(scores, overwrite=overwrite))
    _check_distinct(src, outputs)
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**GDAL_OPTIONS))
        source = stack.enter_context(SceneSource(src, assume_crs=assume_crs, bands=bands))
        grid = TileGrid(source.grid.height, source.grid.width, tile, halo, blend)
        blocks = grid.blocks(block)
        predictor = load_predictor(model, spec, device=device, bf16=bf16)
        source.expect(predictor.spec)
        bar, task = stack.enter_context(_progress_bar(progress, Path(dst).name, grid, blocks))
        job = _Job(source, grid, predictor, batch_size, outputs, lambda n: bar.advance(task, n))
        stack.enter_context(job.sinks)
        job.run(blocks)
    seconds = {name: round(value, 4) for name, value in job.seconds.items()}
    total = time.perf_counter() - started
    area = source.grid.area_km2()
    return MapReport(
        source=str(src),
        output=str(dst),
        scores=None if scores is None else str(scores),
        width=grid.width,
        height=grid.height,
        crs=source.grid.crs.to_string(),
        area_km2=area,
        tiles=len(grid),
        tiles_predicted=job.predicted,
        tiles_skipped=len(grid) - job.predicted,
        tiles_recomputed=job.recomputed,
        pixels={name: int(n) for name, n in zip(job.classes, job.pixels, strict=False)},
        pixels_nodata=grid.height * grid.width - int(job.pixels.sum()) - job.not_finite,
        pixels_not_finite=job.not_finite,
        seconds=seconds | {"total": round(total, 4)},
        km2_per_second=None if area is None else area / total,
        peak_rss_mb=_peak_rss_mb(),
        parameters={
            "tile": tile,
            "halo": halo,
            "blend": blend,
            "batch_size": batch_size,
            "block": block,
            "device": str(predictor.device),
            "bf16": bf16,
            "bands": bands and list(bands),
            "assume_crs": assume_crs,
        },
        spec_sha256=_spec_hash(predictor.spec),
    )


class _Job:
    """The state of one run: counters, clocks and outputs."""

    def __init__(
        self,
        source: SceneSource,
        grid: TileGrid,
        predictor: Predictor,
        batch_size: int,
        outputs: list[Path],
        advance: Callable[[int], None],
    ) -> None:
        self._source = source
        self._grid = grid
        self._predictor = predictor
        self._batch_size = batch_size
        self._outputs = outputs
        self._advance = advance
        self._open: list[RasterSink] = []
        self.sinks = ExitStack()
        self.classes: tuple[str, ...] = ()
        self.pixels = np.zeros(CLASS_NODATA, dtype=np.int64)
        self.seconds = dict.fromkeys(("read", "forward", "blend", "write"), 0.0)
        self.predicted = self.recomputed = self.not_finite = 0

    def run(self, blocks: list[Box]) -> None:
        """Predict and write all blocks, then publish the outputs."""
        strips = (_strip(tiles) for box in blocks for tiles in self._grid.tile_rows(box))
        # closed before the source is: a read may be under way in the other thread
        with closing(read_ahead(self._source.read, strips)) as pixels:
            for box in blocks:
                scores, valid = self._predict(box, pixels)
                with self._clock("write"):
                    self._write(box, scores, valid)
                del scores, valid  # or two blocks would be held at once
        with self._clock("write"):
            if not self._open:  # no valid pixel anywhere: an empty map is the right answer
                spec = self._predictor.spec
                self._open_sinks(max(1, len(spec.classes) if spec else 1))
            for sink in self._open:
                sink.finish()
            for sink in self._open:
                sink.publish()

    def _predict(
        self, box: Box, strips: Iterator[Pixels]
    ) -> tuple[Tensor | None, NDArray[np.bool_]]:
        """Blended scores (K, h, w) of a block, None if it has no valid pixel, and its mask."""
        valid = np.zeros((box.height, box.width), dtype=bool)
        scores: Tensor | None = None
        batch: list[tuple[Tile, NDArray[np.float32]]] = []
        for tiles in self._grid.tile_rows(box):
            with self._clock("read"):
                pixels = next(strips)
            strip = _strip(tiles)
            for tile in tiles:
                part = tile.support.intersect(box)
                valid[part.within(box)] = pixels.valid[part.within(strip)]
                if not pixels.valid[tile.support.within(strip)].any():
                    continue
                self._count(tile, box)
                batch.append((tile, pixels.image[(slice(None), *tile.window.within(strip))]))
                if len(batch) == self._batch_size:
                    scores = self._add(batch, box, scores)
                    batch.clear()
            self._advance(len(tiles))
        if batch:
            scores = self._add(batch, box, scores)
        return scores, valid

    def _count(self, tile: Tile, box: Box) -> None:
        """Count a forward: a tile belongs to the block that holds its first pixel."""
        home = box.top <= tile.support.top and box.left <= tile.support.left
        self.predicted += home
        self.recomputed += not home

    def _add(
        self, batch: list[tuple[Tile, NDArray[np.float32]]], box: Box, scores: Tensor | None
    ) -> Tensor:
        """Predict a batch of tiles and add their weighted scores to those of the block."""
        with self._clock("forward"):
            answer = self._predictor(torch.from_numpy(np.stack([image for _, image in batch])))
            self._predictor.synchronize()
        with self._clock("blend"):
            if scores is None:
                if not self._open:
                    self._open_sinks(answer.shape[1])
                scores = answer.new_zeros((answer.shape[1], box.height, box.width))
            for (tile, _), values in zip(batch, answer, strict=True):
                part = tile.support.intersect(box)
                weights = torch.from_numpy(self._grid.weights(tile, part)).to(answer.device)
                inside = values[(slice(None), *part.within(tile.window))]
                scores[(slice(None), *part.within(box))].addcmul_(inside, weights)
            self._predictor.synchronize()
        return scores

    def _open_sinks(self, count: int) -> None:
        """Create the outputs, now that the number of classes is known."""
        spec, grid = self._predictor.spec, self._source.grid
        self.classes = self._predictor.class_names(count)
        makers = (RasterSink.class_map, RasterSink.scores)
        for make, path in zip(makers, self._outputs, strict=False):
            sink = make(path, grid, spec=spec, classes=self.classes)
            self._open.append(self.sinks.enter_context(sink))

    def _write(self, box: Box, scores: Tensor | None, valid: NDArray[np.bool_]) -> None:
        """Write a block, a few rows at a time; unwritten pixels are nodata already."""
        if scores is None:
            return
        for top in range(0, box.height, _ROWS):
            rows = slice(top, min(top + _ROWS, box.height))
            part = Box(box.top + top, box.left, box.top + rows.stop, box.right)
            values = scores[:, rows]
            # not argmax: on the CPU, max gives the same indices several times faster
            best, index = values.max(dim=0)
            finite = best.isfinite().cpu().numpy()
            known = valid[rows] & finite
            self.not_finite += int(np.count_nonzero(valid[rows] & ~finite))
            classes = index.to(torch.uint8).cpu().numpy()
            self.pixels += np.bincount(classes[known], minlength=CLASS_NODATA)
            self._open[0].write(part, np.where(known, classes, np.uint8(CLASS_NODATA))[None])
            if len(self._open) > 1:
                self._open[1].write(part, _to_bytes(values, known))

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin


def _strip(tiles: list[Tile]) -> Box:
    """The window that covers a row of tiles."""
    first, last = tiles[0].window, tiles[-1].window
    return Box(first.top, first.left, first.bottom, last.right)


def _to_bytes(scores: Tensor, known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scores (K, h, w) of 0..1 as bytes, nodata where they are not known."""
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


def _check_distinct(src: str | Path, outputs: list[Path]) -> None:
    """Refuse outputs that would replace the scene or each other."""
    files = [path.resolve() for path in outputs]
    if len(set(files)) < len(files):
        raise ConfigError(f"class map and scores cannot both be {outputs[0]}: name two files")
    if Path(src).resolve() in files:
        raise ConfigError(f"{src} is the scene and an output: name another output")


@contextmanager
def _progress_bar(
    wanted: bool, name: str, grid: TileGrid, blocks: list[Box]
) -> Iterator[tuple[Progress, TaskID]]:
    """A bar with the remaining time on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tiles"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    total = sum(
        len(grid.rows.touching(b.top, b.bottom)) * len(grid.cols.touching(b.left, b.right))
        for b in blocks
    )
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as bar:
        yield bar, bar.add_task(name, total=total)


def _spec_hash(spec: ModelSpec | None) -> str | None:
    return None if spec is None else hashlib.sha256(spec.to_json().encode()).hexdigest()


def _peak_rss_mb() -> float:
    """Largest resident memory so far; kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

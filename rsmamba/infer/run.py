"""From a scene to a map: blocks of tiles are read, predicted, blended and written."""

import hashlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rasterio
import torch
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

from rsmamba import samples
from rsmamba.data.areas import Area
from rsmamba.errors import ConfigError
from rsmamba.files import check_output
from rsmamba.gis.raster import RasterGrid, check_raster_output
from rsmamba.gis.stac import map_item, write_item
from rsmamba.gis.style import write_qml
from rsmamba.infer.block import STAGES, BlockFacts, BlockWorker, clock
from rsmamba.infer.grid import Blend, Box, TileGrid
from rsmamba.infer.identity import model_identity, source_identity
from rsmamba.infer.pair import PairSource, Source
from rsmamba.infer.predict import Augmentation, Model, Predictor, load_predictor
from rsmamba.infer.reader import GDAL_OPTIONS, read_ahead
from rsmamba.infer.report import MapOptions, MapReport
from rsmamba.infer.sink import BlockFiles, publish_blocks
from rsmamba.infer.source import SceneSource
from rsmamba.infer.work import Shard, WorkFolder
from rsmamba.spec import ModelSpec


def map_scene(
    model: Model | Predictor,
    src: str | Path,
    dst: str | Path,
    *,
    second: str | Path | None = None,
    align: bool = False,
    spec: ModelSpec | str | Path | None = None,
    tile: int = 512,
    halo: int = 64,
    blend: Blend = "linear",
    batch_size: int = 4,
    block: int = 4096,
    tta: Augmentation = "none",
    threshold: float | None = None,
    scores: str | Path | None = None,
    uncertainty: str | Path | None = None,
    aoi: Area | None = None,
    aoi_crs: str = "OGC:CRS84",
    resolution: float | None = None,
    bands: Sequence[int] | None = None,
    assume_crs: str | None = None,
    device: str | torch.device | None = None,
    bf16: bool = False,
    shard: str | None = None,
    strict: bool = False,
    restart: bool = False,
    sidecars: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> MapReport:
    """Apply a segmentation model to a scene of any size and write a class map.

    The map is a Cloud Optimized GeoTIFF on exactly the scene's grid: uint8 class indices, nodata
    255, colour table, class names, the model's spec. It appears under its name when it is
    complete. Neither ``block``, ``batch_size`` nor ``shard`` changes the result (a network's own
    rounding may depend on the batch); memory is bounded by ``block`` and the number of classes.

    Finished blocks are kept beside the output until then: the same call goes on where an
    interrupted one stopped, and gives the same bytes. (Functions, which have no hash, begin anew.)

    Args:
        model: Checkpoint, module with ``spec``, or callable on raw pixels; see
            :func:`rsmamba.infer.load_predictor`.
        src: Scene: a file, a URL, a GDAL dataset name or ``sample:...``.
        dst: Class map to write (.tif).
        second: Second date, for a change detector: a scene on the grid of the first.
        align: Warp the second date to the grid of the first (bilinear), if it has another.
        spec: ModelSpec or its JSON file, for a model that carries none.
        tile: Side in pixels of what the model sees at once.
        halo: Context in pixels around a tile's core.
        blend: ``"linear"`` fades between neighbouring tiles; ``"crop"`` keeps the cores, which
            saves the forwards that blocks share.
        batch_size: Tiles per forward; halved when a GPU runs out of memory.
        block: Side in pixels of the units of work; takes 4 bytes per pixel and class.
        tta: Test-time augmentation: ``"none"``, ``"flips"`` (4 views) or ``"d4"`` (8 views).
        threshold: Score from which on the second of two classes wins (0.5 otherwise). Of more
            classes: pixels whose best score is lower become nodata.
        scores: Also write the scores of all classes to this raster (.tif): uint8, one band per
            class, scale 1/254, nodata 255.
        uncertainty: Also write the entropy of the scores, 0 to 1, to this raster (.tif), stored
            likewise.
        aoi: Map this area only: bounds [minx, miny, maxx, maxy] or a file of polygons.
        aoi_crs: CRS of bounds.
        resolution: Map at this ground sampling distance, in metres; the scene's own if None, which
            must then lie within a quarter of the one that the model was trained at.
        bands: 1-based bands of the scene in the model's order; all but alpha if None.
        assume_crs: CRS of a scene that has none, e.g. ``"EPSG:32633"``.
        device: Where the model runs; CUDA if there is one.
        bf16: Run the model under bfloat16 autocast.
        shard: ``"i/n"``: do the i-th of n parts of the blocks, for as many processes that share a
            file system. The last to finish writes the map.
        strict: Stop at a part of the scene that cannot be read, rather than leave it out, count
            and name it.
        restart: Throw away what an interrupted run left.
        sidecars: Also write a QGIS style (``dst`` with the suffix .qml) and a STAC item (.json).
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
    src = _resolve(src)
    second = None if second is None else _resolve(second)
    options = MapOptions(
        tile=tile,
        halo=halo,
        blend=blend,
        block=block,
        tta=tta,
        threshold=threshold,
        aoi=aoi if aoi is None else str(aoi) if isinstance(aoi, str | Path) else list(aoi),
        aoi_crs=aoi_crs,
        resolution=resolution,
        bands=None if bands is None else list(bands),
        assume_crs=assume_crs,
        bf16=bf16,
    )
    outputs = _check_outputs(
        src, {"class": dst, "scores": scores, "uncertainty": uncertainty}, overwrite
    )
    beside = _sidecars(outputs["class"], sidecars, overwrite)
    part = Shard(shard)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**GDAL_OPTIONS))
        source = _open(stack, src, second, align, assume_crs, strict, bands)
        predictor = _prepare(source, model, spec, options, device)
        grid = TileGrid(source.grid.height, source.grid.width, tile, halo, blend)
        boxes = grid.blocks(block)
        identity = model_identity(model, predictor)
        manifest = {
            "scene": source_identity(src, source.grid, source.count),
            "second": None if second is None else source_identity(second, source.grid, 0),
            "model": identity,
            "options": asdict(options),
            "layers": list(outputs),
            "shards": part.count,
        }
        # A function has no hash by which two runs could be known to be the same.
        folder = WorkFolder(
            outputs["class"],
            manifest,
            part,
            restart=restart or identity is None,
            keep=identity is not None,
        )
        stack.enter_context(folder)
        worker = BlockWorker(
            grid, predictor, batch_size=batch_size, layers=tuple(outputs), threshold=threshold
        )
        facts = _do_blocks(worker, source, boxes, folder, part, progress, Path(dst).name)
        seconds = {name: sum(f.seconds[name] for f in facts) for name in STAGES}
        with clock(seconds, "write"):
            found = _all_done(folder, len(boxes))
            if complete := len(found) == len(boxes):
                facts, classes = found, _names(found, predictor)
                publish_blocks(folder, source.grid, boxes, facts, outputs, classes, predictor.spec)
                if beside:
                    made_by = predictor.spec, asdict(options)
                    _describe(beside, outputs, str(src), source.grid, classes, *made_by)
    parameters = {"batch_size": batch_size, "device": str(predictor.device), "shard": shard}
    total = time.perf_counter() - started
    area = source.grid.area_km2()
    return MapReport(
        source=str(src),
        output=str(dst),
        scores=None if scores is None else str(scores),
        uncertainty=None if uncertainty is None else str(uncertainty),
        complete=complete,
        width=grid.width,
        height=grid.height,
        crs=source.grid.crs.to_string(),
        area_km2=area,
        blocks_resumed=folder.resumed,
        tiles=len(grid),
        seconds={n: round(s, 4) for n, s in seconds.items()} | {"total": round(total, 4)},
        km2_per_second=None if area is None else area / total,
        peak_rss_mb=_peak_rss_mb(),
        parameters=asdict(options) | parameters,
        spec_sha256=_spec_hash(predictor.spec),
        **_totals(facts, len(grid) if complete else None),
    )


def _sidecars(path: Path, wanted: bool, overwrite: bool) -> dict[str, Path]:
    """Names of the files that go with a map, which may be written; none if not wanted."""
    suffixes = {"style": ".qml", "item": ".json"} if wanted else {}
    return {
        name: check_output(path.with_suffix(suffix), overwrite=overwrite)
        for name, suffix in suffixes.items()
    }


def _describe(
    beside: dict[str, Path],
    outputs: dict[str, Path],
    src: str,
    grid: RasterGrid,
    classes: tuple[str, ...],
    spec: ModelSpec | None,
    options: dict[str, Any],
) -> None:
    """Write a map's QGIS style and STAC item, over those of an earlier map."""
    colours = spec.colours if spec else ()
    write_qml(beside["style"], classes, colours, overwrite=True)
    item = map_item(
        grid,
        {**outputs, "style": beside["style"]},
        source=src,
        classes=classes,
        colours=colours,
        spec=spec,
        parameters=options,
    )
    write_item(item, beside["item"], overwrite=True)


def _names(facts: list[BlockFacts], predictor: Predictor) -> tuple[str, ...]:
    """Class names; of a scene without a valid pixel those that the spec has, if any."""
    count = len(predictor.spec.classes) if predictor.spec else 1
    return next((f.classes for f in facts if f.classes), predictor.class_names(max(1, count)))


def _resolve(path: str | Path) -> str | Path:
    """A shipped sample's path; anything else as it is, for GDAL knows more names than files."""
    return samples.resolve(path) if str(path).startswith("sample:") else path


def _check_outputs(
    src: str | Path, wanted: dict[str, str | Path | None], overwrite: bool
) -> dict[str, Path]:
    """Output by layer, none of which is in the way of anything."""
    outputs = {
        name: check_raster_output(path, overwrite=overwrite)
        for name, path in wanted.items()
        if path is not None
    }
    files = [path.resolve() for path in outputs.values()]
    if len(set(files)) < len(files):
        names = ", ".join(str(path) for path in outputs.values())
        raise ConfigError(f"two outputs have one name ({names}): name different files")
    if Path(src).resolve() in files:
        raise ConfigError(f"{src} is the scene and an output: name another output")
    return outputs


def _open(
    stack: ExitStack,
    src: str | Path,
    second: str | Path | None,
    align: bool,
    assume_crs: str | None,
    strict: bool,
    bands: Sequence[int] | None,
) -> Source:
    """The scene, or the pair of scenes, open as long as the stack."""
    options: dict[str, Any] = {"assume_crs": assume_crs, "strict": strict, "bands": bands}
    first = stack.enter_context(SceneSource(src, **options))
    if second is None:
        return first
    after = stack.enter_context(SceneSource(second, **options))
    return PairSource(first, after, align=align)


def _prepare(
    source: Source,
    model: Model | Predictor,
    spec: ModelSpec | str | Path | None,
    options: MapOptions,
    device: str | torch.device | None,
) -> Predictor:
    """Bring scene and model together: resolution, area, bands."""
    if options.resolution is not None:
        source.resample(options.resolution)
    if options.aoi is not None:
        source.restrict(options.aoi, options.aoi_crs)
    # Cheap mistakes come to light before the weights are read.
    TileGrid(1, 1, options.tile, options.halo, options.blend).blocks(options.block)
    predictor = load_predictor(model, spec, device=device, bf16=options.bf16, tta=options.tta)
    change = predictor.spec is not None and predictor.spec.task == "change"
    if change and not isinstance(source, PairSource):
        raise ConfigError(f"{model} detects change: give the other date as well (--second SCENE)")
    if predictor.spec is not None and not change and isinstance(source, PairSource):
        raise ConfigError(f"{model} maps single scenes: leave out the second one")
    source.expect(predictor.spec)
    if options.resolution is None:
        source.expect_resolution(predictor.spec)
    return predictor


def _do_blocks(
    worker: BlockWorker,
    source: Source,
    boxes: list[Box],
    folder: WorkFolder,
    shard: Shard,
    progress: bool,
    name: str,
) -> list[BlockFacts]:
    """Do this shard's blocks that are not done yet; facts of all those that this call did."""
    numbers = [n for n in range(len(boxes)) if n in shard and folder.done(n) is None]
    facts: list[BlockFacts] = []
    todo = [boxes[n] for n in numbers]
    strips = (strip for box in todo for strip in worker.strips(box))
    with (
        _progress_bar(progress, name, worker.grid, todo) as (bar, task),
        # closed before the source is: a read may be under way in the other thread
        closing(read_ahead(source.read, strips)) as pixels,
    ):
        for number in numbers:
            with BlockFiles(folder, number, boxes[number]) as files:
                made = worker.run(
                    boxes[number], pixels, files.write, lambda n: bar.advance(task, n)
                )
            folder.finish(number, made.to_json())
            facts.append(made)
    return facts


def _all_done(folder: WorkFolder, count: int) -> list[BlockFacts]:
    """Facts of the finished blocks, whoever did them."""
    found = (folder.done(number) for number in range(count))
    return [BlockFacts.from_json(f) for f in found if f is not None]


def _totals(facts: list[BlockFacts], tiles: int | None) -> dict[str, Any]:
    """Sums over the blocks, as the report names them; ``tiles`` of the grid if all are done."""
    classes = next((f.classes for f in facts if f.classes), ())
    pixels = [sum(counts) for counts in zip(*(f.pixels for f in facts if f.pixels), strict=True)]
    predicted = sum(f.predicted for f in facts)
    return {
        "tiles_predicted": predicted,
        "tiles_skipped": 0 if tiles is None else tiles - predicted,
        "tiles_recomputed": sum(f.recomputed for f in facts),
        "pixels": dict(zip(classes, pixels, strict=True)),
        "pixels_nodata": sum(f.nodata for f in facts),
        "pixels_not_finite": sum(f.not_finite for f in facts),
        "pixels_uncertain": sum(f.uncertain for f in facts),
        # Neighbouring blocks of the work meet the same block of the file.
        "failed": list(dict.fromkeys(message for f in facts for message in f.failed)),
    }


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

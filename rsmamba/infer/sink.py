"""Outputs: blocks on disk, joined into rasters that are complete under their name, or absent."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsmamba.errors import OutputNotWritableError, one_line
from rsmamba.gis import raster
from rsmamba.gis.raster import GDAL_ERRORS, Layer, RasterGrid
from rsmamba.infer.block import BlockFacts
from rsmamba.infer.grid import Box
from rsmamba.infer.work import WorkFolder
from rsmamba.spec import SPEC_KEY, ModelSpec


class BlockFiles:
    """The layers of one block, each a file in the work folder; made with their first rows.

    Use it as a context manager: the files have their names when it ends without an error.

    Args:
        folder: The work folder.
        number: Number of the block.
        box: Where it lies.
    """

    def __init__(self, folder: WorkFolder, number: int, box: Box) -> None:
        self._folder, self._number, self._box = folder, number, box
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}

    def write(self, layer: str, top: int, values: NDArray[np.uint8]) -> None:
        """Write rows (bands, height, width) of a layer, from row ``top`` of the block on.

        Raises:
            OutputNotWritableError: If GDAL cannot write (disk full).
        """
        try:
            if layer not in self._open:
                path = self._folder.layer(self._number, layer)
                size = self._box.height, self._box.width
                self._open[layer] = self._stack.enter_context(raster.part(path, len(values), *size))
            window = Window(0, top, values.shape[2], values.shape[1])
            self._open[layer].write(values, window=window)
        except (*GDAL_ERRORS, OSError) as error:
            raise unwritable(self._folder.path, error) from error

    def __enter__(self) -> "BlockFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        try:
            return self._stack.__exit__(kind, error, trace)
        except (*GDAL_ERRORS, OSError) as late:
            raise unwritable(self._folder.path, late) from late


def publish_blocks(
    folder: WorkFolder,
    grid: RasterGrid,
    boxes: list[Box],
    facts: list[BlockFacts],
    outputs: dict[str, Path],
    names: Sequence[str],
    spec: ModelSpec | None,
) -> None:
    """Join finished blocks into the outputs and take the work folder away.

    Of several shards that finish together one does it; the others return at once.

    Args:
        folder: The work folder; every block is done.
        grid: Size and georeferencing.
        boxes: Where the blocks lie.
        facts: What was counted in each.
        outputs: Path by layer.
        names: Class names.
        spec: The model, for colours and tags.

    Raises:
        OutputNotWritableError: If GDAL cannot write (disk full).
    """
    with folder.join() as mine:
        if not mine:
            return
        tags = {} if spec is None else {SPEC_KEY: spec.to_json()}
        layers = {
            "class": raster.class_layer(names, spec.colours if spec else (), tags),
            "scores": raster.score_layer(names, tags),
            "uncertainty": raster.score_layer(["uncertainty"], tags),
        }
        known = sum(sum(f.pixels) for f in facts)
        scored = known + sum(f.uncertain for f in facts)
        expected = {"class": known, "scores": scored * len(names), "uncertainty": scored}
        made = {}
        for name, path in outputs.items():
            files = [(folder.layer(n, name), box) for n, box in enumerate(boxes)]
            made[name] = _join(folder, name, path, grid, layers[name], files, expected[name])
        for name, path in outputs.items():
            raster.publish(made[name], path)
        folder.remove()


def _join(
    folder: WorkFolder,
    name: str,
    path: Path,
    grid: RasterGrid,
    layer: Layer,
    files: list[tuple[Path, Box]],
    expected: int,
) -> Path:
    """Make the COG of a layer under a temporary name, and read it back.

    A failed write at closing time passes without an error from GDAL, and tiles that are not
    in the file read as nodata: so the valid values are counted again.
    """
    mosaic, cog = folder.path / f"{name}.vrt", folder.path / f"{name}.tif"
    parts = [
        (file, (box.top, box.left, box.height, box.width)) for file, box in files if file.exists()
    ]
    try:
        raster.write_mosaic(mosaic, grid, layer, parts)
        raster.write_cog(mosaic, cog, overviews=layer.overviews)
        found = raster.count_valid(cog)
    except (*GDAL_ERRORS, OSError) as error:
        raise unwritable(path, error) from error
    if found != expected:
        raise OutputNotWritableError(
            f"cannot write {path}: {expected:,} values were written but {found:,} arrived; is "
            "there room on the disk?"
        )
    return cog


def unwritable(path: Path, error: BaseException) -> OutputNotWritableError:
    """GDAL's or the system's error as one of ours."""
    return OutputNotWritableError(
        f"cannot write {path}: {one_line(error)}; is there room on the disk?"
    )

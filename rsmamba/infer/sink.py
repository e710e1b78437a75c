"""Outputs: rasters that are complete under their final name, or absent."""

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
from rsmamba.gis.raster import GDAL_ERRORS, RasterGrid
from rsmamba.gis.style import CLASS_NODATA
from rsmamba.infer.grid import Box
from rsmamba.spec import SPEC_KEY, ModelSpec


class RasterSink:
    """A uint8 raster, nodata 255, filled by window and published as a COG.

    Use it as a context manager: whatever ends the block before :meth:`publish` removes every
    temporary file and leaves an earlier output as it was.

    Args:
        path: Final name. Check it with :func:`rsmamba.gis.raster.check_raster_output` first.
        grid: Size and georeferencing.
        spec: The model, for the tags.
        descriptions: One name per band.
        overviews: GDAL's resampling of the overviews.
    """

    def __init__(
        self,
        path: Path,
        grid: RasterGrid,
        *,
        spec: ModelSpec | None,
        descriptions: Sequence[str],
        overviews: str,
    ) -> None:
        self.path = path
        self._overviews = overviews
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(raster.scratch_folder(path))
        self._tiled, self._cog = self._folder / "tiled.tif", self._folder / path.name
        self._valid = 0
        try:
            self._target = raster.create_tiled(
                self._tiled,
                grid,
                count=len(descriptions),
                tags={} if spec is None else {SPEC_KEY: spec.to_json()},
                descriptions=descriptions,
            )
        except BaseException as error:
            self._stack.close()
            raise self._translate(error) from error
        self._stack.callback(self._target.close)

    @classmethod
    def class_map(
        cls, path: Path, grid: RasterGrid, *, spec: ModelSpec | None, classes: Sequence[str]
    ) -> "RasterSink":
        """A sink for class indices, with colour table and class names."""
        sink = cls(path, grid, spec=spec, descriptions=["class"], overviews="mode")
        raster.make_class_map(sink._target, classes, spec.colours if spec else ())
        return sink

    @classmethod
    def scores(
        cls, path: Path, grid: RasterGrid, *, spec: ModelSpec | None, classes: Sequence[str]
    ) -> "RasterSink":
        """A sink for scores of 0 to 1, one band per class, stored as round(254 * score)."""
        sink = cls(path, grid, spec=spec, descriptions=classes, overviews="average")
        raster.make_score_raster(sink._target)
        return sink

    def write(self, box: Box, values: NDArray[np.uint8]) -> None:
        """Write (bands, height, width) values to ``box``.

        Raises:
            OutputNotWritableError: If GDAL cannot write (disk full).
        """
        self._valid += int(np.count_nonzero(values != CLASS_NODATA))
        try:
            self._target.write(values, window=Window(box.left, box.top, box.width, box.height))
        except GDAL_ERRORS as error:
            raise self._translate(error) from error

    def finish(self) -> None:
        """Make the COG, still under a temporary name, and read it back.

        A failed write at closing time passes without an error from GDAL, and tiles that are not
        in the file read as nodata: so the valid pixels are counted again.

        Raises:
            OutputNotWritableError: If GDAL cannot write (disk full).
        """
        try:
            self._target.close()
            raster.write_cog(self._tiled, self._cog, overviews=self._overviews)
            found = raster.count_valid(self._cog)
        except GDAL_ERRORS as error:
            raise self._translate(error) from error
        if found != self._valid:
            raise OutputNotWritableError(
                f"cannot write {self.path}: {self._valid:,} values were written but {found:,} "
                "arrived; is there room on the disk?"
            )
        self._tiled.unlink()

    def publish(self) -> None:
        """Give the finished COG its name."""
        raster.publish(self._cog, self.path)

    def _translate(self, error: BaseException) -> BaseException:
        """GDAL's error as one of ours; any other error as it is."""
        if not isinstance(error, GDAL_ERRORS):
            return error
        return OutputNotWritableError(
            f"cannot write {self.path}: {one_line(error)}; is there room on the disk?"
        )

    def __enter__(self) -> "RasterSink":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        return self._stack.__exit__(kind, error, trace)

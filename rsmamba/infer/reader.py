"""Reading windows: again after a bad moment, around what is damaged, and ahead of the work."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from rsmamba.errors import ImageReadError, one_line
from rsmamba.gis.raster import GDAL_ERRORS
from rsmamba.infer.grid import Box

#: How often a remote read is tried, and the first pause between, in seconds.
RETRIES, PAUSE = 4, 0.5
#: GDAL settings of every read and write here. A VRT may carry Python code: it is never run.
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": 256 * 2**20,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}


@dataclass(frozen=True)
class Pixels:
    """A window of a scene.

    Attributes:
        image: (C, H, W) float32 raw values, missing ones filled, mirrored beyond the border.
        valid: (H, W) True where the scene was observed; False beyond the border, and where it
            could not be read.
        failed: What could not be read, for people.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Raw:
    """A window as the file stores it.

    Attributes:
        values: (C, H, W) in the stored type.
        masks: (C or 1, H, W) GDAL's masks; None if the file declares none.
        lost: (H, W) True where it could not be read; None for nowhere.
        failed: What could not be read, for people.
    """

    values: NDArray[Any]
    masks: NDArray[np.bool_] | None
    lost: NDArray[np.bool_] | None = None
    failed: list[str] = field(default_factory=list)


class RawReader:
    """Reads windows of an open dataset.

    Args:
        dataset: rasterio dataset.
        path: Its name for messages; a remote one is read several times before it is given up.
        bands: 1-based bands to read.
        masks: 1-based bands whose masks count; empty for none.
        strict: Whether a part that cannot be read is an error.
    """

    def __init__(
        self, dataset: Any, path: str, bands: list[int], masks: list[int], strict: bool
    ) -> None:
        self._dataset, self._path = dataset, path
        self._bands, self._masks, self._strict = bands, masks, strict
        remote = "://" in path or path.startswith("/vsi")
        self._attempts = RETRIES if remote else 1

    def read(self, window: Window) -> Raw:
        """A window inside the dataset.

        Raises:
            ImageReadError: If a part of it cannot be read and this reader is strict.
        """
        try:
            return Raw(*self._try(window))
        except GDAL_ERRORS as error:
            if self._strict:
                raise self._unreadable(window, error) from error
        # What is damaged is found by reading the file's own blocks one by one.
        shape = int(window.height), int(window.width)
        dtype = np.result_type(*(self._dataset.dtypes[i - 1] for i in self._bands))
        values = np.zeros((len(self._bands), *shape), dtype)
        masks = np.ones((len(self._masks), *shape), bool) if self._masks else None
        lost, failed = np.zeros(shape, bool), []
        for part, (rows, cols), own in self._file_blocks(window):
            try:
                values[:, rows, cols], part_masks = self._try(part)
                if masks is not None and part_masks is not None:
                    masks[:, rows, cols] = part_masks
            except GDAL_ERRORS as error:
                lost[rows, cols] = True
                failed.append(str(self._unreadable(own, error)))
        return Raw(values, masks, lost, failed)

    def _try(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Values and masks; what fails is tried again, for a network may have had a bad moment."""
        for attempt in range(self._attempts):
            try:
                values = self._dataset.read(self._bands, window=window)
                if not self._masks:
                    return values, None
                return values, self._dataset.read_masks(self._masks, window=window) > 0
            except GDAL_ERRORS:
                if attempt == self._attempts - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _file_blocks(self, window: Window) -> Iterator[tuple[Window, tuple[slice, slice], Window]]:
        """Parts of the file's own blocks within a window, where they lie in it, and the blocks."""
        block_height, block_width = self._dataset.block_shapes[0]
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + int(window.height), left + int(window.width)
        for row in range(top - top % block_height, bottom, block_height):
            for col in range(left - left % block_width, right, block_width):
                first, start = max(row, top), max(col, left)
                last, stop = min(row + block_height, bottom), min(col + block_width, right)
                yield (
                    Window(start, first, stop - start, last - first),
                    (slice(first - top, last - top), slice(start - left, stop - left)),
                    Window(col, row, block_width, block_height),
                )

    def _unreadable(self, window: Window, error: BaseException) -> ImageReadError:
        return ImageReadError(
            f"cannot read {self._path} at row {int(window.row_off)}, column {int(window.col_off)} "
            f"({int(window.width)} x {int(window.height)} px): {one_line(error)}; the file looks "
            "damaged or truncated, copy or download it again"
        )


def read_ahead(read: Callable[[Box], Pixels], boxes: Iterable[Box]) -> Generator[Pixels]:
    """Read windows in order, each while the one before it is being worked on.

    Args:
        read: Function that reads a window; called in one other thread.
        boxes: The windows.

    Yields:
        The pixels of each window.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        pending: Future[Pixels] | None = None
        for box in boxes:
            following = pool.submit(read, box)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()

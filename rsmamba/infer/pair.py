"""Two dates of one place, read as one scene of twice the bands."""

from typing import Protocol

import numpy as np

from rsmamba.data.areas import Area
from rsmamba.errors import GridMismatchError
from rsmamba.gis.raster import RasterGrid
from rsmamba.infer.grid import Box
from rsmamba.infer.reader import Pixels
from rsmamba.infer.source import SceneSource
from rsmamba.spec import ModelSpec

#: Pixels by which the corners of two grids may differ and be called the same.
SAME_GRID = 1e-3


class Source(Protocol):
    """What a run asks of a scene, or of a pair of them."""

    @property
    def grid(self) -> RasterGrid:
        """Size and georeferencing."""

    @property
    def count(self) -> int:
        """Number of bands."""

    def resample(self, resolution: float) -> None:
        """Read at another ground sampling distance."""

    def restrict(self, area: Area, area_crs: str) -> None:
        """Map an area only."""

    def expect(self, spec: ModelSpec | None) -> None:
        """Check the bands."""

    def expect_resolution(self, spec: ModelSpec | None) -> None:
        """Check the ground sampling distance."""

    def read(self, box: Box) -> Pixels:
        """Read a window."""


class PairSource:
    """Two scenes on one grid, that of the first: (2 C, H, W), valid where both are.

    Args:
        first: The first date.
        second: The second date.
        align: Warp the second to the first's grid (bilinear) if it has another.

    Raises:
        GridMismatchError: If the grids differ and ``align`` is not given.
    """

    def __init__(self, first: SceneSource, second: SceneSource, *, align: bool = False) -> None:
        self._first, self._second = first, second
        if what := _difference(first.grid, second.grid):
            if not align:
                raise GridMismatchError(
                    f"{second.path} is not on the grid of {first.path}: {what}; --align warps it"
                )
            second.warp_to(first.grid)

    @property
    def grid(self) -> RasterGrid:
        """Size and georeferencing."""
        return self._first.grid

    @property
    def count(self) -> int:
        """Bands of both dates."""
        return self._first.count + self._second.count

    def resample(self, resolution: float) -> None:
        """See :meth:`SceneSource.resample`."""
        self._first.resample(resolution)
        if _difference(self._first.grid, self._second.grid):
            self._second.warp_to(self._first.grid)

    def restrict(self, area: Area, area_crs: str) -> None:
        """See :meth:`SceneSource.restrict`."""
        self._first.restrict(area, area_crs)
        self._second.restrict(area, area_crs)

    def expect(self, spec: ModelSpec | None) -> None:
        """See :meth:`SceneSource.expect`; the spec's bands are those of one date."""
        self._first.expect(spec)
        self._second.expect(spec)

    def expect_resolution(self, spec: ModelSpec | None) -> None:
        """See :meth:`SceneSource.expect_resolution`."""
        self._first.expect_resolution(spec)

    def read(self, box: Box) -> Pixels:
        """See :meth:`SceneSource.read`."""
        first, second = self._first.read(box), self._second.read(box)
        return Pixels(
            np.concatenate([first.image, second.image]),
            first.valid & second.valid,
            first.failed + second.failed,
        )


def _difference(a: RasterGrid, b: RasterGrid) -> str | None:
    """In what two grids differ; None for nothing."""
    if a.crs != b.crs:
        return f"{b.crs.to_string()} and not {a.crs.to_string()}"
    if (a.height, a.width) != (b.height, b.width):
        return f"{b.width} x {b.height} px and not {a.width} x {a.height}"
    for corner in ((0, 0), (a.width, 0), (0, a.height), (a.width, a.height)):
        col, row = ~a.transform @ (b.transform @ corner)
        if (off := max(abs(col - corner[0]), abs(row - corner[1]))) > SAME_GRID:
            return f"shifted by {off:.3g} px"
    return None

"""One global grid of overlapping tiles over a scene: pure maths, no pixels, no files.

A tile's *core* is its share of the scene: the cores cut the scene without gap or overlap, every
``stride = tile - 2 * halo`` pixels. Its *window* is what the network sees: the core with ``halo``
pixels of context on each side (beyond the scene's border where there is no more scene). Its
*support* is where its scores count, with a weight; the weights of all tiles add up to one at
every pixel of the scene, because they are divided by their sum, and not merely by construction.

Tiles belong to the scene, blocks to the computer: where the work is cut into blocks changes
neither a window nor a weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from rsmamba.errors import ConfigError

#: ``"linear"`` fades from tile to tile over the inner half of the halo; ``"crop"`` keeps the core.
Blend = Literal["linear", "crop"]


class Box(NamedTuple):
    """Half-open pixel rectangle ``[top, bottom) x [left, right)`` in scene coordinates."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    def intersect(self, other: "Box") -> "Box":
        """The part inside ``other`` (which must overlap this box)."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def within(self, other: "Box") -> tuple[slice, slice]:
        """Row and column slices of this box in an array that covers ``other``."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )


@dataclass(frozen=True)
class Axis:
    """The tile grid along one axis.

    Attributes:
        size: Pixels of the scene.
        tile: Pixels of a tile.
        halo: Context on each side of a core.
        reach: Pixels by which a tile's support extends beyond its core.
    """

    size: int
    tile: int
    halo: int
    reach: int

    @property
    def stride(self) -> int:
        """Distance of neighbouring cores."""
        return self.tile - 2 * self.halo

    @property
    def count(self) -> int:
        """Number of tiles."""
        return -(-self.size // self.stride)

    def start(self, index: int) -> int:
        """First pixel of a tile's window; negative or beyond the end where context is padded.

        The last tile moves back until no more than its halo lies outside: real pixels are better
        context than reflected ones.
        """
        first = index * self.stride - self.halo
        if index == self.count - 1:
            return min(first, max(self.size + self.halo - self.tile, -self.halo))
        return first

    def support(self, index: int) -> tuple[int, int]:
        """Half-open range of scene pixels to which a tile contributes."""
        low = index * self.stride - self.reach
        return max(0, low), min(self.size, low + self.stride + 2 * self.reach)

    def touching(self, low: int, high: int) -> range:
        """Tiles whose support meets ``[low, high)``."""
        first = (low - self.reach) // self.stride
        last = (high - 1 + self.reach) // self.stride
        return range(max(0, first), min(self.count - 1, last) + 1)

    def edges(self, block: int) -> list[int]:
        """Where to cut the axis into blocks of at most ``block`` pixels (but at least one core).

        Cuts lie just behind a fade between two tiles, where the fewest tiles straddle them:
        with ``reach`` 0 none does and nothing is computed twice.
        """
        step = max(1, (block - self.reach) // self.stride) * self.stride
        inner = range(step + self.reach, self.size, step)
        return [0, *inner, self.size]

    @cached_property
    def weights(self) -> list[NDArray[np.float32]]:
        """Normalised weight of each tile at each pixel of its support."""
        total = np.zeros(self.size)
        raw = [self._ramp(i) for i in range(self.count)]
        for i, weight in enumerate(raw):
            low, high = self.support(i)
            total[low:high] += weight
        return [
            (weight / total[slice(*self.support(i))]).astype(np.float32)
            for i, weight in enumerate(raw)
        ]

    def _ramp(self, index: int) -> NDArray[np.float64]:
        """Trapezoid: up around the core's first edge, down around its last, flat at the border."""
        low, high = self.support(index)
        weight = np.ones(high - low)
        if self.reach == 0:
            return weight
        centre = np.arange(low, high) + 0.5
        begin, end = index * self.stride, (index + 1) * self.stride
        if index > 0:
            np.minimum(weight, (centre - (begin - self.reach)) / (2 * self.reach), out=weight)
        if index < self.count - 1:
            np.minimum(weight, ((end + self.reach) - centre) / (2 * self.reach), out=weight)
        return weight


@dataclass(frozen=True)
class Tile:
    """One tile of a grid.

    Attributes:
        row: Row of the tile in the grid.
        col: Column of the tile in the grid.
        window: What the network sees; ``tile`` x ``tile`` pixels, may exceed the scene.
        support: Scene pixels to which it contributes.
    """

    row: int
    col: int
    window: Box
    support: Box


@dataclass(frozen=True)
class TileGrid:
    """All tiles of a scene, whatever its size: 1 x 1, 1 x N, smaller than a tile.

    Attributes:
        height: Rows of the scene.
        width: Columns of the scene.
        tile: Side of a tile in pixels.
        halo: Context in pixels that a tile sees on each side of its core. A pixel that counts has
            at least this much context with ``"crop"`` and half of it with ``"linear"``; a network
            whose receptive field reaches no further gives the untiled answer exactly.
        blend: How overlapping tiles are joined.

    Raises:
        ConfigError: If a size is not positive or the halo leaves no core.
    """

    height: int
    width: int
    tile: int = 512
    halo: int = 64
    blend: Blend = "linear"

    def __post_init__(self) -> None:
        """Refuse a grid that has no tiles."""
        if min(self.height, self.width) < 1:
            raise ConfigError(f"a scene of {self.width} x {self.height} pixels has nothing to map")
        if self.halo < 0 or self.tile <= 2 * self.halo:
            raise ConfigError(
                f"tile {self.tile} with halo {self.halo} leaves no core: "
                f"the halo must be at least 0 and less than half the tile"
            )
        if self.blend not in get_args(Blend):
            raise ConfigError(f"unknown blend {self.blend!r}: use one of {get_args(Blend)}")

    @cached_property
    def rows(self) -> Axis:
        """The grid from top to bottom."""
        return Axis(self.height, self.tile, self.halo, self._reach)

    @cached_property
    def cols(self) -> Axis:
        """The grid from left to right."""
        return Axis(self.width, self.tile, self.halo, self._reach)

    @property
    def _reach(self) -> int:
        return (self.halo + 1) // 2 if self.blend == "linear" else 0

    @property
    def scene(self) -> Box:
        """The whole scene."""
        return Box(0, 0, self.height, self.width)

    def __len__(self) -> int:
        """Number of tiles."""
        return self.rows.count * self.cols.count

    def blocks(self, block: int) -> list[Box]:
        """Units of work of at most ``block`` x ``block`` pixels (at least one core), row by row.

        Raises:
            ConfigError: If ``block`` is not positive.
        """
        if block < 1:
            raise ConfigError(f"block must be at least 1 pixel, got {block}")
        rows, cols = self.rows.edges(block), self.cols.edges(block)
        return [
            Box(top, left, bottom, right)
            for top, bottom in pairwise(rows)
            for left, right in pairwise(cols)
        ]

    def tile_rows(self, box: Box) -> Iterator[list[Tile]]:
        """Tiles that contribute to ``box``, one list per row of the grid, in scene order."""
        for row in self.rows.touching(box.top, box.bottom):
            yield [self[row, col] for col in self.cols.touching(box.left, box.right)]

    def __getitem__(self, index: tuple[int, int]) -> Tile:
        """The tile at (row, column) of the grid."""
        row, col = index
        top, left = self.rows.start(row), self.cols.start(col)
        (low, high), (first, last) = self.rows.support(row), self.cols.support(col)
        return Tile(
            row,
            col,
            Box(top, left, top + self.tile, left + self.tile),
            Box(low, first, high, last),
        )

    def weights(self, tile: Tile, part: Box) -> NDArray[np.float32]:
        """Weight of ``tile`` at each pixel of ``part``, a piece of its support; (h, w)."""
        down, across = part.within(tile.support)
        return np.outer(self.rows.weights[tile.row][down], self.cols.weights[tile.col][across])


def reflect(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Indices into an axis of ``size`` for ``start .. stop - 1``, mirrored at its ends.

    The first and last pixel are not repeated (numpy's ``"reflect"``); the mirror images continue
    as far as asked, and an axis of one pixel repeats it.
    """
    period = max(1, 2 * (size - 1))
    position = np.abs(np.arange(start, stop)) % period
    return np.minimum(position, period - position) if size > 1 else np.zeros_like(position)

"""Regions of a raster that is polygonised in strips: their pieces are joined across the seams.

Coordinates are pixel corners (column, row). Outlines run with the region on their left, rows taken
as an axis that points up: shells are counterclockwise by shapely's measure, holes clockwise. A
piece's outline loses what lies on a seam, and regains it where the other side is another class;
what is left are lines whose ends meet, and they close to the rings of the region.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

Points = NDArray[np.int32]
Ids = NDArray[np.int64]


@dataclass
class Region:
    """A region, or the part of it that was seen so far.

    Attributes:
        value: Class.
        score: Sum of the scores of its pixels.
        scored: Number of pixels with a score.
        lines: Open outlines, (points, 2) each of several lines one after the other.
        sizes: Number of points per line, for each array of ``lines``.
        holes: Closed outlines, each array of a polygon's holes one after the other.
        hole_sizes: Number of points per hole, for each array of ``holes``.
    """

    value: int
    score: float = 0.0
    scored: int = 0
    lines: list[Points] = field(default_factory=list)
    sizes: list[Ids] = field(default_factory=list)
    holes: list[Points] = field(default_factory=list)
    hole_sizes: list[Ids] = field(default_factory=list)

    def absorb(self, other: "Region") -> None:
        """Take over another part of the same region."""
        self.score += other.score
        self.scored += other.scored
        self.lines += other.lines
        self.sizes += other.sizes
        self.holes += other.holes
        self.hole_sizes += other.hole_sizes

    def polygon(self) -> shapely.Polygon:
        """The whole region; no part of it may be missing."""
        shells: list[Points] = []
        holes: list[Points] = []
        for ring in _rings(np.concatenate(self.lines), np.concatenate(self.sizes)):
            (shells if _doubled_area(ring) > 0 else holes).append(ring)
        if len(shells) != 1:
            raise AssertionError(f"a region of class {self.value} has {len(shells)} outlines")
        points = np.concatenate([*shells, *holes, *self.holes])
        sizes = np.concatenate([[len(ring) for ring in shells + holes], *self.hole_sizes])
        rings = np.asarray(
            shapely.linearrings(points, indices=np.repeat(np.arange(len(sizes)), sizes))
        )
        return shapely.polygons(rings[0], holes=rings[1:])


@dataclass(frozen=True)
class Pieces:
    """The parts of regions that one strip holds.

    Attributes:
        values: (N,) class.
        polygons: (N,) polygons, shells counterclockwise.
        scores: (N,) sum of the scores of the pixels.
        scored: (N,) number of pixels with a score.
    """

    values: Ids
    polygons: NDArray[np.object_]
    scores: NDArray[np.float64]
    scored: Ids

    def __len__(self) -> int:
        return len(self.values)

    def take(self, chosen: NDArray[np.bool_]) -> "Pieces":
        """Some of them."""
        return Pieces(
            self.values[chosen], self.polygons[chosen], self.scores[chosen], self.scored[chosen]
        )


def from_regions(regions: Iterable[Region]) -> Pieces:
    """Finished regions as one batch."""
    done = list(regions)
    polygons = np.empty(len(done), dtype=object)
    polygons[:] = [region.polygon() for region in done]
    return Pieces(
        np.array([r.value for r in done], dtype=np.int64),
        polygons,
        np.array([r.score for r in done], dtype=np.float64),
        np.array([r.scored for r in done], dtype=np.int64),
    )


class Seam:
    """The lower edge of the strips read so far, and the regions that reach it.

    Args:
        width: Columns of the raster.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._regions: list[Region] = []
        self._ids: Ids = np.full(width, -1, dtype=np.int64)

    def add(self, pieces: Pieces, top: int, bottom: int) -> list[Region]:
        """Go on with the next strip.

        Args:
            pieces: Those of its pieces that touch a seam.
            top: Its first row, where the seam lies.
            bottom: The row after its last: the next seam.

        Returns:
            The regions that end in this strip.
        """
        before = len(self._regions)
        new, upper, lower = _open(pieces, top, bottom, self._width)
        regions = self._regions + new
        upper[upper >= 0] += before
        lower[lower >= 0] += before
        values = np.array([r.value for r in regions] + [-1], dtype=np.int64)
        here = (self._ids >= 0) & (upper >= 0) & (values[self._ids] == values[upper])
        _add_borders(regions, np.where(here, -1, self._ids), top, above=True)
        _add_borders(regions, np.where(here, -1, upper), top, above=False)
        roots = _join(len(regions), self._ids[here], upper[here])
        for number, root in enumerate(roots.tolist()):
            if root != number:
                regions[root].absorb(regions[number])
        alive = np.unique(roots[lower[lower >= 0]])
        number_of = np.full(len(regions) + 1, -1, dtype=np.int64)
        number_of[alive] = np.arange(len(alive))
        ended = np.setdiff1d(np.unique(roots), alive)
        self._regions = [regions[i] for i in alive]
        self._ids = np.where(lower >= 0, number_of[roots[lower]] if len(roots) else -1, -1)
        return [regions[i] for i in ended]

    def finish(self, height: int) -> list[Region]:
        """The regions that end with the raster, at row ``height``."""
        no_ids = np.zeros(0, dtype=np.int64)
        none = Pieces(no_ids, np.zeros(0, dtype=object), np.zeros(0), no_ids)
        return self.add(none, height, height + 1)


def _open(pieces: Pieces, top: int, bottom: int, width: int) -> tuple[list[Region], Ids, Ids]:
    """Pieces as regions with open outlines, and which piece lies at each pixel of both seams."""
    shells = shapely.get_exterior_ring(pieces.polygons)
    coordinates, owner = shapely.get_coordinates(shells, return_index=True)
    points = coordinates.astype(np.int32)
    start, end = points[:-1], points[1:]
    inside = owner[:-1] == owner[1:]  # else from one ring to the next
    rows = []
    for row in (top, bottom):
        level = inside & (start[:, 1] == row) & (end[:, 1] == row)
        rows.append(_paint(start[level, 0], end[level, 0], owner[:-1][level], width))
        inside &= ~level
    regions = []
    begins = np.searchsorted(owner, np.arange(len(pieces) + 1))
    for i, (first, last) in enumerate(pairwise(begins.tolist())):
        region = Region(int(pieces.values[i]), float(pieces.scores[i]), int(pieces.scored[i]))
        _cut(region, points[first:last], inside[first : last - 1])
        _keep_holes(region, pieces.polygons[i])
        regions.append(region)
    return regions, rows[0], rows[1]


def _cut(region: Region, ring: Points, kept: NDArray[np.bool_]) -> None:
    """The edges of a closed ring that are kept, as open lines."""
    flags = np.diff(np.concatenate(([0], kept.astype(np.int8), [0])))
    begins, ends = np.flatnonzero(flags == 1), np.flatnonzero(flags == -1)
    if len(begins) == 0:
        return
    sizes = ends - begins + 1  # points, one more than edges
    offsets = np.repeat(begins - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes)
    region.lines.append(ring[offsets + np.arange(sizes.sum())])
    region.sizes.append(sizes.astype(np.int64))


def _keep_holes(region: Region, polygon: shapely.Polygon) -> None:
    """Holes of a piece: none reaches a seam, so they are holes of the region."""
    count = shapely.get_num_interior_rings(polygon)
    if count:
        rings = shapely.get_interior_ring(polygon, np.arange(count))
        region.holes.append(shapely.get_coordinates(rings).astype(np.int32))
        region.hole_sizes.append(shapely.get_num_coordinates(rings).astype(np.int64))


def _paint(x0: NDArray[np.int32], x1: NDArray[np.int32], ids: Ids, width: int) -> Ids:
    """A row of pixels with the owner of each; -1 where none is. Intervals may run both ways."""
    row = np.full(width, -1, dtype=np.int64)
    low, sizes = np.minimum(x0, x1), np.abs(x1 - x0)
    first = np.cumsum(sizes) - sizes
    row[np.repeat(low - first, sizes) + np.arange(sizes.sum())] = np.repeat(ids, sizes)
    return row


def _add_borders(regions: list[Region], ids: Ids, row: int, *, above: bool) -> None:
    """Edges of the seam that are borders of the regions ``ids`` beside it.

    Args:
        regions: All regions.
        ids: (width,) the region at each pixel; -1 where the seam is no border of it.
        row: Row of the seam.
        above: Whether the regions lie above the seam; their edges then run to the left.
    """
    turns = np.flatnonzero(np.diff(ids)) + 1
    x0 = np.concatenate(([0], turns))
    x1 = np.concatenate((turns, [len(ids)]))
    owner = ids[x0]
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    begin, end = (x1, x0) if above else (x0, x1)
    rows = np.full(len(order), row)
    lines = np.stack([begin[order], rows, end[order], rows], axis=1).astype(np.int32)
    if len(lines) == 0:
        return
    owners, first = np.unique(owner[order], return_index=True)
    for number, block in zip(owners.tolist(), np.split(lines, first[1:]), strict=True):
        regions[number].lines.append(block.reshape(-1, 2))
        regions[number].sizes.append(np.full(len(block), 2, dtype=np.int64))


def _join(count: int, above: Ids, below: Ids) -> Ids:
    """Smallest number of each region's group, of ``count`` regions with pairs that are one."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    if len(above):
        for a, b in np.unique(np.stack([above, below], axis=1), axis=0).tolist():
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    return np.array([root(i) for i in range(count)], dtype=np.int64)


def _rings(points: Points, sizes: Ids) -> Iterator[Points]:
    """Lines whose ends meet, as rings without a repeated vertex; the last point is not the first.

    Where two lines end and two begin in a point, any choice will do: rings that pass a point twice
    are divided there.
    """
    ends = np.cumsum(sizes)
    starts = ends - sizes
    by_end = np.argsort(_key(points[ends - 1]), kind="stable")
    by_start = np.argsort(_key(points[starts]), kind="stable")
    following = np.empty(len(sizes), dtype=np.int64)
    following[by_end] = by_start
    follow, unused = following.tolist(), [True] * len(sizes)
    for first in range(len(sizes)):
        number, parts = first, []
        while unused[number]:
            unused[number] = False
            parts.append(points[starts[number] : ends[number] - 1])
            number = follow[number]
        if parts:
            for ring in _simple(np.concatenate(parts)):
                yield _corners(ring)


def _simple(ring: Points) -> Iterator[Points]:
    """A ring, divided at the points that it passes more than once."""
    keys = _key(ring)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    if not same.any():
        yield ring
        return
    touched = np.zeros(len(ring), dtype=bool)
    touched[order[1:][same]] = touched[order[:-1][same]] = True
    at = np.flatnonzero(touched)
    ring, keys, at = np.roll(ring, -at[0], axis=0), np.roll(keys, -at[0]), at - at[0]
    stack: list[Points] = []
    depth: dict[int, int] = {}  # point -> what of the stack begins there
    for key, part in zip(keys[at].tolist(), np.split(ring, at[1:]), strict=True):
        if key in depth:
            yield np.concatenate(stack[depth[key] :])
            for closed in stack[depth[key] :]:
                del depth[int(_key(closed[:1])[0])]
            del stack[len(depth) :]
        depth[key] = len(stack)
        stack.append(part)
    yield np.concatenate(stack)


def _corners(ring: Points) -> Points:
    """A ring without the points at which it goes straight on."""
    back = np.roll(ring, 1, axis=0)[:, 0] == ring[:, 0]
    ahead = np.roll(ring, -1, axis=0)[:, 0] == ring[:, 0]
    return ring[back != ahead]


def _key(points: Points) -> NDArray[np.int64]:
    """One number per point."""
    return (points[:, 1].astype(np.int64) << 32) | points[:, 0].astype(np.int64)


def _doubled_area(ring: Points) -> int:
    """Twice the area, positive for counterclockwise."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))

"""Objects that overlapping tiles report twice, or in parts, made one again."""

from collections.abc import Sequence

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray

from rsmamba.errors import ConfigError, LabelError

# A part is taken for cut if it ends this close to the border of its tile, as a share of its sides,
_CUT = 0.01
# and lies in the other to this share.
_INSIDE = 0.9
# An outline that fills its bounds to this share is a box.
_BOX = 1 - 1e-9

Shapes = NDArray[np.object_]
Ids = NDArray[np.int64]


def merge_instances(
    instances: geopandas.GeoDataFrame,
    *,
    iou: float = 0.5,
    tiles: Sequence[Sequence[float]] | NDArray[np.float64] | None = None,
    score: str = "score",
    label: str = "class",
) -> geopandas.GeoDataFrame:
    """One row per object, where overlapping tiles reported some objects twice or in parts.

    Only instances of the same class are merged.

    1. With ``tiles``, instances of different tiles are parts of one object if they agree on the
       ground that both tiles show: if there their intersection over union is at least ``iou``, or
       one is cut by the border of its tile and nearly all of it lies in the other. Of several in
       one tile the best fit counts. Tiles that only touch are compared along their common border.
       An object over many tiles is one; its outline is the union, of boxes the box around them.
    2. Non-maximum suppression: in the order of the scores, an object takes out those with which
       its intersection over union is at least ``iou``.

    Neighbours stay two, because they differ on the ground that both tiles show.

    Args:
        instances: Boxes or polygons with their score and class, in one coordinate system.
        iou: Intersection over union from which two are the same, above 0, at most 1.
        tiles: For each instance, what the tile showed that reported it, halo included: minx, miny,
            maxx, maxy in the coordinate system of the instances. None for suppression only: then
            an object that a border cuts stays in parts.
        score: Column of the scores.
        label: Column of the classes.

    Returns:
        The objects, best score first, with the columns of the best report of each, and
        ``reports``: the number of instances behind it. Invalid polygons are repaired; what has no
        area is left out.

    Raises:
        ConfigError: If ``iou`` is out of range or ``tiles`` does not have a row per instance.
        LabelError: If a column is missing, a score is not a number, or a geometry is no polygon.
    """
    if not 0 < iou <= 1:
        raise ConfigError(f"iou must be above 0 and at most 1, got {iou}")
    if tiles is not None and len(tiles) != len(instances):
        raise ConfigError(f"{len(tiles)} tiles for {len(instances)} instances: give one for each")
    shapes, scores = _check(instances, score, label)
    kept = np.flatnonzero(shapely.area(shapes) > 0)
    order = kept[np.argsort(-scores[kept], kind="stable")]
    shapes, rows = shapes[order], instances.iloc[order]
    classes = np.unique(rows[label].astype(str).to_numpy(dtype=str), return_inverse=True)[1]
    winner = np.arange(len(order))
    if tiles is not None and len(order):
        bounds = np.asarray(tiles, dtype=np.float64).reshape(-1, 4)[order]
        # no duplicates of one tile: two parts of a whole need not be one for each other
        alone = np.unique(np.column_stack([bounds, classes]), axis=0, return_inverse=True)[1]
        winner = _suppress(shapes, alone.reshape(-1), iou)
        chosen = np.flatnonzero(winner == np.arange(len(winner)))
        group = _parts(shapes[chosen], classes[chosen], bounds[chosen], iou)
        shapes = _unite(shapes, chosen, chosen[group])
        winner = chosen[group][np.searchsorted(chosen, winner)]
    best = np.unique(winner)
    winner = best[_suppress(shapes[best], classes[best], iou)][np.searchsorted(best, winner)]
    best, reports = np.unique(winner, return_counts=True)
    result = rows.iloc[best].reset_index(drop=True)
    return result.set_geometry(
        geopandas.GeoSeries(shapes[best], index=result.index, crs=instances.crs)
    ).assign(reports=reports)


def _check(
    instances: geopandas.GeoDataFrame, score: str, label: str
) -> tuple[Shapes, NDArray[np.float64]]:
    """Valid polygons and scores."""
    for column in (score, label):
        if column not in instances.columns:
            raise LabelError(
                f"the instances have no column {column!r}; they have {', '.join(instances.columns)}"
            )
    try:
        scores = instances[score].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise LabelError(f"column {score!r} must hold numbers: {error}") from error
    if np.isnan(scores).any():
        raise LabelError(f"{int(np.isnan(scores).sum())} instances have no {score!r}: drop them")
    shapes: Shapes = np.asarray(instances.geometry.array, dtype=object)
    kinds = set(instances.geometry.geom_type.dropna()) - {"Polygon", "MultiPolygon"}
    if kinds:
        raise LabelError(f"instances are boxes or polygons, not {', '.join(sorted(kinds))}")
    broken = ~shapely.is_valid(shapes) & ~shapely.is_missing(shapes)
    shapes[broken] = shapely.make_valid(shapes[broken], method="structure")
    return shapes, scores


def _pairs(shapes: Shapes, groups: Ids) -> tuple[Ids, Ids]:
    """Pairs (i < j) of the same group that touch or overlap."""
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    wanted = (first < second) & (groups[first] == groups[second])
    return first[wanted], second[wanted]


def _overlap(a: Shapes, b: Shapes) -> NDArray[np.float64]:
    """Intersection over union of pairs."""
    common = shapely.area(shapely.intersection(a, b))
    ratio: NDArray[np.float64] = common / (shapely.area(a) + shapely.area(b) - common)
    return ratio


def _suppress(shapes: Shapes, groups: Ids, iou: float) -> Ids:
    """(N,) which instance stands for each; they come best first."""
    winner = np.arange(len(shapes))
    first, second = _pairs(shapes, groups)
    same = _overlap(shapes[first], shapes[second]) >= iou
    first, second = first[same], second[same]
    order = np.lexsort((second, first))
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if winner[i] == i and winner[j] == j:
            winner[j] = i
    return winner


def _parts(shapes: Shapes, classes: Ids, bounds: NDArray[np.float64], iou: float) -> Ids:
    """(N,) best instance of the object that each is a part of; they come best first."""
    _, tile = np.unique(bounds, axis=0, return_inverse=True)
    tile = tile.reshape(-1)
    i, j = _pairs(shapes, classes)
    other = tile[i] != tile[j]
    i, j = i[other], j[other]
    low, high = np.maximum(bounds[i, :2], bounds[j, :2]), np.minimum(bounds[i, 2:], bounds[j, 2:])
    size = (bounds[i, 2:] - bounds[i, :2]).max(axis=1)
    slack = 1e-6 * size  # coordinates of tiles that touch may differ in rounding
    flat = ((high - low) < slack[:, None]).sum(axis=1)
    near = ((high - low) > -slack[:, None]).all(axis=1) & (flat < 2)
    i, j, low, high, slack, flat = (v[near] for v in (i, j, low, high, slack, flat))
    common, a, b = _shared(shapes[i], shapes[j], low, high, slack, flat > 0)
    whole = a + b - common
    ratio = np.divide(common, whole, out=np.zeros(len(whole)), where=whole > 0)
    small, large = np.where(a <= b, i, j), np.where(a <= b, j, i)
    least = np.minimum(a, b)
    inside = (least > 0) & (common >= _INSIDE * least) & _cut(shapes, bounds)[small]
    agree = np.flatnonzero((ratio >= iou) | inside)
    # of several in one tile, a part belongs to that which fits best
    order = agree[np.argsort(-ratio[agree], kind="stable")]
    _, best = np.unique(
        np.column_stack([small[order], tile[large[order]]]), axis=0, return_index=True
    )
    group = np.arange(len(shapes))
    for k in order[best].tolist():
        low_root, high_root = sorted((_root(group, int(small[k])), _root(group, int(large[k]))))
        group[high_root] = low_root
    return np.array([_root(group, n) for n in range(len(group))], dtype=np.int64)


def _shared(
    a: Shapes,
    b: Shapes,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    slack: NDArray[np.float64],
    flat: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of pairs, on the ground that both tiles show: what they share, and the size of each.

    Sizes are areas; lengths where that ground is but a border (``flat``).
    """
    ground = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    middle = (low + high) / 2
    level = (high - low)[:, 1] < slack
    ends = np.stack([low, high], axis=1)
    ends[level, :, 1] = middle[level, 1:]
    ends[flat & ~level, :, 0] = middle[flat & ~level, :1]
    ground[flat] = shapely.linestrings(ends[flat])
    # an outline that should end on the border may miss it by rounding
    a, b = a.copy(), b.copy()
    for shapes in (a, b):
        shapes[flat] = shapely.buffer(shapes[flat], 2 * slack[flat], join_style="mitre")
    measure = np.where(flat, 0, 1)

    def size(shapes: Shapes) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.where(measure, shapely.area(shapes), shapely.length(shapes))
        return found

    in_a, in_b = shapely.intersection(a, ground), shapely.intersection(b, ground)
    return size(shapely.intersection(in_a, in_b)), size(in_a), size(in_b)


def _cut(shapes: Shapes, bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which instances end at the border of their tile."""
    distance = np.abs(shapely.bounds(shapes) - bounds)
    sides = np.tile(bounds[:, 2:] - bounds[:, :2], 2)
    return np.asarray((distance <= _CUT * sides).any(axis=1))


def _root(parent: Ids, number: int) -> int:
    """Smallest number of a group."""
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = int(parent[number])
    return number


def _unite(shapes: Shapes, members: Ids, group: Ids) -> Shapes:
    """Shapes, with the union of each group in the place of its first member."""
    united = shapes.copy()
    order = np.argsort(group, kind="stable")
    _, first = np.unique(group[order], return_index=True)
    for numbers in np.split(members[order], first[1:]):
        if len(numbers) > 1:
            parts = shapes[numbers]
            boxes = shapely.area(parts) >= _BOX * shapely.area(shapely.envelope(parts))
            union = shapely.union_all(parts)
            united[numbers.min()] = shapely.envelope(union) if boxes.all() else union
    return united

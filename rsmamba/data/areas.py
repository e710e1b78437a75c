"""Where images lie on the ground: footprints, test areas and spatial blocks."""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError as ProjCRSError
from pyproj.exceptions import ProjError
from shapely.geometry.base import BaseGeometry

from rsmamba.data.images import Region, Scene, grid
from rsmamba.data.listing import some
from rsmamba.data.splits import take_share
from rsmamba.errors import ConfigError, CRSError, DataNotFoundError
from rsmamba.samples import resolve

#: Bounds [minx, miny, maxx, maxy], or a vector file.
Area = Sequence[float] | str | Path
#: A scene by its position in a list, and the part of it.
Part = tuple[int, Region]

#: An overlap smaller than this share of an image is a shared border.
TOUCH = 1e-6
#: Edges are bent in reprojection at least once every so many pieces of an area's extent.
PIECES = 64
#: Equal-area coordinates in metres that exist everywhere on Earth, poles included.
WORLD = CRS.from_epsg(6933)
LARGEST_BLOCK = 4096
#: Share of the smaller of two images from which they show the same ground.
LEAK = 1e-3


def require_georeferencing(scenes: Sequence[Scene], why: str) -> None:
    """Refuse images that do not say where they are.

    Raises:
        CRSError: If a scene lacks a coordinate system or a transform, or has coordinates that its
            coordinate system has not.
    """
    if bad := [str(s.path) for s in scenes if s.crs is None or s.transform is None]:
        raise CRSError(
            f"no coordinate reference system or transform in {some(bad, 3)}, needed for {why}: "
            "assign one with `gdal_edit.py -a_srs EPSG:<code> -a_ullr <ulx> <uly> <lrx> <lry> FILE`"
        )
    check_places(scenes)


def check_places(scenes: Sequence[Scene]) -> None:
    """Refuse images whose coordinates are none of their CRS, such as metres declared as degrees.

    Images without georeferencing are passed over.

    Raises:
        CRSError: If the centre of an image is not on Earth.
    """
    for scene in scenes:
        if _placed(scene):
            _on_ground(scene, scene.width / 2, scene.height / 2)


def _placed(scene: Scene) -> bool:
    return scene.crs is not None and scene.transform is not None


def footprint(scene: Scene, region: Region | None = None) -> BaseGeometry:
    """Outline of a georeferenced scene or a part of it, in its own CRS."""
    r = region or scene.whole
    assert scene.transform is not None  # noqa: S101 - callers check with require_georeferencing
    corners = ((0, 0), (0, r.width), (r.height, r.width), (r.height, 0))
    return shapely.Polygon([scene.transform @ (r.col + x, r.row + y) for y, x in corners])


def same_crs(a: CRS, b: CRS) -> bool:
    """Whether coordinates (x first) mean the same in both."""
    return bool(a.equals(b, ignore_axis_order=True))


def reproject(shapes: gpd.GeoSeries, target: CRS, step: float | None = None) -> gpd.GeoSeries:
    """Shapes in another CRS; long edges are divided first, for straight lines become curves.

    Args:
        shapes: Geometries with a CRS.
        target: The CRS wanted.
        step: Longest edge that is kept straight, in the units of the shapes; 1/64 of their extent
            if None.
    """
    if same_crs(CRS(shapes.crs), target) or shapes.empty:
        return shapes
    if step is None:
        minx, miny, maxx, maxy = shapes.total_bounds
        step = max(maxx - minx, maxy - miny) / PIECES
    return shapes.segmentize(step).to_crs(target) if step > 0 else shapes.to_crs(target)


def read_area(area: Area, area_crs: str) -> gpd.GeoSeries:
    """An area as one geometry with its CRS.

    Args:
        area: [minx, miny, maxx, maxy] in ``area_crs``, or a vector file.
        area_crs: CRS of bounds, x (longitude) first.

    Raises:
        ConfigError: If bounds are not four numbers in order.
        CRSError: If the CRS is unknown, or a vector file has none.
        DataNotFoundError: If the vector file is missing, unreadable or empty.
    """
    if isinstance(area, str | Path):
        path = resolve(area)
        if not path.exists():
            raise DataNotFoundError(f"{path}: no such vector file; check the path of the area")
        try:
            frame = gpd.read_file(path)
        except pyogrio.errors.DataSourceError as error:
            raise DataNotFoundError(f"{path}: not a readable vector file ({error})") from error
        if frame.empty:
            raise DataNotFoundError(f"{path}: holds no areas")
        if frame.crs is None:
            raise CRSError(f"{path}: has no CRS; assign one with `ogr2ogr -a_srs EPSG:<code>`")
        return gpd.GeoSeries([frame.geometry.union_all()], crs=frame.crs)
    numbers = [v for v in area if isinstance(v, int | float)]
    if not len(area) == len(numbers) == 4 or not (area[0] < area[2] and area[1] < area[3]):
        raise ConfigError(f"an area is [minx, miny, maxx, maxy] in numbers, got {list(area)}")
    minx, miny, maxx, maxy = map(float, area)
    try:
        return gpd.GeoSeries(
            [shapely.box(minx, miny, maxx, maxy)], crs=CRS.from_user_input(area_crs)
        )
    except ProjCRSError as error:
        raise CRSError(f"area_crs={area_crs!r} is not a known CRS, e.g. EPSG:32636") from error


def inside(scenes: Sequence[Scene], area: Area, area_crs: str, name: str) -> set[int]:
    """Positions of the scenes that overlap an area by more than a shared border.

    Raises:
        CRSError, ConfigError, DataNotFoundError: As :func:`read_area`; also if a scene is not
            georeferenced, or none overlaps.
    """
    require_georeferencing(scenes, name)
    shape = read_area(area, area_crs)
    by_crs: dict[str, BaseGeometry] = {}
    found = set()
    for i, scene in enumerate(scenes):
        assert scene.crs is not None  # noqa: S101 - checked above
        key = scene.crs.to_wkt()
        if key not in by_crs:
            by_crs[key] = reproject(shape, scene.crs).iloc[0]
        own = footprint(scene)
        if own.intersection(by_crs[key]).area > TOUCH * own.area:
            found.add(i)
    if not found:
        west, south, east, north = outlines(scenes, [(i, s.whole) for i, s in enumerate(scenes)])[
            "geometry"
        ].total_bounds
        raise DataNotFoundError(
            f"{name} overlaps none of the {len(scenes)} images, which lie within longitudes "
            f"{west:.6f} to {east:.6f}, latitudes {south:.6f} to {north:.6f}; "
            f"is area_crs={area_crs!r} right?"
        )
    return found


def outlines(scenes: Sequence[Scene], parts: Sequence[Part]) -> gpd.GeoDataFrame:
    """Outlines of parts in longitude and latitude, with the file names: a table for a map.

    Raises:
        CRSError: If an image has coordinates that its coordinate system has not.
    """
    check_places([scenes[i] for i in {i for i, _ in parts}])
    shapes, names = [], []
    for i, region in parts:
        scene = scenes[i]
        one = gpd.GeoSeries([footprint(scene, region)], crs=scene.crs)
        shapes.append(reproject(one, CRS.from_user_input("OGC:CRS84")).iloc[0])
        names.append(str(scene.path))
    return gpd.GeoDataFrame({"path": names}, geometry=shapes, crs="OGC:CRS84")


def warn_of_overlap(scenes: Sequence[Scene], splits: dict[str, list[Part]]) -> None:
    """Warn if parts of two splits show the same ground: more than 0.1 % of the smaller of the two.

    Raises:
        CRSError: If an image has coordinates that its coordinate system has not.
    """
    tables = {}
    for name in ("train", "val", "test"):
        if placed := [part for part in splits.get(name, ()) if _placed(scenes[part[0]])]:
            tables[name] = outlines(scenes, placed)
    for one, other in combinations(tables, 2):
        ours, theirs = tables[one].geometry.values, tables[other].geometry.values
        a, b = shapely.STRtree(theirs).query(ours, "intersects")
        shared = shapely.area(shapely.intersection(ours[a], theirs[b]))
        # Of the smaller: little of a large image may be all of a small one.
        smaller = np.minimum(shapely.area(ours[a]), shapely.area(theirs[b]))
        leaks = shared > LEAK * smaller
        if leaks.any():
            paths, others = tables[one].path.values[a[leaks]], tables[other].path.values[b[leaks]]
            warnings.warn(
                f"{len(set(paths))} images of {one} show ground that is also in {other}, e.g. "
                f"{paths[0]} ({one}) and {others[0]} ({other}): bring them into one split with "
                "val_area or test_area, or leave one out",
                stacklevel=4,
            )


def spatial_blocks(scenes: Sequence[Scene], block_size: int) -> dict[str, list[Part]]:
    """Parts of scenes by cells of a grid on the ground of about ``block_size`` pixels.

    Images of less than two blocks to the side stay whole and belong to the cell of their centre;
    larger ones are cut into pieces of about a block. Images without georeferencing are
    each a cell of their own.

    Raises:
        CRSError: If an image has coordinates that its coordinate system has not.
    """
    placed = [s for s in scenes if _placed(s)]
    steps = [_pixel_on_ground(s) for s in placed]
    cell_x = block_size * median(x for x, _ in steps) if steps else 1.0
    cell_y = block_size * median(y for _, y in steps) if steps else 1.0
    cells: dict[str, list[Part]] = defaultdict(list)
    for i, scene in enumerate(scenes):
        for piece, region in enumerate(_pieces(scene.whole, block_size)):
            if not _placed(scene):
                cells[f"{scene.path.name}:{piece}"].append((i, region))
                continue
            x, y = _on_ground(scene, region.col + region.width / 2, region.row + region.height / 2)
            cells[f"{math.floor(x / cell_x)}:{math.floor(y / cell_y)}"].append((i, region))
    return dict(cells)


def _pieces(whole: Region, size: int) -> list[Region]:
    """A region in equal pieces of about ``size``, whole if it is less than twice that."""
    rows, cols = max(1, whole.height // size), max(1, whole.width // size)
    edges_y = [round(whole.height * k / rows) for k in range(rows + 1)]
    edges_x = [round(whole.width * k / cols) for k in range(cols + 1)]
    return [
        Region(y, x, bottom - y, right - x)
        for y, bottom in pairwise(edges_y)
        for x, right in pairwise(edges_x)
    ]


def _on_ground(scene: Scene, col: float, row: float) -> tuple[float, float]:
    """A pixel's place in equal-area metres.

    Raises:
        CRSError: If it has none: its coordinates are not those of the CRS.
    """
    assert scene.crs is not None and scene.transform is not None  # noqa: S101 - as callers ask
    own = scene.transform @ (col, row)
    try:
        x, y = _to_world(scene.crs).transform(*own)
    except ProjError:  # a local CRS, which lies nowhere
        x = y = math.inf
    if not (math.isfinite(x) and math.isfinite(y)):
        raise CRSError(
            f"{scene.path}: its coordinates, x={own[0]:.10g} y={own[1]:.10g}, are not on Earth in "
            f"its CRS {scene.crs.to_string()}: name the right one, "
            "`gdal_edit.py -a_srs EPSG:<code> FILE`"
        )
    return float(x), float(y)


@lru_cache(maxsize=64)
def _to_world(crs: CRS) -> Transformer:
    return Transformer.from_crs(crs, WORLD, always_xy=True)


def _pixel_on_ground(scene: Scene) -> tuple[float, float]:
    """Extent of the centre pixel in equal-area metres, along x and y."""
    col, row = scene.width / 2, scene.height / 2
    x, y = _on_ground(scene, col, row)
    across, down = _on_ground(scene, col + 1, row), _on_ground(scene, col, row + 1)
    return (
        max(abs(across[0] - x), abs(down[0] - x)),
        max(abs(across[1] - y), abs(down[1] - y)),
    )


def hold_out(
    scenes: Sequence[Scene], share: float, seed: int, patch_size: int, block_size: int | None = None
) -> tuple[list[Part], list[Part]]:
    """Divide scenes by spatial blocks into (kept, held out).

    Args:
        scenes: Images.
        share: Share of the pixels to hold out.
        seed: Number of the split.
        patch_size: Blocks are not made smaller than this.
        block_size: Side of a block in pixels; if None, the largest power of two of at most 4096
            that gives enough blocks to come near to the share.

    Raises:
        ConfigError: If there are fewer than two blocks.
        CRSError: If an image has coordinates that its coordinate system has not.
    """
    sizes = [block_size] if block_size else []
    size = LARGEST_BLOCK
    while not block_size and (size >= patch_size or not sizes):
        sizes.append(size)
        size //= 2
    enough = math.ceil(2 / share) if 0 < share < 1 else 2
    for size in sizes:
        cells = spatial_blocks(scenes, size)
        if len(cells) >= enough:
            break
    areas = {k: float(sum(region.area for _, region in v)) for k, v in cells.items()}
    if len(areas) < 2:
        # Chosen blocks are as small as patch_size allows.
        limit = f"block_size={block_size}" if block_size else f"patch_size={patch_size}"
        raise ConfigError(
            f"val_fraction={share} needs at least two blocks of {size} px, and all images lie in "
            f"one: lower {limit}, add images, give val_area, or set val_fraction to 0"
        )
    held = take_share(areas, share, seed)
    kept = sorted((p for k, v in cells.items() if k not in held for p in v), key=_by_place)
    out = sorted((p for k, v in cells.items() if k in held for p in v), key=_by_place)
    return kept, out


def _by_place(part: Part) -> tuple[int, int, int]:
    return part[0], part[1].row, part[1].col


def tiles(parts: Sequence[Part], size: int) -> list[tuple[int, Region, Region]]:
    """Squares of ``size`` that cover parts once: (scene, square, part)."""
    return [(i, window, region) for i, region in parts for window in grid(region, size)]

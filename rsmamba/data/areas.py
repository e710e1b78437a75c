"""Where images lie on the ground: footprints, test areas and spatial blocks."""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import geopandas as gpd
import pyogrio
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError as ProjCRSError
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


def require_georeferencing(scenes: Sequence[Scene], why: str) -> None:
    """Refuse images that do not say where they are.

    Raises:
        CRSError: If a scene lacks a coordinate system or a transform.
    """
    if bad := [str(s.path) for s in scenes if s.crs is None or s.transform is None]:
        raise CRSError(
            f"no coordinate reference system or transform in {some(bad, 3)}, needed for {why}: "
            "assign one with `gdal_edit.py -a_srs EPSG:<code> -a_ullr <ulx> <uly> <lrx> <lry> FILE`"
        )


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
    if len(area) != 4 or not (area[0] < area[2] and area[1] < area[3]):
        raise ConfigError(f"an area is [minx, miny, maxx, maxy], got {list(area)}")
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
    """Outlines of parts in longitude and latitude, with the file names: a table for a map."""
    shapes, names = [], []
    for i, region in parts:
        scene = scenes[i]
        one = gpd.GeoSeries([footprint(scene, region)], crs=scene.crs)
        shapes.append(reproject(one, CRS.from_user_input("OGC:CRS84")).iloc[0])
        names.append(str(scene.path))
    return gpd.GeoDataFrame({"path": names}, geometry=shapes, crs="OGC:CRS84")


def warn_of_overlap(scenes: Sequence[Scene], splits: dict[str, list[Part]]) -> None:
    """Warn if training parts show ground that is also validated or tested on."""
    held = splits["val"] + splits["test"]
    train = splits["train"]
    if not train or not held or any(s.crs is None or s.transform is None for s in scenes):
        return
    ours, theirs = outlines(scenes, train), outlines(scenes, held)
    a, b = shapely.STRtree(theirs.geometry.values).query(ours.geometry.values, "intersects")
    shared = shapely.area(shapely.intersection(ours.geometry.values[a], theirs.geometry.values[b]))
    leaks = shared > 1e-3 * shapely.area(ours.geometry.values[a])
    if leaks.any():
        first = leaks.argmax()
        warnings.warn(
            f"{len(set(a[leaks]))} training images show ground that is also in val or test, e.g. "
            f"{ours.path.iloc[a[first]]} and {theirs.path.iloc[b[first]]}",
            stacklevel=4,
        )


def spatial_blocks(scenes: Sequence[Scene], block_size: int) -> dict[str, list[Part]]:
    """Parts of scenes by cells of a grid on the ground of about ``block_size`` pixels.

    Images of less than two blocks to the side stay whole and belong to the cell of their centre;
    larger ones are cut into pieces of about a block. Images without georeferencing are
    each a cell of their own.
    """
    placed = [s for s in scenes if s.crs is not None and s.transform is not None]
    steps = [_pixel_on_ground(s) for s in placed]
    cell_x = block_size * median(x for x, _ in steps) if steps else 1.0
    cell_y = block_size * median(y for _, y in steps) if steps else 1.0
    cells: dict[str, list[Part]] = defaultdict(list)
    for i, scene in enumerate(scenes):
        for piece, region in enumerate(_pieces(scene.whole, block_size)):
            if scene.crs is None or scene.transform is None:
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
    """A pixel's place in equal-area metres."""
    assert scene.transform is not None  # noqa: S101 - callers ask for georeferenced scenes only
    to_world = Transformer.from_crs(scene.crs, WORLD, always_xy=True)
    x, y = to_world.transform(*(scene.transform @ (col, row)))
    return float(x), float(y)


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
        raise ConfigError(
            f"val_fraction={share} needs at least two blocks of {size} px, and all images lie in "
            "one: add images, give val_area, or set block_size smaller or val_fraction to 0"
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

"""Footprints: at the antimeridian, at the poles, of whole worlds, in every orientation."""

import numpy as np
import pyproj
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from shapely.geometry import Polygon, box

from rsmamba.gis.footprint import bounding_box, footprint
from rsmamba.gis.raster import RasterGrid

EARTH_KM2 = 510_065_622  # WGS 84 ellipsoid
LOCAL = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
WORLD = 20037508.342789244  # half the width of the world in EPSG:3857, in metres


def grid_of(crs, left, top, pixel, height, width):
    """A north-up grid."""
    transform = Affine(pixel, 0, left, 0, -pixel, top)
    return RasterGrid(height, width, CRS.from_user_input(crs), transform)


def area_km2(outline):
    """Area on the ellipsoid of a shape whose edges are straight in longitude and latitude."""
    to_equal_area = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    return shapely.transform(outline, to_equal_area.transform, interleaved=False).area / 1e6


def check(outline):
    """What GeoJSON asks of a polygon."""
    assert outline.is_valid
    xy = shapely.get_coordinates(outline)
    assert np.abs(xy[:, 0]).max() <= 180
    assert np.abs(xy[:, 1]).max() <= 90
    assert all(part.exterior.is_ccw for part in shapely.get_parts(outline))


@pytest.mark.parametrize(
    ("crs", "left", "top"),
    [
        (3832, 3e6, -1.5e6),  # Mercator around 150 east
        (32601, 1e5, 2e6),  # UTM zones 1 and 60, beyond their edges
        (32660, 2e5, 6e6),
        (4326, 175, -10),  # longitudes beyond 180
        (4326, -185, -10),  # and beyond -180
        (3857, 19.9e6, -1.8e6),  # a web map beyond its edge
    ],
)
def test_a_raster_across_the_antimeridian_is_cut_there(crs, left, top):
    grid = grid_of(crs, left, top, 0.01 if crs == 4326 else 1000, 1000, 1000)
    outline = footprint(grid)
    check(outline)
    assert (outline.geom_type, len(outline.geoms)) == ("MultiPolygon", 2)
    # by hand: longitudes of all pixels, counted from 0 to 360
    cols, rows = np.meshgrid(np.linspace(0, 1000, 101), np.linspace(0, 1000, 101))
    to_geographic = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_geographic.transform(*(grid.transform @ (cols, rows)))
    west, south, east, north = bounding_box([outline])
    assert (west, east + 360) == pytest.approx(((lon % 360).min(), (lon % 360).max()), abs=1e-3)
    assert (south, north) == pytest.approx((lat.min(), lat.max()), abs=1e-3)
    assert west > east
    # each part ends at 180 exactly, on its side
    eastern, western = sorted(outline.geoms, key=lambda part: -part.bounds[0])
    assert (eastern.bounds[2], western.bounds[0]) == (180, -180)
    assert (eastern.bounds[0], western.bounds[2]) == (west, east)
    assert area_km2(outline) == pytest.approx(grid.area_km2(), rel=1e-3)


def test_an_ordinary_tile_is_the_polygon_that_hand_work_gives():
    grid = grid_of(32633, 399960, 5100000, 10, 10980, 10980)
    to_geographic = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    by_hand = shapely.transform(
        shapely.segmentize(box(399960, 4990200, 509760, 5100000), 100),
        to_geographic.transform,
        interleaved=False,
    )
    outline = footprint(grid)
    check(outline)
    assert isinstance(outline, Polygon)
    # within twenty metres everywhere, with few points
    assert outline.hausdorff_distance(by_hand) < 2e-4
    assert len(outline.exterior.coords) < 60
    assert bounding_box([outline]) == pytest.approx(by_hand.bounds, abs=2e-4)
    # the four corners alone are far off: the edges of a tile are curved
    corners = Polygon(by_hand.simplify(0.1).exterior.coords)
    assert corners.hausdorff_distance(by_hand) > 1e-3


def test_straight_edges_get_no_further_points():
    outline = footprint(grid_of(4326, 10, 50, 0.01, 300, 200))
    assert outline.normalize() == box(10, 47, 12, 50).normalize()


@pytest.mark.parametrize(
    ("crs", "lat"),
    [(3995, 90), (3413, 90), (3031, -90), (3976, -90), (3571, 90), (32633, 90)],
)
@pytest.mark.parametrize("north_up", [True, False])
def test_a_raster_around_a_pole_reaches_it_along_a_line_of_latitude_90(crs, lat, north_up):
    y = 9_997_964.943 if crs == 32633 else 0  # where the pole lies
    x = 500_000 if crs == 32633 else 0
    shape = CRS.from_epsg(crs)
    if north_up:
        transform = Affine(1000, 0, x - 300e3, 0, -1000, y + 500e3)
    else:
        transform = Affine(1000, 0, x - 300e3, 0, 1000, y - 400e3)
    grid = RasterGrid(900, 900, shape, transform)
    outline = footprint(grid)
    check(outline)
    west, south, east, north = bounding_box([outline])
    assert (west, east) == (-180, 180)
    assert (north if lat > 0 else south) == lat
    assert 82 < abs(south if lat > 0 else north) < 85
    for lon in (-180, -90, 0, 90, 180):
        assert outline.covers(shapely.Point(lon, lat))
    assert area_km2(outline) == pytest.approx(grid.area_km2(), rel=2e-3)


def test_a_raster_around_a_pole_whose_edge_swings_back_is_not_mangled():
    # In Europe's equal-area system the upper edge passes 30 km behind the pole, so that the ring
    # goes back over the meridian of its first corner.
    grid = grid_of(3035, 9e5, 7.4e6, 1000, 6500, 6600)
    outline = footprint(grid)
    check(outline)
    assert area_km2(outline) == pytest.approx(6500 * 6600, rel=1e-3)
    assert bounding_box([outline])[3] == 90


@pytest.mark.parametrize("crs", [3995, 3413, 3031])
@pytest.mark.parametrize(
    ("left", "top", "wide"),
    [
        (0, 0, 90),  # a corner of the raster is the pole
        (-900e3, 0, 90),
        (0, 900e3, 90),
        (-900e3, 900e3, 90),
        (-450e3, 0, 180),  # an edge runs through it
        (-450e3, 900e3, 180),
        (0, 450e3, 180),
        (-900e3, 450e3, 180),
    ],
)
def test_a_corner_or_an_edge_at_the_pole_itself(crs, left, top, wide):
    grid = grid_of(crs, left, top, 1000, 900, 900)
    outline = footprint(grid)
    check(outline)
    west, south, east, north = bounding_box([outline])
    assert (east - west) % 360 == pytest.approx(wide, abs=1e-4)
    assert max(-south, north) == pytest.approx(90, abs=1e-5)
    assert min(-south, north) < -75
    assert area_km2(outline) == pytest.approx(grid.area_km2(), rel=3e-3)


def test_a_turned_raster_with_the_pole_at_a_corner_is_not_taken_for_one_around_it():
    for angle in range(0, 360, 15):
        transform = Affine.rotation(angle) @ Affine.scale(1000, -1000)
        grid = RasterGrid(900, 900, CRS.from_epsg(3995), transform)
        outline = footprint(grid)
        check(outline)
        assert area_km2(outline) == pytest.approx(grid.area_km2(), rel=3e-3), angle
        west, _, east, _ = bounding_box([outline])
        assert (east - west) % 360 == pytest.approx(90, abs=1e-4), angle


@pytest.mark.parametrize(
    ("grid", "south", "north"),
    [
        (grid_of(4326, -180, 90, 1, 180, 360), -90, 90),
        (grid_of(4326, 0, 90, 1, 180, 360), -90, 90),  # 0 to 360
        (grid_of(4326, -180.5, 90.5, 1, 181, 361), -90, 90),  # pixel centres on the degrees
        (grid_of(4267, -180.5, 90.5, 1, 181, 361), -90, 90),
        (grid_of(3857, -WORLD, WORLD, WORLD / 128, 256, 256), -85.0511, 85.0511),
        (grid_of(6933, -17367530.45, 7314540.83, 25025.26, 584, 1388), -83.894, 85.0446),
    ],
)
def test_a_whole_world_is_one_plain_rectangle(grid, south, north):
    outline = footprint(grid)
    check(outline)
    assert bounding_box([outline]) == pytest.approx([-180, south, 180, north], abs=1e-3)
    assert isinstance(outline, Polygon)
    assert len(outline.exterior.coords) == 5


def test_a_world_map_that_leaves_the_earth_at_its_corners_keeps_the_part_on_it():
    grid = grid_of("ESRI:54009", -18040096, 9020048, 2e5, 91, 181)  # Mollweide, an ellipse
    outline = footprint(grid)
    check(outline)
    assert 0.94 * EARTH_KM2 < area_km2(outline) <= EARTH_KM2


@pytest.mark.parametrize(
    "transform",
    [
        Affine(10, 0, 4e5, 0, 10, 5.1e6),  # south-up
        Affine(-10, 0, 4e5, 0, -10, 5.1e6),  # east to west
        Affine(10, 0, 4e5, 0, -10, 5.1e6) @ Affine.rotation(30),
        Affine(10, 3, 4e5, 2, -10, 5.1e6),  # sheared
    ],
)
def test_any_orientation_of_the_grid(transform):
    grid = RasterGrid(400, 700, CRS.from_epsg(32633), transform)
    outline = footprint(grid)
    check(outline)
    to_geographic = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    for col, row in [(1, 1), (699, 1), (699, 399), (1, 399), (350, 200)]:
        assert outline.covers(shapely.Point(to_geographic.transform(*(transform @ (col, row)))))
    for col, row in [(-2, 200), (702, 200), (350, -2), (350, 402)]:
        assert not outline.covers(shapely.Point(to_geographic.transform(*(transform @ (col, row)))))
    assert area_km2(outline) == pytest.approx(grid.area_km2(), rel=1e-3)


def test_one_pixel_and_one_row_have_footprints_that_hold_them():
    assert footprint(grid_of(32633, 4e5, 5.1e6, 0.05, 1, 1)).area > 0
    row = grid_of(32633, 4e5, 5.1e6, 10, 1, 100_000)
    outline = footprint(row)
    check(outline)
    to_geographic = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    for col in (1, 12_345, 50_000, 99_999):
        assert outline.covers(shapely.Point(to_geographic.transform(*(row.transform @ (col, 0.5)))))


def test_random_grids_hold_their_own_pixels_and_no_others():
    rng = np.random.default_rng(0)
    for crs in (32601, 32660, 3832, 3857, 3995, 3031, 3413) * 6:
        size = 10 ** rng.uniform(3, 6)
        y = 0 if crs in (3857, 3832) else 5e6 if crs > 32000 else rng.uniform(-3e6, 3e6)
        x = {3857: 2e7, 3832: 3.3e6}.get(crs, rng.uniform(1e5, 9e5))
        height, width = rng.integers(20, 1000, 2).tolist()
        transform = Affine.translation(x, y) @ Affine.rotation(rng.uniform(0, 360))
        pixel = size / max(height, width)
        transform @= Affine.scale(pixel, -pixel) @ Affine.translation(-width / 2, -height / 2)
        grid = RasterGrid(height, width, CRS.from_epsg(crs), transform)
        outline = footprint(grid)
        check(outline)
        to_geographic = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        near = rng.uniform(-1, 2, (400, 2))
        inside = ((near > 0.01) & (near < 0.99)).all(axis=1)
        outside = ((near < -0.01) | (near > 1.01)).any(axis=1)
        lon, lat = to_geographic.transform(*(transform @ (near * (width, height)).T))
        found = shapely.contains_xy(outline, (lon + 180) % 360 - 180, lat)
        assert found[inside].all(), (crs, grid)
        assert not found[outside].any(), (crs, grid)


@pytest.mark.parametrize("crs", [5514, 28992, 27700, 2056, 3857, 32633])
def test_the_rounding_of_a_projection_makes_no_points(crs):
    # A raster of a few centimetres: its edges are noise at the scale at which those of others bend.
    area = pyproj.CRS.from_epsg(crs).area_of_use
    place = (area.west + area.east) / 2, (area.south + area.north) / 2
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*place)
    outline = footprint(grid_of(crs, x, y, 0.01, 5, 5))
    check(outline)
    assert len(outline.exterior.coords) < 20


def test_nowhere_on_earth_there_is_no_footprint():
    sky = grid_of("+proj=geos +h=35785831 +sweep=y", 5.4e6, 5.4e6, 1000, 20, 20)
    assert footprint(sky) is None
    assert footprint(RasterGrid(5, 5, LOCAL, Affine(1, 0, 0, 0, -1, 0))) is None


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(10, 40, 20, 50)], [10, 40, 20, 50]),
        ([(10, 40, 20, 50), (100, -5, 110, 5)], [10, -5, 110, 50]),
        ([(170, 0, 180, 5), (-180, 0, -175, 5)], [170, 0, -175, 5]),
        ([(-170, 0, -160, 5), (165, 0, 170, 5)], [165, 0, -160, 5]),  # Fiji and Samoa
        ([(-170, 0, 170, 5)], [-170, 0, 170, 5]),
        ([(-180, -90, 180, 90), (10, 0, 20, 5)], [-180, -90, 180, 90]),
        ([(0, 0, 120, 5), (110, 0, 180, 5), (-180, 0, 10, 5)], [-180, 0, 180, 5]),
        # a gap inside a wide span is none, nor is one of rounding
        ([(-100, 0, 150, 5), (-50, 0, -40, 5), (90, 0, 160, 5)], [-100, 0, 160, 5]),
        ([(-180, 0, 10, 5), (10.0000001, 0, 180, 5)], [-180, 0, 180, 5]),
    ],
)
def test_bounding_boxes_are_the_narrowest_on_the_circle(boxes, expected):
    assert bounding_box([box(*b) for b in boxes]) == expected

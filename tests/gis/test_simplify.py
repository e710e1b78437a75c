"""Outlines with fewer corners, without gaps and overlaps."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from rsmamba.errors import ConfigError
from rsmamba.gis import simplify
from rsmamba.gis.vector import vectorize

UTM = Affine(10, 0, 5e5, 0, -10, 5e6)


def landscape(size=160):
    """Five smooth classes, borders in all directions, and a round hole of nodata."""
    y, x = np.meshgrid(np.linspace(0, 6, size), np.linspace(0, 6, size), indexing="ij")
    fields = [np.sin(x * a + b) + np.cos(y * b - a * x / 2) for a, b in
              ((1.3, 2.1), (2.2, 1.2), (1.7, 2.9), (0.6, 1.9), (2.8, 0.7))]  # fmt: skip
    classes = np.argmax(fields, axis=0).astype(np.uint8)
    classes[np.hypot(x - 3, y - 3) < 0.7] = 255
    return classes


@pytest.fixture
def make_layer(tmp_path):
    """Vectorise classes and read the layer back."""

    def make(classes, transform=UTM, crs="EPSG:32633", **options):
        path, out = tmp_path / "map.tif", tmp_path / "out.gpkg"
        with rasterio.open(
            path, "w", driver="GTiff", height=classes.shape[0], width=classes.shape[1], count=1,
            dtype="uint8", nodata=255, crs=crs, transform=transform,
        ) as target:  # fmt: skip
            target.write(classes, 1)
        vectorize(path, out, overwrite=True, **options)
        return geopandas.read_file(out)

    return make


@pytest.mark.parametrize("tolerance", [0.5, 1, 2, 4])
def test_borders_stay_shared_without_gap_or_overlap(make_layer, tolerance):
    classes = landscape()
    rough, smooth = make_layer(classes), make_layer(classes, simplify=tolerance)
    assert len(smooth) == len(rough) > 5
    assert smooth.is_valid.all() and set(smooth.geom_type) == {"Polygon"}
    shapes = smooth.geometry.to_numpy()
    assert shapely.coverage_is_valid(shapes)
    # what all cover together is what they cover one by one: nothing twice, and the outside as is
    union = shapely.union_all(shapes)
    assert union.area == pytest.approx(smooth.area.sum(), rel=1e-12)
    assert union.area == pytest.approx(rough.area.sum(), rel=2e-3)
    assert [len(part.interiors) for part in [union]] == [1]  # the nodata, and no gap
    assert union.bounds == tuple(rough.total_bounds)


def test_staircases_go_and_areas_stay(make_layer):
    classes = landscape()
    rough, smooth = make_layer(classes), make_layer(classes, simplify=2)
    corners = [shapely.get_num_coordinates(layer.geometry).sum() for layer in (rough, smooth)]
    assert corners[1] < corners[0] / 5
    np.testing.assert_array_equal(smooth["class"], rough["class"])
    large = rough.area > 50_000
    assert large.sum() > 5
    np.testing.assert_allclose(smooth.area[large], rough.area[large], rtol=0.05)
    # the attribute stays that of the pixels
    np.testing.assert_allclose(smooth["area_m2"], rough["area_m2"], rtol=1e-12)


def test_neighbours_that_meet_beside_a_long_edge_keep_it(make_layer):
    """Two small fields along one long straight edge: it has no corner where they meet."""
    classes = np.zeros((40, 40), np.uint8)
    classes[20:, :17], classes[20:, 17:] = 1, 2
    shapes = make_layer(classes, simplify=3).geometry.to_numpy()
    assert shapely.coverage_is_valid(shapes)
    assert shapely.area(shapes).sum() == pytest.approx(40 * 40 * 100)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 60)),
        ("EPSG:32633", Affine(8.0, 2.0, 5e5, 3.0, -9.0, 5e6)),  # rotated
        ("EPSG:32633", Affine(10.0, 0.0, 5e5, 0.0, 10.0, 4e6)),  # south-up
    ],
)
def test_the_tolerance_is_in_pixels_on_every_grid(make_layer, crs, transform):
    classes = landscape(60)
    here = make_layer(classes, transform, crs, simplify=2)
    there = make_layer(classes, simplify=2)
    corners = [shapely.get_num_coordinates(layer.geometry).tolist() for layer in (here, there)]
    assert corners[0] == corners[1]
    assert shapely.coverage_is_valid(here.geometry.to_numpy())


def test_what_is_too_small_leaves_a_hole_not_a_gap_between_others(make_layer):
    classes = landscape()
    classes[::20, ::20] = 4
    smooth = make_layer(classes, simplify=1.5, min_area=500)
    assert smooth["area_m2"].min() >= 500
    assert shapely.coverage_is_valid(smooth.geometry.to_numpy())


def test_polygons_of_a_pixel_stay_polygons(make_layer):
    classes = np.indices((9, 9)).sum(0).astype(np.uint8) % 2
    smooth = make_layer(classes, simplify=5)
    assert len(smooth) == 81 and smooth.is_valid.all() and not smooth.is_empty.any()
    assert shapely.coverage_is_valid(smooth.geometry.to_numpy())


def test_nothing_stays_nothing(make_layer):
    layer = make_layer(np.full((5, 6), 255, np.uint8), simplify=1)
    assert len(layer) == 0 and layer.crs.to_epsg() == 32633


def test_too_much_at_once_is_refused_with_the_ways_out(make_layer, monkeypatch, tmp_path):
    monkeypatch.setattr(simplify, "LIMIT", 1000)
    with pytest.raises(ConfigError, match=r"1,000 pixels.*--min-area.*--classes"):
        make_layer(landscape(), simplify=1)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]
    assert len(make_layer(landscape(), simplify=1, min_area=1e9)) == 0  # what is kept counts


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf")])
def test_a_tolerance_is_a_positive_number(make_layer, tolerance):
    with pytest.raises(ConfigError, match="simplify"):
        make_layer(landscape(20), simplify=tolerance)

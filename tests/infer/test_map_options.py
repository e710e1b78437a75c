"""Area of interest, threshold, test-time augmentation, uncertainty."""

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine

from rsmamba.errors import ConfigError, CRSError, DataNotFoundError
from rsmamba.infer import load_predictor, map_scene
from tests.infer.conftest import NORTH_UP, brightest, leftovers, spec

SMALL = {"tile": 32, "halo": 8, "block": 48, "progress": False}


def noise(height=120, width=100, seed=0):
    return np.random.default_rng(seed).integers(1, 250, (3, height, width), np.uint8)


def read(path):
    with rasterio.open(path) as source:
        return source.read(), source.transform


def at(col, row, transform=NORTH_UP):
    return transform @ (col, row)


# --- area of interest


def test_bounds_cut_the_grid_to_whole_pixels_and_the_transform_is_exact(make_scene, tmp_path):
    scene = make_scene(noise())
    (west, south), (east, north) = at(20.2, 70.4), at(60.9, 30.6)
    out = tmp_path / "map.tif"
    report = map_scene(
        brightest, scene, out, aoi=[west, south, east, north], aoi_crs="EPSG:32633", **SMALL
    )
    classes, transform = read(out)
    assert classes.shape == (1, 41, 41)
    assert transform == NORTH_UP @ Affine.translation(20, 30)
    # centres count: row 30's lies north of 30.6, column 20's lies east of 20.2
    assert (classes[0, 0] == 255).all() and (classes[0, 1:40, 0:41] != 255).all()
    assert report.pixels_nodata == 2 * 41
    expected = noise().argmax(0)[31:70, 20:61]
    assert np.array_equal(classes[0, 1:40], expected)


def test_pixels_around_the_area_are_context(make_scene, tmp_path):
    def blur(images):
        kernel = torch.ones(3, 1, 5, 5) / 25
        padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
        return torch.nn.functional.conv2d(padded, kernel, groups=3) / 255

    scene = make_scene(noise())
    map_scene(blur, scene, tmp_path / "whole.tif", **SMALL)
    bounds = [*at(33, 90), *at(80, 40)]
    map_scene(blur, scene, tmp_path / "part.tif", aoi=bounds, aoi_crs="EPSG:32633", **SMALL)
    whole, part = read(tmp_path / "whole.tif")[0], read(tmp_path / "part.tif")[0]
    assert np.array_equal(part, whole[:, 40:90, 33:80])


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb"])
def test_a_file_of_polygons_in_any_reference_system(make_scene, tmp_path, suffix):
    triangle = shapely.Polygon([at(10, 10), at(80, 20), at(30, 100)])
    layer = gpd.GeoDataFrame(geometry=[triangle], crs="EPSG:32633").to_crs("EPSG:4326")
    layer.to_file(tmp_path / f"aoi.{suffix}")
    out = tmp_path / "map.tif"
    map_scene(brightest, make_scene(noise()), out, aoi=tmp_path / f"aoi.{suffix}", **SMALL)
    classes, transform = read(out)
    rows, cols = np.mgrid[: classes.shape[1], : classes.shape[2]]
    centres = shapely.points(*(transform @ (cols.ravel() + 0.5, rows.ravel() + 0.5)))
    inside = shapely.contains(triangle.buffer(-0.01), centres).reshape(rows.shape)
    outside = ~shapely.contains(triangle.buffer(0.01), centres).reshape(rows.shape)
    assert (classes[0][inside] != 255).all() and (classes[0][outside] == 255).all()
    assert 0.4 < inside.mean() < 0.6


def test_an_area_elsewhere_or_of_no_known_system_is_refused(make_scene, tmp_path):
    scene = make_scene(noise())
    for options, error, message in (
        ({"aoi": [0, 0, 1, 1]}, DataNotFoundError, "does not touch .*EPSG:32633"),
        ({"aoi": [0, 0, 1, 1], "aoi_crs": "EPSG:0"}, CRSError, "EPSG:0"),
        ({"aoi": [1, 0, 0, 1]}, ConfigError, "minx, miny, maxx, maxy"),
        ({"aoi": tmp_path / "none.gpkg"}, DataNotFoundError, r"none\.gpkg"),
    ):
        with pytest.raises(error, match=message):
            map_scene(brightest, scene, tmp_path / "map.tif", **options, **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]


# --- threshold


def two(images):
    second = images[:, :1] / 255
    return torch.cat([1 - second, second], dim=1)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_second_of_two_classes_wins_from_the_threshold_on(make_scene, tmp_path, threshold):
    pixels, out = noise(), tmp_path / "map.tif"
    map_scene(two, make_scene(pixels), out, threshold=threshold, **SMALL)
    share = torch.from_numpy(pixels[0].astype(np.float32)) / 255
    assert np.array_equal(read(out)[0][0], (share >= threshold).numpy())


def test_of_several_classes_what_lies_below_the_threshold_is_nodata_and_counted(
    make_scene, tmp_path
):
    pixels, out = noise(), tmp_path / "map.tif"
    report = map_scene(
        brightest, make_scene(pixels), out, threshold=0.5, scores=tmp_path / "s.tif", **SMALL
    )
    best = (pixels / pixels.sum(0)).max(0)
    classes = read(out)[0][0]
    clear = np.abs(best - 0.5) > 1e-3
    assert np.array_equal((classes == 255)[clear], (best < 0.5)[clear])
    assert report.pixels_uncertain == (classes == 255).sum()
    assert (read(tmp_path / "s.tif")[0] != 255).all()  # the scores are known all the same


def test_a_threshold_is_a_score(make_scene, tmp_path):
    with pytest.raises(ConfigError, match=r"threshold=1\.5"):
        map_scene(two, make_scene(noise()), tmp_path / "map.tif", threshold=1.5, **SMALL)


# --- test-time augmentation


class Lopsided(torch.nn.Module):
    """Scores depend on where in the tile a pixel lies, and how it is turned."""

    def forward(self, images):
        height, width = images.shape[-2:]
        ramp = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
        return images * (1 + ramp / ramp.max())


@pytest.mark.parametrize(("tta", "views"), [("flips", 4), ("d4", 8)])
def test_scores_are_the_mean_over_the_views(tta, views):
    images = torch.rand(2, 3, 6, 6) * 50
    found = load_predictor(Lopsided(), spec(), device="cpu", tta=tta)(images)
    plain = load_predictor(Lopsided(), spec(), device="cpu")
    total = torch.zeros_like(found)
    for mirrored in (False, True):
        for turns in range(4):
            if tta == "flips" and turns % 2:
                continue
            view = torch.rot90(images.flip(-1) if mirrored else images, turns, (-2, -1))
            back = torch.rot90(plain(view), -turns, (-2, -1))
            total += back.flip(-1) if mirrored else back
    torch.testing.assert_close(found, total / views)
    assert not torch.allclose(found, plain(images), atol=1e-3)


def test_a_model_that_ignores_direction_is_not_changed(make_scene, tmp_path):
    scene = make_scene(noise())
    for tta in ("none", "d4"):
        map_scene(brightest, scene, tmp_path / f"{tta}.tif", tta=tta, **SMALL)
    assert np.array_equal(read(tmp_path / "none.tif")[0], read(tmp_path / "d4.tif")[0])
    with pytest.raises(ConfigError, match="tta='d8': use one of none, flips, d4"):
        map_scene(brightest, scene, tmp_path / "x.tif", tta="d8", **SMALL)


# --- uncertainty


def test_uncertainty_is_the_entropy_over_its_greatest_value(make_scene, tmp_path):
    pixels, out = noise(), tmp_path / "u.tif"
    map_scene(
        brightest, make_scene(pixels, nodata=7), tmp_path / "map.tif", uncertainty=out, **SMALL
    )
    with rasterio.open(out) as source:
        stored = source.read(1)
        assert (source.count, source.descriptions, source.nodata) == (1, ("uncertainty",), 255)
        assert source.scales == pytest.approx((1 / 254,))
    share = pixels / pixels.sum(0)
    expected = -(share * np.log(share)).sum(0) / np.log(3)
    valid = stored != 255
    assert valid.mean() > 0.9
    whole = (pixels != 7).all(0)
    assert np.abs(stored[whole] / 254 - expected[whole]).max() < 0.5 / 254 + 1e-5


def test_uncertainty_of_what_is_no_probability_is_refused(make_scene, tmp_path):
    def raw(images):
        return images / 255

    with pytest.raises(ConfigError, match="do not add up to 1"):
        map_scene(
            raw, make_scene(noise()), tmp_path / "m.tif", uncertainty=tmp_path / "u.tif", **SMALL
        )
    assert leftovers(tmp_path) == ["scene.tif"]

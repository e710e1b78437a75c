"""Two dates of one place: grids are checked, aligned on request, and mapped together."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch import nn

from rsmamba.errors import BandMismatchError, ConfigError, GridMismatchError
from rsmamba.infer import map_scene
from rsmamba.infer.predict import load_predictor
from tests.infer.conftest import NORTH_UP, brightest, leftovers, spec

SMALL = {"tile": 32, "halo": 4, "block": 64, "progress": False}
SPEC = spec(task="change", classes=("no change", "change"))


class Difference(nn.Module):
    """Change where the mean normalised difference of the dates exceeds 20."""

    def forward(self, images):
        assert images.ndim == 5 and images.shape[1:3] == (2, 3)
        change = (images[:, 0] - images[:, 1]).abs().mean(1, keepdim=True) - 20
        return torch.cat([-change, change], 1)


def noise(height=90, width=100, seed=0):
    return np.random.default_rng(seed).integers(20, 90, (3, height, width), np.uint8)


@pytest.fixture
def dates(make_scene):
    before, after = noise(), noise()
    after[:, 30:50, 40:70] += 150
    return make_scene(before, "before.tif"), make_scene(after, "after.tif")


def run(first, second, out, model=None, **options):
    return map_scene(
        model or Difference(), first, out, second=second, spec=SPEC, **SMALL, **options
    )


def read(path):
    with rasterio.open(path) as source:
        return source.read(1)


def test_change_is_mapped_where_it_is(dates, tmp_path):
    report = run(*dates, tmp_path / "map.tif")
    expected = np.zeros((90, 100), np.uint8)
    expected[30:50, 40:70] = 1
    assert np.array_equal(read(tmp_path / "map.tif"), expected)
    assert report.pixels == {"no change": 9000 - 600, "change": 600}


def test_each_date_is_normalised_by_itself():
    predictor = load_predictor(Difference(), SPEC, device="cpu")
    images = torch.rand(1, 6, 8, 8) * 100
    found = predictor(images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    pair = torch.stack([(images[:, :3] - mean) / std, (images[:, 3:] - mean) / std], 1)
    torch.testing.assert_close(found, Difference()(pair).softmax(1))


def test_what_is_missing_on_either_date_is_nodata(make_scene, tmp_path):
    before, after = noise(), noise(seed=1)
    before[:, :10, :10], after[:, -10:, -10:] = 0, 0
    first = make_scene(before, "a.tif", nodata=0)
    second = make_scene(after, "b.tif", nodata=0)
    run(first, second, tmp_path / "map.tif")
    missing = np.zeros((90, 100), bool)
    missing[:10, :10] = missing[-10:, -10:] = True
    assert np.array_equal(read(tmp_path / "map.tif") == 255, missing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crs": "EPSG:32634"}, "EPSG:32634 and not EPSG:32633"),
        ({"transform": NORTH_UP @ Affine.translation(3, 0)}, "shifted by 3 px"),
        ({"transform": NORTH_UP @ Affine.translation(0.1, 0)}, "shifted by 0.1 px"),
    ],
)
def test_another_grid_is_refused_and_named(make_scene, tmp_path, options, message):
    first, second = make_scene(noise(), "a.tif"), make_scene(noise(), "b.tif", **options)
    with pytest.raises(GridMismatchError, match=rf"b\.tif is not on.*a\.tif: {message}; --align"):
        run(first, second, tmp_path / "map.tif")
    assert leftovers(tmp_path) == ["a.tif", "b.tif"]


def test_another_size_is_refused_and_named(make_scene, tmp_path):
    first, second = make_scene(noise(), "a.tif"), make_scene(noise(91, 100), "b.tif")
    with pytest.raises(GridMismatchError, match="100 x 91 px and not 100 x 90"):
        run(first, second, tmp_path / "map.tif")


@pytest.mark.parametrize("nodata", [None, 0])
def test_aligning_brings_the_second_date_to_the_grid_of_the_first(make_scene, tmp_path, nodata):
    before = noise()
    first = make_scene(before, "a.tif")
    moved = make_scene(
        np.ascontiguousarray(before[:, 20:, 30:]),
        "b.tif",
        transform=NORTH_UP @ Affine.translation(30, 20),
        nodata=nodata,
    )
    run(first, moved, tmp_path / "map.tif", align=True)
    found = read(tmp_path / "map.tif")
    assert (found[20:, 30:] == 0).all()  # the same ground: nothing has changed
    assert (found[:20] == 255).all() and (found[:, :30] == 255).all()


def test_aligning_crosses_reference_systems(make_scene, tmp_path):
    from rasterio.vrt import WarpedVRT

    ramp = np.stack([np.add.outer(np.arange(90), np.arange(100))] * 3).astype(np.uint8)
    first = make_scene(ramp, "a.tif")
    with rasterio.open(first) as source, WarpedVRT(source, crs="EPSG:4326", nodata=0) as warped:
        other = make_scene(
            warped.read(), "b.tif", crs="EPSG:4326", transform=warped.transform, nodata=0
        )
    run(first, other, tmp_path / "map.tif", align=True)
    inner = read(tmp_path / "map.tif")[10:-10, 10:-10]
    assert (inner == 0).all()


def test_resolution_and_area_hold_for_both_dates(dates, tmp_path):
    bounds = [*(NORTH_UP @ (20, 80)), *(NORTH_UP @ (80, 20))]
    run(*dates, tmp_path / "map.tif", resolution=20.0, aoi=bounds, aoi_crs="EPSG:32633")
    found = read(tmp_path / "map.tif")
    assert found.shape == (30, 30)
    expected = np.zeros((30, 30), np.uint8)
    expected[5:15, 10:25] = 1
    assert np.array_equal(found, expected)


def test_dates_and_model_must_fit(dates, make_scene, tmp_path):
    out = tmp_path / "map.tif"
    with pytest.raises(ConfigError, match="--second"):
        run(dates[0], None, out)
    with pytest.raises(ConfigError, match="leave out the second"):
        map_scene(nn.Conv2d(3, 3, 1), dates[0], out, second=dates[1], spec=spec(), **SMALL)
    five = make_scene(np.ones((5, 90, 100), np.uint8), "five.tif")
    with pytest.raises(BandMismatchError, match=r"five\.tif has 5"):
        run(dates[0], five, out)
    # a function gets the bands of both dates
    map_scene(lambda images: brightest(images[:, 3:]), dates[0], out, second=dates[1], **SMALL)
    assert np.array_equal(read(out), noise().argmax(0))

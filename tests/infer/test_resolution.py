"""Ground sampling distance: checked against the model's, changed on request."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from torch import nn

from rsmamba.errors import ConfigError, CRSError, ResolutionError
from rsmamba.infer import map_scene
from rsmamba.infer.source import SceneSource
from tests.infer.conftest import NORTH_UP, brightest, leftovers, spec

SMALL = {"tile": 32, "halo": 8, "block": 48, "progress": False}


class Brightest(nn.Module):
    """The brightest normalised band."""

    def forward(self, images):
        return images


def module(gsd):
    return Brightest(), spec(gsd=gsd, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def smooth(height=96, width=80):
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows + 40, cols + 60, np.full_like(rows, 100)]).astype(np.uint8)


def read(path):
    with rasterio.open(path) as source:
        return source.read(1), source.transform


@pytest.mark.parametrize(
    ("trained", "fits"), [(8.1, True), (12.4, True), (7.9, False), (14, False)]
)
def test_more_than_a_quarter_off_needs_an_explicit_resolution(make_scene, tmp_path, trained, fits):
    scene, out = make_scene(smooth()), tmp_path / "map.tif"
    model, described = module(trained)
    if not fits:
        with pytest.raises(ResolutionError, match=r"10 m to the pixel.*--resolution 10 as it is"):
            map_scene(model, scene, out, spec=described, **SMALL)
        assert leftovers(tmp_path) == ["scene.tif"]
    map_scene(model, scene, out, spec=described, resolution=None if fits else 10.0, **SMALL)
    classes, transform = read(out)
    assert transform == NORTH_UP
    assert np.array_equal(classes, smooth().argmax(0))


@pytest.mark.parametrize(("resolution", "factor"), [(20.0, 2), (5.0, 0.5), (30.0, 3)])
def test_the_grid_keeps_its_corner_and_orientation(make_scene, tmp_path, resolution, factor):
    turned = Affine(8, 6, 300000, 6, -8, 5000000)  # pixels of 10 m, turned
    out = tmp_path / "map.tif"
    map_scene(
        brightest, make_scene(smooth(), transform=turned), out, resolution=resolution, **SMALL
    )
    classes, transform = read(out)
    assert transform.almost_equals(turned @ Affine.scale(factor), 1e-9)
    assert classes.shape == (int(96 / factor), int(80 / factor))
    assert (classes != 255).all()


def test_larger_pixels_are_means_of_those_that_they_hold(make_scene):
    pixels = smooth()
    with SceneSource(make_scene(pixels)) as source:
        source.resample(20.0)
        found = source.read(source_box(source)).image
    expected = pixels.reshape(3, 48, 2, 40, 2).mean((2, 4))
    assert np.abs(found - expected).max() <= 0.5  # bytes


def source_box(source):
    from rsmamba.infer.grid import Box

    return Box(0, 0, source.grid.height, source.grid.width)


def test_blocks_change_nothing_at_another_resolution(make_scene, tmp_path):
    scene = make_scene(np.random.default_rng(0).integers(1, 250, (3, 130, 110), np.uint8))
    for block in (32, 1000):
        map_scene(
            brightest,
            scene,
            tmp_path / f"{block}.tif",
            resolution=14.0,
            **{**SMALL, "block": block},
        )
    assert np.array_equal(read(tmp_path / "32.tif")[0], read(tmp_path / "1000.tif")[0])


def test_nodata_stays_nodata_at_another_resolution(make_scene, tmp_path):
    pixels = smooth()
    pixels[:, :20, :20] = 0
    for name, options in (("value", {"nodata": 0}), ("mask", {"mask": (pixels[0] > 0) * 255})):
        scene, out = make_scene(pixels, f"{name}.tif", **options), tmp_path / f"{name}_map.tif"
        map_scene(brightest, scene, out, resolution=20.0, **SMALL)
        classes, _ = read(out)
        assert (classes[:10, :10] == 255).all(), name
        assert (classes[10:] != 255).all() and (classes[:, 10:] != 255).all(), name


def test_degrees_and_local_systems(make_scene, tmp_path):
    geographic = make_scene(
        smooth(), crs="EPSG:4326", transform=Affine(1e-4, 0, 10, 0, -1e-4, 0.005)
    )
    report = map_scene(brightest, geographic, tmp_path / "map.tif", resolution=22.2, **SMALL)
    assert (report.height, report.width) == (47, 39) or (report.height, report.width) == (48, 40)
    local = make_scene(smooth(), "local.tif", crs='LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(CRSError, match="local system"):
        map_scene(brightest, local, tmp_path / "l.tif", resolution=20.0, **SMALL)
    with pytest.raises(ConfigError, match="more than 0"):
        map_scene(brightest, geographic, tmp_path / "l.tif", resolution=-1.0, **SMALL)

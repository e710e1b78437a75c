"""Raster outputs: areas on the ellipsoid, and what is refused before any work."""

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from rsmamba.errors import ConfigError, OutputExistsError, OutputNotWritableError
from rsmamba.gis.raster import (
    RasterGrid,
    check_raster_output,
    class_layer,
    count_valid,
    part,
    read_class_names,
    scratch_folder,
    write_cog,
    write_mosaic,
)

UTM = CRS.from_epsg(32633)
EARTH_KM2 = 510_065_622  # WGS 84 ellipsoid


@pytest.mark.parametrize(
    ("epsg", "transform", "size", "expected"),
    [
        # one degree by one degree at the equator, and at 60 degrees north (Karney's geodesics)
        (4326, Affine(0.01, 0, 10, 0, -0.01, 1), 100, 12308.8),
        (4326, Affine(0.01, 0, 10, 0, -0.01, 61), 100, 6122.6),
        # across the antimeridian
        (32601, Affine(1000, 0, 117000, 0, -1000, 200000), 100, 100 * 100 * 0.996),
        # Web Mercator at 60 degrees exaggerates areas fourfold
        (3857, Affine(10, 0, 1e6, 0, -10, 8399737.9), 100, 0.2513),
    ],
)
def test_areas_are_those_of_the_ellipsoid(epsg, transform, size, expected):
    area = RasterGrid(size, size, CRS.from_epsg(epsg), transform).area_km2()
    assert area == pytest.approx(expected, rel=5e-3)


def test_the_whole_earth_has_its_area():
    grid = RasterGrid(180, 360, CRS.from_epsg(4326), Affine(1, 0, -180, 0, -1, 90))
    assert grid.area_km2() == pytest.approx(EARTH_KM2, rel=0.01)


def test_a_local_reference_system_has_no_area():
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    assert RasterGrid(5, 5, local, Affine(1, 0, 0, 0, -1, 0)).area_km2() is None


def test_outputs_are_checked(tmp_path):
    (tmp_path / "there.tif").touch()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_raster_output(tmp_path / "there.tif")
    assert check_raster_output(tmp_path / "there.tif", overwrite=True).name == "there.tif"
    for remote in ("/vsis3/bucket/a.tif", "s3://bucket/a.tif"):
        with pytest.raises(OutputNotWritableError, match="copy it"):
            check_raster_output(remote)
    with pytest.raises(ConfigError, match=r"\.tif"):
        check_raster_output(tmp_path / "map.gpkg")


def test_scratch_folders_vanish_whatever_happens(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "map.tif") as folder:
        (folder / "tiled.tif").touch()
        assert folder.stat().st_dev == tmp_path.stat().st_dev
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_cannot_be_made_is_a_typed_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputNotWritableError, match=r"map\.tif"),
        scratch_folder(tmp_path / "file" / "map.tif"),
    ):
        pass


def test_parts_are_joined_and_what_none_covers_is_nodata(tmp_path):
    transform = Affine(10.1, 0.3, 5e5 + 1 / 3, 0.2, -10.7, 5e6 + 1 / 7)
    grid = RasterGrid(600, 700, UTM, transform)
    places = {"a.tif": (0, 0, 10, 20), "b.tif": (10, 600, 5, 100)}
    for name, (_, _, height, width) in places.items():
        with part(tmp_path / name, 1, height, width) as target:
            target.write(np.ones((1, height, width), np.uint8))
    layer = class_layer(("Wald", "Straße <&>"), (), {"a": "<b> & c"})
    mosaic, cog = tmp_path / "class.vrt", tmp_path / "cog.tif"
    write_mosaic(mosaic, grid, layer, [(tmp_path / n, p) for n, p in places.items()])
    write_cog(mosaic, cog, overviews="mode")
    assert count_valid(cog) == 200 + 500
    with rasterio.open(cog) as source:
        assert read_class_names(source) == ("Wald", "Straße <&>")
        assert source.tags()["a"] == "<b> & c"
        assert source.transform == transform and source.crs == UTM
        pixels = source.read(1)
    expected = np.full((600, 700), 255, np.uint8)
    expected[:10, :20] = expected[10:15, 600:] = 1
    assert np.array_equal(pixels, expected)


def test_a_part_that_fails_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), part(tmp_path / "a.tif", 1, 4, 4):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("epsg", "transform", "expected"),
    [
        (32633, Affine(10, 0, 5e5, 0, -10, 5e6), 10.0),
        (4326, Affine(1e-4, 0, 10, 0, -1e-4, 60), (5.580 + 11.141) / 2),
        # A web map's metre is half a metre on the ground at 60 degrees.
        (3857, Affine(2, 0, 1113194.9, 0, -2, 8399737.9), 1.0),
    ],
)
def test_resolution_is_measured_on_the_ground(epsg, transform, expected):
    grid = RasterGrid(50, 50, CRS.from_epsg(epsg), transform)
    assert grid.gsd() == pytest.approx(expected, rel=5e-3)


def test_a_local_reference_system_has_no_resolution():
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    assert RasterGrid(50, 50, local, Affine(1, 0, 0, 0, -1, 0)).gsd() is None

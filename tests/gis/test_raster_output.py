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
    count_valid,
    create_tiled,
    make_class_map,
    read_class_names,
    scratch_folder,
    write_cog,
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


def test_unwritten_tiles_read_as_nodata_and_names_come_back(tmp_path):
    grid = RasterGrid(600, 700, UTM, Affine(10, 0, 5e5, 0, -10, 5e6))
    tiled, cog = tmp_path / "tiled.tif", tmp_path / "cog.tif"
    with create_tiled(tiled, grid, count=1, tags={"a": "b"}, descriptions=["class"]) as target:
        make_class_map(target, ("Wald", "Straße"), ())
        target.write(np.ones((1, 10, 20), np.uint8), window=((0, 10), (0, 20)))
    write_cog(tiled, cog, overviews="mode")
    assert count_valid(cog) == 200
    with rasterio.open(cog) as source:
        assert read_class_names(source) == ("Wald", "Straße")
        assert source.tags()["a"] == "b"
        assert source.read(1)[500, 600] == 255
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cog.tif", "tiled.tif"]

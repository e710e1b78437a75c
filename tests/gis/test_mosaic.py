"""Mosaics: many class maps of one grid as one virtual raster."""

import shutil

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from rsmamba.errors import (
    ConfigError,
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
    OutputExistsError,
)
from rsmamba.gis.mosaic import mosaic_vrt
from rsmamba.gis.raster import (
    RasterGrid,
    class_layer,
    part,
    read_class_names,
    write_cog,
    write_mosaic,
)

UTM = CRS.from_epsg(32633)
BASE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
NAMES, COLOURS = ("water", "wood & field"), ("#0000ff", "#00aa00")


def class_map(path, values, transform=BASE, crs=UTM, names=NAMES, tags=None):
    """A class map as map_scene writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels, joined = path.parent / "part.tif", path.parent / "part.vrt"
    values = np.asarray(values, np.uint8)
    with part(pixels, 1, *values.shape) as target:
        target.write(values, 1)
    layer = class_layer(names, COLOURS[: len(names)], tags or {})
    grid = RasterGrid(*values.shape, crs, transform)
    write_mosaic(joined, grid, layer, [(pixels, (0, 0, *values.shape))])
    write_cog(joined, path, overviews="mode")
    pixels.unlink()
    joined.unlink()
    return path


def test_maps_side_by_side_are_one_raster_with_nodata_between(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (3, 20, 30), dtype=np.uint8)
    places = [(0, 0), (20, 45), (-7, -40)]  # row, column
    maps = [
        class_map(tmp_path / f"{i}.tif", v, BASE @ Affine.translation(col, row), tags={"k": "same"})
        for i, (v, (row, col)) in enumerate(zip(values, places, strict=True))
    ]
    path = mosaic_vrt(maps, tmp_path / "all.vrt")
    expected = np.full((47, 115), 255, np.uint8)
    for v, (row, col) in zip(values, places, strict=True):
        expected[row + 7 : row + 27, col + 40 : col + 70] = v
    with rasterio.open(path) as source:
        assert (source.read(1) == expected).all()
        assert (source.nodata, source.crs, source.count) == (255, UTM, 1)
        assert source.transform == BASE @ Affine.translation(-40, -7)
        assert read_class_names(source) == NAMES
        assert source.colormap(1)[0] == (0, 0, 255, 255)
        assert source.colormap(1)[1] == (0, 170, 0, 255)
        assert source.colormap(1)[255] == (0, 0, 0, 0)
        assert source.colorinterp[0].name == "palette"


def test_where_maps_overlap_nodata_hides_no_class(tmp_path):
    left = class_map(tmp_path / "a.tif", [[0, 0, 255, 0]])
    right = class_map(tmp_path / "b.tif", [[255, 1, 1, 1]], BASE @ Affine.translation(1, 0))
    path = mosaic_vrt([left, right], tmp_path / "all.vrt")
    with rasterio.open(path) as source:
        assert source.read(1).tolist() == [[0, 0, 1, 1, 1]]


def test_maps_in_other_folders_are_found_also_after_moving_all_together(tmp_path):
    maps = [
        class_map(tmp_path / "x" / "one" / "a.tif", [[0]]),
        class_map(tmp_path / "x" / "b & c.tif", [[1]], BASE @ Affine.translation(1, 0)),
    ]
    (tmp_path / "x" / "out").mkdir()
    mosaic_vrt(maps, tmp_path / "x" / "out" / "all.vrt")
    shutil.move(tmp_path / "x", tmp_path / "y")
    with rasterio.open(tmp_path / "y" / "out" / "all.vrt") as source:
        assert source.read(1).tolist() == [[0, 1]]


def test_rotated_and_south_up_maps_keep_their_transform(tmp_path):
    for i, base in enumerate([BASE @ Affine.rotation(20), Affine(10, 0, 5e5, 0, 10, 5e6)]):
        maps = [
            class_map(tmp_path / f"{i}a.tif", [[0, 1]], base),
            class_map(tmp_path / f"{i}b.tif", [[1, 1]], base @ Affine.translation(2, 0)),
        ]
        with rasterio.open(mosaic_vrt(maps, tmp_path / f"{i}.vrt")) as source:
            assert source.transform == base
            assert source.read(1).tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"crs": CRS.from_epsg(32634)}, CRSError, r"EPSG:32634.*EPSG:32633.*gdalwarp -t_srs"),
        (
            {"transform": Affine(20, 0, 500_000, 0, -20, 5_000_000)},
            GridMismatchError,
            r"20 x -20.*10 x -10.*gdalwarp -tr",
        ),
        (
            {"transform": BASE @ Affine.translation(0.25, 3)},
            GridMismatchError,
            r"\(0\.25, 0\) pixels beside the grid.*gdalwarp",
        ),
        ({"transform": BASE @ Affine.rotation(90)}, GridMismatchError, "gdalwarp"),
        ({"transform": BASE @ Affine(0, 1, 0, 1, 0, 0)}, GridMismatchError, "gdalwarp"),
        ({"transform": Affine(10, 0, 5e5, 0, 10, 5e6)}, GridMismatchError, "10 x 10"),
        ({"names": ("water", "town")}, LabelError, "one model"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_differs_and_the_remedy(
    tmp_path, change, error, says
):
    maps = [
        class_map(tmp_path / "a.tif", np.zeros((40, 40))),
        class_map(tmp_path / "b.tif", np.zeros((40, 40)), **change),
    ]
    with pytest.raises(error, match=says) as caught:
        mosaic_vrt(maps, tmp_path / "all.vrt")
    assert "b.tif" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "all.vrt").exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_class_map_is_refused(tmp_path):
    good = class_map(tmp_path / "a.tif", [[0]])
    other = tmp_path / "scores.tif"
    profile = {"driver": "GTiff", "height": 1, "width": 1, "count": 1, "dtype": "uint8"}
    with rasterio.open(other, "w", crs=UTM, transform=BASE, nodata=255, **profile) as target:
        target.write(np.zeros((1, 1, 1), np.uint8))
    (tmp_path / "text.tif").write_text("no raster")
    for path, error, says in [
        (other, LabelError, "rsmamba map"),
        (tmp_path / "text.tif", ImageReadError, "text.tif"),
        (tmp_path / "missing.tif", DataNotFoundError, "missing.tif"),
    ]:
        with pytest.raises(error, match=says):
            mosaic_vrt([good, path], tmp_path / "all.vrt")
    with pytest.raises(DataNotFoundError, match="at least one"):
        mosaic_vrt([], tmp_path / "all.vrt")
    with pytest.raises(ConfigError, match=r"\.vrt"):
        mosaic_vrt([good], tmp_path / "all.tif")


def test_an_existing_mosaic_is_replaced_only_when_told_to(tmp_path):
    good = class_map(tmp_path / "a.tif", [[0]])
    mosaic_vrt([good], tmp_path / "all.vrt")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        mosaic_vrt([good], tmp_path / "all.vrt")
    mosaic_vrt([good], tmp_path / "all.vrt", overwrite=True)


def test_tags_that_all_maps_share_are_kept(tmp_path):
    same = {"rsmamba_spec": '{"one": 1}'}
    first = class_map(tmp_path / "a.tif", [[0]], tags=same)
    second = class_map(tmp_path / "b.tif", [[0]], BASE @ Affine.translation(1, 0), tags=same)
    third = class_map(tmp_path / "c.tif", [[0]], BASE @ Affine.translation(2, 0))
    with rasterio.open(mosaic_vrt([first, second], tmp_path / "two.vrt")) as source:
        assert source.tags()["rsmamba_spec"] == same["rsmamba_spec"]
    with rasterio.open(mosaic_vrt([first, second, third], tmp_path / "all.vrt")) as source:
        assert "rsmamba_spec" not in source.tags()

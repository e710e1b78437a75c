"""Polygons from class maps."""

from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import Affine

from rsmamba.errors import (
    ConfigError,
    CRSError,
    DataNotFoundError,
    ImageReadError,
    LabelError,
    OutputExistsError,
    OutputNotWritableError,
)
from rsmamba.gis import vector
from rsmamba.gis.vector import vectorize

UTM = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
FORMATS = (".gpkg", ".fgb", ".parquet")


@pytest.fixture
def make_map(tmp_path):
    """Write a class map."""

    def make(
        classes, crs="EPSG:32633", transform=UTM, names='["water", "field", "wood"]', **options
    ):
        path = tmp_path / "map.tif"
        height, width = classes.shape
        settings = {"dtype": classes.dtype, "nodata": 255, "crs": crs, "transform": transform}
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=1, **settings | options
        ) as target:
            if names:
                target.update_tags(class_names=names)
            target.write(classes, 1)
        return path

    return make


def patches(height=60, width=80):
    """A map with water, a field that touches itself at a corner, a wood with a lake, nodata."""
    classes = np.zeros((height, width), np.uint8)
    classes[10:20, 10:20] = classes[20:30, 20:30] = 1
    classes[35:55, 40:70] = 2
    classes[40:45, 50:60] = 0
    classes[:5] = 255
    return classes


def read(path):
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_polygons_are_the_map(make_map, tmp_path, suffix):
    classes = patches()
    report = vectorize(make_map(classes), tmp_path / f"out{suffix}")
    layer = read(tmp_path / f"out{suffix}")
    assert layer.crs.to_epsg() == 32633
    assert set(layer.columns) == {"class", "name", "area_m2", "geometry"}
    assert set(layer.geom_type) == {"Polygon"} and layer.is_valid.all()
    # 4-connected: the two fields touch at a corner and are two
    assert sorted(layer["name"]) == ["field", "field", "water", "water", "wood"]
    burnt = rasterize(
        zip(layer.geometry, layer["class"], strict=True),
        out_shape=classes.shape,
        transform=UTM,
        fill=255,
        dtype=np.uint8,
    )
    np.testing.assert_array_equal(burnt, classes)
    assert report.polygons == 5 and report.count == {"field": 2, "water": 2, "wood": 1}
    for name, area in report.area_m2.items():
        assert layer[layer["name"] == name]["area_m2"].sum() == pytest.approx(area)


def test_areas_are_pixel_counts_times_pixel_area(make_map, tmp_path):
    classes = patches()
    vectorize(make_map(classes), tmp_path / "out.gpkg")
    layer = read(tmp_path / "out.gpkg")
    counts = layer.area / 100  # in pixels, by the map's own coordinates
    np.testing.assert_allclose(counts.sum(), (classes != 255).sum(), rtol=1e-12)
    # on the ellipsoid, UTM's central meridian is scaled by 0.9996
    np.testing.assert_allclose(layer["area_m2"], counts * 100 / 0.9996**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(0.001, 0, 10, 0, -0.001, 60)),
        ("EPSG:3857", Affine(30, 0, 1e6, 0, -30, 8e6)),
        ("EPSG:3413", Affine(500, 0, -20000, 0, -500, 15000)),  # over the north pole
        ("EPSG:4326", Affine(0.01, 0, 179.6, 0, -0.01, 10)),  # over the antimeridian
        ("EPSG:32633", Affine(8.0, 2.0, 5e5, 3.0, -9.0, 5e6)),  # rotated
        ("EPSG:32633", Affine(10.0, 0.0, 5e5, 0.0, 10.0, 4e6)),  # south-up
    ],
)
def test_areas_are_those_of_the_ellipsoid_everywhere(make_map, tmp_path, crs, transform):
    classes = patches()
    vectorize(make_map(classes, crs, transform), tmp_path / "out.gpkg")
    layer = read(tmp_path / "out.gpkg")
    geod = pyproj.Geod(ellps="WGS84")
    dense = layer.geometry.segmentize(max(abs(transform.a), abs(transform.d)))
    lonlat = dense.set_crs(crs, allow_override=True).to_crs(4326)
    expected = [abs(geod.geometry_area_perimeter(g)[0]) for g in lonlat]
    np.testing.assert_allclose(layer["area_m2"], expected, rtol=2e-4)


def test_a_region_is_one_feature_across_internal_tiles(make_map, tmp_path):
    classes = np.zeros((300, 300), np.uint8)
    classes[5:295, 100:140] = 1
    classes[100:140, 5:295] = 1
    path = make_map(classes, tiled=True, blockxsize=64, blockysize=64)
    report = vectorize(path, tmp_path / "out.fgb", classes=["field"])
    assert report.polygons == 1
    assert read(tmp_path / "out.fgb").area.sum() == 100 * (classes == 1).sum()


@pytest.mark.parametrize("suffix", FORMATS)
def test_many_chunks_lose_nothing(make_map, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(vector, "_CHUNK", 50)
    classes = np.random.default_rng(0).integers(0, 3, (60, 60), dtype=np.uint8)
    report = vectorize(make_map(classes), tmp_path / f"out{suffix}")
    layer = read(tmp_path / f"out{suffix}")
    assert len(layer) == report.polygons > 1000 and layer.is_valid.all()
    sizes = layer.assign(size=layer.area / 100).groupby("class")["size"].sum()
    np.testing.assert_allclose(sizes, np.bincount(classes.ravel()))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_map_without_polygons_gives_an_empty_layer(make_map, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    report = vectorize(make_map(np.full((20, 30), 255, np.uint8)), out)
    layer = read(out)
    assert len(layer) == 0 == report.polygons
    assert layer.crs.to_epsg() == 32633
    assert {"class", "name", "area_m2"} <= set(layer.columns)


def test_small_polygons_are_left_out_and_counted(make_map, tmp_path):
    report = vectorize(make_map(patches()), tmp_path / "out.gpkg", min_area=15_000)
    layer = read(tmp_path / "out.gpkg")
    assert sorted(layer["name"]) == ["water", "wood"] and layer["area_m2"].min() >= 15_000
    assert report.too_small == 3


@pytest.mark.parametrize("chosen", [["field", "wood"], [1, 2], ["1", "wood"]])
def test_classes_are_chosen_by_name_or_value(make_map, tmp_path, chosen):
    vectorize(make_map(patches()), tmp_path / "out.gpkg", classes=chosen)
    assert set(read(tmp_path / "out.gpkg")["class"]) == {1, 2}


def test_maps_without_names_get_values_for_names(make_map, tmp_path):
    path = make_map(patches(), names=None)
    vectorize(path, tmp_path / "out.gpkg", classes=[2])
    assert set(read(tmp_path / "out.gpkg")["name"]) == {"class_2"}
    with pytest.raises(LabelError, match="no names"):
        vectorize(path, tmp_path / "other.gpkg", classes=["wood"])


@pytest.mark.parametrize("chosen", ["swamp", 3, "7", -1])
def test_unknown_classes_are_refused_with_the_known_ones(make_map, tmp_path, chosen):
    with pytest.raises(LabelError, match="water, field, wood"):
        vectorize(make_map(patches()), tmp_path / "out.gpkg", classes=[chosen])


def test_outputs_are_checked_first(make_map, tmp_path):
    path = make_map(patches())
    out = tmp_path / "out.gpkg"
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        vectorize(path, out)
    assert out.read_text() == "precious"
    vectorize(path, out, overwrite=True)
    assert len(read(out)) == 5
    with pytest.raises(OutputNotWritableError):
        vectorize(path, tmp_path / "absent" / "out.gpkg")
    with pytest.raises(ConfigError, match=r"\.gpkg"):
        vectorize(path, tmp_path / "out.shp")
    with pytest.raises(ConfigError, match="min_area"):
        vectorize(path, tmp_path / "new.gpkg", min_area=-1)


def test_what_is_no_class_map_is_refused(make_map, tmp_path):
    out = tmp_path / "out.gpkg"
    with pytest.raises(DataNotFoundError):
        vectorize(tmp_path / "absent.tif", out)
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    with pytest.raises(ImageReadError, match=r"text\.tif"):
        vectorize(text, out)
    with pytest.raises(ImageReadError, match="float32"):
        vectorize(make_map(patches().astype(np.float32)), out)
    with pytest.raises(CRSError):
        vectorize(make_map(patches(), crs=None), out)
    with pytest.raises(CRSError, match="areas"):
        vectorize(make_map(patches(), crs='LOCAL_CS["site",UNIT["metre",1]]'), out)
    assert not out.exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_map_leaves_nothing(make_map, tmp_path, suffix):
    classes = np.random.default_rng(0).integers(0, 3, (256, 256), dtype=np.uint8)
    path = make_map(classes, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageReadError, match=r"map\.tif") as caught:
        vectorize(path, tmp_path / f"out{suffix}")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError("full")])
def test_an_interruption_leaves_nothing(make_map, tmp_path, monkeypatch, suffix, failure):
    def stop(*_):
        raise failure

    monkeypatch.setattr(vector.shapely, "to_wkb", stop)
    with pytest.raises(type(failure)):
        vectorize(make_map(patches()), tmp_path / f"out{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.shared
def test_a_real_scene_thresholded_comes_back_pixel_for_pixel(make_map, tmp_path):
    scene = Path(__file__).parents[2] / "../shared/data/geotiff/nl_ortho_1000x1000_EPSG28992.tif"
    if not scene.exists():
        pytest.skip(f"{scene} is not here")
    with rasterio.open(scene) as source:
        crs, transform = source.crs, source.transform
        classes = (source.read(1)[:400, :400] // 64).astype(np.uint8)
    vectorize(make_map(classes, crs, transform, names=None), tmp_path / "out.fgb")
    layer = read(tmp_path / "out.fgb")
    burnt = rasterize(
        zip(layer.geometry, layer["class"], strict=True),
        out_shape=classes.shape,
        transform=transform,
        fill=255,
        dtype=np.uint8,
    )
    np.testing.assert_array_equal(burnt, classes)
    assert layer.is_valid.all()

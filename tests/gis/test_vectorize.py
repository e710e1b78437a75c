"""Polygons from class maps."""

import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.features import rasterize, shapes
from rasterio.transform import Affine
from rasterio.windows import Window
from shapely import get_num_coordinates
from shapely.geometry import shape

from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
    OutputExistsError,
    OutputNotWritableError,
)
from rsmamba.gis import polygons, vector, vector_write
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
        ("EPSG:4326", Affine(0.2, 0, 10, 0, -0.1, 60)),  # 800 km: edges are arcs
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
def test_many_strips_and_batches_lose_nothing(make_map, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(polygons, "_STRIP", 7 * 60)
    monkeypatch.setattr(vector_write, "_ROWS", 50)
    classes = np.random.default_rng(0).integers(0, 3, (60, 60), dtype=np.uint8)
    report = vectorize(make_map(classes), tmp_path / f"out{suffix}")
    layer = read(tmp_path / f"out{suffix}")
    assert len(layer) == report.polygons > 1000 and layer.is_valid.all()
    sizes = layer.assign(size=layer.area / 100).groupby("class")["size"].sum()
    np.testing.assert_allclose(sizes, np.bincount(classes.ravel()))


def in_one_pass(classes):
    """What GDAL makes of the whole map at once: value, area, bounds, polygon."""
    found = [(int(v), shape(g)) for g, v in shapes(classes, classes != 255, transform=UTM)]
    return sorted(((v, g.area, g.bounds, g) for v, g in found), key=lambda row: row[:3])


def assert_same_polygons(layer, classes):
    rows = zip(layer["class"], layer.area, map(tuple, layer.bounds.to_numpy()), strict=True)
    got = sorted(zip(*zip(*rows, strict=True), layer.geometry, strict=True), key=lambda r: r[:3])
    expected = in_one_pass(classes)
    assert [row[:3] for row in got] == [row[:3] for row in expected]
    for row, other in zip(got, expected, strict=True):
        twins = [r[3] for r in expected if r[:3] == row[:3]]
        assert row[3].is_valid and any(row[3].equals(twin) for twin in twins)
        assert get_num_coordinates(row[3]) <= max(get_num_coordinates(t) for t in twins)
        assert other[3].geom_type == "Polygon"


def spiral(size):
    """One region that winds to the middle, through every strip again and again."""
    classes = np.zeros((size, size), np.uint8)
    for ring in range(0, size // 2, 4):
        classes[ring, ring : size - ring] = classes[ring : size - ring, size - 1 - ring] = 1
        classes[size - 1 - ring, ring : size - ring] = 1
        classes[ring + 4 : size - ring, ring] = 1
        classes[ring + 4, ring : ring + 5] = 1
    return classes


def holes_touching():
    """Holes that touch each other and the outside at corners, across rows."""
    classes = np.ones((12, 12), np.uint8)
    for i in range(1, 11):
        classes[i, i] = 0
    classes[2, 8] = classes[3, 9] = classes[2, 10] = classes[1, 9] = 2
    classes[8:11, 1:4] = 2
    classes[9, 2] = 255
    return classes


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "classes",
    [
        spiral(33),
        holes_touching(),
        np.indices((9, 9)).sum(0).astype(np.uint8) % 2,  # a chequerboard: corners only
        np.tile(np.array([[0, 1]], np.uint8), (9, 6)),  # columns through all strips
        np.tile(np.array([[0], [1]], np.uint8), (5, 7)),  # seams that are borders
        np.full((7, 5), 3, np.uint8),
        np.array([[1]], np.uint8),
        np.array([[0, 255, 0, 0, 1]], np.uint8),
    ],
)
def test_strips_give_what_one_pass_gives(make_map, tmp_path, monkeypatch, classes, rows):
    monkeypatch.setattr(polygons, "_STRIP", rows * classes.shape[1])
    vectorize(make_map(classes, names=None), tmp_path / "out.fgb")
    assert_same_polygons(read(tmp_path / "out.fgb"), classes)


@pytest.mark.parametrize("seed", range(12))
def test_random_maps_in_strips_of_any_height(make_map, tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    height, width, count = rng.integers(4, 40), rng.integers(1, 40), rng.integers(1, 4)
    classes = rng.integers(0, count + 1, (height, width)).astype(np.uint8)
    classes = np.kron(classes, np.ones(rng.integers(1, 4, 2), np.uint8))
    classes[classes == count] = 255
    monkeypatch.setattr(polygons, "_STRIP", int(rng.integers(1, 9)) * classes.shape[1])
    vectorize(make_map(classes, names=None), tmp_path / "out.parquet")
    assert_same_polygons(read(tmp_path / "out.parquet"), classes)


def write_scores(path, scores, crs="EPSG:32633", transform=UTM, nodata=255, names=None, scale=None):
    with rasterio.open(
        path, "w", driver="GTiff", height=scores.shape[1], width=scores.shape[2],
        count=len(scores), dtype=scores.dtype, nodata=nodata, crs=crs, transform=transform,
    ) as target:  # fmt: skip
        target.write(scores)
        if names:
            target.descriptions = names
        if scale:
            target.scales = [scale] * len(scores)
    return path


@pytest.mark.parametrize("rows", [4, 1000])
def test_mean_scores_are_those_of_the_own_class_over_the_pixels(
    make_map, tmp_path, monkeypatch, rows
):
    rng = np.random.default_rng(1)
    classes = np.kron(rng.choice(3, (16, 18), p=(0.8, 0.1, 0.1)), np.ones((3, 3)))
    classes = classes.astype(np.uint8)  # mostly water, with many holes
    scores = rng.integers(0, 255, (3, *classes.shape), dtype=np.uint8)
    scores[:, rng.random(classes.shape) < 0.2] = 255
    scores[:, :3, :3] = 255
    classes[:3, :3] = 2
    classes[:3, 3] = classes[3, :4] = 1  # a polygon of its own, all of it without score
    path = write_scores(
        tmp_path / "scores.tif", scores, names=("water", "field", "wood"), scale=1 / 254
    )
    monkeypatch.setattr(polygons, "_STRIP", rows * classes.shape[1])
    vectorize(make_map(classes), tmp_path / "out.gpkg", scores=path)
    layer = read(tmp_path / "out.gpkg")
    number = rasterize(
        zip(layer.geometry, range(len(layer)), strict=True),
        out_shape=classes.shape,
        transform=UTM,
        fill=-1,
        dtype=np.int32,
    )
    for i, row in layer.iterrows():
        own = scores[row["class"]][number == i]
        own = own[own != 255]
        if len(own):
            assert row["mean_score"] == pytest.approx(own.mean() / 254)
        else:
            assert np.isnan(row["mean_score"])
    assert layer["mean_score"].isna().any() and len(layer) > 10


def test_mean_scores_of_a_region_whose_hole_begins_below_its_first_corner(make_map, tmp_path):
    classes = np.ones((7, 9), np.uint8)
    classes[0, 3] = 0
    classes[1:6, 1:8] = 0
    classes[2:4, 3:5] = 1
    scores = np.arange(2 * 63).reshape(2, 7, 9).astype(np.uint8)
    path = write_scores(tmp_path / "scores.tif", scores)
    vectorize(make_map(classes, names=None), tmp_path / "out.fgb", scores=path)
    layer = read(tmp_path / "out.fgb")
    row = layer[layer["class"] == 0].iloc[0]
    assert len(row.geometry.interiors) == 1
    assert row["mean_score"] == pytest.approx(scores[0][classes == 0].mean())


def test_scores_of_floats_leave_out_what_is_not_finite(make_map, tmp_path):
    classes = np.zeros((2, 3), np.uint8)
    scores = np.array([[[0.5, 1.0, np.nan], [0.25, np.inf, 0.25]]], np.float32)
    path = write_scores(tmp_path / "scores.tif", scores, nodata=None)
    vectorize(make_map(classes, names=None), tmp_path / "out.fgb", scores=path)
    assert read(tmp_path / "out.fgb")["mean_score"].tolist() == [0.5]


def test_an_empty_layer_has_the_column_of_the_scores(make_map, tmp_path):
    path = write_scores(tmp_path / "scores.tif", np.zeros((3, 20, 30), np.uint8))
    class_map = make_map(np.full((20, 30), 255, np.uint8))
    vectorize(class_map, tmp_path / "out.gpkg", scores=path, simplify=1)
    layer = read(tmp_path / "out.gpkg")
    assert len(layer) == 0 and "mean_score" in layer.columns


def test_scores_of_another_map_are_refused(make_map, tmp_path):
    class_map, out, path = make_map(patches()), tmp_path / "out.gpkg", tmp_path / "scores.tif"
    fit = np.zeros((3, 60, 80), np.uint8)
    with pytest.raises(DataNotFoundError, match="no such score raster"):
        vectorize(class_map, out, scores=path)
    for kwargs, message in (
        ({"crs": "EPSG:32634"}, "it is in EPSG:32634, the map in EPSG:32633"),
        ({"transform": UTM @ Affine.translation(0.5, 0)}, "0.5 pixels beside"),
        ({"scores": fit[:, 1:]}, "80 x 59 pixels"),
    ):
        scores = write_scores(path, kwargs.pop("scores", fit), **kwargs)
        with pytest.raises(GridMismatchError, match=message):
            vectorize(class_map, out, scores=scores)
    with pytest.raises(BandMismatchError, match="1 bands, but the map 3 classes"):
        vectorize(class_map, out, scores=write_scores(path, fit[:1]))
    with pytest.raises(BandMismatchError, match="sea, land, air"):
        vectorize(class_map, out, scores=write_scores(path, fit, names=("sea", "land", "air")))
    path.write_text("no raster")
    with pytest.raises(ImageReadError, match=r"scores\.tif"):
        vectorize(class_map, out, scores=path)
    two = write_scores(path, fit[:2])
    with pytest.raises(BandMismatchError, match="class 2"):
        vectorize(make_map(patches(), names=None), out, scores=two)
    assert {p.name for p in tmp_path.iterdir()} == {"map.tif", "scores.tif"}


@pytest.mark.slow
def test_a_map_of_20000_by_20000_pixels_takes_less_than_200_mb(tmp_path):
    path, out = tmp_path / "map.tif", tmp_path / "out.gpkg"
    y, x = np.meshgrid(*[np.arange(2000) * 2 * np.pi / 2000] * 2, indexing="ij")
    waves = [np.sin(a * x + c) * np.sin(b * y + 2 * c) for a, b, c in
             ((5, 11, 0), (18, 9, 1), (14, 20, 2), (26, 15, 3))]  # fmt: skip
    tile = np.argmax([waves[0] + waves[1], waves[2], waves[3], 0.3 * waves[1]], axis=0)
    with rasterio.open(
        path, "w", driver="GTiff", height=20000, width=20000, count=1, dtype="uint8", nodata=255,
        crs="EPSG:32633", transform=UTM, tiled=True, compress="deflate",
    ) as target:  # fmt: skip
        row = np.tile(tile.astype(np.uint8), (1, 10))
        for top in range(0, 20000, 2000):
            target.write(row, 1, window=Window(0, top, 20000, 2000))
    code = (
        "import resource, sys; from rsmamba.gis.vector import vectorize\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); report = vectorize(sys.argv[1], sys.argv[2])\n"
        "print(report.polygons, sum(report.area_m2.values()), peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    count, area, megabytes = map(float, done.stdout.split())
    assert count > 50_000
    assert area == pytest.approx(20000**2 * 100 / 0.9996**2, rel=1e-2)
    assert megabytes < 200


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

import json
import math

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import Affine, from_origin
from shapely.geometry import MultiPolygon, Point, Polygon, box
from torchmetrics.functional import accuracy, cohen_kappa, f1_score, jaccard_index
from torchmetrics.functional import precision as torch_precision
from torchmetrics.functional import recall as torch_recall

from rsmamba.errors import (
    ConfigError,
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
)
from rsmamba.gis.confusion import confusion_picture
from rsmamba.gis.evaluate import evaluate
from rsmamba.gis.scores import Evaluation, LeftOut

TRANSFORM = from_origin(500000, 4000000, 2, 2)


def write(path, array, *, crs="EPSG:32633", transform=TRANSFORM, nodata=255, tags=None):
    with rasterio.open(
        path, "w", driver="GTiff", width=array.shape[1], height=array.shape[0], count=1,
        dtype="uint8", crs=crs, transform=transform, nodata=nodata,
    ) as sink:  # fmt: skip
        sink.write(array.astype(np.uint8), 1)
        if tags:
            sink.update_tags(**tags)
    return path


@pytest.fixture
def prediction():
    array = np.zeros((40, 60), dtype=np.uint8)
    array[10:20, 10:30] = 1
    array[0, :] = 255
    return array


def test_figures_follow_from_the_counts():
    result = Evaluation(("no", "yes"), np.array([[50, 10], [20, 20]]))
    assert result.overall_accuracy == pytest.approx(0.7)
    assert result.iou == pytest.approx([50 / 80, 20 / 50])
    assert result.f1 == pytest.approx([100 / 130, 40 / 70])
    chance = (70 * 60 + 30 * 40) / 100**2
    assert result.kappa == pytest.approx((0.7 - chance) / (1 - chance))


def test_constant_answers_are_scored_on_the_same_truth():
    result = Evaluation(("no", "yes"), np.array([[50, 10], [20, 20]]))
    assert result.classes[result.majority] == "no"
    assert result.constant(0).iou == pytest.approx([0.6, 0.0])
    assert result.constant(1).iou == pytest.approx([0.0, 0.4])
    assert result.to_dict()["constant_answers"]["yes"]["f1"]["yes"] == pytest.approx(0.8 / 1.4)


def test_a_truth_raster_is_compared_pixel_by_pixel(tmp_path, prediction):
    truth = np.roll(prediction, 5, axis=1)
    truth[30:, :] = 255
    result = evaluate(write(tmp_path / "map.tif", prediction), write(tmp_path / "t.tif", truth))
    assert result.pixels == 29 * 60
    inside = np.s_[1:30]
    expected = np.zeros((2, 2), dtype=int)
    np.add.at(expected, (truth[inside].ravel(), prediction[inside].ravel()), 1)
    assert (result.confusion == expected).all()


def test_polygons_in_another_crs_are_brought_to_the_grid(tmp_path, prediction):
    square = box(500020, 4000000 - 40, 500060, 4000000 - 20)  # rows 10..19, columns 10..29
    layer = geopandas.GeoDataFrame(geometry=[square], crs="EPSG:32633").to_crs("EPSG:4326")
    layer.to_file(tmp_path / "truth.gpkg")
    result = evaluate(write(tmp_path / "map.tif", prediction), tmp_path / "truth.gpkg")
    assert result.iou[1] > 0.9
    assert result.confusion[1, 1] >= 190


def test_polygon_attributes_name_classes(tmp_path, prediction):
    tags = {"class_names": '["background", "house"]'}
    path = write(tmp_path / "map.tif", prediction, tags=tags)
    square = box(500020, 4000000 - 40, 500060, 4000000 - 20)
    layer = geopandas.GeoDataFrame({"kind": ["house"]}, geometry=[square], crs="EPSG:32633")
    layer.to_file(tmp_path / "truth.gpkg")
    assert evaluate(path, tmp_path / "truth.gpkg", attribute="kind").iou[1] == 1.0
    with pytest.raises(LabelError, match="no column 'type'; it has kind"):
        evaluate(path, tmp_path / "truth.gpkg", attribute="type")
    layer.assign(kind="castle").to_file(tmp_path / "other.gpkg")
    with pytest.raises(LabelError, match="castle"):
        evaluate(path, tmp_path / "other.gpkg", attribute="kind")


def test_blocks_give_what_the_whole_gives(tmp_path, prediction, monkeypatch):
    layer = geopandas.GeoDataFrame(geometry=[box(500011, 3999935, 500055, 3999985)], crs=32633)
    layer.to_file(tmp_path / "truth.gpkg")
    path = write(tmp_path / "map.tif", prediction)
    whole = evaluate(path, tmp_path / "truth.gpkg")
    monkeypatch.setattr("rsmamba.gis.evaluate._BLOCK", 7)
    assert (evaluate(path, tmp_path / "truth.gpkg").confusion == whole.confusion).all()


def test_bad_input_is_named(tmp_path, prediction):
    path = write(tmp_path / "map.tif", prediction)
    with pytest.raises(DataNotFoundError, match=r"nothing\.tif"):
        evaluate(path, tmp_path / "nothing.tif")
    shifted = from_origin(500001, 4000000, 2, 2)
    other = write(tmp_path / "shifted.tif", prediction, transform=shifted)
    with pytest.raises(GridMismatchError, match="not on the grid"):
        evaluate(path, other)
    with pytest.raises(LabelError, match=r"9 \(2,400 pixels\); it knows 0 class_0, 1 class_1"):
        evaluate(path, write(tmp_path / "nine.tif", np.full_like(prediction, 9)))
    (tmp_path / "broken.gpkg").write_text("no database")
    with pytest.raises(ImageReadError, match=r"broken\.gpkg"):
        evaluate(path, tmp_path / "broken.gpkg")
    (tmp_path / "broken.tif").write_text("no image")
    with pytest.raises(ImageReadError, match=r"broken\.tif"):
        evaluate(tmp_path / "broken.tif", path)
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)]).to_file(tmp_path / "nocrs.gpkg")
    with pytest.raises(CRSError, match=r"nocrs\.gpkg"):
        evaluate(path, tmp_path / "nocrs.gpkg")


def test_an_image_is_not_taken_for_a_class_map_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=8, height=8, count=3, dtype="uint16",
        crs="EPSG:32633", transform=TRANSFORM,
    ) as sink:  # fmt: skip
        sink.write(np.full((3, 8, 8), 60000, dtype=np.uint16))
    with pytest.raises(LabelError, match=r"no class map: 3 band\(s\) of uint16"):
        evaluate(path, path)
    assert [p.name for p in tmp_path.iterdir()] == ["image.tif"]


def test_a_map_without_names_has_a_class_for_every_value(tmp_path, prediction):
    prediction[5, 5] = 6
    path = write(tmp_path / "map.tif", prediction)
    assert evaluate(path, path).classes == tuple(f"class_{i}" for i in range(7))
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_polygons_of_several_classes_need_their_column(tmp_path, prediction):
    names = json.dumps(["ground", "house", "road"])
    raster = write(tmp_path / "map.tif", prediction, tags={"class_names": names})
    layer = geopandas.GeoDataFrame(
        {"kind": ["house"]}, geometry=[box(500020, 3999960, 500060, 3999980)], crs="EPSG:32633"
    )
    layer.to_file(tmp_path / "truth.gpkg")
    with pytest.raises(LabelError, match=r"ground, house, road.*--attribute \(there are: kind\)"):
        evaluate(raster, tmp_path / "truth.gpkg")
    assert evaluate(raster, tmp_path / "truth.gpkg", attribute="kind").confusion[1].sum() == 200


NAMES = {"class_names": '["water", "field", "wood"]'}


def three_classes(shape=(40, 60), seed=0):
    return np.random.default_rng(seed).integers(0, 3, shape, dtype=np.uint8)


def test_all_figures_are_those_of_torchmetrics(tmp_path):
    rng = np.random.default_rng(3)
    truth = rng.choice(5, (50, 70), p=(0.5, 0.2, 0.15, 0.1, 0.05)).astype(np.uint8)
    answer = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 5, truth.shape))
    tags = {"class_names": json.dumps([f"c{i}" for i in range(5)])}
    result = evaluate(
        write(tmp_path / "map.tif", answer, tags=tags), write(tmp_path / "truth.tif", truth)
    )
    pair = torch.from_numpy(answer.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
    kwargs = {"task": "multiclass", "num_classes": 5}
    for ours, theirs in (
        (result.iou, jaccard_index(*pair, average="none", **kwargs)),
        (result.f1, f1_score(*pair, average="none", **kwargs)),
        (result.precision, torch_precision(*pair, average="none", **kwargs)),
        (result.recall, torch_recall(*pair, average="none", **kwargs)),
        (result.overall_accuracy, accuracy(*pair, average="micro", **kwargs)),
        (result.kappa, cohen_kappa(*pair, **kwargs)),
        (result.mean_iou, jaccard_index(*pair, average="macro", **kwargs)),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_figures_without_meaning_are_null_not_zero():
    result = Evaluation(("a", "b", "c"), np.array([[5, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert result.iou[0] == pytest.approx(5 / 6) and result.iou[1] == 0
    assert math.isnan(result.iou[2]) and result.mean_iou == pytest.approx(5 / 12)
    assert math.isnan(result.recall[1]) and result.precision[1] == 0
    assert math.isnan(Evaluation(("a", "b"), np.array([[7, 0], [0, 0]])).kappa)
    written = json.loads(result.to_json())
    assert written["iou"] == {"a": 5 / 6, "b": 0.0, "c": None}
    assert written["recall"]["b"] is None


def test_what_either_side_does_not_know_is_left_out_and_counted(tmp_path):
    answer, truth = three_classes(), three_classes(seed=1)
    answer[:3], truth[2:5], truth[10, :7] = 255, 255, 9
    result = evaluate(
        write(tmp_path / "map.tif", answer, tags=NAMES),
        write(tmp_path / "truth.tif", truth),
        ignore=[9],
    )
    assert result.left_out == LeftOut(map_nodata=2 * 60, truth_unknown=2 * 60 + 7, both=60)
    assert result.pixels + result.left_out.total == answer.size
    known = (answer < 3) & (truth < 3)
    expected = np.zeros((3, 3), dtype=int)
    np.add.at(expected, (truth[known], answer[known]), 1)
    assert (result.confusion == expected).all()
    left_out = result.to_dict()["pixels_left_out"]
    assert left_out == {"map_nodata": 120, "truth_unknown": 127, "both": 60}


def test_a_truth_of_floats_may_hold_classes_but_no_fractions(tmp_path):
    answer = three_classes()
    path = tmp_path / "truth.tif"
    truth = answer.astype(np.float32)
    truth[0, 0] = np.nan

    def save():
        with rasterio.open(
            path, "w", driver="GTiff", width=60, height=40, count=1, dtype="float32",
            crs="EPSG:32633", transform=TRANSFORM,
        ) as sink:  # fmt: skip
            sink.write(truth, 1)

    save()
    class_map = write(tmp_path / "map.tif", answer, tags=NAMES)
    result = evaluate(class_map, path)
    assert result.overall_accuracy == 1 and result.left_out.truth_unknown == 1
    truth[5, :4] = 1.5
    save()
    with pytest.raises(LabelError, match=r"1\.5 \(4 pixels\)"):
        evaluate(class_map, path)


def test_an_image_is_no_truth_and_is_refused_at_once(tmp_path, monkeypatch):
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=60, height=40, count=1, dtype="float32",
        crs="EPSG:32633", transform=TRANSFORM,
    ) as sink:  # fmt: skip
        sink.write(np.random.default_rng(0).random((40, 60), dtype=np.float32), 1)
    monkeypatch.setattr("rsmamba.gis.evaluate._BLOCK", 20)
    with pytest.raises(LabelError, match=r"and 392 more"):  # of the 400 pixels of one block
        evaluate(write(tmp_path / "map.tif", three_classes(), tags=NAMES), path)


def test_a_truth_with_names_of_its_own_is_matched_by_name(tmp_path):
    answer = three_classes()
    class_map = write(tmp_path / "map.tif", answer, tags=NAMES)
    other = {"class_names": '["wood", "water", "field", "swamp"]'}
    truth = np.array([1, 2, 0], np.uint8)[answer]
    result = evaluate(class_map, write(tmp_path / "truth.tif", truth, tags=other))
    assert result.overall_accuracy == 1 and result.classes == ("water", "field", "wood")
    truth[7, :5] = 3
    with pytest.raises(LabelError, match=r"swamp \(5 pixels\); it knows 0 water, 1 field, 2 wood"):
        evaluate(class_map, write(tmp_path / "truth.tif", truth, tags=other))


def test_all_unknown_values_are_named_not_only_those_of_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("rsmamba.gis.evaluate._BLOCK", 16)
    answer, truth = three_classes(), three_classes()
    truth[0, 0], truth[-1, -2:] = 7, 8
    with pytest.raises(LabelError, match=r"7 \(1 pixels\), 8 \(2 pixels\)"):
        evaluate(write(tmp_path / "map.tif", answer, tags=NAMES), write(tmp_path / "t.tif", truth))


def test_a_truth_on_another_grid_is_warped_only_when_told_to(tmp_path):
    answer = np.kron(three_classes((10, 15)), np.ones((4, 4))).astype(np.uint8)
    class_map = write(tmp_path / "map.tif", answer, tags=NAMES)
    fine = np.kron(answer, np.ones((2, 2))).astype(np.uint8)[:, 20:]  # starts 10 columns later
    truth = write(
        tmp_path / "fine.tif", fine, transform=from_origin(500020, 4000000, 1, 1), nodata=None
    )
    with pytest.raises(GridMismatchError, match=r"100 x 80 pixels, the map 60 x 40; pass --align"):
        evaluate(class_map, truth)
    result = evaluate(class_map, truth, align=True)
    assert result.overall_accuracy == 1
    # what the truth does not show is unknown, though it declares no nodata
    assert result.left_out == LeftOut(truth_unknown=10 * 40)
    assert result.pixels == 50 * 40


def test_a_truth_in_another_crs_is_warped_only_when_told_to(tmp_path):
    answer = np.kron(three_classes((8, 8)), np.ones((50, 50))).astype(np.uint8)
    class_map = write(tmp_path / "map.tif", answer, tags=NAMES)
    with rasterio.open(class_map) as source:
        transform, width, height = rasterio.warp.calculate_default_transform(
            source.crs, "EPSG:3857", 400, 400, *source.bounds, resolution=0.5
        )
        warped = np.full((height, width), 255, np.uint8)
        rasterio.warp.reproject(
            answer, warped, src_transform=source.transform, src_crs=source.crs, src_nodata=255,
            dst_transform=transform, dst_crs="EPSG:3857", dst_nodata=255,
        )  # fmt: skip
    truth = write(tmp_path / "truth.tif", warped, crs="EPSG:3857", transform=transform)
    with pytest.raises(GridMismatchError, match="it is in EPSG:3857, the map in EPSG:32633"):
        evaluate(class_map, truth)
    result = evaluate(class_map, truth, align=True)
    assert result.overall_accuracy > 0.99 and result.pixels > 0.99 * 400**2
    with pytest.raises(CRSError, match=r"bare\.tif has no coordinate reference system"):
        evaluate(class_map, write(tmp_path / "bare.tif", answer, crs=None), align=True)


def test_areas_of_interest_are_evaluated_by_themselves(tmp_path, monkeypatch):
    answer, truth = three_classes(), three_classes(seed=1)
    truth[:, 40:] = answer[:, 40:]
    truth[0, :5] = 255
    class_map = write(tmp_path / "map.tif", answer, tags=NAMES)
    path = write(tmp_path / "truth.tif", truth)

    def columns(first, last):
        return box(500000 + 2 * first, 4000000 - 80, 500000 + 2 * last, 4000000)

    layer = geopandas.GeoDataFrame(
        {"place": ["west", "east", "west", "all", "nowhere"]},
        geometry=[
            columns(0, 10),
            columns(40, 60),
            columns(5, 20),
            columns(-9, 99),
            columns(90, 99),
        ],
        crs="EPSG:32633",
    )
    layer.to_file(tmp_path / "areas.gpkg")
    whole = evaluate(class_map, path, areas=tmp_path / "areas.gpkg", area_name="place")
    assert list(whole.areas) == ["west", "east", "all", "nowhere"]
    assert (whole.areas["all"].confusion == whole.confusion).all()
    assert whole.areas["all"].left_out == whole.left_out == LeftOut(truth_unknown=5)
    west = np.zeros((3, 3), dtype=int)
    known = truth[:, :20] < 3
    np.add.at(west, (truth[:, :20][known], answer[:, :20][known]), 1)
    assert (whole.areas["west"].confusion == west).all()  # overlapping parts count once
    assert whole.areas["east"].overall_accuracy == 1 and whole.areas["east"].pixels == 20 * 40
    assert whole.areas["nowhere"].pixels == 0
    written = json.loads(whole.to_json())["areas"]
    assert written["east"]["iou"]["wood"] == 1 and written["nowhere"]["kappa"] is None

    monkeypatch.setattr("rsmamba.gis.evaluate._BLOCK", 7)
    layer.to_crs("EPSG:32634").to_file(tmp_path / "areas.gpkg")  # tilted there
    blocks = evaluate(class_map, path, areas=tmp_path / "areas.gpkg")
    assert list(blocks.areas) == [f"area {i}" for i in range(1, 6)]
    assert (blocks.areas["area 2"].confusion == whole.areas["east"].confusion).all()


def test_long_edges_are_bent_when_reprojected(tmp_path):
    """A parallel of 200 km is an arc in UTM, more than a kilometre high."""
    classes = np.zeros((100, 200), np.uint8)
    transform = Affine(1000, 0, 400000, 0, -1000, 7100000)
    rows, cols = np.mgrid[:100, :200]
    lon, lat = rasterio.warp.transform(
        "EPSG:32633", "EPSG:4326", (400500 + 1000 * cols).ravel(), (7099500 - 1000 * rows).ravel()
    )
    inside = (np.reshape(lat, classes.shape) < 63.5) & (np.reshape(lon, classes.shape) < 16)
    classes[inside] = 1
    class_map = write(tmp_path / "map.tif", classes, transform=transform)
    area = geopandas.GeoDataFrame(geometry=[box(5, 60, 16, 63.5)], crs="EPSG:4326")
    area.to_file(tmp_path / "truth.geojson")
    assert evaluate(class_map, tmp_path / "truth.geojson").overall_accuracy == 1


def test_pixels_outside_polygons_with_classes_are_not_compared_unless_told(tmp_path, prediction):
    tags = {"class_names": '["ground", "house", "garage"]'}
    path = write(tmp_path / "map.tif", prediction, tags=tags)
    layer = geopandas.GeoDataFrame(
        {"kind": ["house", "2", None], "code": [1.0, 2.0, np.nan]},
        geometry=[
            box(500020, 3999960, 500040, 3999980),  # 10 x 10 pixels, in the map's houses
            box(500040, 3999960, 500060, 3999980),  # a garage that the map takes for a house
            box(500100, 3999960, 500110, 3999980),  # nobody knows
        ],
        crs="EPSG:32633",
    )
    truth = tmp_path / "truth.gpkg"
    layer.to_file(truth)
    for column in ("kind", "code"):
        result = evaluate(path, truth, attribute=column)
        assert result.confusion.tolist() == [[0, 0, 0], [0, 100, 0], [0, 100, 0]]
    result = evaluate(path, truth, attribute="kind", outside="ground")
    assert result.confusion.tolist() == [[39 * 60 - 250, 0, 0], [0, 100, 0], [0, 100, 0]]
    assert result.left_out == LeftOut(map_nodata=60, truth_unknown=50)
    with pytest.raises(LabelError, match="no class 'sea'; it has ground, house, garage"):
        evaluate(path, truth, attribute="kind", outside="sea")
    with pytest.raises(LabelError, match=r"3 classes.*--attribute .*kind, code"):
        evaluate(path, truth)


def test_invalid_multi_and_empty_polygons_are_handled(tmp_path, prediction):
    path = write(tmp_path / "map.tif", prediction)
    bow = Polygon([(500020, 3999960), (500060, 3999980), (500060, 3999960), (500020, 3999980)])
    many = MultiPolygon(
        [box(500020, 3999960, 500040, 3999980), box(500080, 3999940, 500082, 3999942)]
    )
    layer = geopandas.GeoDataFrame(geometry=[bow, many, Polygon(), None], crs="EPSG:32633")
    layer.to_file(tmp_path / "truth.gpkg")
    result = evaluate(path, tmp_path / "truth.gpkg")
    assert result.confusion[1].tolist()[0] == 1  # the pixel far off
    assert 100 < result.confusion[1, 1] < 200  # half of it, and half of the bow tie
    layer.iloc[2:].to_file(tmp_path / "nothing.gpkg")
    assert evaluate(path, tmp_path / "nothing.gpkg").confusion[1].sum() == 0
    points = geopandas.GeoDataFrame(geometry=[Point(500020, 3999960)], crs="EPSG:32633")
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(LabelError, match="must hold polygons, it has Point"):
        evaluate(path, tmp_path / "points.gpkg")


def test_vectorised_maps_are_truth_in_every_format(tmp_path):
    answer = np.kron(three_classes((6, 6)), np.ones((5, 5))).astype(np.uint8)
    path = write(tmp_path / "map.tif", answer, tags=NAMES)
    from rsmamba.gis.vector import vectorize

    for suffix in (".gpkg", ".fgb", ".parquet"):
        vectorize(path, tmp_path / f"truth{suffix}")
        result = evaluate(path, tmp_path / f"truth{suffix}", attribute="name")
        assert result.overall_accuracy == 1 and result.pixels == answer.size


def test_comparisons_that_mean_nothing_are_refused(tmp_path, prediction):
    path = write(tmp_path / "map.tif", prediction)
    far = from_origin(900000, 9000000, 2, 2)
    elsewhere = write(tmp_path / "far.tif", prediction, transform=far)
    with pytest.raises(GridMismatchError, match="show the same place"):
        evaluate(path, elsewhere, align=True)
    with pytest.raises(LabelError, match="--attribute is for polygons"):
        evaluate(path, path, attribute="kind")
    with pytest.raises(LabelError, match="--outside is for polygons"):
        evaluate(path, path, outside="0")
    with pytest.raises(ConfigError, match="--areas"):
        evaluate(path, path, area_name="place")
    areas = tmp_path / "areas.gpkg"
    with pytest.raises(DataNotFoundError, match=r"areas\.gpkg"):
        evaluate(path, path, areas=areas)
    layer = geopandas.GeoDataFrame({"id": [1]}, geometry=[box(0, 0, 1, 1)], crs="EPSG:32633")
    layer.to_file(areas)
    with pytest.raises(LabelError, match="no column 'place'; it has id"):
        evaluate(path, path, areas=areas, area_name="place")
    layer.iloc[:0].to_file(areas)
    with pytest.raises(DataNotFoundError, match="holds no areas"):
        evaluate(path, path, areas=areas)
    bands = tmp_path / "bands.tif"
    with rasterio.open(
        bands, "w", driver="GTiff", width=60, height=40, count=3, dtype="uint8", crs="EPSG:32633",
        transform=TRANSFORM,
    ) as sink:  # fmt: skip
        sink.write(np.zeros((3, 40, 60), np.uint8))
    with pytest.raises(LabelError, match="3 bands, expected one of classes"):
        evaluate(path, bands)
    named = write(tmp_path / "named.tif", three_classes(), tags={"class_names": '["a", "b"]'})
    with pytest.raises(LabelError, match="pixels of value 2, but names 2 classes"):
        evaluate(named, path)


def test_where_polygons_overlap_the_last_one_counts(tmp_path):
    rng = np.random.default_rng(2)
    answer, shapes, kinds = np.zeros((40, 60), np.uint8), [], []
    for kind in rng.integers(0, 3, 200).tolist():
        row, col = rng.integers(0, 30), rng.integers(0, 50)
        answer[row : row + 10, col : col + 10] = kind
        left, top = 500000 + 2 * int(col), 4000000 - 2 * int(row)
        shapes.append(box(left, top - 20, left + 20, top))
        kinds.append(kind)
    layer = geopandas.GeoDataFrame({"kind": kinds}, geometry=shapes, crs="EPSG:32633")
    layer.to_file(tmp_path / "truth.fgb", SPATIAL_INDEX="NO")  # which would sort them
    path = write(tmp_path / "map.tif", answer, tags=NAMES)
    assert evaluate(path, tmp_path / "truth.fgb", attribute="kind").overall_accuracy == 1


def test_areas_may_be_invalid(tmp_path):
    path = write(tmp_path / "map.tif", three_classes(), tags=NAMES)
    bow = Polygon([(500000, 3999920), (500120, 4000000), (500120, 3999920), (500000, 4000000)])
    areas = geopandas.GeoDataFrame(
        {"place": ["x", "x"]}, geometry=[bow, box(500000, 3999960, 500060, 4000000)], crs=32633
    )
    areas.to_file(tmp_path / "areas.gpkg")
    area = evaluate(path, path, areas=tmp_path / "areas.gpkg", area_name="place").areas["x"]
    # the bow tie has half of the 2400 pixels, the box half of its 600 beside it
    assert area.pixels == pytest.approx(1200 + 300, abs=40)


def test_rows_of_the_picture_are_the_truth(tmp_path):
    out = confusion_picture(
        Evaluation(("a", "b"), np.array([[0, 100], [0, 90]])), tmp_path / "m.png"
    )
    red, _, blue = np.asarray(Image.open(out).convert("RGB"), dtype=int).transpose(2, 0, 1)
    rows, cols = np.nonzero(
        blue[:, : int(0.75 * red.shape[1])] - red[:, : int(0.75 * red.shape[1])] > 80
    )
    assert np.ptp(rows) > 1.8 * np.ptp(cols)  # the right column, not the lower row


@pytest.mark.parametrize("count", [2, 12, 20, 60])
def test_the_picture_is_darkest_where_the_shares_are(tmp_path, count):
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 20, (count, count)) + np.diag(np.full(count, 9000))
    confusion[1] = 0 if count > 2 else confusion[1]
    names = tuple(f"class of land {i}" for i in range(count))
    out = confusion_picture(Evaluation(names, confusion), tmp_path / "matrix.png", title="a map")
    red, _, blue = np.asarray(Image.open(out).convert("RGB"), dtype=int).transpose(2, 0, 1)
    assert 400 < red.shape[1] <= 4000
    dark = np.argwhere(blue - red > 80)
    dark = dark[dark[:, 1] < 0.8 * red.shape[1]]  # without the colour bar
    # the dark squares run from the upper left to the lower right
    assert np.corrcoef(dark[:, 0], dark[:, 1])[0, 1] > 0.7
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.png"]

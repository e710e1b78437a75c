import json

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely.geometry import box

from rsmamba.errors import (
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
)
from rsmamba.gis.evaluate import Evaluation, evaluate

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
    with pytest.raises(LabelError, match="class value 9"):
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

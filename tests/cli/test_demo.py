"""The line from a recipe to polygons, and the demo that strings it together."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image

from rsmamba import samples
from rsmamba.cli import demo, main
from rsmamba.errors import OutputExistsError, OutputNotWritableError
from rsmamba.spec import SPEC_KEY, ModelSpec
from rsmamba.viz import map_preview


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Two training steps, then map, vectorize and evaluate, as a user types them."""
    out = tmp_path_factory.mktemp("line")
    fit = [
        "fit",
        "--config=recipe:segment/buildings_demo",
        f"--trainer.logger.save_dir={out}",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--data.batch_size=2",
        "--data.patch_size=64",
    ]
    checkpoint, scene = str(out / "checkpoints" / "last.ckpt"), "sample:buildings/scene.tif"
    raster, polygons = str(out / "map.tif"), str(out / "map.gpkg")
    truth, report = "sample:buildings/scene.geojson", str(out / "evaluation.json")
    for argv in (
        fit,
        ["map", checkpoint, scene, raster, "--report", str(out / "map.json")],
        ["vectorize", raster, polygons],
        ["evaluate", raster, truth, "--report", report],
    ):
        assert main.run(argv) == 0, argv
    return out


def test_the_map_lies_on_the_scenes_grid_and_says_which_model_made_it(line):
    with (
        rasterio.open(samples.resolve("sample:buildings/scene.tif")) as scene,
        rasterio.open(line / "map.tif") as made,
    ):
        assert made.transform == scene.transform
        assert made.crs == scene.crs
        assert made.shape == scene.shape
        assert (made.nodata, made.dtypes, made.count) == (255, ("uint8",), 1)
        assert made.colormap(1)[1][3] == 255
        assert json.loads(made.tags()["class_names"]) == ["background", "building"]
        spec = ModelSpec.from_json(made.tags()[SPEC_KEY])
        assert set(np.unique(made.read(1))) <= {0, 1}
    assert spec.architecture == "roma_tiny_patch16_pyramid"
    assert spec.gsd == pytest.approx(0.075, rel=0.05)


def test_polygons_cover_what_the_map_shows(line):
    layer = geopandas.read_file(line / "map.gpkg")
    with rasterio.open(line / "map.tif") as made:
        assert layer.crs == made.crs
        pixel = abs(made.transform.a * made.transform.e)
        assert sum(shape.area for shape in layer.geometry) == pytest.approx(
            pixel * made.width * made.height, rel=1e-6
        )


def test_the_evaluation_holds_the_constant_answers(line):
    report = json.loads((line / "evaluation.json").read_text())
    assert report["pixels"] == 1024 * 1024
    assert report["majority_class"] == "background"
    assert report["constant_answers"]["background"]["iou"]["building"] == 0
    share = sum(report["confusion"][1]) / report["pixels"]
    assert report["constant_answers"]["building"]["iou"]["building"] == pytest.approx(share)


def test_the_preview_shows_image_prediction_and_truth(line, tmp_path):
    scene = samples.resolve("sample:buildings/scene.tif")
    truth = samples.resolve("sample:buildings/scene.geojson")
    picture = map_preview(scene, line / "map.tif", tmp_path / "p.png", truth=truth)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] > 2 * pixels.shape[0]
    assert pixels.std() > 20
    without = map_preview(scene, line / "map.tif", tmp_path / "q.png")
    assert Image.open(without).size[0] < pixels.shape[1]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    folder = demo.prepare_folder(tmp_path / "demo", overwrite=False)
    assert (folder / "map").is_dir()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        demo.prepare_folder(folder, overwrite=False)
    (folder / "map" / "old.tif").write_text("old")
    demo.prepare_folder(folder, overwrite=True)
    assert not (folder / "map" / "old.tif").exists()
    (folder / ".rsmamba-demo").unlink()
    with pytest.raises(OutputExistsError, match="more than a demo"):
        demo.prepare_folder(folder, overwrite=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        demo.prepare_folder(folder, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(OutputNotWritableError, match="/proc/none"):
        demo.prepare_folder(demo.Path("/proc/none"), overwrite=False)


@pytest.mark.slow
def test_the_quick_demo_leaves_every_output(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main.run(["demo", "--quick", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["quick"] is True
    probe = report["figures"][demo.PROBE_FIGURE]
    assert set(probe) == {"pretrained", "random weights", "colour histogram", "chance"}
    for name in ("buildings.tif", "buildings.gpkg", "preview.png", "map.json", "evaluation.json"):
        assert (out / "map" / name).is_file()
    assert "these figures say nothing" in capsys.readouterr().out

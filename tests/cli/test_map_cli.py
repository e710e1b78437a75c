"""`rsmamba map` and `rsmamba vectorize`, as a user types them."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from torchgeo.tasks import SemanticSegmentation

from rsmamba.cli.main import run
from rsmamba.spec import SPEC_KEY, ModelSpec

SMALL = ["--tile", "64", "--halo", "8", "--device", "cpu"]
KWARGS = {"model": "fcn", "in_channels": 3, "num_classes": 2, "num_filters": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, one without spec, the spec, a scene and one without CRS."""
    folder = tmp_path_factory.mktemp("map")
    spec = ModelSpec(
        task="segmentation",
        task_class="torchgeo.tasks.SemanticSegmentation",
        task_kwargs=KWARGS,
        architecture="fcn",
        bands=("red", "green", "blue"),
        mean=(120.0, 120.0, 120.0),
        std=(60.0, 60.0, 60.0),
        classes=("ground", "roof"),
    )
    torch.manual_seed(0)
    content = {"state_dict": SemanticSegmentation(**KWARGS).state_dict(), "hyper_parameters": {}}
    torch.save(content, folder / "bare.ckpt")
    torch.save(content | {SPEC_KEY: spec.to_json()}, folder / "last.ckpt")
    (folder / "spec.json").write_text(spec.to_json())
    image = np.random.default_rng(0).integers(1, 255, (3, 90, 110), dtype=np.uint8)
    image[:, :20] = 0
    for name, crs in (("scene.tif", "EPSG:32633"), ("nowhere.tif", None)):
        with rasterio.open(
            folder / name,
            "w",
            driver="GTiff",
            height=90,
            width=110,
            count=3,
            dtype="uint8",
            crs=crs,
            transform=Affine(10, 0, 5e5, 0, -10, 5e6),
            nodata=0,
        ) as target:
            target.write(image)
    return folder


@pytest.fixture
def paths(folder, tmp_path):
    """Checkpoint, scene and a new output."""
    return str(folder / "last.ckpt"), str(folder / "scene.tif"), str(tmp_path / "map.tif")


def test_map_then_vectorize(paths, tmp_path, capsys):
    report, scores = tmp_path / "report.json", tmp_path / "scores.tif"
    options = ["--report", str(report), "--scores", str(scores), "--batch-size", "3"]
    assert run(["map", *paths, *SMALL, *options, "--block", "48", "--blend", "crop"]) == 0
    out, err = capsys.readouterr()
    assert "ground" in out and "roof" in out and "110 x 90 px" in out and "no data" in out
    assert err == ""  # no progress bar where there is no terminal
    with rasterio.open(paths[2]) as source:
        classes = source.read(1)
    written = json.loads(report.read_text())
    assert written["pixels"]["roof"] == (classes == 1).sum()
    assert written["parameters"]["block"] == 48 and written["parameters"]["blend"] == "crop"
    with rasterio.open(scores) as source:
        assert source.count == 2
    item = json.loads(Path(paths[2]).with_suffix(".json").read_text())
    assert set(item["assets"]) == {"class", "scores", "style"}
    assert [c["name"] for c in item["assets"]["class"]["classification:classes"]][:1] == ["ground"]
    assert Path(paths[2]).with_suffix(".qml").read_text().count("roof") == 1

    polygons = tmp_path / "roofs.gpkg"
    assert run(["vectorize", paths[2], str(polygons), "--classes", "roof"]) == 0
    assert "roof" in capsys.readouterr().out
    layer = geopandas.read_file(polygons)
    assert set(layer["name"]) == {"roof"}
    assert layer.area.sum() == pytest.approx(100 * (classes == 1).sum())
    assert run(["vectorize", paths[2], str(polygons), "--min-area", "1e9"]) == 2  # it exists
    assert run(["vectorize", paths[2], str(polygons), "--min-area", "1e9", "--overwrite"]) == 0
    assert len(geopandas.read_file(polygons)) == 0


def test_quiet_is_quiet(paths, capsys):
    assert run(["map", *paths, *SMALL, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_spec_file_serves_a_bare_checkpoint(folder, paths, capsys):
    bare = [str(folder / "bare.ckpt"), *paths[1:]]
    assert run(["map", *bare, *SMALL]) == 2
    assert "--spec FILE" in capsys.readouterr().err
    assert run(["map", *bare, *SMALL, "--spec", str(folder / "spec.json")]) == 0


def test_a_crs_can_be_assumed(folder, paths, capsys):
    scene = [paths[0], str(folder / "nowhere.tif"), paths[2]]
    assert run(["map", *scene, *SMALL]) == 2
    assert "--assume-crs" in capsys.readouterr().err
    assert run(["map", *scene, *SMALL, "--assume-crs", "EPSG:32633"]) == 0


def test_outputs_are_replaced_only_when_told(paths, tmp_path, capsys):
    assert run(["map", *paths, *SMALL]) == 0
    assert run(["map", *paths, *SMALL]) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error and len(error.splitlines()) == 1
    assert run(["map", *paths, *SMALL, "--overwrite"]) == 0
    report = tmp_path / "report.json"
    report.write_text("{}")
    assert run(["map", *paths, *SMALL, "--overwrite", "--report", str(report)]) == 0
    new = [*paths[:2], str(tmp_path / "new.tif")]
    assert run(["map", *new, *SMALL, "--report", str(report)]) == 2
    assert not (tmp_path / "new.tif").exists()


@pytest.mark.parametrize("verb", ["map", "vectorize"])
def test_help_names_every_option_in_words(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        run([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--overwrite" in text and "None" not in text and "==SUPPRESS==" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["map", "absent.ckpt", "absent.tif", "out.tif"],
        ["map", "a", "b"],
        ["map", "a", "b", "c.tif", "--blend", "cosine"],
        ["map", "a", "b", "c.tif", "--tile", "many"],
        ["vectorize", "absent.tif", "out.gpkg"],
        ["vectorize", "absent.tif", "out.doc"],
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = run(arguments)
    except SystemExit as stop:  # argparse, where it does not raise
        status = stop.code
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

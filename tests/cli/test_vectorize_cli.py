"""`rsmamba vectorize`, as a user types it."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from rsmamba.cli.main import run


@pytest.fixture
def paths(tmp_path):
    """A class map, its scores, and where to write."""
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 3, (6, 8)), np.ones((5, 5))).astype(np.uint8)
    grid = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6), "nodata": 255}
    size = {"height": 30, "width": 40, "dtype": "uint8", "driver": "GTiff"}
    with rasterio.open(tmp_path / "map.tif", "w", count=1, **grid, **size) as target:
        target.write(classes, 1)
        target.update_tags(class_names='["water", "field", "wood"]')
    with rasterio.open(tmp_path / "scores.tif", "w", count=3, **grid, **size) as target:
        target.write(np.full((3, 30, 40), 127, np.uint8))
        target.scales = [1 / 254] * 3
    return [str(tmp_path / "map.tif"), str(tmp_path / "out.gpkg")]


def test_all_options_together(paths, tmp_path, capsys):
    options = ["--classes", "field", "2", "--min-area", "3000", "--simplify", "1.5"]
    options += ["--scores", str(tmp_path / "scores.tif"), "--report", str(tmp_path / "r.json")]
    assert run(["vectorize", *paths, *options]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "wood: " in out and "too small" in out and "km²" in out
    layer = geopandas.read_file(paths[1])
    assert list(layer.columns) == ["class", "name", "area_m2", "mean_score", "geometry"]
    assert set(layer["name"]) == {"field", "wood"} and layer["area_m2"].min() >= 3000
    assert layer["mean_score"].tolist() == pytest.approx([0.5] * len(layer))
    assert shapely.coverage_is_valid(layer.geometry.to_numpy())
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["polygons"] == len(layer) and list(report["count"]) == ["field", "wood"]
    assert report["too_small"] > 0


def test_existing_files_need_overwrite(paths, tmp_path, capsys):
    report = tmp_path / "r.json"
    report.write_text("precious")
    assert run(["vectorize", *paths, "--report", str(report)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert not (tmp_path / "out.gpkg").exists()  # found before the work
    assert run(["vectorize", *paths, "--report", str(report), "--overwrite"]) == 0
    assert run(["vectorize", *paths]) == 2 and "out.gpkg exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "swamp"], "it has: water, field, wood"),
        (["--simplify", "0"], "above 0"),
        (["--simplify", "much"], "invalid float value"),
        (["--min-area", "-1"], "at least 0"),
        (["--scores", "absent.tif"], "no such score raster"),
        (["--report", "absent/r.json"], "create its folder"),
        (["--smooth"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line_and_status_2(paths, tmp_path, capsys, options, message):
    assert run(["vectorize", *paths, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rsmamba: error: ") and err.count("\n") == 1 and message in err
    assert {p.name for p in tmp_path.iterdir()} == {"map.tif", "scores.tif"}


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as done:
        run(["vectorize", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    for words in ("staircases", "shared border", "mean_score", "GeoParquet", "smaller, in m²"):
        assert words in text

"""`rsmamba evaluate`, as a user types it."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine
from shapely.geometry import box

from rsmamba.cli.main import run


@pytest.fixture
def folder(tmp_path):
    """A class map, a truth that agrees in 90 %, and two areas."""
    rng = np.random.default_rng(0)
    answer = rng.integers(0, 6, (40, 50), dtype=np.uint8)
    truth = answer.copy()
    truth[:4] = (truth[:4] + 1) % 6
    truth[10, :5] = 255
    tags = {"class_names": json.dumps([f"kind {i}" for i in range(6)])}
    for name, array in (("map.tif", answer), ("truth.tif", truth)):
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", height=40, width=50, count=1, dtype="uint8",
            nodata=255, crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6),
        ) as target:  # fmt: skip
            target.write(array, 1)
            target.update_tags(**tags)
    geopandas.GeoDataFrame(
        {"place": ["north", "south"]},
        geometry=[box(5e5, 5e6 - 40, 5e5 + 500, 5e6), box(5e5, 5e6 - 400, 5e5 + 500, 5e6 - 40)],
        crs="EPSG:32633",
    ).to_crs(4326).to_file(tmp_path / "areas.geojson")
    return tmp_path


def test_tables_report_and_picture(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    report, picture = folder / "report.json", folder / "matrix.png"
    options = ["--areas", str(folder / "areas.geojson"), "--area-name", "place"]
    options += ["--report", str(report), "--picture", str(picture)]
    argv = ["evaluate", str(folder / "map.tif"), str(folder / "truth.tif"), *options]
    assert run(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("1,995 pixels compared", "kind 5", "(majority)", "kappa", "precision"):
        assert words in out
    assert "not compared: 5 pixels (5 have no known truth)" in out
    written = json.loads(report.read_text())
    assert written["overall_accuracy"] == pytest.approx(1795 / 1995)
    assert written["areas"]["north"]["overall_accuracy"] == 0
    assert written["areas"]["south"]["overall_accuracy"] == 1
    assert written["truth"].endswith("truth.tif")
    assert Image.open(picture).size[0] > 400
    assert run(argv) == 2 and "--overwrite" in capsys.readouterr().err
    assert run([*argv, "--overwrite"]) == 0


def test_a_class_that_is_nowhere_has_no_figure(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with rasterio.open(folder / "map.tif", "r+") as target:
        target.update_tags(class_names=json.dumps([f"kind {i}" for i in range(7)]))
    assert run(["evaluate", str(folder / "map.tif"), str(folder / "truth.tif")]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "kind 6" in x)
    assert line.count("n/a") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attribute", "kind"], "is for polygons"),
        (["--area-name", "place"], "--areas"),
        (["--areas", "absent.gpkg"], "absent.gpkg"),
        (["--picture", "matrix.pdf"], ".png"),
        (["--picture", "absent/matrix.png"], "create its folder"),
        (["--ignore", "some"], "invalid int value"),
    ],
)
def test_mistakes_are_one_line_and_status_2(folder, capsys, options, message):
    before = sorted(p.name for p in folder.iterdir())
    assert run(["evaluate", str(folder / "map.tif"), str(folder / "truth.tif"), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rsmamba: error: ") and err.count("\n") == 1 and message in err
    assert sorted(p.name for p in folder.iterdir()) == before


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as done:
        run(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    for words in ("nearest neighbour", "default: 255", "number them", "confusion matrix"):
        assert words in text

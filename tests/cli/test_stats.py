"""`rsmamba stats`, as a user types it, and what data modules make of its file."""

import json

import numpy as np
import pytest
from PIL import Image

from rsmamba.cli.main import run
from rsmamba.data import ScenePatchesDataModule
from tests.data.scenes.data import noise, write


@pytest.fixture
def folder(tmp_path):
    """Two images with nodata at different places, and values of the valid pixels (3, N)."""
    first, second = noise(1100, 60, seed=1), noise(50, 40, seed=2) // 4
    first[:, :500] = 0
    second[:, :, :7] = 0
    write(tmp_path / "in/a.tif", first, nodata=0)
    write(tmp_path / "in/b.tif", second, nodata=0)
    both = [image[:, (image != 0).any(0)] for image in (first, second)]
    return tmp_path / "in", np.concatenate(both, 1).astype(float)


def test_statistics_are_those_of_the_valid_pixels(folder, tmp_path, capsys):
    images, values = folder
    out = tmp_path / "stats.json"
    assert run(["stats", str(images), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["rsmamba_stats"] == 1
    assert [b["name"] for b in report["bands"]] == ["red", "green", "blue"]
    for key, expected in (
        ("mean", values.mean(1)),
        ("std", values.std(1)),
        ("min", values.min(1)),
        ("max", values.max(1)),
    ):
        np.testing.assert_allclose([b[key] for b in report["bands"]], expected, rtol=1e-9)
    assert report["pixels"] == values.shape[1]
    assert report["nodata_share"] == pytest.approx(1 - values.shape[1] / (1100 * 60 + 2000))
    assert (report["files"], report["files_found"], report["sampled"]) == (2, 2, False)
    printed, errors = capsys.readouterr()
    assert f"{values.shape[1]:,} valid pixels" in printed
    assert f"{values[0].mean():.6g}" in printed
    assert errors == ""


def test_a_data_module_reads_the_file(folder, tmp_path):
    images, _ = folder
    out = str(tmp_path / "stats.json")
    names = ["blue", "nir"]
    assert run(["stats", f"{images}/*.tif", "--indexes", "3", "1", "--bands", *names,
                "--out", out, "--quiet"]) == 0  # fmt: skip
    module = ScenePatchesDataModule(
        images, 16, 1, indexes=[1, 3], bands=["nir", "blue"], spec=out, val_fraction=0
    )
    module.setup("fit")
    bands = {b["name"]: b for b in json.loads((tmp_path / "stats.json").read_text())["bands"]}
    assert module.mean.tolist() == pytest.approx([bands[b]["mean"] for b in ("nir", "blue")])
    assert module.std.tolist() == pytest.approx([bands[b]["std"] for b in ("nir", "blue")])


def test_a_band_without_variation_can_be_divided_by(tmp_path, capsys):
    write(tmp_path / "flat.tif", np.full((1, 20, 20), 7, np.uint8))
    out = tmp_path / "stats.json"
    assert run(["stats", str(tmp_path / "flat.tif"), "--out", str(out)]) == 0
    band = json.loads(out.read_text())["bands"][0]
    assert (band["mean"], band["std"], band["constant"]) == (7.0, 1.0, True)
    assert "none (1 is used)" in capsys.readouterr().out


def test_types_are_scaled_and_bad_files_left_out(folder, tmp_path, capsys):
    images, values = folder
    write(images / "deep.tif", np.full((3, 10, 10), 1000, np.uint16), nodata=0)
    (images / "broken.tif").write_text("nothing")
    assert run(["stats", str(images), "--max-bad-files", "1"]) == 2
    assert "scales={uint8: 1.0, uint16: 1.0}" in capsys.readouterr().err
    out = tmp_path / "stats.json"
    command = ["stats", str(images), "--scales", "uint8=1", "uint16=0.1", "--out", str(out)]
    assert run(command) == 2
    assert "broken.tif" in capsys.readouterr().err
    assert not out.exists()
    with pytest.warns(UserWarning, match=r"broken\.tif"):
        assert run([*command, "--max-bad-files", "1"]) == 0
    report = json.loads(out.read_text())
    mixed = np.concatenate([values, np.full((3, 100), 100.0)], 1)
    np.testing.assert_allclose([b["mean"] for b in report["bands"]], mixed.mean(1), rtol=1e-6)
    assert report["bad_files"] == [str(images / "broken.tif")]
    assert f"left out: {images / 'broken.tif'}" in capsys.readouterr().out


def test_a_sample_of_the_images_is_read(tmp_path, capsys):
    for i in range(10):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    assert run(["stats", str(tmp_path), "--sample", "5", "--out", str(tmp_path / "s.json")]) == 0
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["files"], report["files_found"], report["sampled"]) == (5, 10, True)
    assert report["bands"][0]["mean"] == 4.0  # 0, 2, 4, 6, 8
    assert "5 of 10 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{}/none"], "no such file or folder"),
        (["{}/empty.tif"], "no valid pixel"),
        (["{}/empty.tif", "--indexes", "2"], "band 2"),
        (["{}/empty.tif", "--bands", "red", "nir"], "2 band names"),
        (["{}/empty.tif", "--scales", "uint8"], "TYPE=FACTOR"),
        (["{}/empty.tif", "--sample", "0"], "at least one image"),
        (["{}/empty.tif", "--out", "{}/empty.tif"], "--overwrite"),
        (["{}/empty.tif", "--out", "{}/none/s.json"], "create its folder"),
        ([], "images"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, capsys, options, message):
    write(tmp_path / "empty.tif", np.zeros((1, 8, 8), np.uint8), nodata=0)
    assert run(["stats", *(o.format(tmp_path) for o in options)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

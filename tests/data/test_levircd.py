"""LEVIR-CD: files matched by name, whole images scored, images that are not RGB refused."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchgeo import datasets as stock

from rsmamba.data.images import IGNORE
from rsmamba.data.levircd import LEVIRCD, LEVIRCDDataModule
from rsmamba.errors import (
    ArchiveError,
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
)
from tests.data.levircd.data import SPLITS, make

REAL = Path(__file__).parents[2] / "../shared/data/levircd_samples"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("levircd"))


@pytest.fixture
def copy(data, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "copy"))


def test_samples_equal_torchgeos_where_no_file_is_missing(data):
    for split, count in SPLITS.items():
        theirs, ours = stock.LEVIRCD(data, split, checksum=False), LEVIRCD(data, split)
        assert len(ours) == len(theirs) == count
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            assert all(one[key].equal(other[key]) for key in one)
            assert all(one[key].dtype == other[key].dtype for key in one)


@pytest.mark.parametrize("folder", ["A", "B", "label"])
def test_a_missing_partner_is_an_error_and_not_a_shift(copy, folder):
    (copy / folder / "train_2.png").unlink()
    with pytest.raises(DataNotFoundError, match=rf"{folder}: lacks train_2\.png"):
        LEVIRCD(copy)
    assert len(LEVIRCD(copy, "test")) == SPLITS["test"]


def test_missing_folders_and_splits_are_named(copy, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no train images of LEVIR-CD in .*nowhere"):
        LEVIRCD(tmp_path / "nowhere")
    for path in copy.glob("*/val_*.png"):
        path.unlink()
    with pytest.raises(DataNotFoundError, match=r"no val images.*val\.zip.*download=True"):
        LEVIRCDDataModule(copy).setup("validate")
    with pytest.raises(ConfigError, match="split='all'"):
        LEVIRCD(copy, "all")


@pytest.mark.parametrize(
    ("picture", "error", "said"),
    [
        (Image.new("L", (48, 48)), BandMismatchError, "is grey"),
        (Image.new("RGBA", (48, 48)), BandMismatchError, "colour with alpha"),
        (Image.new("I;16", (48, 48)), BandMismatchError, "more than 8 bits"),
        (Image.new("RGB", (1, 1)), ImageReadError, "a single pixel"),
        (Image.new("RGB", (24, 24)), GridMismatchError, "24 x 24.*not the same pixels"),
    ],
)
def test_images_that_are_no_partner_of_the_other_date_are_refused(copy, picture, error, said):
    picture.save(copy / "B" / "train_3.png")
    with pytest.raises(error, match=rf"B/train_3\.png.*{said}"):
        LEVIRCD(copy)


def test_grey_images_are_converted_on_request(copy):
    Image.new("L", (48, 48), 7).save(copy / "B" / "train_3.png")
    assert (LEVIRCD(copy, convert=True)[2]["image"][1] == 7).all()
    module = LEVIRCDDataModule(copy, convert=True, patch_size=16)
    module.setup("fit")
    assert len(module.train_dataset) == 4 * 9


def test_damaged_files_are_named(copy):
    path = copy / "A" / "train_1.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageReadError, match=r"A/train_1\.png"):
        LEVIRCD(copy)[0]
    path.write_bytes(b"")
    with pytest.raises(ImageReadError, match=r"A/train_1\.png"):
        LEVIRCD(copy)
    path.write_bytes(content)
    (copy / "label" / "train_1.png").write_bytes(b"no label")
    with pytest.raises(ImageReadError, match=r"label/train_1\.png"):
        LEVIRCD(copy)


def test_zip_files_that_are_there_are_checked_and_unpacked(data, tmp_path, monkeypatch):
    for split in SPLITS:
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as out:
            for path in sorted(data.glob(f"*/{split}_*.png")):
                out.write(path, path.relative_to(data))
    with pytest.raises(ArchiveError, match=r"train\.zip: its md5 is .*expected a638e7"):
        LEVIRCD(tmp_path)
    known = {
        split: {
            **about,
            "md5": hashlib.md5((tmp_path / f"{split}.zip").read_bytes()).hexdigest(),
        }
        for split, about in LEVIRCD.splits.items()
    }
    monkeypatch.setattr(LEVIRCD, "splits", known)
    for split, count in SPLITS.items():
        assert len(LEVIRCD(tmp_path, split)) == count


def test_a_zip_file_that_leads_outside_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as out:
        out.writestr("../escaped.txt", "x")
    with pytest.raises(ArchiveError, match=r"train\.zip: .*escaped"):
        LEVIRCD(tmp_path, checksum=False)
    assert not (tmp_path.parent / "escaped.txt").exists()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_whole_images_are_scored_each_pixel_once(data, stage, cache):
    module = LEVIRCDDataModule(data, patch_size=20, batch_size=4, cache=cache)
    module.setup(stage)
    split = {"validate": "val"}.get(stage, "test")
    loader = {
        "validate": module.val_dataloader,
        "test": module.test_dataloader,
        "predict": module.predict_dataloader,
    }[stage]()
    seen = torch.zeros(SPLITS[split], 48, 48, dtype=torch.long)
    truth = torch.zeros_like(seen)
    for batch in loader:
        for number, mask, origin in zip(
            batch["scene"], batch["mask"], batch["origin"], strict=True
        ):
            rows, cols = (mask[0] != IGNORE).nonzero(as_tuple=True)
            seen[number][origin[0] + rows, origin[1] + cols] += 1
            truth[number][origin[0] + rows, origin[1] + cols] = mask[0, rows, cols]
    assert (seen == 1).all()
    assert truth.equal(torch.cat([sample["mask"] for sample in LEVIRCD(data, split)]))


def test_training_windows_are_random_and_turned_with_their_masks(data):
    module = LEVIRCDDataModule(data, patch_size=32, batch_size=4, length=8)
    module.setup("fit")
    assert len(module.train_dataset) == 8
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, 2, 3, 32, 32)
    turned = module.train_aug(batch)
    rise = (turned["image"][:, 1] - turned["image"][:, 0]).mean(1, keepdim=True)
    assert (rise[turned["mask"] == 1] > 2).all()
    assert (rise[turned["mask"] == 0] < 1).all()


def test_statistics_of_the_training_images(data):
    module = LEVIRCDDataModule(data, mean="auto", std="auto")
    module.setup("test")
    values = torch.stack([sample["image"] for sample in LEVIRCD(data)])
    torch.testing.assert_close(module.mean, values.mean((0, 1, 3, 4)))
    assert module.bands == ("red", "green", "blue")
    assert module.gsd == 0.5


def test_the_manifest_lists_every_file(data, tmp_path):
    content = json.loads(
        LEVIRCDDataModule(data).write_manifest(tmp_path / "splits.json").read_text()
    )
    assert {k: len(v) for k, v in content["splits"].items()} == {
        split: 3 * count for split, count in SPLITS.items()
    }
    roles = {(e["file"].split("/")[0], e["role"]) for e in content["splits"]["train"]}
    assert roles == {("A", "before"), ("B", "after"), ("label", "label")}


def test_the_report_counts_the_pairs_that_are_there(copy):
    assert LEVIRCDDataModule(copy).report() == "train: 4 pairs; val: 2 pairs; test: 3 pairs"
    for path in copy.glob("*/test_*.png"):
        path.unlink()
    assert LEVIRCDDataModule(copy).report() == "train: 4 pairs; val: 2 pairs"


def test_plots_show_both_dates_the_label_and_a_prediction(data):
    data_set = LEVIRCD(data)
    sample = data_set[0]
    figure = data_set.plot({**sample, "prediction": 1 - sample["mask"]}, suptitle="one")
    assert isinstance(figure, Figure)
    assert [axis.get_title() for axis in figure.axes] == ["date 1", "date 2", "label", "prediction"]


def test_a_coding_of_one_and_two_is_understood(copy):
    path = copy / "label" / "train_1.png"
    expected = LEVIRCD(copy)[0]["mask"]
    mask = (np.array(Image.open(path)) // 255 + 1).astype(np.uint8)
    Image.fromarray(mask).save(path)
    assert LEVIRCD(copy)[0]["mask"].equal(expected)


@pytest.mark.shared
def test_the_real_pairs_equal_torchgeos():
    if not REAL.is_dir():
        pytest.skip("no shared data")
    for split, count in (("train", 2), ("val", 1), ("test", 5)):
        theirs, ours = stock.LEVIRCD(REAL, split, checksum=False), LEVIRCD(REAL, split)
        assert len(ours) == count
        for one, other in zip(ours, theirs, strict=True):
            assert all(one[key].equal(other[key]) for key in one)
            assert 0.1 < one["mask"].float().mean() < 0.3

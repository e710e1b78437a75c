"""Million-AID: folders, archives, splits."""

import json

import pytest
import torch
from PIL import Image
from torchgeo.datasets import MillionAID

from rsmamba.data.millionaid import MillionAIDDataModule
from rsmamba.errors import ArchiveError, BandMismatchError, ConfigError, DataNotFoundError
from tests.data.millionaid.data import CLASSES, archive, make

OPTIONS = {"size": 16, "batch_size": 2, "val_fraction": 0.2}


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("test", 4), ("all", 10)])
def test_a_split_is_pretrained_on(tmp_path, split, count):
    m = MillionAIDDataModule(make(tmp_path), split, **OPTIONS)
    m.prepare_data()
    for stage in ("fit", "validate", "test", "predict"):
        m.setup(stage)
    assert sum(map(len, m.splits().values())) == count
    batch = next(iter(m.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert set(batch) == {"image"}
    for loader in (m.val_dataloader, m.test_dataloader, m.predict_dataloader):
        assert torch.isfinite(next(iter(loader()))["image"]).all()
    written = json.loads(m.write_manifest(tmp_path / "manifest.json").read_text())
    assert written["dataset"] == "MillionAID"
    assert written["settings"]["split"] == split
    assert sum(map(len, written["splits"].values())) == count


def test_images_are_those_that_torchgeo_reads(tmp_path):
    make(tmp_path)
    theirs = {f["image"] for f in MillionAID(tmp_path, split="train", checksum=False).files}
    ours = MillionAIDDataModule(tmp_path, "train", **OPTIONS).splits()
    assert {str(s.path) for part in ours.values() for s in part} == theirs


def test_archives_are_checked_and_unpacked_once(tmp_path, monkeypatch):
    hashes = archive(make(tmp_path))
    with pytest.raises(ArchiveError, match=r"train\.zip.*1b40503cafa9b0601653ca36cd788852"):
        MillionAIDDataModule(tmp_path, **OPTIONS).prepare_data()
    assert not (tmp_path / "train").exists()
    monkeypatch.setattr(MillionAID, "md5s", hashes)
    MillionAIDDataModule(tmp_path, **OPTIONS).prepare_data()
    assert (tmp_path / "train" / CLASSES[0] / "P00.jpg").is_file()
    for name in ("train", "test"):  # no longer needed
        (tmp_path / f"{name}.zip").unlink()
    assert len(MillionAIDDataModule(tmp_path, val_fraction=0).splits()["train"]) == 10


def test_an_archive_of_something_else_is_named(tmp_path):
    make(tmp_path / "other")
    archive(tmp_path / "other")
    (tmp_path / "other/test.zip").rename(tmp_path / "train.zip")
    with pytest.raises(DataNotFoundError, match=r"train\.zip: holds no folder 'train'"):
        MillionAIDDataModule(tmp_path, "train", checksum=False).prepare_data()


def test_what_is_missing_is_named_with_the_place_to_get_it_from(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"train\.zip.*captain-whu") as error:
        MillionAIDDataModule(tmp_path).setup("fit")
    assert "split=" not in str(error.value)
    (make(tmp_path) / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(DataNotFoundError, match=r"test\.zip.*set split=train"):
        MillionAIDDataModule(tmp_path).setup("fit")
    with pytest.raises(ConfigError, match=r"'val'.*train, test and all"):
        MillionAIDDataModule(tmp_path, "val")


def test_grey_and_cmyk_are_converted_or_bad_files(tmp_path):
    make(tmp_path)
    for name, mode in (("P90", "L"), ("P91", "CMYK")):
        path = tmp_path / f"test/{name}.jpg"
        Image.open(path).convert(mode).save(path)
    options = {"split": "test", "size": 16, "batch_size": 2, "val_fraction": 0}
    m = MillionAIDDataModule(tmp_path, **options)
    m.setup("fit")
    assert len(m.splits()["train"]) == 4
    assert all(b["image"].shape == (2, 3, 16, 16) for b in m.train_dataloader())
    with pytest.raises(BandMismatchError, match=r"P90\.jpg: band 2"):
        MillionAIDDataModule(tmp_path, convert=False, **options).setup("fit")
    m = MillionAIDDataModule(tmp_path, convert=False, max_bad_files=2, **options)
    with pytest.warns(UserWarning, match=r"P91\.jpg: is CMYK.*convert=True"):
        m.setup("fit")
    assert sorted(p.name for p in m.bad_files) == ["P90.jpg", "P91.jpg"]


@pytest.mark.parametrize("workers", [0, 4])
def test_large_collections_work_with_any_number_of_workers(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("rsmamba.data.collection.HEADERS", 3)
    m = MillionAIDDataModule(make(tmp_path), num_workers=workers, length=8, **OPTIONS)
    m.setup("fit")
    images = torch.cat([b["image"] for b in m.train_dataloader()])
    again = MillionAIDDataModule(tmp_path, length=8, **OPTIONS)
    again.setup("fit")
    assert torch.equal(images, torch.cat([b["image"] for b in again.train_dataloader()]))
    assert m.splits()["train"].large

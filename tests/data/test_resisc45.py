"""NWPU-RESISC45: TorchGeo's samples, ratio splits, errors."""

import shutil

import pytest
import torch
from torchgeo.datasets import RESISC45 as TorchGeoRESISC45  # noqa: N811

from rsmamba.data.resisc45 import CLASSES, RESISC45, RESISC45DataModule
from rsmamba.errors import ArchiveError, DataNotFoundError
from tests.data.resisc45 import data


@pytest.fixture
def root(tmp_path):
    return data.make(tmp_path, per_class=10)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_samples_equal_torchgeos(tmp_path, split):
    root = data.make(tmp_path, per_class=5, size=8, classes=CLASSES)
    ours, theirs = RESISC45(root, split), TorchGeoRESISC45(root, split)
    assert isinstance(ours, TorchGeoRESISC45)
    assert ours.imgs == theirs.imgs
    assert ours.classes == theirs.classes
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])


def test_both_protocols_split_all_images(root):
    sizes = {"ratio": [6, 0, 24], "torchgeo": [18, 6, 6]}
    for protocol, expected in sizes.items():
        module = RESISC45DataModule(root, protocol=protocol, train_ratio=0.2, val_ratio=0.0)
        split = module.split()
        assert [len(split[part]) for part in ("train", "val", "test")] == expected
        assert len({name for part in split.values() for name in part}) == 30
        module.setup("predict")
        assert len(module.predict_dataset) == expected[2]
    assert RESISC45DataModule(root).mean.tolist() == pytest.approx(
        [93.894, 97.112, 87.568], abs=1e-3
    )
    assert RESISC45DataModule(root).gsd is None


def test_a_wrong_archive_and_missing_images_are_named(root, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"NWPU-RESISC45/<class>.*download=True"):
        RESISC45DataModule(tmp_path / "none").setup("fit")
    place = tmp_path / "archived"
    place.mkdir()
    shutil.make_archive(place / "NWPU-RESISC45", "zip", root, "NWPU-RESISC45")
    with pytest.raises(ArchiveError, match=r"NWPU-RESISC45\.zip: its sha256.*checksum=False"):
        RESISC45DataModule(place).setup("fit")
    module = RESISC45DataModule(place, checksum=False)
    assert len(module.split()["test"]) == 15


@pytest.mark.parametrize("fault", [RuntimeError("File is corrupted."), OSError("no route to host")])
def test_a_failed_download_is_explained(tmp_path, monkeypatch, fault):
    def fail(self):
        raise fault

    monkeypatch.setattr(TorchGeoRESISC45, "_download", fail)
    error = ArchiveError if isinstance(fault, RuntimeError) else DataNotFoundError
    with pytest.raises(error, match=r"NWPU-RESISC45\.zip.*(corrupted|no route to host)") as caught:
        RESISC45DataModule(tmp_path, download=True).prepare_data()
    assert "\n" not in str(caught.value)

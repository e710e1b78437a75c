"""NWPU VHR-10: TorchGeo's samples without its memory, seeded split, archive."""

import json
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch
import torchgeo.datasets
from lightning.pytorch.trainer.states import TrainerFn

from rsmamba.data import vhr10
from rsmamba.data.vhr10 import VHR10, VHR10DataModule
from rsmamba.errors import ArchiveError, ConfigError, DataNotFoundError, LabelError
from tests.data.vhr10 import data

SHARED = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return data.make(tmp_path_factory.mktemp("vhr10"))


def names(dataset):
    return [item.path.name for item in dataset.items]


def compare(root):
    """Samples of ours and of TorchGeo's that differ, and how many objects there are."""
    ours, theirs = VHR10(root), torchgeo.datasets.VHR10(root, checksum=False)
    place = {name: i for i, name in enumerate(names(ours))}
    assert len(ours) == len(theirs)
    differ, objects = [], 0
    for i, file in enumerate(theirs.files):
        a, b = ours[place[Path(file).name]], theirs[i]
        objects += len(a["label"])
        for key in ("image", "label", "bbox_xyxy"):
            assert torch.equal(a[key], b[key]), file
        differ += [
            (Path(file).name, k)
            for k in range(len(a["mask"]))
            if not torch.equal(a["mask"][k], b["mask"][k])
        ]
    return differ, objects


def test_samples_equal_torchgeos(root):
    differ, objects = compare(root)
    assert differ == []
    assert objects == 19


@pytest.mark.shared
def test_real_samples_equal_torchgeos_but_for_an_object_in_two_parts():
    if not (SHARED / "vhr10").is_dir():
        pytest.skip("the developers' imagery is not here")
    differ, objects = compare(SHARED / "vhr10")
    assert differ == [("228.jpg", 1)]  # TorchGeo draws the first part only
    assert objects == 980


def test_labels_keep_their_numbers_and_names(root):
    dataset = VHR10(root)
    assert dataset.classes == torchgeo.datasets.VHR10.categories
    assert dataset[2]["label"].tolist() == [3, 4, 5]
    assert dataset.classes[3] == "storage tank"


def test_masks_are_drawn_for_a_sample_only(root):
    dataset = VHR10(root)
    assert not any(
        isinstance(outline, torch.Tensor) or getattr(ring, "size", 0) > 100
        for item in dataset.items
        for outline in item.outlines
        for ring in outline
    )
    assert dataset[0]["mask"].sum() == 140


def test_the_split_is_complete_disjoint_and_seeded(root):
    module = VHR10DataModule(root, batch_size=2, size=64)
    parts = {k: names(v) for k, v in module.splits().items() if k != "predict"}
    assert {k: len(v) for k, v in parts.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(chain.from_iterable(parts.values())) == sorted(names(VHR10(root)))
    other = VHR10DataModule(root, split_seed=1).splits()
    assert names(other["test"]) != parts["test"] or names(other["val"]) != parts["val"]
    # Written down once: another machine or version must find the same.
    assert parts["test"] == ["004.jpg", "006.jpg"]


def test_images_without_objects_are_split_alike_and_change_nothing_else(root):
    module = VHR10DataModule(root, batch_size=2, negatives=True)
    split = module.splits()
    assert sum(len(split[p]) for p in ("train", "val", "test")) == 15
    empty = [i for p in ("train", "val", "test") for i in split[p].items if not i.boxes]
    assert len(empty) == 5
    assert all(i.path.parent.name == "negative image set" for i in empty)
    module.setup("fit")
    shapes = [len(s["label"]) for s in (module.train_dataset[i] for i in range(9))]
    assert 0 in shapes
    assert max(shapes) > 0


def test_every_stage_gives_batches_of_one_tensor(root):
    module = VHR10DataModule(root, batch_size=2, size=64)
    for stage in ("fit", "validate", "test", "predict"):
        module.setup(stage)
        part = {"fit": "train", "validate": "val"}.get(stage, stage)
        batch = next(iter(getattr(module, f"{part}_dataloader")()))
        assert batch["image"].shape == (2, 3, 64, 64)
        for boxes, masks in zip(batch["bbox_xyxy"], batch["mask"], strict=True):
            assert masks.shape == (len(boxes), 64, 64)
            assert boxes.min() >= 0
            assert boxes.max() <= 64
    assert module.predict_dataset is module.test_dataset


def test_lightnings_own_stages_are_understood(root):
    module = VHR10DataModule(root, batch_size=2, size=64)
    for stage in TrainerFn:  # no plain strings
        module.setup(stage)
    for part in ("train", "val", "test", "predict"):
        assert len(getattr(module, f"{part}_dataset")) > 0


def test_the_manifest_names_every_image_once(root, tmp_path):
    content = json.loads(
        VHR10DataModule(root, negatives=True).write_manifest(tmp_path / "m.json").read_text()
    )
    files = [e["file"] for part in content["splits"].values() for e in part]
    assert len(files) == len(set(files)) == 15
    assert content["settings"]["negatives"] is True


def test_the_report_counts_images_and_objects(root):
    split = VHR10DataModule(root).splits()
    n = {part: sum(len(i.boxes) for i in split[part].items) for part in ("train", "val", "test")}
    assert sum(n.values()) == 19
    assert VHR10DataModule(root).report() == (
        f"train: 6 images ({n['train']} objects); val: 2 images ({n['val']} objects); "
        f"test: 2 images ({n['test']} objects)"
    )
    assert "val" not in VHR10DataModule(root, val_ratio=0).report()


def test_the_archive_is_unpacked_and_checked(root, tmp_path, monkeypatch):
    folder = tmp_path / "packed"
    digest = data.pack(root, folder)
    with pytest.raises(ArchiveError, match=r"VHR-10 dataset\.zip: its sha256 is .* expected 3e8c"):
        VHR10(folder)
    assert not (folder / data.FOLDER).exists()
    meta = {**torchgeo.datasets.VHR10.image_meta, "sha256": digest}
    monkeypatch.setattr(vhr10.Stock, "image_meta", meta)
    with pytest.raises(DataNotFoundError, match=r"no annotations .*annotations\.json: set downl"):
        VHR10(folder)
    shutil.copy(root / data.FOLDER / "annotations.json", folder / data.FOLDER)
    (folder / f"{data.FOLDER}.zip").unlink()
    assert len(VHR10(folder)) == 10  # the archive is not needed any more


def test_missing_parts_are_fetched_and_checked(root, tmp_path, monkeypatch):
    source = tmp_path / "source"
    digest = data.pack(root, source)
    shutil.copy(root / data.FOLDER / "annotations.json", source)
    asked = []

    def fetch(url, folder, filename):
        asked.append(url)
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(source / filename, Path(folder) / filename)

    monkeypatch.setattr(vhr10, "download_url", fetch)
    meta = {**torchgeo.datasets.VHR10.image_meta, "sha256": digest}
    monkeypatch.setattr(vhr10.Stock, "image_meta", meta)
    target = tmp_path / "target"
    with pytest.raises(ArchiveError, match=r"annotations\.json: its sha256"):
        VHR10(target, download=True)
    (target / data.FOLDER / "annotations.json").unlink()
    module = VHR10DataModule(target, batch_size=2, download=True, checksum=False)
    module.prepare_data()
    module.setup("fit")
    assert len(asked) == 3  # archive once, annotations twice
    assert len(module.train_dataset) == 6


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("no route")

    monkeypatch.setattr(vhr10, "download_url", fail)
    with pytest.raises(DataNotFoundError, match=r"cannot download https.*no route.*by hand"):
        VHR10(tmp_path, download=True)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"positive image set/\*\.jpg"):
        VHR10DataModule(tmp_path / "nowhere").setup("fit")
    assert not list(tmp_path.iterdir())


def test_annotations_of_other_classes_are_refused(root, tmp_path):
    own = Path(shutil.copytree(root, tmp_path / "own"))
    path = own / data.FOLDER / "annotations.json"
    path.write_text(path.read_text().replace("harbor", "port"))
    with pytest.raises(LabelError, match=r"annotations\.json: its categories"):
        VHR10(own)


def test_shares_that_leave_nothing_are_refused(root):
    for options in ({"val_ratio": 0.5, "test_ratio": 0.5}, {"test_ratio": 0.0}, {"val_ratio": -1}):
        with pytest.raises(ConfigError, match="val_ratio"):
            VHR10DataModule(root, **options)

"""UC Merced: training-ratio splits, TorchGeo's protocol, errors."""

import json

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torchgeo.datasets import UCMerced as TorchGeoUCMerced

from rsmamba import samples
from rsmamba.data import UCMerced, UCMercedDataModule
from rsmamba.data.splits import stratified_split
from rsmamba.errors import ConfigError, DataNotFoundError, ImageReadError
from tests.data.ucmerced import data


@pytest.fixture
def root(tmp_path):
    return data.make(tmp_path)


def test_ratio_split_is_stratified_complete_and_disjoint(root):
    module = UCMercedDataModule(root, train_ratio=0.5, val_ratio=0.2)
    split = module.split()
    assert {part: len(names) for part, names in split.items()} == {
        "train": 24,
        "val": 6,
        "test": 30,
    }
    assert len({n for names in split.values() for n in names}) == 60
    for label in data.CLASSES:
        assert sum(n.startswith(label) for n in split["train"]) == 8
        assert sum(n.startswith(label) for n in split["test"]) == 10


def test_split_depends_on_seed_and_names_only(root, tmp_path):
    first = UCMercedDataModule(root).split()
    torch.manual_seed(1)
    assert UCMercedDataModule(root).split() == first
    assert UCMercedDataModule(root, split_seed=1).split() != first
    # Written down once: another machine or version must find the same.
    names = {f"a{i}": "a" for i in range(6)}
    split = stratified_split(names, train_ratio=0.5, val_ratio=0.34, seed=0)
    assert split == {"train": ["a1", "a2"], "val": ["a4"], "test": ["a0", "a3", "a5"]}


def test_same_ground_never_straddles_train_and_test():
    names = {f"airplane{i:02d}": "airplane" for i in range(10)}
    pair = ("airplane01", "airplane02")
    straddled = 0
    for seed in range(30):
        args = {"train_ratio": 0.5, "val_ratio": 0.2, "seed": seed}
        split = stratified_split(names, **args, together=[pair])
        assert sorted(map(len, split.values())) == [1, 4, 5]
        assert sum(bool(set(pair) & set(part)) for part in split.values()) == 1
        free = stratified_split(names, **args)
        straddled += sum(bool(set(pair) & set(part)) for part in free.values()) > 1
    assert straddled > 5  # the guard has something to do


def test_ratios_that_leave_nothing_are_refused(root):
    with pytest.raises(ConfigError, match="train_ratio=1"):
        UCMercedDataModule(root, train_ratio=1.0).setup("fit")
    with pytest.raises(ConfigError, match="too few"):
        UCMercedDataModule(root, train_ratio=0.01).setup("fit")
    with pytest.raises(ConfigError, match="protocol='other'"):
        UCMercedDataModule(root, protocol="other")


def test_torchgeo_protocol_gives_torchgeos_samples():
    root = samples.path("ucmerced")
    module = UCMercedDataModule("sample:ucmerced", protocol="torchgeo")
    module.setup("test")
    theirs = TorchGeoUCMerced(root, "test")
    assert len(module.test_dataset) == len(theirs) == 252
    for i in (0, 100, 251):
        ours, other = module.test_dataset[i], theirs[i]
        assert torch.equal(ours["image"], other["image"])
        assert ours["label"] == other["label"]
    assert module.classes == tuple(theirs.classes)


def test_batches_are_normalised_and_of_the_size_asked_for(root):
    module = UCMercedDataModule(root, batch_size=4, image_size=24, mean=[10, 20, 30], std=[2, 4, 8])
    module.setup("predict")
    batch = next(iter(module.predict_dataloader()))
    assert batch["image"].shape == (4, 3, 24, 24)
    out = module.aug({k: v.clone() for k, v in batch.items()})
    expected = (batch["image"] - module.mean[:, None, None]) / module.std[:, None, None]
    torch.testing.assert_close(out["image"], expected)
    assert torch.equal(out["label"], batch["label"])
    assert module.bands == ("red", "green", "blue")
    assert UCMercedDataModule(root).gsd == pytest.approx(0.3048)


class Probe(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.seen = {"train": 0, "val": 0}

    def loss(self, batch, part):
        self.seen[part] += len(batch["label"])
        return nn.functional.cross_entropy(self.head(batch["image"].mean((2, 3))), batch["label"])

    def training_step(self, batch, _):
        return self.loss(batch, "train")

    def validation_step(self, batch, _):
        self.loss(batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def quick_trainer(tmp_path, **kwargs):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **{"max_epochs": 1, **kwargs},
    )


@pytest.mark.parametrize(("val_ratio", "val"), [(0.2, 6), (0.0, 0)])
def test_a_trainer_runs_with_and_without_validation(root, tmp_path, val_ratio, val):
    module = UCMercedDataModule(root, batch_size=6, image_size=16, val_ratio=val_ratio)
    probe = Probe()
    quick_trainer(tmp_path).fit(probe, module)
    assert probe.seen == {"train": 30 - val, "val": val}


def test_manifest_names_files_hashes_and_settings(root, tmp_path):
    module = UCMercedDataModule(root, split_seed=3)
    content = json.loads(module.write_manifest(tmp_path / "split.json").read_text())
    assert content["settings"] == {
        "protocol": "ratio",
        "train_ratio": 0.5,
        "val_ratio": 0.1,
        "split_seed": 3,
    }
    listed = {part: [e["file"] for e in items] for part, items in content["splits"].items()}
    assert {p: sorted(n.rsplit("/")[-1] for n in names) for p, names in listed.items()} == (
        module.split()
    )
    entry = content["splits"]["train"][0]
    assert entry["file"].startswith("UCMerced_LandUse/Images/")
    assert len(entry["sha256"]) == 64
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_missing_folder_is_named_with_what_is_expected(tmp_path):
    for protocol in ("ratio", "torchgeo"):
        with pytest.raises(DataNotFoundError, match=r"nowhere.*UCMerced_LandUse/Images") as caught:
            UCMercedDataModule(tmp_path / "nowhere", protocol=protocol).setup("fit")
        assert "\n" not in str(caught.value)


def test_a_missing_split_file_is_named(root):
    (root / "uc_merced-val.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"uc_merced-val\.txt"):
        UCMercedDataModule(root, protocol="torchgeo").setup("fit")


def test_a_truncated_image_is_named(root):
    path = root / "UCMerced_LandUse/Images/beach/beach00.jpg"
    path.write_bytes(path.read_bytes()[:300])
    dataset = UCMerced(root, "train")
    index = next(i for i, (name, _) in enumerate(dataset.imgs) if name.endswith("beach00.jpg"))
    with pytest.raises(ImageReadError, match=r"beach00\.jpg"):
        dataset[index]
    assert dataset[0]["image"].shape == (3, 256, 256)

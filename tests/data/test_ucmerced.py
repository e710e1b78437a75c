"""UC Merced: training-ratio splits, TorchGeo's protocol, errors."""

import hashlib
import json
import shutil
import warnings

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import nn
from torchgeo.datasets import UCMerced as TorchGeoUCMerced

from rsmamba import samples
from rsmamba.data import UCMerced, UCMercedDataModule
from rsmamba.data.class_folders import collate
from rsmamba.data.splits import stratified_split
from rsmamba.errors import (
    ArchiveError,
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    ImageReadError,
)
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
    assert UCMercedDataModule(root, num_workers=2, image_size=96).split() == first
    assert UCMercedDataModule(root, split_seed=1).split() != first
    # Written down once: another machine or version must find the same.
    names = {f"a{i}": "a" for i in range(6)}
    split = stratified_split(names, train_ratio=0.5, val_ratio=0.34, seed=0)
    assert split == {"train": ["a1", "a2"], "val": ["a4"], "test": ["a0", "a3", "a5"]}


#: SHA-256 of the file names of each split of the shipped images, train then val then test, one a
#: line: written down when the split was first made.
RECORDED = {
    (0, 0.5, 0.1): "5ea8837f6a6fb543",
    (1, 0.5, 0.1): "af567fdd2f3e83db",
    (0, 0.2, 0.0): "a9d6cecf25b8dd0f",
    (1, 0.8, 0.1): "ad19d35b57895d60",
}


@pytest.mark.parametrize(("seed", "train_ratio", "val_ratio"), RECORDED)
def test_the_split_of_the_shipped_images_is_the_recorded_one(seed, train_ratio, val_ratio):
    options = {"split_seed": seed, "train_ratio": train_ratio, "val_ratio": val_ratio}
    split = UCMercedDataModule("sample:ucmerced", **options).split()
    names = [name.split("/")[1] for part in ("train", "val", "test") for name in split[part]]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert digest[:16] == RECORDED[seed, train_ratio, val_ratio]


def test_copies_in_another_format_are_split_alike(root, tmp_path):
    first = UCMercedDataModule(root).split()
    for path in sorted(root.rglob("*.jpg")):
        with Image.open(path) as image:
            image.save(path.with_suffix(".tif"))
        path.unlink()
    for part, names in UCMercedDataModule(root).split().items():
        assert [n.removesuffix(".tif") for n in names] == [
            n.removesuffix(".jpg") for n in first[part]
        ]


def test_without_strata_only_the_whole_is_divided_by_the_ratio(root):
    split = UCMercedDataModule(root, stratified=False, val_ratio=0.0, split_seed=1).split()
    assert (len(split["train"]), len(split["test"])) == (30, 30)
    counts = {sum(n.startswith(label) for n in split["train"]) for label in data.CLASSES}
    assert counts != {10}


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
    assert UCMercedDataModule(root, image_size=128).gsd == pytest.approx(0.6096)


def test_a_batch_holds_the_samples_of_the_data_set(root):
    module = UCMercedDataModule(root, batch_size=5, image_size=20)
    module.setup("test")
    batch = next(iter(module.test_dataloader()))
    samples = [module.test_dataset[i] for i in range(5)]
    assert batch["image"].is_contiguous()
    assert torch.equal(batch["image"], torch.stack([s["image"] for s in samples]))
    assert torch.equal(batch["label"], torch.stack([s["label"] for s in samples]))
    doubled = UCMerced(root, "test", transforms=lambda s: {**s, "image": 2 * s["image"]})
    assert torch.equal(doubled[0]["image"], 2 * UCMerced(root, "test")[0]["image"])


def test_random_crops_depend_on_seed_epoch_and_image_alone(root):
    options = {"batch_size": 6, "image_size": 16, "crop_scale": [0.2, 0.8], "flips": "horizontal"}

    def epochs(**more):
        module = UCMercedDataModule(root, **options, **more)
        module.setup("fit")
        loader = module.train_dataloader()
        return [torch.cat([b["image"] for b in loader]) for _ in range(2)]

    first = epochs()
    torch.manual_seed(5)
    again = epochs(num_workers=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], epochs(split_seed=1)[0])
    for wrong in ([0.5], [0.0, 1.0], [0.9, 0.2], [0.5, 1.5]):
        with pytest.raises(ConfigError, match="crop_scale"):
            UCMercedDataModule(root, crop_scale=wrong)
    with pytest.raises(ConfigError, match="flips='up'"):
        UCMercedDataModule(root, flips="up")


def test_images_of_several_sizes_in_a_batch_are_explained():
    samples = [{"image": torch.zeros(3, n, 9), "label": torch.tensor(0)} for n in (8, 9)]
    with pytest.raises(ConfigError, match=r"9 x 8 and 9 x 9 px.*image_size"):
        collate(samples)


class Probe(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 21)
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
        "stratified": True,
        "val_ratio": 0.1,
        "split_seed": 3,
    }
    listed = {part: [e["file"] for e in items] for part, items in content["splits"].items()}
    assert listed == {
        part: [f"UCMerced_LandUse/Images/{name}" for name in names]
        for part, names in module.split().items()
    }
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
    with pytest.raises(DataNotFoundError, match=r"uc_merced-val\.txt.*protocol='ratio'"):
        UCMercedDataModule(root, protocol="torchgeo").setup("fit")


def test_an_image_that_a_split_file_lists_and_that_is_missing_is_named(root):
    (root / "UCMerced_LandUse/Images/beach/beach03.jpg").unlink()
    with pytest.raises(DataNotFoundError, match=r"uc_merced-train\.txt:\d+ lists beach03\.jpg"):
        UCMerced(root, "train")
    with pytest.raises(DataNotFoundError, match=r"names lists beach03\.jpg"):
        UCMerced(root, names=["beach00.jpg", "beach03.jpg"])


def test_a_class_folder_without_images_is_named(root):
    shutil.rmtree(root / "UCMerced_LandUse/Images/airplane")
    (root / "UCMerced_LandUse/Images/airplane").mkdir()
    with pytest.raises(DataNotFoundError, match=r"Images/airplane: class folder without images"):
        UCMercedDataModule(root).setup("fit")


def test_an_image_listed_in_two_split_files_is_named(root):
    with (root / "uc_merced-test.txt").open("a") as file:
        file.write("beach00.jpg\n")
    with pytest.raises(ConfigError, match=r"beach00\.jpg is in the train split and in the test"):
        UCMercedDataModule(root, protocol="torchgeo").setup("test")


def plant_copy(root, module):
    """Make a training image the byte-for-byte copy of a test image; return both names."""
    split = module.split()
    a, b = split["train"][0], split["test"][-1]
    images = root / "UCMerced_LandUse/Images"
    (images / a).write_bytes((images / b).read_bytes())
    return a, b


def test_a_copy_in_another_split_is_reported_with_the_manifest(root, tmp_path):
    a, b = plant_copy(root, UCMercedDataModule(root))
    module = UCMercedDataModule(root)
    with warnings.catch_warnings(action="error"):
        module.setup("fit")  # hashing takes time: not before a manifest
    with pytest.warns(UserWarning, match=rf"1 images .*{a}.*train.*{b}.*test"):
        module.write_manifest(tmp_path / "m.json")
    quiet = UCMercedDataModule(root, check_duplicates="never")
    with warnings.catch_warnings(action="error"):
        quiet.write_manifest(tmp_path / "m.json")


def test_a_copy_in_another_split_is_refused_on_request(root, tmp_path):
    a, b = plant_copy(root, UCMercedDataModule(root))
    module = UCMercedDataModule(root, check_duplicates="error")
    with pytest.raises(ConfigError, match=rf"{a} \(train\).*{b} \(test\)"):
        module.setup("fit")
    with pytest.raises(ConfigError, match=rf"{a} \(train\)"):
        module.write_manifest(tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()
    with pytest.warns(UserWarning, match="byte for byte"):
        UCMercedDataModule(root, check_duplicates="warn").setup("fit")
    with pytest.raises(ConfigError, match="check_duplicates='maybe'"):
        UCMercedDataModule(root, check_duplicates="maybe")


def zipped(root, tmp_path):
    """The images as an archive in a folder of their own."""
    place = tmp_path / "archived"
    place.mkdir()
    shutil.make_archive(place / "UCMerced_LandUse", "zip", root, "UCMerced_LandUse")
    for path in root.glob("*.txt"):
        shutil.copy(path, place)
    return place


def test_an_archive_is_unpacked_if_its_checksum_is_right(root, tmp_path):
    place = zipped(root, tmp_path)
    with pytest.raises(ArchiveError, match=r"UCMerced_LandUse\.zip: its sha256.*checksum=False"):
        UCMercedDataModule(place).setup("fit")
    assert not (place / "UCMerced_LandUse").exists()
    module = UCMercedDataModule(place, checksum=False)
    module.prepare_data()
    assert (place / "UCMerced_LandUse/Images/beach/beach00.jpg").is_file()
    assert module.split() == UCMercedDataModule(root).split()


def test_a_grey_image_is_refused_by_name(root):
    path = root / "UCMerced_LandUse/Images/beach/beach00.jpg"
    with Image.open(path) as image:
        image.convert("L").save(path)
    dataset = UCMerced(root, names=["beach00.jpg"])
    with pytest.raises(BandMismatchError, match=r"beach00\.jpg: is grey"):
        dataset[0]


def test_the_data_are_described_in_one_line(root):
    assert UCMercedDataModule(root, val_ratio=0.2).report() == (
        "train: 24 images of 3 classes (8 to 8 each); val: 6 images of 3 classes (2 to 2 each); "
        "test: 30 images of 3 classes (10 to 10 each)"
    )


def test_a_truncated_image_is_named(root):
    path = root / "UCMerced_LandUse/Images/beach/beach00.jpg"
    path.write_bytes(path.read_bytes()[:300])
    dataset = UCMerced(root, "train")
    index = next(i for i, (name, _) in enumerate(dataset.imgs) if name.endswith("beach00.jpg"))
    with pytest.raises(ImageReadError, match=r"beach00\.jpg"):
        dataset[index]
    assert dataset[0]["image"].shape == (3, 256, 256)

"""ImageNet-style folders: crops, classes, conversion, splits."""

import json

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode

from rsmamba.data.class_folders import RandomView
from rsmamba.data.image_folder import ImageFolder, ImageFolderDataModule
from rsmamba.errors import BandMismatchError, ConfigError, DataNotFoundError, LabelError
from tests.data.image_folder import data


@pytest.fixture
def root(tmp_path):
    return data.make(tmp_path / "set")


def test_folders_are_the_splits_and_validation_images_are_tested_on(root):
    module = ImageFolderDataModule(root, batch_size=4, image_size=16)
    assert {part: len(names) for part, names in module.split().items()} == {
        "train": 24,
        "val": 12,
        "test": 0,
    }
    for stage in ("fit", "test", "predict"):
        module.setup(stage)
    assert module.test_dataset.imgs == module.predict_dataset.imgs == module.val_dataset.imgs
    assert all("/val/" in path for path, _ in module.test_dataset.imgs)
    (root / "val").rename(root / "exam")
    named = ImageFolderDataModule(root, test_folder="exam", val_ratio=0.25)
    assert [len(names) for names in named.split().values()] == [18, 6, 12]
    assert [n.split("/")[0] for n in named.split()["val"]] == ["train"] * 6


def test_without_images_to_test_on_that_is_said(root):
    module = ImageFolderDataModule(root, val_folder="none", val_ratio=0.0)
    module.setup("fit")
    assert module.val_dataloader() == []
    with pytest.raises(ConfigError, match="no images are left to test on"):
        module.setup("test")


def test_a_folder_can_be_split_by_ratio(root):
    module = ImageFolderDataModule(root / "train", protocol="ratio", val_ratio=0.25)
    split = module.split()
    assert [len(names) for names in split.values()] == [9, 3, 12]
    assert len({n for names in split.values() for n in names}) == 24
    # Names may be the same in all classes: the folder counts.
    for label in data.CLASSES:
        for path in sorted((root / "train" / label).iterdir()):
            path.rename(path.with_name(path.name.split("_")[1]))
    again = ImageFolderDataModule(root / "train", protocol="ratio").split()
    assert len({n for names in again.values() for n in names}) == 24


def test_images_of_other_kinds_are_converted_unless_told_otherwise(root):
    module = ImageFolderDataModule(root, batch_size=24, image_size=16)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert batch["image"].shape == (24, 3, 16, 16)
    strict = ImageFolderDataModule(root, image_size=16, convert=False)
    strict.setup("fit")
    with pytest.raises(BandMismatchError, match=r"n\d+_\d\.JPEG: is (grey|CMYK).*convert=True"):
        list(map(strict.train_dataset.__getitem__, range(24)))


def test_evaluation_images_are_torchvisions_centre_crop(root):
    module = ImageFolderDataModule(root, image_size=28)
    module.setup("validate")
    for i in range(4):
        path, _ = module.val_dataset.imgs[i]
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        resized = TF.resize(pixels, [32], InterpolationMode.BICUBIC, antialias=True)
        expected = TF.center_crop(resized, [28, 28])
        assert torch.equal(module.val_dataset[i]["image"], expected.float())


def test_crops_are_drawn_anew_in_each_epoch_and_the_same_in_each_run(root):
    def epochs(workers=0, **options):
        module = ImageFolderDataModule(
            root, batch_size=8, image_size=16, num_workers=workers, **options
        )
        module.setup("fit")
        loader = module.train_dataloader()
        return [[(b["image"], b["label"]) for b in loader] for _ in range(2)]

    first = epochs()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    for one, other in zip(first, epochs(workers=2), strict=True):
        for (a, b), (c, d) in zip(one, other, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    assert not torch.equal(first[0][0][0], first[1][0][0])
    assert not torch.equal(first[0][0][0], epochs(split_seed=1)[0][0][0])
    labels = torch.cat([b for _, b in first[0]])
    assert torch.bincount(labels).tolist() == [8, 8, 8]  # each image once in an epoch


def test_crops_are_of_the_size_asked_for_and_everywhere():
    image = torch.arange(60 * 80).view(1, 60, 80)
    view = RandomView(scale=(0.2, 0.5), ratio=(0.75, 1.5))
    corners, areas, ratios = set(), [], []
    for i in range(300):
        crop = view.crop(image, np.random.default_rng(i))
        height, width = crop.shape[1:]
        areas.append(height * width / 4800)
        ratios.append(width / height)
        corners |= {divmod(int(v), 80) for v in (crop[0, 0, 0], crop[0, -1, -1])}
    assert 0.18 < min(areas) < 0.25 < 0.45 < max(areas) < 0.53
    assert 0.7 < min(ratios) < 0.8 < 1.4 < max(ratios) < 1.6
    rows, cols = zip(*corners, strict=True)
    assert (min(rows), max(rows), min(cols), max(cols)) == (0, 59, 0, 79)
    assert RandomView(scale=None).crop(image, np.random.default_rng(0)) is image
    thin = torch.zeros(1, 2, 200)
    assert RandomView(scale=(1, 1), ratio=(1, 1)).crop(thin, np.random.default_rng(0)) is thin


def test_half_of_the_images_are_mirrored(root):
    plain = ImageFolderDataModule(root, image_size=16, crop_scale=None, flips="none")
    mirrored = ImageFolderDataModule(root, image_size=16, crop_scale=None, flips="horizontal")
    for module in (plain, mirrored):
        module.setup("fit")
    originals = {i: plain.train_dataset[i]["image"] for i in range(24)}
    view, flipped = mirrored.train_dataset.view, 0
    for i in range(24):
        item, _ = view.draw(i, 24)
        image = mirrored.train_dataset[i]["image"]
        if torch.equal(image, originals[item].flip(-1)):
            flipped += 1
        else:
            assert torch.equal(image, originals[item])
    assert 6 <= flipped <= 18
    assert plain.train_aug.steps is None


def test_a_list_of_classes_gives_order_and_names(root):
    text = "n01484850 great white shark\nn01440764 tench, Tinca tinca\nn01443537\tgoldfish\n"
    (root / "classes.txt").write_text(text)
    for classes in ("classes.txt", root / "classes.txt"):
        module = ImageFolderDataModule(root, classes=classes, image_size=16)
        module.setup("fit")
        assert module.classes == ("great white shark", "tench, Tinca tinca", "goldfish")
        path, label = module.train_dataset.imgs[0]
        assert "n01484850" in path
        assert label == 0
        assert all(("n01443537" in p) == (i == 2) for p, i in module.val_dataset.imgs)
    module = ImageFolderDataModule(root, classes=data.CLASSES[::-1], image_size=16)
    module.setup("validate")
    assert module.classes == data.CLASSES[::-1]
    assert [int(module.val_dataset[i]["label"]) for i in (0, 11)] == [0, 2]


def test_classes_that_do_not_fit_the_folders_are_named(root):
    with pytest.raises(LabelError, match=r"n09999999 is no folder"):
        ImageFolderDataModule(root, classes=[*data.CLASSES, "n09999999"]).setup("fit")
    with pytest.raises(LabelError, match=r"n01484850 is not among the classes"):
        ImageFolderDataModule(root, classes=data.CLASSES[:2]).setup("fit")
    with pytest.raises(DataNotFoundError, match=r"missing\.txt"):
        ImageFolderDataModule(root, classes="missing.txt").setup("fit")
    (root / "val/n01440764").rename(root / "val/other")
    with pytest.raises(LabelError, match=r"val/other: no class of that name in .*train"):
        ImageFolderDataModule(root).setup("fit")


def test_missing_and_empty_folders_are_named(root, tmp_path):
    for path in (root / "train/n01443537").iterdir():
        path.unlink()
    with pytest.raises(DataNotFoundError, match=r"train/n01443537: class folder without images"):
        ImageFolderDataModule(root).setup("fit")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataNotFoundError, match=r"no folder .*train.*protocol='ratio'"):
        ImageFolderDataModule(tmp_path / "bare").setup("fit")
    with pytest.raises(DataNotFoundError, match=r"nowhere"):
        ImageFolderDataModule(tmp_path / "nowhere", protocol="ratio").setup("fit")
    with pytest.raises(ConfigError, match="protocol='torchgeo'"):
        ImageFolderDataModule(root, protocol="torchgeo")


def test_the_manifest_names_the_images_of_both_folders(root, tmp_path):
    content = json.loads(
        ImageFolderDataModule(root).write_manifest(tmp_path / "m.json").read_text()
    )
    assert content["settings"] == {"protocol": "folders"}
    entry = content["splits"]["val"][0]
    assert entry["file"] == "val/n01440764/n01440764_0.JPEG"
    assert entry["class"] == "n01440764"
    assert len(entry["sha256"]) == 64


def test_the_data_set_alone_reads_all_images_as_they_are(root):
    dataset = ImageFolder(root / "train", convert=True)
    assert len(dataset) == 24
    shapes = {tuple(dataset[i]["image"].shape) for i in range(24)}
    assert len(shapes) > 5
    with pytest.raises(ConfigError, match="set image_size"):
        ImageFolder(root / "train", centre=0.875)

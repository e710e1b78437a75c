"""Folders of images and masks: labels, random windows, whole images, damaged files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from rsmamba.data.images import IGNORE
from rsmamba.data.semantic_folder import RandomCrop, SemanticFolder, read_mask
from rsmamba.data.semantic_folder_datamodule import SemanticFolderDataModule
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
)
from tests.data.semantic_folder import data

CROP = RandomCrop(size=24, scale=(0.5, 2.0), short_side=None, most=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return data.make(tmp_path_factory.mktemp("ade"))


@pytest.fixture
def own(root, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(root, tmp_path / "own"))


def folder(root, part="training", **options):
    options = {"reduce_zero_label": True, **options}
    return SemanticFolder(
        root / "images" / part, root / "annotations" / part, data.CLASSES, **options
    )


def module_of(root, **options):
    options = {"reduce_zero_label": True, "crop_size": 24, "short_side": None, **options}
    return SemanticFolderDataModule(root, data.CLASSES, batch_size=2, **options)


def save(path, values):
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def disagreement(sample):
    """Share of the labelled pixels whose colour is not that of their class.

    Cells of 8 px: interpolation touches their edges only, so a shift of a pixel shows at once.
    """
    mask = sample["mask"]
    known = mask != IGNORE
    seen = (sample["image"][0] / data.LEVEL).round().long() - 1
    return float((seen[known] != mask[known]).float().mean())


def test_zero_is_unlabelled_and_classes_start_at_one_where_that_is_asked_for(root):
    sample = folder(root)[0]
    values = data.scene(48, 64, 0).astype(np.int64)
    assert np.array_equal(sample["mask"].numpy(), np.where(values == 0, 255, values - 1))
    assert sample["image"].shape == (3, 48, 64)
    assert disagreement(sample) < 0.01
    plain = SemanticFolder(root / "images/training", root / "annotations/training", 5)[0]
    assert np.array_equal(plain["mask"].numpy(), values)


def test_255_stays_unlabelled_in_either_coding(tmp_path):
    save(tmp_path / "m.png", [[0, 1, 2, 255]])
    assert read_mask(tmp_path / "m.png", 2, True).tolist() == [[255, 0, 1, 255]]
    save(tmp_path / "m.png", [[0, 1, 1, 255]])
    assert read_mask(tmp_path / "m.png", 2).tolist() == [[0, 1, 1, 255]]


def test_palette_one_bit_and_sixteen_bit_masks_are_read_as_numbers(tmp_path):
    values = np.array([[0, 1], [2, 0]], np.uint8)
    image = Image.fromarray(values, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "palette.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(values > 0).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "palette.png", 3).tolist() == values.tolist()
    assert read_mask(tmp_path / "deep.png", 3).tolist() == values.tolist()
    assert read_mask(tmp_path / "bits.png", 2).tolist() == (values > 0).tolist()


def test_windows_keep_image_and_mask_together_at_every_scale(root):
    windows = folder(root).random(CROP, seed=0)
    samples = [windows[i] for i in range(60)]
    assert all(s["image"].shape == (3, 24, 24) for s in samples)
    assert np.mean([disagreement(s) for s in samples]) < 0.15
    # The measure sees a shift of a single pixel.
    moved = [{**s, "mask": s["mask"].roll(1, 1)} for s in samples]
    assert np.mean([disagreement(s) for s in moved]) > 0.15
    sizes = {int((s["mask"][0].diff() != 0).sum()) for s in samples}
    assert len(sizes) > 2  # scales differ


def test_small_images_are_padded_with_the_fill_and_ignored(root):
    crop = RandomCrop(size=96, scale=(1.0, 1.0), short_side=None, most=1.0, mirror=False)
    sample = folder(root).random(crop, 0, torch.tensor([7.0, 8.0, 9.0]))[0]
    assert sample["image"].shape == (3, 96, 96)
    assert sample["image"][:, 95, 95].tolist() == [7, 8, 9]
    assert (sample["mask"][:, 64:] == IGNORE).all()
    assert disagreement(sample) < 0.01


def test_windows_depend_on_seed_and_index_only_and_visit_each_image_once_in_an_epoch(root):
    first, again = folder(root).random(CROP, 0), folder(root).random(CROP, 0)
    other = folder(root).random(CROP, 1)
    for i in (5, 0, 11):
        assert torch.equal(first[i]["image"], again[i]["image"])
    assert any(not torch.equal(first[i]["image"], other[i]["image"]) for i in range(6))
    assert any(not torch.equal(first[i]["image"], first[i + 6]["image"]) for i in range(6))
    drawn = [first.lottery.draw(i)[0] for i in range(6)]
    assert sorted(drawn) == list(range(6))
    assert first.endless


def test_a_window_of_one_class_is_drawn_again(tmp_path):
    values = np.ones((64, 256), np.uint8)
    values[::2, 128:] = 2  # half and half on the right, one class on the left
    data.write(tmp_path, "training", "a", values)
    crop = {"size": 16, "scale": (1.0, 1.0), "short_side": None, "mirror": False}
    several = folder(tmp_path).random(RandomCrop(most=0.75, **crop), 0)
    anything = folder(tmp_path).random(RandomCrop(most=1.0, **crop), 0)

    def uniform(dataset):
        return sum(len(dataset[i]["mask"].unique()) == 1 for i in range(100))

    assert uniform(several) == 0
    assert 30 < uniform(anything) < 70


def test_an_image_of_one_class_gives_up_after_ten_draws(tmp_path):
    data.write(tmp_path, "training", "a", np.ones((40, 40), np.uint8))
    window = folder(tmp_path).random(RandomCrop(16, short_side=None), 0)[0]
    assert window["mask"].unique().tolist() in ([0], [0, IGNORE])


def test_half_of_the_windows_are_mirrored(tmp_path):
    ramp = np.repeat(np.arange(1, 5, dtype=np.uint8), 8)[None].repeat(32, 0)
    data.write(tmp_path, "training", "a", ramp)
    crop = RandomCrop(32, (1.0, 1.0), None, 1.0)
    windows = folder(tmp_path).random(crop, 0)
    turned = sum(int(windows[i]["mask"][0, 0] == 3) for i in range(100))
    assert 30 < turned < 70
    straight = folder(tmp_path).random(RandomCrop(32, (1.0, 1.0), None, 1.0, mirror=False), 0)
    assert all(straight[i]["mask"][0, 0] == 0 for i in range(20))


def test_whole_images_are_resized_by_the_short_side_up_to_a_limit(root, tmp_path):
    sample = folder(root, "validation", short_side=96)[2]  # 48 x 96
    assert sample["image"].shape == (3, 96, 192)
    assert disagreement(sample) < 0.15
    data.write(tmp_path, "training", "wide", data.scene(16, 160, 0))
    panorama = folder(tmp_path, short_side=32)[0]
    assert panorama["image"].shape == (3, 13, 128)  # four times 32


def test_every_stage_gives_batches_and_test_is_validation(root):
    module = module_of(root, eval_size=40, eval_batch_size=3)
    for stage in ("fit", "validate", "test", "predict"):
        module.setup(stage)
    train = next(iter(module.train_dataloader()))
    assert train["image"].shape == (2, 3, 24, 24)
    assert module.train_aug(train)["mask"].shape == (2, 24, 24)
    batch = next(iter(module.val_dataloader()))
    assert batch["image"].shape == (3, 3, 64, 96)  # 40 x 53, 67 and 80 to multiples of 32
    assert (batch["mask"][:, 40:] == IGNORE).all()
    assert (batch["mask"][0, :, 53:] == IGNORE).all()
    torch.testing.assert_close(batch["image"][0, :, 63, 95], module.mean)
    assert len(module.test_dataset) == len(module.predict_dataset) == 3


def test_lightnings_own_stages_are_understood(root):
    module = module_of(root)
    for stage in TrainerFn:  # no plain strings
        module.setup(stage)
    for part in ("train", "val", "test", "predict"):
        assert len(getattr(module, f"{part}_dataset")) > 0


def test_whole_images_keep_their_size_where_that_is_asked_for(root):
    module = module_of(root, eval_size=None)
    module.setup("validate")
    shapes = [tuple(b["image"].shape) for b in module.val_dataloader()]
    assert shapes == [(1, 3, 64, 64), (1, 3, 64, 96), (1, 3, 64, 96)]


def test_any_folders_are_split_by_share_and_seed(root):
    options = {"val_images": None, "val_masks": None, "val_ratio": 0.3}
    split = module_of(root, **options).splits()
    assert (len(split["train"]), len(split["val"])) == (4, 2)
    assert not set(split["train"].names) & set(split["val"].names)
    assert module_of(root, **options).splits()["val"].names == split["val"].names
    assert any(
        module_of(root, seed=s, **options).splits()["val"].names != split["val"].names
        for s in range(1, 4)
    )
    none = module_of(root, **{**options, "val_ratio": 0.0})
    none.setup("fit")
    assert len(none.train_dataset) == 6
    assert not list(none.val_dataloader())
    with pytest.raises(ConfigError, match="nothing to test on"):
        none.setup("test")


def test_images_without_masks_are_predicted(root):
    module = module_of(root, predict_images="images/validation", eval_size=None)
    module.setup("predict")
    assert [set(b) for b in module.predict_dataloader()] == [{"image"}] * 3


def test_masks_may_have_a_suffix_and_lie_in_subfolders(tmp_path):
    for name in ("a", "b"):
        for kind, file, shape in (("images", "x", (16, 16, 3)), ("masks", "x_labels", (16, 16))):
            (tmp_path / kind / name).mkdir(parents=True)
            save(tmp_path / kind / name / f"{file}.png", np.ones(shape))
    found = SemanticFolder(
        tmp_path / "images", tmp_path / "masks", ["no", "yes"], mask_suffix="_labels"
    )
    assert found.names == ["a/x", "b/x"]
    assert (found[1]["mask"] == 1).all()


def test_the_manifest_names_images_and_masks(root, tmp_path):
    module = module_of(root)
    content = json.loads(module.write_manifest(tmp_path / "m.json").read_text())
    assert {k: len(v) for k, v in content["splits"].items()} == {"train": 6, "val": 3, "test": 0}
    entry = content["splits"]["val"][0]
    assert entry["file"] == "images/validation/ADE_val_00000000.jpg"
    assert entry["mask"] == "annotations/validation/ADE_val_00000000.png"
    assert len(entry["sha256"]) == 64


def test_the_report_counts_the_images_of_each_split(root):
    assert module_of(root).report() == "train: 6 images; val: 3 images; test: as val"
    own = {"test_images": "images/validation", "test_masks": "annotations/validation"}
    assert module_of(root, **own).report() == "train: 6 images; val: 3 images; test: 3 images"
    alone = module_of(root, val_images=None, val_masks=None, val_ratio=0)
    assert alone.report() == "train: 6 images"


def test_a_value_without_a_class_is_named_with_its_file(own):
    path = own / "annotations/training/ADE_train_00000000.png"
    save(path, np.full((48, 64), 9))
    with pytest.raises(LabelError, match=r"ADE_train_00000000\.png: value 9 .* 1 to 4") as caught:
        folder(own)[0]
    assert "\n" not in str(caught.value)
    save(path, np.full((48, 64), 5))
    with pytest.raises(LabelError, match=r"value 5 .* 0 to 4"):
        SemanticFolder(own / "images/training", own / "annotations/training", 5)[0]


def test_a_mask_of_another_size_is_refused(own):
    save(own / "annotations/training/ADE_train_00000000.png", np.ones((48, 63)))
    with pytest.raises(GridMismatchError, match=r"00000000\.png: 48 x 63 px, .* has 48 x 64"):
        folder(own)[0]


def test_a_missing_mask_is_named_and_a_spare_one_reported(own):
    (own / "annotations/training/ADE_train_00000003.png").unlink()
    with pytest.raises(LabelError, match="no mask for ADE_train_00000003"):
        folder(own)
    (own / "images/training/ADE_train_00000003.jpg").unlink()
    (own / "images/training/ADE_train_00000004.jpg").unlink()
    with pytest.warns(UserWarning, match=r"1 masks have no image, e\.g\. ADE_train_00000004"):
        assert len(folder(own)) == 4


def test_two_masks_of_one_image_are_refused(own):
    path = own / "annotations/training/ADE_train_00000000.png"
    shutil.copy(path, path.with_suffix(".tif"))
    with pytest.raises(LabelError, match="mask of the same image"):
        folder(own)


def test_a_mask_of_colours_is_refused(own):
    save(own / "annotations/training/ADE_train_00000000.png", np.ones((48, 64, 3)))
    with pytest.raises(LabelError, match=r"00000000\.png: stores colours"):
        folder(own)[0]


@pytest.mark.parametrize("name", ["images/{}.jpg", "annotations/{}.png"])
def test_truncated_files_are_named(own, name):
    path = own / name.format("training/ADE_train_00000000")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageReadError, match=path.name):
        folder(own)[0]


def test_grey_images_are_refused_unless_converted(own):
    save(own / "images/training/ADE_train_00000000.jpg", np.full((48, 64), 90))
    with pytest.raises(BandMismatchError, match=r"00000000\.jpg: is grey"):
        folder(own)[0]
    image = folder(own, convert=True)[0]["image"]
    assert image.shape == (3, 48, 64)
    assert torch.equal(image[0], image[2])


def test_a_missing_folder_is_named(root):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        SemanticFolder(root / "nowhere", None, 2)
    with pytest.raises(DataNotFoundError, match="nowhere"):
        module_of(root, train_masks="nowhere").setup("fit")


def test_options_that_make_no_sense_are_refused(root):
    for options, what in (
        ({"val_masks": None}, "val_images and val_masks"),
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"max_share": 0.0}, "max_share"),
        ({"val_ratio": 1.0}, "val_ratio"),
    ):
        with pytest.raises(ConfigError, match=what):
            module_of(root, **options)
    for classes in (0, 256, "tree"):
        with pytest.raises(LabelError, match="classes"):
            SemanticFolderDataModule(root, classes)


def test_samples_and_batches_are_plotted(root):
    module = module_of(root)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert len(module.plot(batch, predictions=batch["mask"]).axes) == 6
    assert len(folder(root).plot(folder(root)[0]).axes) == 2

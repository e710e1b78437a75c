"""Objects in COCO's format: boxes, masks, mirroring, resizing, batches, contradictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from pycocotools import mask as coco_mask
from torchgeo.tasks import InstanceSegmentation, ObjectDetection

from rsmamba.data.collate import PadCollate, flip
from rsmamba.data.instances import COCOInstances, _decode
from rsmamba.data.instances_datamodule import COCOInstancesDataModule
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
)
from tests.data.instances import data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return data.make(tmp_path_factory.mktemp("coco"))


@pytest.fixture
def own(root, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(root, tmp_path / "own"))


def annotations(root, part="train2017"):
    return root / f"annotations/instances_{part}.json"


def instances(root, part="train2017", **options):
    return COCOInstances(root / part, annotations(root, part), **options)


def module_of(root, **options):
    return COCOInstancesDataModule(root, batch_size=2, **{"size": None, **options})


def change(root, edit):
    """Edit the training annotations."""
    content = json.loads(annotations(root).read_text())
    edit(content)
    annotations(root).write_text(json.dumps(content))


def filled(left, top, right, bottom, height=data.HEIGHT, width=data.WIDTH):
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_labels_count_from_one_by_category_id(root):
    dataset = instances(root)
    assert dataset.classes == data.CLASSES
    assert [s["label"].tolist() for s in dataset] == [[1, 2], [3, 1, 1], [], [2], [], []]


def test_boxes_and_polygons_cover_the_same_pixels(root):
    sample = instances(root)[0]
    assert sample["bbox_xyxy"].tolist() == [[4, 6, 16, 14], [30, 20, 40, 30]]
    assert sample["bbox_xyxy"].dtype == torch.float32
    assert torch.equal(sample["mask"][0], filled(4, 6, 16, 14))
    assert sample["mask"].dtype == torch.uint8
    triangle = sample["mask"][1]
    assert 45 <= int(triangle.sum()) <= 55  # half of 10 x 10
    assert triangle[21, 31] == 1
    assert triangle[29, 39] == 0


def test_every_ring_is_a_part_of_the_object(root):
    mask = instances(root)[1]["mask"][0]
    assert torch.equal(mask, filled(4, 4, 14, 10) | filled(24, 4, 34, 10))


def test_run_lengths_plain_and_compressed_give_the_mask(root):
    masks = instances(root)[1]["mask"]
    for k in (1, 2):
        assert np.array_equal(masks[k].numpy(), data.blob())


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 400)])
def test_compressed_run_lengths_are_those_of_pycocotools(shape):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = (rng.random(shape) < share).astype(np.uint8)
        packed = coco_mask.encode(np.asfortranarray(mask))
        text = packed["counts"].decode()
        assert np.array_equal(_decode({"size": list(shape), "counts": text}), mask)


def test_polygons_agree_with_pycocotools(root):
    """The format's own tool draws polygons; edges may differ by a pixel."""
    entry = json.loads(annotations(root).read_text())["annotations"][1]
    packed = coco_mask.frPyObjects(entry["segmentation"], data.HEIGHT, data.WIDTH)
    theirs = coco_mask.decode(packed)[..., 0]
    ours = instances(root)[0]["mask"][1].numpy()
    assert (ours != theirs).sum() <= 12


def test_objects_that_are_of_no_use_are_left_out_and_counted(root):
    dataset = instances(root)
    assert dataset.dropped == {"crowd": 1, "no area": 2, "outside": 1, "cut": 1}
    boxes = [box for item in dataset.items for box in item.boxes]
    assert len(boxes) == 6


def test_a_box_that_reaches_out_is_cut_with_its_mask(root):
    sample = instances(root)[3]
    assert sample["bbox_xyxy"].tolist() == [[0, 30, 6, 40]]
    assert torch.equal(sample["mask"][0], filled(0, 30, 6, 40))


def test_images_without_objects_are_samples_without_rows(root):
    sample = instances(root)[2]
    assert sample["bbox_xyxy"].shape == (0, 4)
    assert sample["label"].shape == (0,)
    assert sample["mask"].shape == (0, 60, 60)
    assert len(instances(root)) == 6
    assert len(instances(root, keep_empty=False)) == 3


def test_boxes_and_masks_are_resized_with_the_image(root):
    sample = instances(root, size=120)[0]
    assert sample["image"].shape == (3, 80, 120)
    assert sample["bbox_xyxy"][0].tolist() == [8, 12, 32, 28]
    assert torch.equal(sample["mask"][0], filled(8, 12, 32, 28, 80, 120))
    run = instances(root, size=120)[1]["mask"][1]
    assert np.array_equal(run.numpy(), np.kron(data.blob(), np.ones((2, 2), bool)))
    tall = instances(root, size=30)[2]
    assert tall["image"].shape == (3, 30, 30)


def test_without_masks_boxes_are_enough(own):
    change(own, lambda c: [a.pop("segmentation") for a in c["annotations"]])
    with pytest.raises(LabelError, match=r"annotation 0 has no segmentation: set masks=False"):
        instances(own)
    sample = instances(own, masks=False)[0]
    assert set(sample) == {"image", "bbox_xyxy", "label"}
    # The object whose ring was a line has a box of its own.
    assert sample["bbox_xyxy"].tolist()[-1] == [1, 1, 6, 6]


@pytest.mark.parametrize(("across", "down"), [(True, False), (False, True), (True, True)])
def test_mirroring_moves_boxes_and_masks_with_the_image(root, across, down):
    sample = instances(root)[0]
    turned = flip(sample, across=across, down=down)
    left, right = (44, 56) if across else (4, 16)
    top, bottom = (26, 34) if down else (6, 14)
    assert turned["bbox_xyxy"][0].tolist() == [left, top, right, bottom]
    assert torch.equal(turned["mask"][0], filled(left, top, right, bottom))
    assert torch.equal(
        turned["image"][:, top:bottom, left:right].sum(), sample["image"][:, 6:14, 4:16].sum()
    )
    assert torch.equal(turned["label"], sample["label"])


def test_training_samples_are_mirrored_by_seed_and_index(root):
    plain = instances(root)
    found = set()
    first, again = (plain.random("both", 0) for _ in range(2))
    assert first.endless
    for i in range(60):
        sample = first[i]
        assert torch.equal(sample["image"], again[i]["image"])
        if sample["image"].shape[1] == data.HEIGHT and len(sample["label"]) == 2:
            found.add(tuple(sample["bbox_xyxy"][0].tolist()))
            for box, mask in zip(sample["bbox_xyxy"].long(), sample["mask"], strict=True):
                inside = mask[box[1] : box[3], box[0] : box[2]]
                assert inside.sum() == mask.sum() > 0
    assert found == {(4, 6, 16, 14), (44, 6, 56, 14), (4, 26, 16, 34), (44, 26, 56, 34)}
    level = plain.random("horizontal", 0)
    boxes = [box for i in range(60) for box in level[i]["bbox_xyxy"].tolist()]
    assert {top for _, top, _, _ in boxes} == {4, 6, 10, 20, 30}  # none upside down
    drawn = sorted(first.lottery.draw(i)[0] for i in range(6))
    assert drawn == list(range(6))


def test_batches_are_padded_to_the_largest_image_and_a_multiple_of_32(root):
    dataset = instances(root)
    batch = PadCollate(torch.tensor([1.0, 2.0, 3.0]))([dataset[0], dataset[2]])
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["image"][0, :, 63, 63].tolist() == [1, 2, 3]
    assert [m.shape for m in batch["mask"]] == [(2, 64, 64), (0, 64, 64)]
    assert batch["mask"][0][:, 40:].sum() == 0
    assert torch.equal(batch["mask"][0][0, :40, :60], dataset[0]["mask"][0])
    assert torch.equal(batch["bbox_xyxy"][0], dataset[0]["bbox_xyxy"])


def test_every_stage_gives_batches_and_test_is_validation(root):
    module = module_of(root)
    for stage in ("fit", "validate", "test", "predict"):
        module.setup(stage)
    for part in ("train", "val", "test", "predict"):
        batch = next(iter(getattr(module, f"{part}_dataloader")()))
        assert batch["image"].shape[:2] == (2, 3)
        assert len(batch["bbox_xyxy"]) == len(batch["label"]) == len(batch["mask"]) == 2
    augmented = module.train_aug(next(iter(module.train_dataloader())))
    assert abs(float(augmented["image"].mean())) < 3
    assert module.classes == data.CLASSES
    assert len(module.test_dataset) == 4


def test_lightnings_own_stages_are_understood(root):
    module = module_of(root)
    for stage in TrainerFn:  # no plain strings
        module.setup(stage)
    for part in ("train", "val", "test", "predict"):
        assert len(getattr(module, f"{part}_dataset")) > 0


def test_images_are_held_back_where_there_are_no_others(root):
    options = {"val_images": None, "val_annotations": None, "val_ratio": 0.34}
    split = module_of(root, **options).splits()
    names = {part: {i.path.name for i in split[part].items} for part in ("train", "val")}
    assert (len(names["train"]), len(names["val"])) == (4, 2)
    assert not names["train"] & names["val"]
    none = module_of(root, **{**options, "val_ratio": 0.0})
    none.setup("fit")
    assert not list(none.val_dataloader())
    with pytest.raises(ConfigError, match="nothing to test on"):
        none.setup("test")


def test_images_without_annotations_are_predicted(root):
    module = module_of(root, predict_images="val2017")
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert sum(len(b["image"]) for b in batches) == 4
    assert all(len(boxes) == 0 for b in batches for boxes in b["bbox_xyxy"])


def test_empty_training_images_can_be_left_out(root):
    assert len(module_of(root, keep_empty=False).splits()["train"]) == 3
    assert len(module_of(root, keep_empty=False).splits()["val"]) == 4


def test_the_manifest_names_images_and_counts(root, tmp_path):
    content = json.loads(module_of(root).write_manifest(tmp_path / "m.json").read_text())
    assert {k: len(v) for k, v in content["splits"].items()} == {"train": 6, "val": 4, "test": 0}
    assert content["splits"]["train"][0]["objects"] == 2
    assert content["settings"]["dropped"]["crowd"] == 1


def test_the_report_counts_images_and_objects(root):
    split = module_of(root).splits()
    n = {part: sum(len(i.boxes) for i in split[part].items) for part in ("train", "val")}
    counted = f"train: 6 images ({n['train']} objects); val: 4 images ({n['val']} objects)"
    assert n["train"] > 5
    assert module_of(root).report() == f"{counted}; test: as val"
    alone = module_of(root, val_images=None, val_annotations=None, val_ratio=0)
    assert alone.report() == f"train: 6 images ({n['train']} objects)"


# Contradictions and damage.


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=5), r"annotation 0 has the category 5"),
        (lambda c: c["annotations"][0].update(image_id=77), r"annotation 0 is of image 77"),
        (lambda c: c["images"][1].update(id=0), r"image 0 is listed more than once"),
        (lambda c: c["images"][1].update(file_name="0.jpg"), r"file name 0\.jpg is listed more"),
        (lambda c: c["categories"][1].update(id=17), r"category 17 is listed more than once"),
        (lambda c: c["images"][0].pop("height"), r"no 'height'"),
        (lambda c: c["annotations"][0].pop("bbox"), r"no 'bbox'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"not as COCO's format has it"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3]), r"no rectangle"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r"no y"),
        (lambda c: c["annotations"][3]["segmentation"].update(size=[9, 9]), r"mask of 9 x 9 px"),
        (lambda c: c.pop("categories"), r"is not of COCO's format"),
        (lambda c: c.update(images=[], annotations=[]), r"lists no images"),
    ],
)
def test_contradictions_are_named_with_the_file(own, edit, message):
    change(own, edit)
    with pytest.raises(LabelError, match=rf"instances_train2017\.json.*{message}") as caught:
        instances(own)
    assert "\n" not in str(caught.value)


def test_broken_json_is_named(own):
    path = annotations(own)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(LabelError, match=r"instances_train2017\.json: not readable as JSON"):
        instances(own)
    path.write_text("[]")
    with pytest.raises(LabelError, match="is not of COCO's format"):
        instances(own)
    path.unlink()
    with pytest.raises(DataNotFoundError, match=r"no annotations .*instances_train2017\.json"):
        instances(own)


def test_missing_images_are_named(own):
    (own / "train2017/4.jpg").unlink()
    with pytest.raises(DataNotFoundError, match=r"lists 1 images that are not there.*4\.jpg"):
        instances(own)


def test_an_image_of_another_size_is_refused(own):
    Image.new("RGB", (61, 40)).save(own / "train2017/0.jpg")
    with pytest.raises(GridMismatchError, match=r"0\.jpg: 40 x 61 px, .* are for 40 x 60"):
        instances(own)[0]


def test_damaged_and_grey_images_are_named(own):
    path = own / "train2017/0.jpg"
    Image.new("L", (60, 40)).save(path)
    with pytest.raises(BandMismatchError, match=r"0\.jpg: is grey"):
        instances(own)[0]
    assert instances(own, convert=True)[0]["image"].shape == (3, 40, 60)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageReadError, match=r"0\.jpg"):
        instances(own)[0]


@pytest.mark.parametrize("counts", [[1, 2, 3], [-5, 2405], "xyz", "o0o", "", "é", 7])
def test_broken_run_lengths_are_named(own, counts):
    change(own, lambda c: c["annotations"][3]["segmentation"].update(counts=counts))
    with pytest.raises(LabelError, match=r"1\.jpg: the run lengths"):
        instances(own)[1]


def test_other_categories_in_validation_are_refused(own):
    path = annotations(own, "val2017")
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "boat"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"instances_val2017\.json: its categories are not those"):
        module_of(own).setup("fit")


def test_options_that_make_no_sense_are_refused(root):
    for options, what in (
        ({"val_annotations": None}, "val_images and val_annotations"),
        ({"val_ratio": 1.0}, "val_ratio"),
        ({"size": 0}, "size"),
    ):
        with pytest.raises(ConfigError, match=what):
            module_of(root, **options)


def test_samples_and_batches_are_plotted_with_predictions(root):
    module = module_of(root)
    module.setup("fit")
    batch = next(iter(module.val_dataloader()))
    for key in ("bbox_xyxy", "label", "mask"):
        batch[f"prediction_{key}"] = batch[key]
    batch["prediction_score"] = [torch.full((len(x),), 0.9) for x in batch["label"]]
    assert len(module.plot(batch).axes) == 4
    assert len(instances(root).plot(instances(root)[0]).axes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_torchgeos_tasks_train_on_the_batches(root, task):
    if task == "detection":
        model = ObjectDetection(backbone="resnet18", num_classes=4)
    else:
        model = InstanceSegmentation(num_classes=4)
    model.log_dict = lambda *args, **kwargs: None
    module = module_of(root, size=64)
    module.setup("fit")
    for batch in list(module.train_dataloader())[:2]:
        loss = model.training_step(module.aug(batch), 0)
        loss.backward()
        assert torch.isfinite(loss)

"""What all data modules share: normalisation, order of samples, plots, refusals."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import Dataset

from rsmamba.data.augment import ImageAugmentation, Normalise, SegmentationAugmentation, unnormalise
from rsmamba.data.datamodule import DataModule
from rsmamba.data.normalisation import read_normalisation
from rsmamba.data.sampling import EpochSampler
from rsmamba.data.splits import Manifest
from rsmamba.errors import BandMismatchError, ConfigError, DataNotFoundError, SpecError
from rsmamba.models.checkpoints import save_safetensors
from rsmamba.spec import ModelSpec

SPEC = ModelSpec(
    task="segmentation",
    task_class="rsmamba.tasks.SemanticSegmentation",
    task_kwargs={},
    architecture="roma_tiny_patch16",
    bands=("blue", "green", "red", "nir"),
    mean=(0.1, 0.2, 0.3, 0.4),
    std=(0.01, 0.02, 0.03, 0.04),
    scale=0.0001,
)


class Numbers(Dataset):
    """Sample i is an image of the value i."""

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((3, 4, 4), float(index))
        return {"image": image, "label": torch.tensor(index % 2)}


class Module(DataModule):
    classes = ("even", "odd")

    def __init__(self, batch_size=3, num_workers=0, spec=None, **kwargs):
        super().__init__(Numbers, batch_size, num_workers, **kwargs)
        self.set_normalisation((1.0, 2.0, 3.0), (1.0, 2.0, 4.0), spec)

    def setup(self, stage):
        self.train_dataset = Numbers(self.kwargs.get("count", 10))
        self.predict_dataset = Numbers(4)

    def manifest(self):
        raise NotImplementedError


def order(module, epoch=None):
    loader = module.train_dataloader()
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return [int(v) for batch in loader for v in batch["image"][:, 0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 4])
def test_the_order_depends_on_seed_and_epoch_alone(workers):
    module, other = Module(num_workers=workers), Module(num_workers=0)
    module.setup("fit")
    other.setup("fit")
    torch.manual_seed(5)
    first = order(module)
    torch.manual_seed(6)
    assert first == order(other)
    assert len(set(first)) == 9  # the incomplete batch is left out
    assert order(other, 1) == order(module, 1) != first
    reseeded = Module(seed=1)
    reseeded.setup("fit")
    assert order(reseeded) != first


def test_an_epoch_sampler_shuffles_each_index_once_or_counts_on():
    shuffled = EpochSampler(6, seed=3)
    first, second = list(shuffled), list(shuffled)
    assert sorted(first) == sorted(second) == list(range(6)) and first != second
    shuffled.set_epoch(0)
    assert list(shuffled) == first and len(shuffled) == 6
    counting = EpochSampler(3)
    assert [list(counting), list(counting)] == [[0, 1, 2], [3, 4, 5]]


def test_a_training_set_smaller_than_a_batch_is_refused_unless_it_may_be_incomplete():
    module = Module(batch_size=11)
    module.setup("fit")
    with pytest.raises(ConfigError, match="10 samples is smaller than a batch of 11"):
        module.train_dataloader()
    module = Module(batch_size=11, drop_last=False)
    module.setup("fit")
    assert sorted(order(module)) == list(range(10))


def test_nothing_held_back_gives_an_empty_validation_loader():
    module = Module()
    module.setup("fit")
    assert list(module.val_dataloader()) == []
    assert len(list(module.predict_dataloader())) == 2


@pytest.mark.parametrize(
    ("batch_size", "workers", "named"), [(0, 0, "batch_size=0"), (1, -1, "num_workers=-1")]
)
def test_impossible_loaders_are_refused(batch_size, workers, named):
    with pytest.raises(ConfigError, match=named):
        Module(batch_size=batch_size, num_workers=workers)


def test_normalisation_is_per_band_for_one_date_and_several():
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    image = torch.rand(2, 3, 5, 6, dtype=torch.float32) * 9
    out = Normalise(mean, std)({"image": image, "label": torch.tensor([0, 1])})
    expected = torch.stack([(image[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    torch.testing.assert_close(out["image"], expected)
    assert out["label"].tolist() == [0, 1]
    pair = torch.stack([image, image + 1], 1)
    both = Normalise(mean, std)({"image": pair})["image"]
    torch.testing.assert_close(both[:, 0], expected)
    torch.testing.assert_close(unnormalise(both, mean, std), pair)


def test_a_pair_and_its_mask_are_turned_alike():
    torch.manual_seed(0)
    code = torch.arange(64.0).view(1, 1, 8, 8)
    pair = torch.stack([code, code + 100], 1).repeat(4, 1, 1, 1, 1)
    mask = code.long().repeat(4, 1, 1, 1)
    augment = SegmentationAugmentation(torch.zeros(1), torch.ones(1), 0, 0)
    out = augment({"image": pair, "mask": mask})
    assert out["image"].shape == pair.shape and out["mask"].shape == mask.shape
    torch.testing.assert_close(out["image"][:, 0].round(), out["mask"].float())
    torch.testing.assert_close(out["image"][:, 1].round(), out["mask"].float() + 100)
    assert any(not torch.equal(m, mask[0]) for m in out["mask"])


def test_labels_stay_and_images_turn_or_only_normalise():
    torch.manual_seed(0)
    batch = {"image": torch.arange(48.0).view(1, 3, 4, 4).repeat(8, 1, 1, 1)}
    batch["label"] = torch.arange(8)
    turned = ImageAugmentation(torch.zeros(3), torch.ones(3))(batch)
    assert turned["label"].tolist() == list(range(8))
    assert {tuple(sorted(i.flatten().round().tolist())) for i in turned["image"]} == {
        tuple(float(v) for v in range(48))
    }
    assert any(not torch.equal(i, batch["image"][0]) for i in turned["image"])
    plain = ImageAugmentation(torch.zeros(3), torch.ones(3), flips=False)(batch)
    assert torch.equal(plain["image"], batch["image"])


# --- mean and deviation from a file


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors", "model.ckpt"])
def test_a_spec_gives_its_bands_in_the_datas_order_and_pixel_units(name, tmp_path):
    path = tmp_path / name
    if name.endswith("json"):
        path.write_text(SPEC.to_json())
    elif name.endswith("safetensors"):
        save_safetensors({"w": torch.zeros(1)}, SPEC, path)
    else:
        torch.save({"state_dict": {"w": torch.zeros(1)}, "rsmamba_spec": SPEC.to_json()}, path)
    module = Module(spec=path)
    torch.testing.assert_close(module.mean, torch.tensor([3000.0, 2000.0, 1000.0]))
    torch.testing.assert_close(module.std, torch.tensor([300.0, 200.0, 100.0]))
    out = module.aug({"image": torch.full((1, 3, 2, 2), 3300.0)})
    torch.testing.assert_close(out["image"][0, :, 0, 0], torch.tensor([1.0, 6.5, 23.0]))
    mean, _ = read_normalisation(path, ("sentinel-2:B08", "sentinel-2:B04"))
    torch.testing.assert_close(mean, torch.tensor([4000.0, 3000.0]))


def test_a_factor_of_the_data_applies_to_what_a_spec_says_of_stored_values(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(SPEC.to_json())
    module = Module()
    module.factor = 0.01
    module.set_normalisation((), (), path)
    torch.testing.assert_close(module.mean, torch.tensor([30.0, 20.0, 10.0]))
    stats = tmp_path / "stats.json"
    bands = [{"name": "red", "mean": 5.0, "std": 2.0}]
    stats.write_text(json.dumps({"rsmamba_stats": 1, "bands": bands, "scale": 0.01}))
    mean, std = read_normalisation(stats, ("red",), 0.01)
    assert mean.item() == pytest.approx(5.0) and std.item() == pytest.approx(2.0)


def test_statistics_are_read_by_the_names_of_bands_that_mean_nothing(tmp_path):
    path = tmp_path / "stats.json"
    bands = [{"name": f"band_{i}", "mean": i, "std": 1 + i} for i in (1, 2)]
    path.write_text(json.dumps({"rsmamba_stats": 1, "bands": bands}))
    mean, std = read_normalisation(path, ("band_2", "band_1"))
    assert mean.tolist() == [2, 1] and std.tolist() == [3, 2]


def test_files_that_are_no_spec_are_refused(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(DataNotFoundError, match=r"x\.json: check the path"):
        read_normalisation(path, ("red",))
    for text, message in (
        ("{", "not readable as JSON"),
        ("[1]", "not a JSON object"),
        (
            '{"rsmamba_stats": 1, "bands": [{"name": "red"}]}',
            "incomplete statistics.*rsmamba stats",
        ),
    ):
        path.write_text(text)
        with pytest.raises(SpecError, match=f"x.json.*{message}"):
            read_normalisation(path, ("red",))
    path.write_text(SPEC.to_json())
    with pytest.raises(BandMismatchError, match=r"x\.json has no band 'swir16'.*blue, green"):
        read_normalisation(path, ("red", "swir16"))


def test_values_that_do_not_fit_the_bands_are_refused():
    module = Module()
    with pytest.raises(BandMismatchError, match=r"1 means and 3 deviations for 3 bands"):
        module.set_normalisation((1.0,), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="positive"):
        module.set_normalisation((1.0, 1.0, 1.0), (1.0, 0.0, 1.0))


# --- pictures


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_a_batch_of_labels_is_shown_with_predictions_in_words():
    module = Module()
    batch = torch.utils.data.default_collate([Numbers()[i] for i in range(5)])
    figure = module.plot(batch, predictions=torch.tensor([0, 1, 1, 1, 0]), limit=3)
    assert titles(figure) == [
        "label: even\nprediction: even",
        "label: odd\nprediction: odd",
        "label: even\nprediction: odd",
    ]
    one = module.plot(Numbers()[1], suptitle="one")
    assert titles(one) == ["label: odd"] and one.get_suptitle() == "one"


def test_a_normalised_batch_is_shown_in_pixel_units():
    module = Module()
    batch = {"image": torch.arange(48.0).view(1, 3, 4, 4) * 5, "label": torch.tensor([0])}
    plain = module.plot(batch).axes[0].images[0].get_array()
    shown = module.plot(module.aug(batch), normalised=True).axes[0].images[0].get_array()
    torch.testing.assert_close(torch.as_tensor(shown), torch.as_tensor(plain))


def test_masks_and_pairs_get_a_row_each_and_unlabelled_pixels_are_white():
    module = Module()
    module.dates, module.classes = 2, ("no change", "change")
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    mask[:, :, 0, 0], mask[:, :, 1, 1] = 255, 1
    batch = {"image": torch.rand(2, 2, 3, 4, 4) * 255, "mask": mask}
    figure = module.plot(batch, predictions=mask * 0)
    assert titles(figure) == ["date 1", "date 2", "label", "prediction"] * 2
    shown = figure.axes[2].images[0].get_array()
    assert shown[0, 0].tolist() == [1, 1, 1]
    assert len({tuple(c) for c in (shown[0, 0], shown[1, 1], shown[2, 2])}) == 3
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["no change", "change"]


def test_boxes_are_drawn_with_names_and_weak_predictions_are_left_out():
    module = Module()
    module.classes = ("background", "ship")
    sample = {
        "image": torch.rand(3, 16, 16) * 255,
        "bbox_xyxy": torch.tensor([[2.0, 3.0, 9.0, 8.0]]),
        "label": torch.tensor([1]),
        "mask": torch.ones(1, 16, 16, dtype=torch.uint8),
        "prediction_bbox_xyxy": torch.tensor([[2.0, 3.0, 9.0, 8.0], [0.0, 0.0, 1.0, 1.0]]),
        "prediction_label": torch.tensor([1, 1]),
        "prediction_score": torch.tensor([0.9, 0.1]),
    }
    figure = module.plot(sample)
    assert titles(figure) == ["label", "prediction"]
    assert [[t.get_text() for t in a.texts] for a in figure.axes] == [["ship"], ["ship 0.90"]]
    (box,) = figure.axes[0].patches
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((2.0, 3.0), 7.0, 5.0)


def test_bands_are_shown_by_what_they_are():
    module = Module()
    module.bands = ("nir", "blue", "green", "red")
    image = torch.stack([torch.full((2, 2), v) for v in (9.0, 50.0, 100.0, 200.0)])
    shown = module.plot({"image": image}).axes[0].images[0].get_array()
    torch.testing.assert_close(
        torch.as_tensor(shown[0, 0]).double(), torch.tensor([200.0, 100.0, 50.0]).double() / 255
    )


# --- with a trainer


def test_a_manifest_without_hashes_names_files_alone(tmp_path):
    file = tmp_path / "a.tif"
    file.touch()
    path = Manifest("d", tmp_path, {"seed": 0}, {"train": [(file, {})]}, hashed=False).write(
        tmp_path / "m.json"
    )
    assert json.loads(path.read_text())["splits"] == {"train": [{"file": "a.tif"}]}


def test_batches_are_augmented_by_stage_under_a_trainer(tmp_path):
    from lightning.pytorch import LightningModule

    seen = {}

    class Watch(LightningModule):
        def predict_step(self, batch, _):
            seen.setdefault("image", batch["image"])

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.predict(Watch(), Module(), return_predictions=False)
    torch.testing.assert_close(seen["image"][:, 2, 0, 0], (torch.arange(3.0) - 3) / 4)

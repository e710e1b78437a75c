"""Change detection: symmetric, trained from both dates, scored by city over whole scenes."""

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss

from rsmamba.data.images import IGNORE
from rsmamba.data.oscd import OSCD, OSCDDataModule
from rsmamba.errors import BandMismatchError, ConfigError, LabelError
from rsmamba.models.checkpoints import read_spec
from rsmamba.tasks.callbacks import WriteModelSpec
from rsmamba.tasks.change import ChangeDetection
from tests.data.oscd.data import TEST, make

SMALL = {
    "backbone": "roma_tiny_patch16_pyramid",
    "backbone_kwargs": {"embed_dim": 32, "img_size": 32},
    "decoder_kwargs": {"decoder_channels": (32, 16, 16, 8, 8)},
    "norm": "groupnorm",
}
RGB = ["B04", "B03", "B02"]


@pytest.fixture(scope="module")
def oscd(tmp_path_factory):
    return make(tmp_path_factory.mktemp("oscd"))


def module(root, **options):
    return OSCDDataModule(
        root,
        **({"bands": RGB, "patch_size": 32, "batch_size": 4, "val_cities": ["nantes"]} | options),
    )


def test_training_finds_what_changed(oscd, trainer):
    torch.manual_seed(0)
    task = ChangeDetection(lr=5e-3, labels=["no change", "change"], **SMALL)
    data = module(oscd, length=96)
    (before,) = trainer().test(task, data, verbose=False)
    losses = []
    for _ in range(3):
        run = trainer(limit_val_batches=0)
        run.fit(task, data)
        losses.append(run.callback_metrics["train_loss"].item())
    (after,) = trainer().test(task, data, verbose=False)
    assert losses[-1] < losses[0]
    assert after["test_F1Change"] > max(0.6, before["test_F1Change"])


@pytest.mark.parametrize(
    ("model", "training"),
    [("unet", True), ("unet", False), ("upernet", False), ("fpn", False), ("segformer", False)],
)
def test_the_order_of_the_dates_makes_no_difference(model, training):
    decoder = SMALL["decoder_kwargs"] if model == "unet" else {}
    task = ChangeDetection(model=model, **{**SMALL, "decoder_kwargs": decoder}).train(training)
    pair = torch.randn(2, 2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(task(pair), task(pair.flip(1)), atol=1e-5, rtol=1e-4)
        unlike = task(pair.roll(1, 0)) - task(pair)
    assert unlike.abs().max() > 1e-4


def test_logits_are_the_heads_of_the_absolute_differences():
    task = ChangeDetection(**SMALL).eval()
    pair = torch.randn(2, 2, 3, 32, 64)
    with torch.no_grad():
        before, after = (task.model.encoder(pair[:, date]) for date in (0, 1))
        levels = [(a - b).abs() for a, b in zip(before, after, strict=True)]
        expected = task.model.segmentation_head(task.model.decoder(levels))
        torch.testing.assert_close(task(pair), expected, atol=1e-5, rtol=1e-4)


def test_the_backbone_learns_from_both_dates():
    torch.manual_seed(0)
    task = ChangeDetection(**SMALL)
    pair = torch.randn(2, 2, 3, 32, 32, requires_grad=True)
    task.loss(task(pair), torch.randint(0, 2, (2, 1, 32, 32))).backward()
    assert all((pair.grad[:, date] != 0).any() for date in (0, 1))
    stem = task.model.encoder.model.model.patch_embed.proj.weight.grad.clone()
    assert (stem != 0).any()
    task.zero_grad()
    constant = torch.stack([pair.detach()[:, 0], torch.zeros_like(pair[:, 0])], 1)
    task.loss(task(constant), torch.randint(0, 2, (2, 1, 32, 32))).backward()
    one_date = task.model.encoder.model.model.patch_embed.proj.weight.grad
    assert not torch.allclose(stem, one_date)


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (1, 5)])
def test_logits_have_the_size_of_the_images(size):
    task = ChangeDetection(**SMALL).eval()
    with torch.inference_mode():
        assert task(torch.randn(3, 2, 3, *size)).shape == (3, 2, *size)


def test_a_test_epoch_scores_every_pixel_of_every_city_once(oscd, trainer):
    torch.manual_seed(1)
    task = ChangeDetection(**SMALL).eval()
    data = module(oscd, tile_size=32, batch_size=3)
    (found,) = trainer().test(task, data, verbose=False)
    counts = dict.fromkeys(TEST, (0, 0, 0))
    data.setup("test")
    scenes = OSCD(oscd, "test", bands=RGB)
    for pair, sample in zip(scenes.pairs, scenes, strict=True):
        # each scene by itself, with a grid of its own
        truth, said = sample["mask"][0], torch.full_like(sample["mask"][0], IGNORE)
        for window in data.test_dataset:
            if data.scenes[window["scene"]] != pair.name:
                continue
            row, col = window["origin"].tolist()
            image = data.aug({"image": window["image"][None]})["image"]
            with torch.no_grad():
                classes = task(image)[0].argmax(0)
            counted = window["mask"][0] != IGNORE
            rows, cols = counted.nonzero(as_tuple=True)
            said[row + rows, col + cols] = classes[counted]
        assert not (said == IGNORE).any()
        counts[pair.name] = tuple(
            int(((said == a) & (truth == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1))
        )
    for city, (tp, fp, fn) in counts.items():
        if tp + fp + fn:
            expected = 2 * tp / (2 * tp + fp + fn)
            assert found[f"test_F1Change_{city}"] == pytest.approx(expected, abs=1e-5)
    tp, fp, fn = map(sum, zip(*counts.values(), strict=True))
    assert tp + fn == sum(int(sample["mask"].sum()) for sample in scenes)
    assert found["test_F1Change"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-5)
    assert found["test_RecallChange"] == pytest.approx(tp / (tp + fn), abs=1e-5)
    assert not [key for key in found if "nantes" in key]


def test_validation_logs_what_checkpoints_are_chosen_by(oscd, trainer):
    task = ChangeDetection(**SMALL)
    (found,) = trainer().validate(task, module(oscd), verbose=False)
    assert task.monitor in found
    assert {"val_loss", "val_IoUChange", "val_PrecisionChange", "val_RecallChange"} <= set(found)


def test_predictions_are_probabilities_of_every_window(oscd, trainer):
    data = module(oscd, batch_size=2)
    batches = trainer().predict(ChangeDetection(**SMALL), data)
    assert sum(map(len, batches)) == len(data.predict_dataset)
    assert all(batch.shape[1:] == (2, 32, 32) for batch in batches)
    torch.testing.assert_close(batches[0].sum(1), torch.ones(len(batches[0]), 32, 32))


def test_the_spec_names_the_bands_of_one_date_and_rebuilds_the_task(oscd, trainer, tmp_path):
    task = ChangeDetection(labels=["no change", "change"], **SMALL)
    data = module(oscd, bands=["B08", "B04", "B11"])
    run = trainer(callbacks=[WriteModelSpec()], limit_val_batches=0, limit_train_batches=1)
    run.fit(task, data)
    path = tmp_path / "change.ckpt"
    run.save_checkpoint(path)
    spec = read_spec(path)
    assert spec.task == "change"
    assert spec.task_class == "rsmamba.tasks.change.ChangeDetection"
    assert spec.bands == ("sentinel-2:B08", "sentinel-2:B04", "sentinel-2:B11")
    assert spec.mean == pytest.approx(data.mean.tolist())
    assert (spec.classes, spec.gsd) == (("no change", "change"), 10.0)
    assert spec.architecture == "roma_tiny_patch16_pyramid"
    pair = torch.randn(1, 2, 3, 32, 32)
    expected = task.eval()(pair)
    rebuilt = ChangeDetection(**spec.task_kwargs)
    rebuilt.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    torch.testing.assert_close(rebuilt.eval()(pair), expected)
    again = ChangeDetection.load_from_checkpoint(path)
    torch.testing.assert_close(again.eval()(pair), expected)
    # as its normalisation may be taken by other data
    assert module(oscd, bands=["B04"], spec=path).mean.item() == pytest.approx(spec.mean[1])


def test_the_loss_reads_masks_with_and_without_their_channel():
    task = ChangeDetection(loss="ce+dice", class_weights=[0.2, 0.8], **SMALL)
    logits, mask = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    mask[:, :2] = IGNORE
    weights = torch.tensor([0.2, 0.8])
    entropy = torch.nn.functional.cross_entropy(logits, mask, weights, ignore_index=IGNORE)
    expected = entropy + DiceLoss("multiclass", ignore_index=IGNORE)(logits, mask)
    torch.testing.assert_close(task.loss(logits, mask), expected)
    torch.testing.assert_close(task.loss(logits, mask[:, None]), expected)
    with pytest.raises(LabelError, match="no labelled pixel"):
        task.loss(logits, torch.full((2, 1, 8, 8), IGNORE))


def test_a_frozen_backbone_gets_no_gradient():
    task = ChangeDetection(freeze_backbone=True, **SMALL)
    task(torch.randn(1, 2, 3, 32, 32)).mean().backward()
    assert all(p.grad is None for p in task.model.encoder.parameters())
    assert any(p.grad is not None for p in task.model.decoder.parameters())


def test_what_cannot_be_is_refused(oscd, trainer):
    with pytest.raises(ConfigError, match="model='dpt'"):
        ChangeDetection(model="dpt")
    with pytest.raises(ConfigError, match="not pairs"):
        ChangeDetection(**SMALL)(torch.randn(2, 3, 32, 32))
    with pytest.raises(BandMismatchError, match="the data have 13 bands"):
        trainer().fit(ChangeDetection(**SMALL), module(oscd, bands=OSCD.all_bands))
    with pytest.raises(BandMismatchError, match="order of bands"):
        trainer().fit(ChangeDetection(bands=["blue", "green", "red"], **SMALL), module(oscd))
    with pytest.raises(ConfigError, match="num_classes=3"):
        trainer().fit(ChangeDetection(num_classes=3, **SMALL), module(oscd))

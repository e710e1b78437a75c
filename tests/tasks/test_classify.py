from types import SimpleNamespace

import pytest
import torch

from rsmamba.errors import BandMismatchError, ConfigError, UnknownModelError
from rsmamba.tasks import SceneClassification
from rsmamba.tasks.features import LinearProbe

SMALL = {"img_size": 32, "depth": 4, "embed_dim": 32}
PROBE = {"mode": "probe", "num_classes": 3, "l2_grid": [1e-3, 1e-1], "model_kwargs": SMALL}


def test_a_probe_learns_what_a_frozen_backbone_shows(scenes, trainer):
    task = SceneClassification(readout="mean_std", layers=2, **PROBE)
    before = {k: v.clone() for k, v in task.features.state_dict().items()}
    trainer().fit(task, scenes)
    assert all(torch.equal(v, before[k]) for k, v in task.features.state_dict().items())
    (result,) = trainer().test(task, scenes, verbose=False)
    assert result["test_OverallAccuracy"] == 1.0


def test_the_probe_is_fitted_on_every_training_image(scenes, trainer, monkeypatch):
    seen = []
    original = LinearProbe.fit
    monkeypatch.setattr(
        LinearProbe,
        "fit",
        lambda self, x, y, *rest: (seen.append(len(x)), original(self, x, y, *rest))[1],
    )
    trainer().fit(SceneClassification(**PROBE), scenes)
    assert seen[-1] == len(scenes.data)


def test_the_colour_histogram_is_the_same_probe_without_a_network(scenes, trainer):
    task = SceneClassification(model="colour_histogram", mode="probe", num_classes=3)
    assert not list(task.features.parameters())
    trainer().fit(task, scenes)
    (result,) = trainer().test(task, scenes, verbose=False)
    assert result["test_OverallAccuracy"] == 1.0


def test_fine_tuning_lowers_the_loss_and_moves_the_backbone(scenes, trainer):
    torch.manual_seed(0)
    task = SceneClassification(num_classes=3, model_kwargs=SMALL, lr=3e-3, layer_decay=0.8)
    stem = task.model.patch_embed.proj.weight.detach().clone()
    batch = next(iter(scenes.loader()))
    before = task.criterion(task(batch["image"]), batch["label"]).item()
    for _ in range(4):
        trainer(limit_val_batches=0).fit(task, scenes)
    after = task.criterion(task(batch["image"]), batch["label"]).item()
    assert after < before
    assert not torch.equal(stem, task.model.patch_embed.proj.weight)


def test_predictions_are_probabilities(scenes, trainer):
    task = SceneClassification(num_classes=3, model_kwargs=SMALL)
    batches = trainer().predict(task, scenes)
    assert sum(len(b) for b in batches) == len(scenes.data)
    torch.testing.assert_close(batches[0].sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 4}, ConfigError, "3 classes .* num_classes=4"),
        ({"num_classes": 3, "labels": ["a", "b", "c"]}, ConfigError, "red, green, blue.*a, b, c"),
        ({"num_classes": 3, "in_channels": 4}, BandMismatchError, "3 bands .* in_channels=4"),
    ],
)
def test_data_that_do_not_fit_stop_before_the_first_step(scenes, trainer, options, error, message):
    task = SceneClassification(model_kwargs=SMALL, **options)
    with pytest.raises(error, match=message):
        trainer().fit(task, scenes)


def test_data_of_other_bands_than_the_weights_stop_before_the_first_step(scenes, trainer):
    task = SceneClassification(num_classes=3, model_kwargs=SMALL)
    task.load_report = SimpleNamespace(bands=("B02", "B03", "B04"))
    with pytest.raises(BandMismatchError, match=r"3 \(red, green, blue\).*3 \(B02, B03, B04\)"):
        trainer().fit(task, scenes)


def test_contradicting_options_are_refused():
    with pytest.raises(UnknownModelError, match="did you mean roma_tiny_patch16"):
        SceneClassification(model="roma_tinny_patch16")
    with pytest.raises(ConfigError, match="takes mode: probe and no weights"):
        SceneClassification(model="colour_histogram", mode="finetune")

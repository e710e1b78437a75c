import pytest
import torch
from torchgeo.tasks import SemanticSegmentation as StockSegmentation

from rsmamba.errors import SpecError
from rsmamba.models.checkpoints import read_spec
from rsmamba.tasks import SceneClassification, SemanticSegmentation
from rsmamba.tasks.callbacks import WriteModelSpec, build_spec

SEGMENT = {
    "backbone": "roma_tiny_patch16_pyramid",
    "backbone_kwargs": {"embed_dim": 32, "img_size": 64},
    "decoder_kwargs": {"decoder_channels": 16},
}


def saved(task, data, trainer, path, **options):
    run = trainer(callbacks=[WriteModelSpec(**options)], limit_val_batches=0, limit_train_batches=1)
    run.fit(task, data)
    run.save_checkpoint(path)
    return path


def test_every_checkpoint_says_what_it_is(masks, trainer, tmp_path):
    task = SemanticSegmentation(labels=["background", "building"], **SEGMENT)
    path = saved(task, masks, trainer, tmp_path / "a.ckpt", licence="CC BY 4.0")
    spec = read_spec(path)
    assert spec.task == "segmentation"
    assert spec.architecture == "roma_tiny_patch16_pyramid"
    assert spec.bands == ("red", "green", "blue")
    assert spec.classes == ("background", "building")
    assert (spec.gsd, spec.licence) == (0.5, "CC BY 4.0")


def test_the_spec_rebuilds_the_task_without_the_weights_it_started_from(masks, trainer, tmp_path):
    task = SemanticSegmentation(**SEGMENT)
    path = saved(task, masks, trainer, tmp_path / "a.ckpt")
    spec = read_spec(path)
    assert spec.task_class == "rsmamba.tasks.segment.SemanticSegmentation"
    assert "weights" not in spec.task_kwargs
    again = SemanticSegmentation(**spec.task_kwargs)
    again.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again.eval()(image), task.eval()(image))


def test_a_stock_torchgeo_task_gets_a_spec_as_well(masks):
    task = StockSegmentation(model="unet", backbone="resnet18", num_classes=2)
    spec = build_spec(task, masks)
    assert (spec.task, spec.architecture) == ("segmentation", "resnet18")
    assert spec.task_class.startswith("torchgeo.tasks.")


def test_scalar_statistics_hold_for_every_band(scenes):
    scenes.mean, scenes.std = torch.tensor(0), torch.tensor(255)
    task = SceneClassification(num_classes=3, model_kwargs={"img_size": 32, "depth": 4})
    assert build_spec(task, scenes).std == (255.0, 255.0, 255.0)


def test_without_a_data_module_the_remedy_is_named():
    task = SceneClassification(num_classes=3, model_kwargs={"img_size": 32, "depth": 4})
    with pytest.raises(SpecError, match="leave the WriteModelSpec callback out"):
        build_spec(task, None)

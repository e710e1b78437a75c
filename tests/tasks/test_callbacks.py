import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torchgeo.tasks import SemanticSegmentation as StockSegmentation

from rsmamba.errors import SpecError
from rsmamba.models.checkpoints import read_spec
from rsmamba.tasks import SceneClassification, SemanticSegmentation
from rsmamba.tasks.callbacks import WriteManifest, WriteModelSpec, build_spec

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


def test_the_splits_are_written_beside_the_run(trainer, tmp_path):
    from rsmamba.data import UCMercedDataModule

    data = UCMercedDataModule("sample:ucmerced", batch_size=2, image_size=32, split_seed=4)
    task = SceneClassification(num_classes=21, model_kwargs={"img_size": 32, "depth": 4})
    logger = CSVLogger(tmp_path / "run", name="", version="")
    run = trainer(
        callbacks=[WriteManifest()], logger=logger, limit_train_batches=1, limit_val_batches=0
    )
    run.fit(task, data)
    content = json.loads((tmp_path / "run/splits.json").read_text())
    assert content["settings"]["split_seed"] == 4
    assert sum(map(len, content["splits"].values())) == 630


def test_a_data_module_without_a_manifest_leaves_no_file(masks, trainer, tmp_path):
    task = SemanticSegmentation(labels=["background", "building"], **SEGMENT)
    path = tmp_path / "m.json"
    run = trainer(callbacks=[WriteManifest(str(path))], limit_val_batches=0, limit_train_batches=1)
    run.fit(task, masks)
    assert not path.exists()


def test_a_factor_of_the_data_ends_up_in_the_spec(scenes):
    scenes.factor = 0.0001
    task = SceneClassification(num_classes=3, model_kwargs={"img_size": 32, "depth": 4})
    assert build_spec(task, scenes).scale == 0.0001
    del scenes.factor
    assert build_spec(task, scenes).scale == 1.0

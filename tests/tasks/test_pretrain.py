import timm
import torch

from rsmamba.models.checkpoints import load_backbone
from rsmamba.tasks import RoMAPretraining
from rsmamba.tasks.callbacks import WriteModelSpec

SMALL = {
    "img_size": 32,
    "patch_size": 4,
    "cluster_size": 2,
    "decoder_dim": 32,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "rotation_windows": (16, 8),
}


def test_one_epoch_lowers_the_loss_and_logs_the_trivial_answers(unlabelled, trainer):
    torch.manual_seed(0)
    task = RoMAPretraining(lr=1e-3, **SMALL)
    batch = next(iter(unlabelled.loader()))["image"]
    before = task.model(batch).loss_fine.item()
    run = trainer()
    run.fit(task, unlabelled)
    logged = run.callback_metrics
    assert task.model(batch).loss_fine.item() < before
    assert 0 < logged["val_loss_global_mean"] <= logged["val_loss_zeros"] < 1.1
    assert logged["val_loss_ridge"] > 0
    assert {"train_loss_scale2", "train_loss_scale3", "train_loss_scale6"} <= set(logged)
    assert logged["images_per_second"] > 0


def test_the_target_is_the_unrotated_image_and_the_mask_marks_the_window(
    unlabelled, trainer, monkeypatch
):
    task = RoMAPretraining(**SMALL)
    calls = []
    forward = task.model.forward

    def spy(image, target=None, rotated_mask=None):
        calls.append((image, target, rotated_mask))
        return forward(image, target, rotated_mask)

    monkeypatch.setattr(task.model, "forward", spy)
    trainer(limit_train_batches=1, limit_val_batches=0).fit(task, unlabelled)
    image, target, mask = calls[0]
    torch.testing.assert_close(target, next(iter(unlabelled.loader()))["image"])
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    assert mask.any(dim=(1, 2)).all()
    assert not torch.equal(image, target)
    torch.testing.assert_close(image.where(~pixels, 0), target.where(~pixels, 0))


def test_a_checkpoint_serves_the_backbone_downstream(unlabelled, trainer, tmp_path):
    task = RoMAPretraining(**SMALL)
    run = trainer(callbacks=[WriteModelSpec()], limit_val_batches=0)
    run.fit(task, unlabelled)
    run.save_checkpoint(tmp_path / "last.ckpt")
    backbone = timm.create_model("roma_tiny_patch16", img_size=32, patch_size=4, num_classes=0)
    load_backbone(backbone, tmp_path / "last.ckpt")
    torch.testing.assert_close(
        backbone.patch_embed.proj.weight, task.model.encoder.patch_embed.proj.weight
    )

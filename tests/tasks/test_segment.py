import pytest
import torch
from torch import nn

from rsmamba.errors import ConfigError, LabelError, UnknownModelError
from rsmamba.tasks import SemanticSegmentation
from rsmamba.tasks.segment import batch_to_group_norm

SMALL = {
    "backbone": "roma_tiny_patch16_pyramid",
    "backbone_kwargs": {"embed_dim": 32, "img_size": 64},
    "decoder_kwargs": {"decoder_channels": 16},
    "norm": "groupnorm",
}


def test_training_finds_the_planted_squares(masks, trainer):
    torch.manual_seed(0)
    task = SemanticSegmentation(lr=5e-3, labels=["background", "building"], **SMALL)
    for _ in range(4):
        trainer(limit_val_batches=0).fit(task, masks)
    (result,) = trainer().test(task, masks, verbose=False)
    assert result["test_ClasswiseJaccardIndex_building"] > 0.5


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 5)])
def test_logits_have_the_size_of_the_image(size):
    task = SemanticSegmentation(**SMALL).eval()
    with torch.inference_mode():
        assert task(torch.randn(2, 3, *size)).shape == (2, 2, *size)


def test_unlabelled_pixels_have_no_gradient():
    task = SemanticSegmentation(**SMALL)
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    mask[:, :4] = 255
    mask[:, 4] = 1
    task.loss(logits, mask).backward()
    assert (logits.grad[:, :, :4] == 0).all()
    assert (logits.grad[:, :, 4:] != 0).all()


def test_dice_is_added_to_the_cross_entropy():
    logits, mask = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 8, 8))
    entropy = SemanticSegmentation(loss="ce", **SMALL).loss(logits, mask)
    both = SemanticSegmentation(loss="ce+dice", **SMALL)
    torch.testing.assert_close(both.loss(logits, mask), entropy + both.dice(logits, mask))


def test_masks_that_do_not_fit_are_refused_before_they_do_harm():
    task = SemanticSegmentation(**SMALL)
    logits = torch.randn(1, 2, 8, 8)
    with pytest.raises(LabelError, match=r"mask values 0\.\.7 do not fit 2 classes"):
        task.loss(logits, torch.tensor([0, 7]).repeat(1, 8, 4))
    with pytest.raises(LabelError, match="no labelled pixel"):
        task.loss(logits, torch.full((1, 8, 8), 255))


def test_a_validation_batch_without_labels_is_passed_over(masks, trainer):
    for sample in masks.data.samples[:4]:
        sample["mask"] = torch.full((64, 64), 255)
    (result,) = trainer().validate(SemanticSegmentation(**SMALL), masks, verbose=False)
    assert torch.tensor(result["val_loss"]).isfinite()


def test_group_norm_replaces_every_batch_norm_of_the_decoder_only():
    task = SemanticSegmentation(**SMALL)
    kinds = [type(m) for m in task.model.decoder.modules()]
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    odd = nn.Sequential(nn.BatchNorm2d(6))
    batch_to_group_norm(odd)
    assert odd(torch.randn(2, 6, 4, 4)).shape == (2, 6, 4, 4)


def test_a_frozen_backbone_gets_no_gradient():
    task = SemanticSegmentation(freeze_backbone=True, **SMALL)
    task(torch.randn(1, 3, 64, 64)).mean().backward()
    assert all(p.grad is None for p in task.model.encoder.parameters())
    assert any(p.grad is not None for p in task.model.decoder.parameters())


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(UnknownModelError, match="spatial_mamba_tiny"):
        SemanticSegmentation(backbone="spatial_mamba_tinny")
    with pytest.raises(ConfigError, match="num_classes is 2 but labels has 3 names"):
        SemanticSegmentation(labels=["a", "b", "c"], **SMALL)

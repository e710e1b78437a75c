"""RoMA's pretraining: golden values, the multi-scale loss, sizes, reconstruction."""

import itertools
import math

import numpy as np
import pytest
import timm
import torch

from rsmamba.errors import ConfigError
from rsmamba.models import RoMAForPretraining, roma_pretrain
from rsmamba.models.checkpoints import convert
from rsmamba.models.roma_pretrain import SCALES, sincos_table
from tests.golden import GOLDEN, fixture, tensor
from tests.models.conftest import golden_pretraining

OPS = fixture("op_roma_pretrain")
SMALL = {"embed_dim": 24, "depth": 3, "decoder_dim": 32, "decoder_heads": 4}


def small(**options):
    torch.manual_seed(0)
    return RoMAForPretraining(**{**SMALL, "img_size": 96, "cluster_size": 2, **options})


# --- golden values -----------------------------------------------------------------------------


def recorded_table(dim, grid, device=None):
    """The 12 x 12 table that the fixtures were recorded with.

    It was computed with float32 powers, whose last digits depend on the processor; stored are the
    values along one axis, from which the table is put together.
    """
    assert grid == (12, 12)
    axis = torch.from_numpy(np.load(GOLDEN / "sincos_axis.npz")[f"axis_{dim}"])
    halves = axis.expand(12, -1, -1), axis.unsqueeze(1).expand(-1, 12, -1)
    return torch.cat(halves, dim=-1).flatten(0, 1).unsqueeze(0)


def rotated_mask(size, case):
    """The tokens on which the reference puts the angle embedding: a diagonal, see the fixture."""
    entry = fixture(f"roma_pretrain_{size}").meta["cases"][case]
    mask = torch.zeros(2, 144, dtype=torch.bool)
    for row, top, left, crop in zip(
        mask, entry["tops"], entry["lefts"], entry["crop_size"], strict=True
    ):
        # Window arguments are divided by the patch size; the axes are swapped.
        first = (left[0] // 16) * 12 + top[0] // 16
        row[[first + 13 * i for i in range(crop[0] // 16)]] = True
    return mask.view(2, 12, 12)


def check_pretraining(size, dtype, case, monkeypatch):
    monkeypatch.setattr(roma_pretrain, "sincos_table", recorded_table)
    golden, model = fixture(f"roma_pretrain_{size}"), golden_pretraining(size, dtype)
    x = tensor(golden.meta["input"], (2, 3, 192, 192), dtype)
    target = tensor(golden.meta["target"], (2, 3, 192, 192), dtype)
    run = "f64" if dtype == torch.float64 else "f32"
    with torch.no_grad():
        mask = rotated_mask(size, case)
        golden.assert_close(f"{run}.{case}.latent", model.encode(x, mask))
        output = model(x, target, mask)
    golden.assert_close(f"{run}.{case}.pred", output.prediction)
    golden.assert_close(f"{run}.{case}.loss_single_mean", output.loss_fine)
    return model


@pytest.mark.parametrize("case", ["tok", "pix"])
def test_tiny_equals_the_golden_values(case, monkeypatch):
    model = check_pretraining("tiny", torch.float64, case, monkeypatch)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == fixture("roma_pretrain_tiny").meta["n_trainable"]


def test_tiny_equals_the_golden_values_in_single_precision(monkeypatch):
    check_pretraining("tiny", torch.float32, "tok", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", ["small", "base"])
def test_larger_models_equal_the_golden_values(size, dtype, monkeypatch):
    check_pretraining(size, dtype, "tok", monkeypatch)


def published_multi_loss(model, prediction, patches):
    """The reference's coarse term, on which its stored gradients depend (see its README).

    Predictions in cluster order are read as a raster and channel-major; the target is
    position-major: what the design corrects, kept here to check the gradients of all the rest.
    """

    def blocks(x):
        """(B, 144, P) on a raster to (B, 4, 36, P): blocks of 6 x 6 tokens, in rows."""
        x = x.view(len(x), 2, 6, 2, 6, -1).transpose(2, 3)
        return x.reshape(len(x), 4, 36, -1)

    padded = torch.nn.functional.pad(prediction, (0, 0, 16, 0))
    wanted = blocks(patches)[:, 1:].flatten(2)
    got = blocks(padded)[:, 1:].transpose(2, 3).flatten(2)
    return (got - wanted).square().mean(), got, wanted


def test_the_target_and_the_fine_loss_equal_the_golden_values():
    model = small(img_size=192, cluster_size=4)
    image = tensor("op:loss:img", (2, 3, 192, 192))
    prediction = tensor("op:loss:pred", (2, 128, 768))
    OPS.assert_close("patchify", model.patchify(image))
    order = model.to_clusters(torch.arange(144).view(1, 144, 1), (12, 12)).flatten()
    assert torch.equal(order, OPS.full("cluster_order_4x4"))
    patches = model.to_clusters(model.normalised_patches(image)[0], (12, 12))[:, 16:]
    OPS.assert_close("target_squared_cluster_order", patches.square())
    OPS.assert_close("single_loss_elementwise", (prediction - patches).square())
    OPS.assert_close("single_loss_mean", model.losses(prediction, patches, (12, 12))[0])
    assert float(model.losses(patches, patches, (12, 12))[0]) == 0.0


def test_the_decoder_sees_the_clusters_that_the_golden_mask_shows():
    """Queries of cluster i + 1 see the encoder's clusters 0 to i."""
    seen = {}
    model = small(img_size=192, cluster_size=4)
    for block in model.decoder:
        block.register_forward_pre_hook(lambda _, args: seen.update(mask=args[2]))
    with torch.no_grad():
        model(torch.randn(1, 3, 192, 192))
    assert torch.equal(~seen["mask"], OPS.full("mask_is_neg_inf").bool())


@pytest.mark.parametrize("dim", [192, 384, 512, 768])
def test_the_sine_cosine_table_equals_the_golden_one(dim):
    """To the accuracy of float32 powers; the recorded axis to the last bit."""
    OPS.assert_close(f"sincos2d_{dim}_12", sincos_table(dim, (12, 12))[0], 2e-6)
    OPS.assert_close(f"sincos2d_{dim}_12", recorded_table(dim, (12, 12))[0], 1e-9)


# --- the multi-scale loss ----------------------------------------------------------------------


def loss_inputs(model, size=(96, 96)):
    grid = (size[0] // 16, size[1] // 16)
    image = torch.randn(2, model.in_chans, *size, generator=torch.Generator().manual_seed(1))
    patches = model.to_clusters(model.normalised_patches(image)[0], grid)
    return patches[:, model.cluster_size**2 :], grid


def test_the_fine_target_as_prediction_is_perfect_at_every_scale():
    model = small()
    target, grid = loss_inputs(model)
    fine, scales = model.losses(target.clone(), target, grid)
    assert float(fine) == 0.0 and {s: float(v) for s, v in scales.items()} == {2: 0, 3: 0, 6: 0}


def test_swapped_clusters_cost_at_every_scale():
    model = small()
    target, grid = loss_inputs(model)
    swapped = target.clone()
    swapped[:, 0:4], swapped[:, 4:8] = target[:, 4:8], target[:, 0:4]
    fine, scales = model.losses(swapped, target, grid)
    assert float(fine) > 0.1 and all(float(v) > 1e-3 for v in scales.values())


@pytest.mark.parametrize("scale", SCALES)
def test_a_coarse_term_is_the_error_of_pooled_images_outside_the_first_cluster(scale):
    model = small()
    target, grid = loss_inputs(model)
    prediction = torch.randn_like(target)

    def cells(patches):
        full = torch.cat([torch.full_like(patches[:, :4], float("nan")), patches], 1)
        image = model.unpatchify(model.to_raster(full, grid), grid)
        return torch.nn.functional.avg_pool2d(image, scale)

    error = (cells(prediction) - cells(target)).square()
    known = ~error.isnan()
    # The first cluster is the upper left 32 x 32 pixels; a cell that touches it does not count.
    hidden = -(-32 // scale)
    assert not known[..., :hidden, :hidden].any() and known[..., hidden:, :].all()
    assert known[..., :, hidden:].all()
    torch.testing.assert_close(
        model.losses(prediction, target, grid)[1][scale], error[known].mean()
    )


def test_the_loss_is_the_fine_one_and_a_tenth_of_each_scale():
    output = small()(torch.randn(2, 3, 96, 96))
    expected = output.loss_fine + 0.1 * sum(output.loss_scales.values())
    torch.testing.assert_close(output.loss, expected)
    assert tuple(output.loss_scales) == SCALES


@pytest.mark.parametrize(
    ("size", "patch", "scales"),
    [
        (8, 2, {2}),
        (12, 2, {2, 3, 6}),
        (6, 1, {2, 3}),
        (24, 4, {2, 3, 6}),
        ((4, 8), 2, {2}),
        (4, 1, {2}),
        (3, 1, set()),
    ],
)
def test_scales_without_a_whole_predicted_cell_are_left_out(size, patch, scales):
    cluster = 1 if size == 3 else 2
    model = small(img_size=size, patch_size=patch, cluster_size=cluster)
    sides = (size, size) if isinstance(size, int) else size
    output = model(torch.randn(2, 3, *sides))
    assert set(output.loss_scales) == scales
    assert output.loss.isfinite() and all(v.isfinite() for v in output.loss_scales.values())
    expected = output.loss_fine + 0.1 * sum(output.loss_scales.values())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_left_out_are_exactly_the_scales_whose_term_would_be_empty():
    """On small sizes: of pooled images with unknowns as NaN, a number is left or is not."""
    for patch, cluster, rows, columns in itertools.product((1, 2, 3), (1, 2), (1, 2, 3), (2, 3)):
        unit = patch * cluster
        model = small(
            img_size=(unit * rows, unit * columns), patch_size=patch, cluster_size=cluster, depth=1
        )
        grid = (cluster * rows, cluster * columns)
        target = torch.randn(1, math.prod(grid) - cluster**2, 3 * patch**2)
        known = torch.ones(1, 1, unit * rows, unit * columns)
        known[..., :unit, :unit] = float("nan")
        expected = {
            s for s in SCALES
            if min(known.shape[2:]) >= s
            and not torch.nn.functional.avg_pool2d(known, s).isnan().all()
        }  # fmt: skip
        assert set(model.losses(target, target, grid)[1]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster_size": 0}, "cluster_size=0"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"depth": 0}, "depth=0"),
        ({"decoder_depth": 0}, "decoder_depth=0"),
        ({"decoder_heads": 5}, "decoder_heads=5 does not divide"),
        ({"img_size": (96,)}, "img_size="),
        ({"in_chans": 1, "patch_size": 1}, "one value"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_the_target_image_may_differ_from_the_input():
    model = small().eval()
    image, other = torch.randn(2, 1, 3, 96, 96)
    with torch.no_grad():
        same, rotated = model(image), model(image, other)
    assert torch.equal(same.prediction, rotated.prediction)
    torch.testing.assert_close(rotated.target, model(other).target)
    assert (same.target - rotated.target).abs().max() > 1


# --- causality, rotation, gradients ------------------------------------------------------------


def test_a_cluster_is_predicted_from_earlier_clusters_only():
    model = small().double().eval()
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    changed = image.clone()
    # Clusters of 2 x 2 patches on 3 x 3: number 4 is the middle one.
    changed[..., 32:64, 32:64] += 1
    with torch.no_grad():
        difference = (model(image).prediction - model(changed).prediction).abs().amax((0, 2))
    # Predicted are clusters 1 to 8, four patches each; 1 to 4 must not see cluster 4.
    assert difference[:16].max() == 0 and (difference[16:] > 0).all()


def test_the_last_cluster_never_enters():
    model = small().eval()
    image = torch.randn(1, 3, 96, 96)
    changed = image.clone()
    changed[..., 64:, 64:] += 1
    with torch.no_grad():
        assert torch.equal(model(image).prediction, model(changed).prediction)


def test_the_angle_embedding_lands_on_every_token_of_the_window():
    model = small().double().eval()
    with torch.no_grad():
        model.angle_embed.fill_(1.0)
    captured = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, 1:3, 0:4] = True
    with torch.no_grad():
        model(image)
        model(image, rotated_mask=mask)
    visible = model.to_clusters(mask.flatten(1).unsqueeze(-1), (6, 6))[:, :32]
    torch.testing.assert_close(captured[1] - captured[0], visible.expand(-1, -1, 24).double())
    with pytest.raises(ConfigError, match="rotated_mask"):
        model(image, rotated_mask=mask[:, :5])


@pytest.mark.parametrize("with_mask", [False, True])
def test_every_trainable_parameter_gets_a_gradient(with_mask):
    model = small()
    mask = torch.ones(2, 6, 6, dtype=torch.bool) if with_mask else None
    model(torch.randn(2, 3, 96, 96), rotated_mask=mask).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {"encoder.pos_embed"}
    assert bool(model.angle_embed.grad.any()) == with_mask


def test_a_few_steps_lower_the_loss():
    model = small()
    image = torch.nn.functional.interpolate(torch.randn(4, 3, 6, 6), 96, mode="bicubic")
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = model(image).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# --- sizes and options -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (96, 96)),
        ({}, (64, 160)),
        ({"cluster_size": 1, "in_chans": 13}, (48, 32)),
        ({"cluster_size": 3, "patch_size": 8}, (48, 72)),
        ({"depth": 1}, (96, 96)),
        ({"depth": 7, "decoder_depth": 2}, (96, 96)),
    ],
)
def test_other_sizes_clusters_bands_and_depths(options, size):
    model = small(**{"img_size": size, **options})
    patches = (size[0] // model.patch_size) * (size[1] // model.patch_size)
    output = model(torch.randn(2, model.in_chans, *size))
    channels = model.in_chans * model.patch_size**2
    assert output.prediction.shape == (2, patches - model.cluster_size**2, channels)
    assert torch.isfinite(output.loss)


def test_an_image_size_other_than_the_tables_is_taken():
    assert small()(torch.randn(1, 3, 128, 64)).prediction.shape == (1, 28, 768)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((96, 100), "96 x 100.*multiples of 32.*widths 96 and 128"),
        ((20, 96), "heights 32 and 32"),
        ((32, 32), "one cluster"),
    ],
)
def test_sizes_that_are_no_whole_number_of_clusters_are_refused(size, message):
    with pytest.raises(ConfigError, match=message):
        small(img_size=size)
    with pytest.raises(ConfigError, match=message):
        small()(torch.zeros(1, 3, *size))


def test_only_plain_romas_are_pretrained():
    with pytest.raises(ConfigError, match="roma_tiny_patch16_pyramid"):
        small(architecture="roma_tiny_patch16_pyramid")
    with pytest.raises(ConfigError, match="resnet18"):
        small(architecture="resnet18", embed_dim=None, depth=None)


def test_reconstruction_keeps_the_first_cluster_and_shows_the_rest():
    model = small().eval()
    image = torch.randn(2, 3, 96, 96)
    picture, predicted = model.reconstruct(image)
    assert picture.shape == image.shape and predicted.shape == (96, 96)
    assert int((~predicted).sum()) == 32 * 32 and not predicted[:32, :32].any()
    assert torch.equal(picture[..., ~predicted], image[..., ~predicted])
    assert (picture - image)[..., predicted].abs().max() > 0.1


def test_a_perfect_prediction_reconstructs_the_image(monkeypatch):
    model = small().eval()
    image = torch.randn(2, 3, 96, 96)
    target = model(image).target
    monkeypatch.setattr(model, "decode", lambda latent, grid: target)
    torch.testing.assert_close(model.reconstruct(image)[0], image, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_a_plain_backbone():
    model = small()
    backbone = timm.create_model(
        "roma_tiny_patch16", embed_dim=24, depth=3, img_size=96, directions=1, class_token=False,
        global_pool="avg", num_classes=0,
    )  # fmt: skip
    result = backbone.load_state_dict(model.encoder_state_dict(), strict=False)
    assert result.missing_keys == ["norm.weight", "norm.bias"] and result.unexpected_keys == []
    assert "encoder.blocks.0.mixer.scans.0.A_log" in model.no_weight_decay()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tok", "pix"])
def test_tiny_has_the_golden_gradients(case, monkeypatch):
    monkeypatch.setattr(roma_pretrain, "sincos_table", recorded_table)
    golden, model = fixture("roma_pretrain_tiny"), golden_pretraining("tiny")
    x = tensor(golden.meta["input"], (2, 3, 192, 192))
    target = tensor(golden.meta["target"], (2, 3, 192, 192))
    output = model(x, target, rotated_mask("tiny", case))
    multi, _, _ = published_multi_loss(
        model, output.prediction, model.normalised_patches(target)[0]
    )
    golden.assert_close(f"f64.{case}.loss_multi_mean", multi)
    (output.loss_fine + 0.1 * multi).backward()
    published = [row[0] for row in golden.meta["state_dict"]]
    kept = [k for k in published if k not in ("mask", "dec_pos_embed")]
    names = dict(zip(convert({k: x for k in kept}, source="roma-pretrain"), kept, strict=True))
    compared = 0
    for name, parameter in model.named_parameters():
        key = f"f64.{case}.grad.{names[name]}"
        if key in golden and not golden.meta["tensors"][key].get("none"):
            golden.assert_close(key, parameter.grad)
            compared += 1
    assert compared > 200


def test_the_published_coarse_term_punishes_a_perfect_prediction():
    """The planted fault: what the corrected loss must not do (findings 14)."""
    model = small(img_size=192, cluster_size=4)
    image = tensor("op:loss:img", (2, 3, 192, 192))
    prediction = tensor("op:loss:pred", (2, 128, 768))
    patches = model.normalised_patches(image)[0]
    loss, got, wanted = published_multi_loss(model, prediction, patches)
    OPS.assert_close("multi_pred_blocks", got)
    OPS.assert_close("multi_target_blocks", wanted)
    OPS.assert_close("multi_loss_mean", loss)
    perfect = model.to_clusters(patches, (12, 12))[:, 16:]
    assert float(published_multi_loss(model, perfect, patches)[0]) > 1.9
    assert max(map(float, model.losses(perfect, perfect, (12, 12))[1].values())) == 0.0

"""RoMA and its pyramid: any size and band count, options, timm's contract."""

import math

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from rsmamba.errors import ConfigError
from rsmamba.models import roma as roma_module
from rsmamba.models.roma import RoMA
from rsmamba.models.roma_layers import MambaMixer

SMALL = {"embed_dim": 32, "depth": 3, "img_size": 64}


def tiny(name="roma_tiny_patch16", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **options})


# --- sizes, bands, options ---------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("class_token", [False, True])
def test_every_parameter_gets_a_gradient(directions, class_token):
    pool = "token" if class_token else "avg"
    model = tiny(directions=directions, class_token=class_token, global_pool=pool, num_classes=5)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(model.blocks[0].mixer.scans) == directions


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (50, 70), (16, 16), (100, 33)])
def test_any_image_size_is_taken_and_dense_features_cover_it(size):
    model = tiny(num_classes=5).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert model(x).shape == (1, 5)
        final, maps = model.forward_intermediates(x)
    rows, columns = (math.ceil(n / 16) for n in size)
    assert [tuple(m.shape) for m in maps] == [(1, 32, rows, columns)] * 3
    assert final.shape == (1, 1 + rows * columns, 32)


def test_padding_is_zeros_at_the_bottom_and_right():
    model = tiny().eval()
    x = torch.randn(1, 3, 50, 60)
    with torch.no_grad():
        whole = model(nn.functional.pad(x, (0, 4, 0, 14)))
        torch.testing.assert_close(model(x), whole)
        assert (model(nn.functional.pad(x, (4, 0, 14, 0))) - whole).abs().max() > 1e-4


def test_columns_of_a_rectangle_are_scanned_as_rows_of_its_transpose():
    """The mixer is equivariant: transposing the grid swaps the directions' weights."""
    mixer = MambaMixer(16).double()
    grid, swapped = (3, 5), MambaMixer(16).double()
    weights = mixer.state_dict()
    order = {"0": "2", "1": "3", "2": "0", "3": "1"}
    swapped.load_state_dict(
        {".".join([k.split(".")[0], order[k.split(".")[1]], *k.split(".")[2:]])
         if k.startswith("scans.") else k: v for k, v in weights.items()}
    )  # fmt: skip
    x = torch.randn(2, 15, 16, dtype=torch.float64)

    def transpose(t, shape):
        return t.unflatten(1, shape).transpose(1, 2).flatten(1, 2)

    expected = transpose(mixer(x, grid, "none"), grid)
    torch.testing.assert_close(swapped(transpose(x, grid), (5, 3), "none"), expected)
    assert (mixer(transpose(x, grid), (5, 3), "none") - expected).abs().max() > 1e-4


def test_a_rectangular_position_embedding_is_used_as_it_is():
    model = tiny(img_size=(48, 80))
    assert model.grid_size == (3, 5)
    assert model.position((3, 5)) is model.pos_embed
    assert model.position((5, 3)).shape == model.pos_embed.shape
    resized = model.position((6, 10))
    # The class token's row moves to the middle of the new table, unchanged.
    torch.testing.assert_close(resized[:, 30], model.pos_embed[:, 7])
    # In slot M // 2 where M is odd as well: on 5 x 7, row 17 of 36.
    torch.testing.assert_close(model.position((5, 7))[:, 17], model.pos_embed[:, 7])


def test_an_odd_grid_keeps_the_class_token_in_its_slot_all_the_way():
    """Fifteen patches: seven before the token, eight after it."""
    model = tiny(img_size=(48, 80)).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        model.cls_token.fill_(7.0)
        tokens, grid = model.embed(torch.zeros(1, 3, 48, 80))
        assert grid == (3, 5)
        assert (tokens[0] == 7).all(dim=1).nonzero().flatten().tolist() == [7]
        assert (model._prefix_first(tokens)[0, 0] == 7).all()


@pytest.mark.parametrize("name", ["roma_tiny_patch16", "roma_tiny_patch16_pyramid"])
def test_the_input_size_can_be_set_for_good(name):
    model, x = tiny(name, num_classes=3).eval(), torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        before = model(x)
        model.set_input_size(img_size=(48, 80), patch_size=16)
        assert model.grid_size == (3, 5) and model.pos_embed.shape == (1, 16, 32)
        assert model.pos_embed.requires_grad and "pos_embed" in dict(model.named_parameters())
        torch.testing.assert_close(model(x), before)
        model.set_input_size()
        assert model.grid_size == (3, 5)
    with pytest.raises(ConfigError, match="patch_size=8"):
        model.set_input_size(patch_size=8)


def test_a_dictionary_of_intermediates_holds_the_class_tokens_if_asked():
    model, x = tiny().eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        pairs = model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
        named = model.forward_intermediates(x, return_prefix_tokens=True, output_dict=True)
    torch.testing.assert_close(named["image_intermediates"], [patches for patches, _ in pairs])
    prefixes = named["image_intermediates_prefix"]
    torch.testing.assert_close(prefixes, [prefix for _, prefix in pairs])
    bare = tiny(class_token=False, global_pool="avg")
    result = bare.forward_intermediates(x, return_prefix_tokens=True, output_dict=True)
    assert set(result) == {"image_intermediates", "image_features"}


def test_many_bands_and_other_patch_sizes():
    model = tiny(in_chans=13, patch_size=8, img_size=32, num_classes=2)
    assert model(torch.randn(2, 13, 32, 40)).shape == (2, 2)
    assert model.feature_info[-1]["reduction"] == 8


def test_drop_path_grows_linearly_and_reaches_its_rate():
    model = tiny(drop_path_rate=0.3, depth=4)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert tiny(drop_path_rate=0.3, depth=1).blocks[0].drop_path.drop_prob == 0.3


def test_steps_start_between_a_thousandth_and_a_tenth_in_all_directions():
    model = tiny()
    for scan in model.blocks[0].mixer.scans:
        dt = nn.functional.softplus(scan.dt_proj.bias)
        assert 0.99e-3 < dt.min() < 0.01 < dt.max() < 0.101
        torch.testing.assert_close(-scan.A_log.exp()[3], -torch.arange(1.0, 17.0))


def test_step_projections_start_within_the_inverse_root_of_their_rank():
    bound = 12**-0.5  # of width 192
    for scan in MambaMixer(192).scans:
        assert 0.9 * bound < scan.dt_proj.weight.abs().max() <= bound
        assert abs(float(scan.dt_proj.weight.detach().std()) - bound / 3**0.5) < 0.05 * bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 3}, "directions=3"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"class_token": False}, "needs class_token=True"),
        ({"output_stride": 16}, "no dilated form"),
        ({"depth": 0}, "depth=0"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"img_size": (64,)}, "img_size="),
        ({"img_size": 0}, "img_size=0"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**options)


# --- timm's contract ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize("suffix", ["", "_pyramid"])
def test_every_variant_is_registered_and_built_on_the_meta_device(size, suffix):
    name = f"roma_{size}_patch16{suffix}"
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    width, depth = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12),
                    "large": (1024, 24)}[size]  # fmt: skip
    assert (model.num_features, len(model.blocks)) == (width, depth)
    assert all(p.is_meta for p in model.parameters())


def test_attributes_that_timm_and_torchgeo_read():
    model = tiny(num_classes=5)
    assert model.num_features == model.head_hidden_size == model.embed_dim == 32
    assert model.default_cfg["first_conv"] == "patch_embed.proj"
    assert isinstance(next(m for m in model.modules() if not list(m.children())), nn.Conv2d)
    assert not any("model" in name.split(".") for name, _ in model.named_modules())
    assert next(reversed(dict(model.named_children()))) == "head"
    pyramid = tiny("roma_tiny_patch16_pyramid", num_classes=5)
    assert next(reversed(dict(pyramid.named_children()))) == "head"
    assert isinstance(roma_module.__all__, list)
    assert model(torch.randn(1, 3, 64, 64), metadata=None).shape == (1, 5)


def test_reset_classifier_replaces_head_and_pooling():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    model.reset_classifier(4, "avg")
    assert model.get_classifier().out_features == 4 and model(x).shape == (2, 4)
    model.reset_classifier(0, "")
    assert isinstance(model.get_classifier(), nn.Identity) and model(x).shape == (2, 17, 32)
    with pytest.raises(ConfigError, match="class_token"):
        tiny(class_token=False, global_pool="avg").reset_classifier(3, "token")


def test_pooling_reads_the_class_token_first():
    model = tiny(num_classes=0).eval()
    with torch.no_grad():
        tokens = model.forward_features(torch.randn(2, 3, 64, 64))
        torch.testing.assert_close(model.forward_head(tokens), tokens[:, 0])
        model.reset_pool("avg")
        torch.testing.assert_close(model.forward_head(tokens), tokens[:, 1:].mean(1))
    # Were the token not moved from the middle, a patch would stand first.
    embedded, _ = model.embed(torch.zeros(1, 3, 64, 64))
    token = model.cls_token[0, 0] + model.pos_embed[0, 8]
    torch.testing.assert_close(embedded[0, 8], token)
    torch.testing.assert_close(model._prefix_first(embedded)[0, 0], token)


def test_intermediates_equal_the_blocks_outputs():
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        final, every = model.forward_intermediates(x, output_fmt="NLC")
        torch.testing.assert_close(final, model.forward_features(x))
        last = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(last[0].flatten(2).transpose(1, 2), every[1])
        patches, prefix = model.forward_intermediates(
            x, 1, norm=True, return_prefix_tokens=True, intermediates_only=True
        )[0]
        torch.testing.assert_close(prefix, final[:, :1])
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), final[:, 1:])
    with pytest.raises(ConfigError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_pruning_keeps_the_intermediates():
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    before = model.forward_intermediates(x, [1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.blocks) == 2 and isinstance(model.head, nn.Identity)
    torch.testing.assert_close(
        model.forward_intermediates(x, [1], intermediates_only=True)[0], before
    )


def test_features_only_returns_maps_at_the_patch_stride():
    model = tiny(features_only=True, out_indices=(0, 2))
    assert model.feature_info.reduction() == [16, 16]
    assert model.feature_info.channels() == [32, 32]
    assert [tuple(f.shape) for f in model(torch.randn(1, 3, 64, 48))] == [(1, 32, 4, 3)] * 2


def test_checkpointing_changes_no_gradient():
    model = tiny(num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_decay_spares_rates_skips_and_embeddings():
    model = tiny()
    free = model.no_weight_decay()
    assert {"pos_embed", "cls_token", "blocks.0.mixer.scans.3.A_log"} <= free
    assert "blocks.0.mixer.in_proj.weight" not in free and "patch_embed.proj.weight" not in free
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=free, layer_decay=0.5
    )
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert scale[id(model.patch_embed.proj.weight)] < scale[id(model.blocks[0].norm1.weight)]
    assert scale[id(model.blocks[0].norm1.weight)] < scale[id(model.blocks[2].norm1.weight)]
    assert scale[id(model.head.weight)] == 1.0
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay[id(model.blocks[0].mixer.scans[0].A_log)] == 0.0
    assert decay[id(model.blocks[0].mixer.in_proj.weight)] == 0.1


def test_it_runs_in_bfloat16_autocast_close_to_single_precision():
    model = tiny(num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


# --- the pyramid -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (200, 312), (50, 70)])
def test_pyramid_levels_have_ceiling_sizes(size):
    model = tiny("roma_tiny_patch16_pyramid", features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        levels = model(torch.randn(1, 3, *size))
    expected = [(1, 32, *(math.ceil(n / s) for n in size)) for s in (4, 8, 16, 32)]
    assert [tuple(level.shape) for level in levels] == expected


def test_the_neck_differs_by_its_norm_only():
    with_norm = tiny("roma_tiny_patch16_pyramid", neck_norm=True).state_dict()
    without = tiny("roma_tiny_patch16_pyramid", neck_norm=False).state_dict()
    assert set(with_norm) - set(without) == {"neck.0.1.weight", "neck.0.1.bias"}


def test_the_pyramid_takes_a_plain_models_weights_and_classifies_like_it():
    plain, pyramid = tiny(num_classes=5).eval(), tiny("roma_tiny_patch16_pyramid", num_classes=5)
    result = pyramid.eval().load_state_dict(plain.state_dict(), strict=False)
    assert all(key.startswith("neck.") for key in result.missing_keys)
    assert result.unexpected_keys == []
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(pyramid(x), plain(x))


def test_the_pyramid_refuses_tokens_and_patches_that_it_cannot_quarter():
    with pytest.raises(ConfigError, match="patch_size=14"):
        tiny("roma_tiny_patch16_pyramid", patch_size=14)
    with pytest.raises(ConfigError, match="NCHW"):
        tiny("roma_tiny_patch16_pyramid").forward_intermediates(
            torch.zeros(1, 3, 64, 64), return_prefix_tokens=True
        )


@pytest.mark.parametrize(("decoder", "size"), [(smp.Unet, (200, 312)), (smp.UPerNet, (64, 96))])
def test_smp_decoders_train_on_the_pyramid(decoder, size):
    torch.manual_seed(0)
    model = decoder(
        "tu-roma_tiny_patch16_pyramid", encoder_weights=None, in_channels=4, classes=3,
        embed_dim=32, img_size=64,
    )  # fmt: skip
    y = model(torch.randn(2, 4, *size))
    assert y.shape[:2] == (2, 3)
    y.square().mean().backward()
    without = [n for n, p in model.encoder.named_parameters() if p.grad is None]
    assert without == []


def test_smp_dpt_trains_on_the_plain_model():
    torch.manual_seed(0)
    model = smp.DPT(
        "tu-roma_tiny_patch16", encoder_weights=None, classes=3, embed_dim=32, img_size=64,
        decoder_intermediate_channels=(8, 8, 8, 8), decoder_fusion_channels=16,
    )  # fmt: skip
    y = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 3, 64, 64)
    y.square().mean().backward()
    assert model.encoder.model.blocks[0].mixer.in_proj.weight.grad.any()


def test_local_weights_load_through_timm(tmp_path):
    """timm's ``file=`` route, from a one-direction encoder of another size."""
    source = tiny(directions=1, class_token=False, global_pool="avg", num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    target = tiny(
        pretrained=True, img_size=96, class_token=False, global_pool="avg",
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")},
    )  # fmt: skip
    torch.testing.assert_close(
        target.blocks[1].mixer.scans[3].x_proj.weight, source.blocks[1].mixer.scans[0].x_proj.weight
    )
    assert isinstance(target, RoMA) and target.pos_embed.shape == (1, 36, 32)

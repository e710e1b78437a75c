"""Spatial-Mamba: golden outputs and gradients, the timm contract, dense use through smp."""

import json

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

import rsmamba.models
from rsmamba.errors import BandMismatchError, CheckpointError, ConfigError
from rsmamba.models import SpatialMamba
from rsmamba.models.spatial_mamba import checkpoint_filter_fn, convert_state_dict
from rsmamba.models.spatial_mamba_layers import StateFusion
from tests.golden import fill_state_dict, fixture, tensor

PARAMETERS = {"tiny": 26_748_862, "small": 43_074_280, "base": 95_745_592}
#: Evaluation of the published models pads with zeros, their training replicates the border.
PADDING = {"eval": "zeros", "train": "replicate"}
SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1)}


@pytest.fixture(autouse=True)
def one_thread():
    """Hundreds of small float64 operations wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**kwargs):
    torch.manual_seed(0)
    return SpatialMamba(**{**SMALL, "num_classes": 5, **kwargs})


def set_padding(model, padding):
    for module in model.modules():
        if isinstance(module, StateFusion):
            module.padding = padding


def golden_model(size, dtype, mode, **kwargs):
    """A registered model with the weights of the fixture, and the fixture's image."""
    golden = fixture(f"spatialmamba_{size}")
    dense = kwargs.get("features_only", False)
    model = timm.create_model(
        f"spatial_mamba_{size}",
        num_classes=0 if dense else 1000,
        fusion_padding=PADDING[mode],
        **kwargs,
    )
    entries = golden.meta["backbone"]["state_dict"] if dense else golden.meta["state_dict"]
    published = convert_state_dict(fill_state_dict(entries))
    (model.model if dense else model).load_state_dict(published, strict=True)
    shape = (golden.meta["batch"], 3, *golden.meta["img_size"])
    return (
        golden,
        model.to(dtype).train(mode == "train"),
        tensor(golden.meta["input"], shape, dtype),
    )


def trace(model):
    """Outputs of the stem and of every block, by published name, filled by the next forward."""
    outputs = {}
    named = {"patch_embed": model.stem}
    for level, stage in enumerate(model.stages):
        named |= {f"layers.{level}.blocks.{i}": block for i, block in enumerate(stage.blocks)}
    for name, module in named.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
    return outputs


def published_gradients(model, entries):
    """Gradients by published key, in published shapes."""
    ours = convert_state_dict({key: torch.empty(shape) for key, shape, _ in entries})
    parameters = dict(model.named_parameters())
    for (key, shape, _), name in zip(entries, ours, strict=True):
        if name in parameters:
            yield key, parameters[name].grad.reshape(shape)


def test_evaluates_as_published_in_float64():
    golden, model, image = golden_model("tiny", torch.float64, "eval")
    outputs = trace(model)
    with torch.no_grad():
        golden.assert_close("f64.eval.logits", model(image))
    for name in golden.names("f64.eval.trace."):
        golden.assert_close(name, outputs[name.removeprefix("f64.eval.trace.")])


def test_trains_as_published_in_float64():
    golden, model, image = golden_model("tiny", torch.float64, "train")
    outputs = trace(model)
    logits = model(image)
    golden.assert_close("f64.train.logits", logits)
    for name in golden.names("f64.train.trace."):
        golden.assert_close(name, outputs[name.removeprefix("f64.train.trace.")])
    stem = model.stem.conv1.bn
    golden.assert_close("f64.train.bn_running_mean_after", stem.running_mean)
    golden.assert_close("f64.train.bn_running_var_after", stem.running_var)

    logits.backward(tensor("cot:spatialmamba", logits.shape))
    compared = 0
    for key, grad in published_gradients(model, golden.meta["state_dict"]):
        if ".downsample.conv.2.conv.bias" in key:
            # Batch norm takes the mean out again: what is left is rounding noise.
            assert grad.abs().max() < 1e-9
        else:
            golden.assert_close(f"f64.train.grad.{key}", grad)
        compared += 1
    assert compared == len(golden.names("f64.train.grad."))


@pytest.mark.parametrize("mode", PADDING)
def test_float32_agrees_with_published_logits(mode):
    golden, model, image = golden_model("tiny", torch.float32, mode)
    with torch.no_grad():
        golden.assert_close(f"f32.{mode}.logits", model(image))


@pytest.mark.parametrize("mode", PADDING)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
def test_pyramid_levels_are_the_published_backbone(dtype, mode):
    golden, model, image = golden_model("tiny", dtype, mode, features_only=True)
    with torch.no_grad():
        levels = model(image)
    precision = {torch.float32: "f32", torch.float64: "f64"}[dtype]
    for index, level in enumerate(levels):
        golden.assert_close(f"{precision}.{mode}.backbone.level{index}", level)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("mode", PADDING)
def test_larger_models_agree_with_published_logits(size, mode):
    for dtype, precision in ((torch.float64, "f64"), (torch.float32, "f32")):
        golden, model, image = golden_model(size, dtype, mode)
        with torch.no_grad():
            golden.assert_close(f"{precision}.{mode}.logits", model(image))
        if dtype == torch.float64 and mode == "train":
            stem = model.stem.conv1.bn
            golden.assert_close("f64.train.bn_running_mean_after", stem.running_mean)
            golden.assert_close("f64.train.bn_running_var_after", stem.running_var)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base"])
def test_larger_pyramids_are_the_published_backbones(size):
    golden, model, image = golden_model(size, torch.float32, "eval", features_only=True)
    with torch.no_grad():
        for index, level in enumerate(model(image)):
            golden.assert_close(f"f32.eval.backbone.level{index}", level)


@pytest.mark.parametrize(("size", "count"), PARAMETERS.items())
def test_parameter_counts_and_meta_construction(size, count):
    with torch.device("meta"):
        model = timm.create_model(f"spatial_mamba_{size}", drop_path_rate=0.2)
        dense = timm.create_model(f"spatial_mamba_{size}", features_only=True)
    assert sum(p.numel() for p in model.parameters()) == count
    backbone = fixture(f"spatialmamba_{size}").meta["backbone"]["n_params"]
    assert sum(p.numel() for p in dense.parameters()) == backbone
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(2, 3, 96, 64, device="meta")).shape == (2, 1000)


def test_evaluation_follows_weights_changed_in_place():
    # The published code keeps the fusion kernels of its first evaluation for ever.
    model, image = small().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)
        model.train()(image.repeat(2, 1, 1, 1))
        model.eval()
        for fusion in (m for m in model.modules() if isinstance(m, StateFusion)):
            fusion.alpha.mul_(torch.tensor([2.0, -1.0, 0.5]))
        after = model(image)
        fresh = small().eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(after, fresh(image))
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(64, 96), (200, 312), (33, 57), (1, 1)])
def test_any_size_gives_levels_rounded_up(size):
    model = small(level_norms=True).eval()
    with torch.no_grad():
        final, levels = model.forward_intermediates(torch.randn(1, 3, *size))
        logits = model(torch.randn(1, 3, *size))
    for level, info in zip(levels, model.feature_info, strict=True):
        expected = [-(-side // info["reduction"]) for side in size]
        assert list(level.shape) == [1, info["num_chs"], *expected]
    assert torch.equal(final, levels[-1])
    assert logits.isfinite().all()


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_fusion_padding_reaches_every_mixer_and_training_and_evaluation_agree(padding):
    model = small(fusion_padding=padding)
    fusions = [m for m in model.modules() if isinstance(m, StateFusion)]
    assert [f.padding for f in fusions] == [padding] * sum(SMALL["depths"])
    # Batch norm apart, the mode changes nothing: the published mixers differ by mode.
    mixer, x = model.stages[0].blocks[0].mixer, torch.randn(1, 9, 7, 16)
    assert torch.equal(mixer.train()(x), mixer.eval()(x))
    other = "zeros" if padding == "replicate" else "replicate"
    before = mixer(x)
    set_padding(mixer, other)
    assert not torch.allclose(mixer(x), before)


def test_unknown_options_are_refused_by_name():
    with pytest.raises(ConfigError, match="reflect"):
        small(fusion_padding="reflect")
    for pool in ("token", ""):
        with pytest.raises(ConfigError, match=f"global_pool='{pool}'"):
            small(global_pool=pool)
        with pytest.raises(ConfigError, match=f"global_pool='{pool}'"):
            small().reset_classifier(3, pool)
    with pytest.raises(ConfigError, match="depths"):
        small(depths=(1, 0, 1, 1))
    with pytest.raises(ConfigError, match="output_stride=16"):
        timm.create_model("spatial_mamba_tiny", features_only=True, output_stride=16)


def test_any_number_of_bands_and_tolerated_keywords():
    model = timm.create_model("spatial_mamba_tiny", in_chans=13, num_classes=4, **SMALL).eval()
    first = next(m for m in model.modules() if not list(m.children()))
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 13
    assert model(torch.randn(1, 13, 64, 32), wavelengths=[1.0]).shape == (1, 4)


def test_registry_default_config_and_names():
    assert set(timm.list_models("spatial_mamba_*")) == {f"spatial_mamba_{s}" for s in PARAMETERS}
    assert isinstance(rsmamba.models.spatial_mamba.__all__, list)
    model = timm.create_model("spatial_mamba_tiny", **SMALL)
    cfg = model.default_cfg
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == cfg["input_size"][0]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert list(model.named_children())[-1] == ("head", model.head)
    # TorchGeo's extract_backbone strips every "model." from checkpoint keys.
    assert not any(part == "model" for name, _ in model.named_modules() for part in name.split("."))


def test_head_can_be_read_reset_and_removed():
    model, image = small().eval(), torch.randn(2, 3, 64, 64)
    features = model.forward_features(image)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.forward_head(features), model.head(pooled))
    model.reset_classifier(7, "max")
    assert model(image).shape == (2, 7)
    assert model.num_classes == model.get_classifier().out_features == 7
    model.reset_classifier(0)
    torch.testing.assert_close(model(image), features.amax((2, 3)))
    model.reset_classifier(0, "")
    assert model(image).shape == features.shape


def test_intermediates_follow_indices_norm_format_and_early_stop():
    model, image = small().eval(), torch.randn(1, 3, 64, 96)
    final, levels = model.forward_intermediates(image, norm=True)
    assert torch.equal(final, model.forward_features(image))
    assert torch.equal(levels[-1], final)
    raw = model.forward_intermediates(image, indices=2, intermediates_only=True)
    assert torch.equal(raw[0], levels[2])
    assert not torch.allclose(raw[1], final)
    early = model.forward_intermediates(
        image, indices=[1], stop_early=True, output_fmt="NHWC", intermediates_only=True
    )
    assert torch.equal(early[0].permute(0, 3, 1, 2), levels[1])
    with pytest.raises(ConfigError, match="NLC"):
        model.forward_intermediates(image, output_fmt="NLC")


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1,), (0, 2), (1, 3)])
def test_pruned_pyramids_give_the_same_levels_and_use_every_parameter(out_indices):
    torch.manual_seed(0)
    whole = timm.create_model("spatial_mamba_tiny", features_only=True, **SMALL)
    part = timm.create_model(
        "spatial_mamba_tiny", features_only=True, out_indices=out_indices, **SMALL
    )
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    image = torch.randn(2, 3, 64, 64)
    assert part.feature_info.reduction() == [4 * 2**i for i in out_indices]
    expected = whole(image)
    actual = part(image)
    for index, level in zip(out_indices, actual, strict=True):
        assert torch.equal(level, expected[index])
    sum(level.sum() for level in actual).backward()
    # A parameter without gradient would stop distributed training.
    assert [name for name, p in part.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_changes_memory_not_gradients():
    gradients = []
    for enable in (False, True):
        model = small()
        model.set_grad_checkpointing(enable)
        model(torch.ones(2, 3, 64, 32).cumsum(2)).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_drop_path_rises_linearly_to_its_value():
    model = small(drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.075, 0.15, 0.225, 0.3])
    single = small(drop_path_rate=0.3, depths=(1,))
    assert [m.drop_prob for m in single.modules() if isinstance(m, DropPath)] == [0.3]
    model.train()
    image = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(image), model(image))


def test_weight_decay_spares_dynamics_norms_and_fusion():
    model = small()
    spared = model.no_weight_decay()
    parameters = dict(model.named_parameters())
    assert spared <= set(parameters)
    mixer = "stages.0.blocks.0.mixer"
    names = ("A_log", "D", "dt_proj.bias", "fusion.alpha", "fusion.kernel_1", "fusion.kernel_5")
    assert {f"{mixer}.{name}" for name in names} | {"norm.weight", "stem.conv1.bn.bias"} <= spared
    assert f"{mixer}.in_proj.weight" not in spared
    decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=spared)[1]["params"]
    ids = {id(p) for p in decayed}
    kinds = {name.rsplit(".", 1)[-1] for name, p in parameters.items() if id(p) in ids}
    assert kinds == {"weight"}


def test_layer_groups_rise_from_stem_to_head():
    model = small()
    groups = {
        name: index
        for index, names in group_parameters(model, model.group_matcher()).items()
        for name in names
    }
    assert groups.keys() == dict(model.named_parameters()).keys()
    order = [
        "stem.conv1.conv.weight",
        "stages.0.blocks.0.cpe1.weight",
        "stages.1.downsample.expand.weight",
        "stages.2.blocks.0.mixer.D",
        "stages.2.blocks.1.mixer.D",
        "norm.weight",
    ]
    ranks = [groups[name] for name in order]
    assert ranks == sorted(set(ranks))
    optimiser = create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.5, weight_decay=0.05)
    scales = [group["lr_scale"] for group in optimiser.param_groups]
    assert min(scales) < 0.05 < max(scales) == 1.0


def test_initial_steps_are_between_a_thousandth_and_a_tenth():
    model = timm.create_model("spatial_mamba_tiny")
    for name, p in model.named_parameters():
        if name.endswith("dt_proj.bias"):
            steps = nn.functional.softplus(p)
            assert 0.9e-3 < steps.min() < 2e-3
            assert 0.05 < steps.max() < 0.11
        elif name.endswith("dt_proj.weight"):
            assert 0.5 < p.abs().max() * p.shape[1] ** 0.5 <= 1


def test_bfloat16_autocast_stays_close_to_float32():
    model, image = small(num_classes=0).eval(), torch.randn(2, 3, 96, 96)
    exact = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(image)
    assert (rounded.float() - exact).norm() / exact.norm() < 0.05


# smp's UPerNet itself asks for multiples of 32.
@pytest.mark.parametrize(
    ("architecture", "size"),
    [(smp.Unet, (200, 312)), (smp.Unet, (97, 65)), (smp.UPerNet, (96, 64))],
)
def test_smp_decoders_train_on_rectangles(architecture, size):
    torch.manual_seed(0)
    model = architecture(
        "tu-spatial_mamba_tiny", encoder_weights=None, in_channels=4, classes=3, **SMALL
    )
    logits = model(torch.randn(2, 4, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_torchgeo_tasks_take_the_names():
    from torchgeo.tasks import Classification, SemanticSegmentation

    image = torch.randn(2, 5, 64, 32)
    classifier = Classification(model="spatial_mamba_tiny", in_channels=5, num_classes=6)
    assert classifier.eval()(image).shape == (2, 6)
    segmenter = SemanticSegmentation(
        model="upernet", backbone="tu-spatial_mamba_tiny", in_channels=5, num_classes=6
    )
    assert segmenter.eval()(image).shape == (2, 6, 64, 32)


def test_conversion_is_pure_and_takes_backbones_of_segmentors():
    entries = fixture("spatialmamba_tiny").meta["backbone"]["state_dict"]
    published = fill_state_dict(entries)
    keys = list(published)
    segmentor = {f"backbone.{k}": v for k, v in published.items()}
    segmentor["decode_head.conv_seg.weight"] = torch.zeros(3, 512, 1, 1)
    converted = convert_state_dict(segmentor)
    assert list(published) == keys
    assert converted.keys() == convert_state_dict(published).keys()
    SpatialMamba(level_norms=True, num_classes=0).load_state_dict(converted, strict=True)
    assert convert_state_dict(converted).keys() == converted.keys()


def test_conversion_refuses_other_models_by_key():
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.qkv\.weight"):
        convert_state_dict({"blocks.0.attn.qkv.weight": torch.zeros(1)})


def test_local_weights_load_through_timm_in_either_naming(tmp_path):
    golden = fixture("spatialmamba_tiny")
    published = fill_state_dict(golden.meta["state_dict"])
    torch.save({"model": published, "epoch": 3}, tmp_path / "published.pth")
    overlay = {"file": str(tmp_path / "published.pth")}
    model = timm.create_model("spatial_mamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.weight, published["head.weight"])
    torch.save(model.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "features_only": True}
    dense = timm.create_model("spatial_mamba_tiny", **options)
    key = "layers.2.blocks.7.self_attention.state_fusion.kernel_3_1"
    kernel = dense.model.stages[2].blocks[7].mixer.fusion.kernel_3
    assert torch.equal(kernel, published[key].squeeze(1))
    assert torch.equal(dense.model.level_norms[3].weight, torch.ones(512))
    # A fourth band whose weights would be guessed.
    with pytest.raises(BandMismatchError, match="3 bands"):
        timm.create_model("spatial_mamba_tiny", in_chans=4, **options)


def test_filter_keeps_foreign_tensors_visible():
    model = small()
    state = {**model.state_dict(), "stages.9.blocks.0.cpe1.bias": torch.zeros(16)}
    assert "stages.9.blocks.0.cpe1.bias" in checkpoint_filter_fn(state, model)


def test_state_dict_has_the_published_number_of_tensors():
    entries = fixture("spatialmamba_tiny").meta["state_dict"]
    with torch.device("meta"):
        model = timm.create_model("spatial_mamba_tiny")
    assert len(model.state_dict()) == len(entries)
    assert json.dumps(sorted(model.state_dict())).count("fusion.kernel_") == 3 * 18

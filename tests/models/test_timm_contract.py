"""What timm promises of every model in its registry, asked of all of ours."""

import fnmatch

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

import rsmamba.models  # noqa: F401 - registers them
from rsmamba.errors import ConfigError

ROMA = [f"roma_{size}_patch16" for size in ("tiny", "small", "base", "large")]
PYRAMIDS = [f"{name}_pyramid" for name in ROMA]
SPATIAL = [f"spatial_mamba_{size}" for size in ("tiny", "small", "base")]
#: One of each family, as small as it gets.
SMALL = {
    "roma_tiny_patch16": {"embed_dim": 32, "depth": 4},
    "roma_tiny_patch16_pyramid": {"embed_dim": 32, "depth": 2},
    "spatial_mamba_tiny": {"embed_dim": 8, "depths": (1, 1, 1, 1)},
}


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


def create(name, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, **{**SMALL[name], **options})


def levels(name):
    """How many maps the small model can give: its blocks, or the levels of its pyramid."""
    return SMALL[name].get("depth", 4) if name == "roma_tiny_patch16" else 4


def fill(model, tensors):
    """Load what the model has a place for, and nothing may be missing."""
    model.load_state_dict({k: v for k, v in tensors.items() if k in model.state_dict()})


def images(*shape):
    return torch.randn(*(shape or (2, 3, 64, 64)), generator=torch.Generator().manual_seed(1))


def test_the_registry_lists_every_variant():
    assert set(ROMA + PYRAMIDS) == set(timm.list_models("*roma*"))
    assert set(SPATIAL) == set(timm.list_models("*spatial_mamba*"))
    assert not timm.list_pretrained("*roma*")  # none is hosted, so none is promised
    for name in ROMA + PYRAMIDS + SPATIAL:
        assert get_pretrained_cfg(name).input_size == (3, 224, 224)


@pytest.mark.parametrize("name", ROMA + PYRAMIDS + SPATIAL)
def test_the_default_configuration_names_what_is_there(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg, tensors = model.default_cfg, model.state_dict()
    assert model.num_classes == cfg["num_classes"] == 1000
    assert tensors[f"{cfg['classifier']}.weight"].shape == (1000, model.num_features)
    stem = tensors[f"{cfg['first_conv']}.weight"]
    assert stem.shape[1] == cfg["input_size"][0] == len(cfg["mean"]) == len(cfg["std"])
    assert model.get_submodule(cfg["first_conv"]) is next(
        m for m in model.modules() if isinstance(m, nn.Conv2d)
    )
    assert not any("total_ops" in key for key in tensors)


def test_inference_gives_finite_logits_of_any_shape_of_image(name):
    model = create(name, num_classes=5).eval()
    with torch.no_grad():
        for shape in ((2, 3, 64, 64), (1, 3, 96, 32), (1, 3, 50, 71)):
            y = model(images(*shape))
            assert y.shape == (shape[0], 5) and y.isfinite().all()


def test_every_parameter_has_a_gradient_and_the_logits_depend_on_the_image(name):
    model = create(name, num_classes=5)
    if hasattr(model, "neck"):
        del model.neck  # the classifier of a pyramid does not pass it
    x = images().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_forward_is_features_then_head(name):
    model = create(name, num_classes=5).eval()
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(features), model(x))
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    assert pooled.shape == (2, model.head_hidden_size) == (2, model.num_features)


def test_a_reset_classifier_gives_pooled_and_unpooled_features(name):
    model = create(name, num_classes=5).eval()
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(x), features)
        model.reset_classifier(7, "avg")
        assert model(x).shape == (2, 7)
    bare = create(name, num_classes=0, global_pool="").eval()
    with torch.no_grad():
        assert bare(x).shape == features.shape
    if "roma" not in name:
        assert bare(images(1, 3, 224, 224)).shape[-2:] == bare.default_cfg["pool_size"]


def test_features_only_gives_the_declared_channels_and_strides(name):
    model = create(name, features_only=True)
    x = images(1, 3, 64, 96)
    maps = model(x)
    info = model.feature_info
    assert len(info.out_indices) == len(maps)
    for level, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        assert level.shape == (1, channels, 64 // stride, 96 // stride)
    sum(level.square().sum() for level in maps).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_features_at_chosen_indices_are_those_of_the_whole_model(name):
    whole = create(name, features_only=True, out_indices=(0, 1, 2, 3)[: levels(name)]).eval()
    some = create(name, features_only=True, out_indices=(0, 2)).eval()
    fill(some, whole.state_dict())
    with torch.no_grad():
        every, chosen = whole(images()), some(images())
    for got, index in zip(chosen, (0, 2), strict=True):
        torch.testing.assert_close(got, every[index])


def test_intermediates_agree_with_features_only_and_with_the_end(name):
    options = {"level_norms": True} if "spatial" in name else {}
    model = create(name, **options).eval()
    extractor = create(name, features_only=True, out_indices=tuple(range(levels(name)))).eval()
    fill(extractor, {f"model.{k}": v for k, v in model.state_dict().items()})
    x = images()
    with torch.no_grad():
        end, maps = model.forward_intermediates(x)
        torch.testing.assert_close(end, model.forward_features(x))
        alone = model.forward_intermediates(x, intermediates_only=True)
        for a, b, c in zip(maps, alone, extractor(x), strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a, c)


def test_pruning_shortens_the_model_and_keeps_what_is_left(name):
    model = create(name).eval()
    x = images()
    with torch.no_grad():
        before = model.forward_intermediates(x, [1], intermediates_only=True)[0]
        count = sum(p.numel() for p in model.parameters())
        assert list(model.prune_intermediate_layers([1])) == [1]
        assert sum(p.numel() for p in model.parameters()) < count
        after = model.forward_intermediates(x, [1], intermediates_only=True)[0]
    torch.testing.assert_close(after, before)


def deep_parts(model):
    """What intermediates count: blocks, or the levels of Spatial-Mamba."""
    return model.stages if hasattr(model, "stages") else model.blocks


def calls_of(module):
    """A list that grows with every forward pass of a module, recomputed ones included."""
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("indices", [[2], [0, 2], [0], [3], 1, None])
@pytest.mark.parametrize("options", [{}, {"norm": True}, {"output_dict": True}])
def test_an_early_stop_changes_no_intermediate_and_leaves_out_the_rest(name, indices, options):
    model = create(name).eval()
    calls = [calls_of(part) for part in deep_parts(model)]
    x = images()
    with torch.no_grad():
        whole = model.forward_intermediates(x, indices, **options)
        assert all(len(c) == 1 for c in calls)
        early = model.forward_intermediates(x, indices, stop_early=True, **options)
    if "output_dict" in options:
        whole, early = (tuple(r[k] for k in ("image_features", "image_intermediates"))
                        for r in (whole, early))  # fmt: skip
    for a, b in zip(early[1], whole[1], strict=True):
        torch.testing.assert_close(a, b)
    last = 3 if not isinstance(indices, list) or "pyramid" in name else indices[-1]
    assert [len(c) for c in calls] == [2 if i <= last else 1 for i in range(len(calls))]
    if last == 3:
        torch.testing.assert_close(early[0], whole[0])
    assert early[0].isfinite().all()


def test_a_pruned_model_still_gives_intermediates_and_an_end(name):
    model = create(name).eval()
    x = images()
    with torch.no_grad():
        expected = model.forward_intermediates(x, [0, 2], intermediates_only=True)
        assert list(model.prune_intermediate_layers([2, 0])) == [0, 2]
        for stop_early in (False, True):
            end, maps = model.forward_intermediates(x, [0, 2], stop_early=stop_early)
            for a, b in zip(maps, expected, strict=True):
                torch.testing.assert_close(a, b)
            assert end.isfinite().all()
        assert len(model.forward_intermediates(x, intermediates_only=True)) == 3  # all that is left


def test_intermediates_come_as_a_dictionary_too(name):
    model = create(name).eval()
    x = images()
    with torch.no_grad():
        end, maps = model.forward_intermediates(x, [1, 2])
        named = model.forward_intermediates(x, [1, 2], output_dict=True)
        alone = model.forward_intermediates(x, [1, 2], output_dict=True, intermediates_only=True)
    assert set(named) == {"image_intermediates", "image_features"}
    assert set(alone) == {"image_intermediates"}
    torch.testing.assert_close(named["image_features"], end)
    torch.testing.assert_close(named["image_intermediates"], maps)
    torch.testing.assert_close(alone["image_intermediates"], maps)


def test_the_order_of_asked_levels_does_not_matter(name):
    sorted_, mixed = (create(name, features_only=True, out_indices=i) for i in ((0, 1), (1, 0)))
    assert mixed.feature_info.reduction() == sorted_.feature_info.reduction()
    assert mixed.feature_info.channels() == sorted_.feature_info.channels()
    with torch.no_grad():
        for a, b in zip(mixed.eval()(images()), sorted_.eval()(images()), strict=True):
            torch.testing.assert_close(a, b)


def test_any_number_of_bands(name):
    model = create(name, in_chans=13, num_classes=2)
    stem = model.get_submodule(model.default_cfg["first_conv"])
    assert stem.in_channels == 13 and model(images(1, 13, 64, 64)).shape == (1, 2)


def test_layer_groups_cover_every_parameter_and_rise_with_depth(name):
    from timm.models import group_parameters

    model = create(name)
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert set(groups) == {n for n, _ in model.named_parameters()}
    first = model.default_cfg["first_conv"] + ".weight"
    assert groups[first] == 0
    assert max(groups, key=groups.__getitem__).startswith(("norm", "head", "neck"))
    assert len(set(groups.values())) >= 4


def test_weight_decay_exemptions_name_parameters(name):
    model = create(name)
    free = model.no_weight_decay()
    assert free <= {n for n, _ in model.named_parameters()}
    assert any(n.endswith("A_log") for n in free)
    assert not any(fnmatch.fnmatch(n, "*in_proj.weight") for n in free)


def test_checkpointing_keeps_output_and_gradients(name):
    x = images()
    results = []
    for enable in (False, True):
        model = create(name, num_classes=3)
        model.set_grad_checkpointing(enable)
        y = model(x)
        y.square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((y.detach(), gradients))
    (y, first), (again, second) = results
    torch.testing.assert_close(again, y)
    for key, gradient in first.items():
        torch.testing.assert_close(second[key], gradient, msg=key)


@pytest.mark.parametrize("train", [False, True])
def test_checkpointing_recomputes_wherever_there_are_gradients(name, train):
    """In evaluation too: a backbone with frozen statistics is trained in that mode."""
    model = create(name, num_classes=3).train(train)
    first = deep_parts(model)[0]
    calls = calls_of(first.blocks[0] if hasattr(first, "blocks") else first)
    model.set_grad_checkpointing()
    with torch.no_grad():
        model(images())
    assert len(calls) == 1
    model(images()).sum().backward()
    assert len(calls) == 3


def test_an_empty_batch_gives_no_logits(name):
    model = create(name, num_classes=5).eval()
    with torch.no_grad():
        assert model(images(0, 3, 64, 64)).shape == (0, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"embed_dim": 0}, "embed_dim=0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(ConfigError, match=message):
        create(name, **options)


def test_a_model_built_on_meta_takes_weights_by_assignment(name):
    model = create(name, num_classes=4).eval()
    with torch.device("meta"):
        empty = create(name, num_classes=4).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(empty(images()), model(images()))


def test_stochastic_depth_and_dropout_act_in_training_only(name):
    model = create(name, num_classes=4, drop_rate=0.5, drop_path_rate=0.5)
    x = images()
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


def test_a_double_model_computes_in_doubles(name):
    model = create(name, num_classes=4).eval()
    with torch.no_grad():
        single = model(images())
        double = model.double()(images().double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_it_compiles_without_a_break(name, train):
    model = create(name, num_classes=4).train(train)
    x = images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, wanted = compiled(x), model(x)
    torch.testing.assert_close(y, wanted)
    if train:
        got = torch.autograd.grad(y.square().sum(), list(model.head.parameters()))
        expected = torch.autograd.grad(wanted.square().sum(), list(model.head.parameters()))
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_it_exports(name):
    model = create(name, num_classes=4).eval()
    program = torch.export.export(model, (images(),))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images()), model(images()))


@pytest.mark.slow
@pytest.mark.parametrize("sides", [False, True])
def test_it_exports_for_any_batch_and_size(name, sides):
    from torch.export import Dim

    model = create(name, num_classes=4).eval()
    dynamic = {0: Dim.DYNAMIC} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if sides else {})
    program = torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes=(dynamic,))
    # 224 is the size that the position embedding is made for.
    sizes = [(96, 128), (50, 71), (224, 224)] if sides else [(64, 96)]
    with torch.no_grad():
        for batch, size in zip((5, 1, 2), sizes, strict=False):
            x = images(batch, 3, *size)
            torch.testing.assert_close(program.module()(x), model(x))


def test_a_dilated_form_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="output_stride"):
        create(name, features_only=True, output_stride=16)

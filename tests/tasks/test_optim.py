import pytest
import timm
from torch import nn

import rsmamba.models  # noqa: F401
from rsmamba.errors import ConfigError
from rsmamba.tasks.optim import parameter_groups, warmup_cosine


def test_the_rate_rises_to_its_peak_and_falls_to_the_floor():
    rates = [warmup_cosine(step, warmup=10, total=100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["roma_tiny_patch16", "spatial_mamba_tiny"])
def test_nothing_that_the_papers_exempt_is_decayed_inside_a_larger_model(name):
    options = {"img_size": 32} if "roma" in name else {}
    backbone = timm.create_model(name, num_classes=0, **options)
    whole = nn.Module()
    whole.encoder = backbone
    names = {id(p): n for n, p in whole.named_parameters()}
    decayed = {
        names[id(p)]
        for group in parameter_groups(whole, weight_decay=0.1)
        if group["weight_decay"]
        for p in group["params"]
    }
    assert decayed
    exempt = ("A_log", "pos_embed", "cls_token", "kernel_3", "alpha", ".D", "norm", ".bias")
    assert not [n for n in decayed if any(part in n for part in exempt)]


def test_every_parameter_is_in_one_group():
    model = timm.create_model("roma_tiny_patch16", num_classes=3, img_size=32)
    for layer_decay in (None, 0.7):
        groups = parameter_groups(model, weight_decay=0.1, layer_decay=layer_decay)
        grouped = [id(p) for group in groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_layer_decay_slows_the_stem_most():
    model = timm.create_model("roma_tiny_patch16", num_classes=3, img_size=32)
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.patch_embed.proj.weight)] < 0.01
    assert scale[id(model.get_classifier().weight)] == 1.0


def test_layer_decay_without_layer_groups_is_refused():
    with pytest.raises(ConfigError, match="leave layer_decay out"):
        parameter_groups(nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.5)

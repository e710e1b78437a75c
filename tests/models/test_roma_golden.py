"""RoMA beside the golden values of the published classes: mixers, classifiers, pyramids."""

import math

import numpy as np
import pytest
import torch

from rsmamba.models.checkpoints import convert
from rsmamba.models.position import resize_position
from rsmamba.models.roma_layers import MambaMixer
from tests.golden import fill, fixture, normal, tensor
from tests.models.conftest import golden_roma

MIXERS = fixture("op_mixers")


def mixer_value(key, shape, prefix):
    """The recipe; the recorded mixers' rates and skips, without a dot, fell to its last rule."""
    if "." in key:
        return torch.from_numpy(fill(key, shape, prefix))
    fan = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return torch.from_numpy(np.float32(fan**-0.5) * normal(prefix + key, shape))


def golden_mixer(case):
    """A filled mixer, its published keys by ours, its input as a leaf, and the cotangent."""
    entry, prefix = MIXERS.meta["cases"][case], f"op:mixer:{case}:"
    mixer = MambaMixer(entry["d_model"], 4 if entry["bimamba_type"] == "v3" else 1).double()
    stem = "layers.0.mixer."
    published = {stem + k: mixer_value(k, s, prefix) for k, s in entry["state_dict"]}
    ours = convert(published, source="roma")
    names = dict(zip(ours, published, strict=True))
    mixer.load_state_dict({k.removeprefix("blocks.0.mixer."): v for k, v in ours.items()})
    shape = (entry["B"], entry["L"], entry["d_model"])
    x = tensor(prefix + "x", shape).requires_grad_()
    keys = {k.removeprefix("blocks.0.mixer."): v.removeprefix(stem) for k, v in names.items()}
    return mixer, keys, x, tensor(prefix + "dout", shape)


def run_mixer(case):
    mixer, keys, x, cotangent = golden_mixer(case)
    length = x.shape[1]
    if len(mixer.scans) == 4:
        side = math.isqrt(length - 1)
        y = mixer(x, (side, side), "middle")
    else:
        y = mixer(x, (1, length), "none")
    (y * cotangent).sum().backward()
    return mixer, keys, x, y


@pytest.mark.parametrize("case", MIXERS.meta["cases"])
def test_mixers_equal_the_golden_values_and_gradients(case):
    mixer, keys, x, y = run_mixer(case)
    MIXERS.assert_close(f"{case}.out", y)
    MIXERS.assert_close(f"{case}.grad.x", x.grad)
    gradients = {keys[name]: p.grad for name, p in mixer.named_parameters()}
    compared = [n for n in MIXERS.names(f"{case}.grad.") if not n.endswith(".grad.x")]
    assert len(compared) == len(gradients)
    for name in compared:
        MIXERS.assert_close(name, gradients[name.removeprefix(f"{case}.grad.")])


def check_classifier(name, dtype):
    golden = fixture(name)
    model = golden_roma(name, dtype)
    assert sum(p.numel() for p in model.parameters()) == golden.meta["n_params"]
    x = tensor(golden.meta["input"], (golden.meta["batch"], 3, 224, 224), dtype)
    run = "f64" if dtype == torch.float64 else "f32"
    with torch.no_grad():
        features = model.forward_features(x)
        golden.assert_close(f"{run}.cls_token.features", features[:, 0])
        golden.assert_close(f"{run}.cls_token.logits", model.forward_head(features))
        model.reset_pool("avg")
        golden.assert_close(f"{run}.global_pool.logits", model.forward_head(features))


def test_tiny_classifier_equals_the_golden_values():
    check_classifier("roma_cls_tiny", torch.float64)


def test_tiny_classifier_equals_the_golden_values_in_single_precision():
    check_classifier("roma_cls_tiny", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_larger_classifiers_equal_the_golden_values(size, dtype):
    check_classifier(f"roma_cls_{size}", dtype)


@pytest.mark.slow
def test_tiny_classifier_has_the_golden_activations_and_gradients():
    golden, model = fixture("roma_cls_tiny"), golden_roma("roma_cls_tiny")
    published = golden.meta["state_dict"]
    names = {n: row[0] for row, n in zip(published, convert(
        {k: torch.empty(0) for k, *_ in published}, source="roma"), strict=True)}  # fmt: skip
    x = tensor(golden.meta["input"], (2, 3, 224, 224))
    with torch.no_grad():
        golden.assert_close("f64.trace.patch_embed", model.patch_embed(x))
        tokens, grid = model.embed(x)
        for i, block in enumerate(model.blocks):
            tokens = block(tokens, grid, "middle")
            golden.assert_close(f"f64.trace.layers.{i}", tokens)
    (model(x[:1]) * tensor("cot:roma_cls", (1, 1000))).sum().backward()
    for name, parameter in model.named_parameters():
        golden.assert_close(f"f64.b1.grad.{names[name]}", parameter.grad)


def check_pyramid(name, dtype):
    golden = fixture(name)
    model = golden_roma(name, dtype, neck_norm="seg" in name)
    assert sum(p.numel() for p in model.parameters()) == golden.meta["n_params"]
    x = tensor(golden.meta["input"], (1, 3, 224, 224), dtype)
    with torch.no_grad():
        levels = model.forward_intermediates(x, intermediates_only=True)
    run = "f64" if dtype == torch.float64 else "f32"
    for i, level in enumerate(levels):
        golden.assert_close(f"{run}.A.level{i}", level)


@pytest.mark.parametrize("name", ["roma_seg_tiny", "roma_cd_tiny"])
def test_tiny_pyramids_equal_the_golden_values(name):
    check_pyramid(name, torch.float64)


def test_tiny_pyramid_equals_the_golden_values_in_single_precision():
    check_pyramid("roma_seg_tiny", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["roma_seg_small", "roma_seg_base", "roma_cd_base"])
def test_larger_pyramids_equal_the_golden_values(name, dtype):
    check_pyramid(name, dtype)


@pytest.mark.parametrize("side", [14, 16, 24])
def test_position_embeddings_are_interpolated_as_published(side):
    table = tensor("op:interp", (1, 144, 64), torch.float32)
    resized = resize_position(table, (12, 12), (side, side))
    slot = side * side // 2
    with_class = torch.cat([resized[:, :slot], torch.zeros(1, 1, 64), resized[:, slot:]], 1)
    fixture("op_roma_pretrain").assert_close(f"interp_pos_embed_12_to_{side}", with_class, 1e-6)

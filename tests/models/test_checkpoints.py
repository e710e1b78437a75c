"""Weights in and out: conversion, safe loading with coverage, safetensors with a spec."""

import os
import re

import pytest
import timm
import torch

from rsmamba.errors import (
    CheckpointError,
    ConfigError,
    DataNotFoundError,
    OutputNotWritableError,
    SpecError,
)
from rsmamba.models import RoMAForPretraining
from rsmamba.models.checkpoints import convert, load_backbone, read_spec, save_safetensors
from rsmamba.spec import SPEC_KEY, ModelSpec
from tests.golden import fill_state_dict, fixture, tensor
from tests.models.published_files import entries, save

SIZES = {"embed_dim": 24, "depth": 2}
SPEC = ModelSpec(
    task="classification", task_class="rsmamba.tasks.SceneClassification",
    task_kwargs={"num_classes": 3}, architecture="roma_tiny_patch16", bands=("red", "green"),
    mean=(0.1, 0.2), std=(1.0, 2.0),
)  # fmt: skip


def backbone(seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model("roma_tiny_patch16", **{**SIZES, "img_size": 64, **options})


@pytest.fixture
def pretrained():
    torch.manual_seed(1)
    return RoMAForPretraining(
        img_size=96, cluster_size=2, decoder_dim=32, decoder_heads=4, **SIZES
    )  # fmt: skip


# --- convert -----------------------------------------------------------------------------------


def published(name):
    return fill_state_dict(fixture(name).meta["state_dict"])


def test_conversion_renames_and_changes_no_value():
    source = published("roma_cls_tiny")
    ours = convert(source, source="roma")
    assert len(ours) == len(source)
    assert {id(v) for v in ours.values()} == {id(v) for v in source.values()}
    assert ours["blocks.3.mixer.scans.2.A_log"] is source["layers.3.mixer.A_c_log"]
    assert ours["blocks.3.mixer.scans.3.dt_proj.bias"] is source["layers.3.mixer.dt_proj_c_b.bias"]
    prefixed = {f"module.{k}": v for k, v in source.items()}
    assert set(convert(prefixed, source="roma")) == set(ours)


def test_pretraining_conversion_leaves_out_computed_tables_only():
    entries = fixture("roma_pretrain_tiny").meta["state_dict"]
    ours = convert({key: torch.zeros(shape) for key, shape, _ in entries}, source="roma-pretrain")
    assert set(ours) == set(RoMAForPretraining().state_dict())
    assert len(ours) == len(entries) - 2


def test_foreign_tensors_are_named():
    with pytest.raises(CheckpointError, match=r"layers\.0\.attn\.qkv"):
        convert({"layers.0.attn.qkv.weight": torch.zeros(1)}, source="roma")
    with pytest.raises(CheckpointError, match="not a roma checkpoint: unknown tensors: ar_token"):
        convert({"ar_token": torch.zeros(1)}, source="roma")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mixer\.conv2d"):
        convert({"layers.0.mixer.conv2d.weight": torch.zeros(1)}, source="roma")
    with pytest.raises(ConfigError, match="source='vim'"):
        convert({}, source="vim")


GOLDEN = {
    "roma": ["roma_cls_tiny", "roma_cls_large", "roma_seg_base", "roma_cd_base"],
    "roma-pretrain": ["roma_pretrain_tiny", "roma_pretrain_base"],
    "spatial-mamba": ["spatialmamba_tiny", "spatialmamba_base", "spatialmamba_tiny:backbone"],
}


@pytest.mark.parametrize("source", GOLDEN)
def test_every_published_name_has_a_place_of_its_own(source):
    for name in GOLDEN[source]:
        published = {key: torch.empty(shape, device="meta") for key, shape, _ in entries(name)}
        computed = {"mask", "dec_pos_embed"} & set(published)
        ours = convert(published, source=source)
        assert len(ours) == len(published) - len(computed), name
        if source == "spatial-mamba":
            assert set(convert(ours, source=source)) == set(ours)


FOREIGN = {
    "roma": [
        "layers.0.mixer.A", "layers.0.mixer.D_log", "layers.0.mixer.A_d_log",
        "layers.0.mixer.x_proj.bias", "layers.0.mixer.in_proj.foo", "layers.0.mixer.conv1d",
        "layers.0.mixer.dt_proj.weight.x", "layers.0.norm1.foo", "layers.0.norm3.weight",
        "layers.0.mlp.w4.weight", "layers.0.mlp.w1.foo", "layers.0.norm1.weight\n", "head.foo",
        "head.fc.weight", "patch_embed.proj.x.weight", "norm_f.foo", "fpn1.0.foo", "fpn3.0.weight",
        "dec_block.0.norm2.weight", "ar_token", "layers.x.norm1.weight",
    ],
    "roma-pretrain": [
        "dec_block.0.foo.weight", "dec_block.0.norm2.foo", "dec_block.0.norm2.q.weight",
        "dec_block.0.attn2.weight", "dec_block.0.attn2.k.weight", "dec_block.0.mlp.fc3.bias",
        "enc2dec.x", "enc2dec.0.weight", "head.weight", "cls_token", "norm_f.weight", "norm_5.bias",
        "fpn1.0.weight", "layers.0.mixer.A_b_log", "dec_block.0", "ar_pred.foo", "angle_embed.x",
    ],
    "spatial-mamba": [
        "layers.0.blocks.0.bogus.weight", "head.foo", "norm.foo", "patch_embed.conv1.conv.foo",
        "patch_embed.conv1.bogus.weight", "layers.0.blocks.0.ln_3.weight",
        "layers.0.blocks.0.self_attention.foo", "layers.0.blocks.0.self_attention.A_logs.x",
        "layers.0.blocks.0.self_attention.state_fusion.kernel_7", "layers.0.downsample.foo",
        "layers.0.downsample.conv.0.conv.foo", "stages.0.blocks.0.mixer.foo", "stages.0.foo",
        "outnorm0.foo",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name"), [(s, n) for s, names in FOREIGN.items() for n in names]
)
def test_a_name_that_is_not_the_sources_is_refused(source, name):
    whole = {key: torch.empty(shape, device="meta") for key, shape, _ in entries(GOLDEN[source][0])}
    with pytest.raises(CheckpointError, match=re.escape(f"unknown tensors: {name}")):
        convert(whole | {name: torch.zeros(1)}, source=source)


@pytest.mark.parametrize("source", GOLDEN)
def test_what_holds_no_block_is_no_checkpoint(source):
    lone = {"spatial-mamba": "head.weight"}.get(source, "patch_embed.proj.weight")
    for state in ({}, {lone: torch.zeros(1)}):
        with pytest.raises(CheckpointError, match=f"not a {source} checkpoint: no tensor of a bl"):
            convert(state, source=source)


def test_spatial_mamba_is_delegated():
    source = published("spatialmamba_tiny")
    model = timm.create_model("spatial_mamba_tiny")
    model.load_state_dict(convert(source, source="spatial-mamba"), strict=True)


@pytest.mark.slow
def test_a_published_pretraining_file_gives_the_golden_classifier(tmp_path):
    """Base: 12 x 12 positions to 14 x 14, class-token slot, one direction to four."""
    golden = fixture("roma_transfer_base")
    model = timm.create_model("roma_base_patch16")
    model.load_state_dict(convert(published("roma_cls_base"), source="roma"), strict=True)
    entries = fixture("roma_pretrain_base").meta["state_dict"]
    source = fill_state_dict(entries, keep=("pos_embed", "dec_pos_embed", "mask"))
    source["pos_embed"] = recorded_positions()
    save(tmp_path / "pretrained.pth", {"model": source})
    report = load_backbone(model, tmp_path / "pretrained.pth")
    names = {"norm_f.weight": "norm.weight", "norm_f.bias": "norm.bias"}
    missing = {names.get(k, k) for k in golden.meta["missing"] if not k.startswith("head.")}
    assert set(report.missing) == missing
    model = model.double().eval()
    x = tensor(golden.meta["input"], (2, 3, 224, 224))[: golden.meta["batch"]]
    with torch.no_grad():
        golden.assert_close("f64.cls_token.logits", model(x), 1e-6)
        model.reset_pool("avg")
        golden.assert_close("f64.global_pool.logits", model(x), 1e-6)


def recorded_positions():
    from tests.models.test_roma_pretrain import recorded_table

    return recorded_table(768, (12, 12))


# --- load_backbone -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lightning", "plain", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.", "model.encoder.model.model."])
def test_every_format_and_prefix_is_read(kind, prefix, tmp_path):
    source, target = backbone(1), backbone(2)
    tensors = {prefix + k: v for k, v in source.state_dict().items()}
    tensors["decoder.weight"] = torch.zeros(3)
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.ckpt")
    if kind == "safetensors":
        save_safetensors(tensors, None, path)
    else:
        torch.save({"state_dict": tensors} if kind == "lightning" else tensors, path)
    report = load_backbone(target, path)
    assert report.coverage == 1.0 and report.prefix == prefix and report.missing == ()
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_a_pretrained_encoder_becomes_a_four_direction_classifier(pretrained, tmp_path):
    torch.save({"state_dict": pretrained.state_dict()}, tmp_path / "last.ckpt")
    target = backbone(2, num_classes=7)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    report = load_backbone(target, tmp_path / "last.ckpt", minimum=0.9)
    assert report.prefix == "encoder."
    assert set(report.missing) == {"cls_token", "norm.weight", "norm.bias"}
    assert report.matched + len(report.missing) == report.total
    assert len(report.adapted) == 2 and "36 to 17 rows" in report.adapted[0]
    source, after = pretrained.encoder.state_dict(), target.state_dict()
    for k in range(4):
        key = "blocks.1.mixer.scans.{}.x_proj.weight"
        assert torch.equal(after[key.format(k)], source[key.format(0)])
    # The class token's row of the position embedding is zero, its neighbours are not.
    assert not after["pos_embed"][0, 8].any() and after["pos_embed"][0, 7].any()
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert "not in the file: cls_token" in str(report)


def test_a_classifiers_head_is_loaded_if_it_fits(tmp_path):
    source = backbone(1, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    same, other = backbone(2, num_classes=3), backbone(2, num_classes=4)
    load_backbone(same, tmp_path / "w.pth")
    assert torch.equal(same.head.weight, source.head.weight)
    assert load_backbone(other, tmp_path / "w.pth").coverage == 1.0


def test_a_class_token_that_the_model_lacks_is_dropped(tmp_path):
    torch.save(backbone(1).state_dict(), tmp_path / "w.pth")
    target = backbone(2, class_token=False, global_pool="avg")
    report = load_backbone(target, tmp_path / "w.pth")
    assert report.unexpected == ("cls_token",) and report.coverage == 1.0
    expected = torch.load(tmp_path / "w.pth")["pos_embed"]
    assert torch.equal(target.pos_embed[0, 8], expected[0, 9])


def test_spatial_mamba_loads_too(tmp_path):
    options = {"embed_dim": 8, "depths": (1, 1, 1, 1)}
    source = timm.create_model("spatial_mamba_tiny", **options)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    assert load_backbone(
        timm.create_model("spatial_mamba_tiny", **options), tmp_path / "w.pth"
    ).coverage == 1.0  # fmt: skip


def test_too_little_coverage_is_refused_and_changes_nothing(tmp_path):
    source = backbone(1).state_dict()
    partial = {k: v for k, v in source.items() if "blocks.1." not in k}
    torch.save(partial, tmp_path / "w.pth")
    target = backbone(2)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"blocks.1.*and \d+ more.*at least 95%"):
        load_backbone(target, tmp_path / "w.pth")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert load_backbone(target, tmp_path / "w.pth", minimum=0.3).coverage < 0.7


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"embed_dim": 192, "depth": 12}, "'roma_tiny_patch16'"),
        ({"embed_dim": 48}, "'roma_tiny_patch16', embed_dim=48, depth=2"),
        ({"patch_size": 8}, "'roma_tiny_patch16', embed_dim=24, depth=2, patch_size=8"),
    ],
)
def test_another_architecture_is_refused_with_the_one_that_fits(options, call, tmp_path):
    torch.save(backbone(1, **options).state_dict(), tmp_path / "w.pth")
    message = re.escape(f"it fits timm.create_model({call})")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(backbone(2), tmp_path / "w.pth", minimum=0.0)


class Executed:
    """A pickle that would create a file when loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_pickled_code_runs(tmp_path):
    evil = tmp_path / "evil"
    torch.save({"state_dict": backbone().state_dict(), "x": Executed(evil)}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        load_backbone(backbone(), tmp_path / "w.ckpt")
    assert not evil.exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damaged_files_are_errors_with_the_path(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": backbone().state_dict()}, path)
    else:
        save_safetensors(backbone(), SPEC, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (lambda: load_backbone(backbone(), path), lambda: read_spec(path)):
        with pytest.raises(CheckpointError, match=f"w{suffix}"):
            read()


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="no checkpoint at"):
        load_backbone(backbone(), tmp_path / "absent.ckpt")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_backbone(backbone(), tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no backbone of this kind.*it has: weight"):
        load_backbone(backbone(), tmp_path / "other.pth")


# --- safetensors and spec ----------------------------------------------------------------------


def test_a_spec_travels_in_safetensors_and_in_checkpoints(tmp_path):
    save_safetensors(backbone(), SPEC, tmp_path / "w.safetensors")
    assert read_spec(tmp_path / "w.safetensors") == SPEC
    torch.save({"state_dict": {}, SPEC_KEY: SPEC.to_json()}, tmp_path / "w.ckpt")
    assert read_spec(tmp_path / "w.ckpt") == SPEC


def test_a_file_without_a_spec_says_how_to_give_one(tmp_path):
    save_safetensors(backbone(), None, tmp_path / "w.safetensors")
    torch.save({"state_dict": {}}, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.ckpt"):
        with pytest.raises(SpecError, match="--spec FILE"):
            read_spec(tmp_path / name)


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_safetensors(backbone(1), SPEC, path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_safetensors(backbone(2), SPEC, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_of_the_output(tmp_path):
    with pytest.raises(OutputNotWritableError, match="nowhere"):
        save_safetensors(backbone(), SPEC, tmp_path / "nowhere" / "w.safetensors")


def test_saved_files_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        save_safetensors(backbone(), SPEC, tmp_path / "w.safetensors")
    finally:
        os.umask(previous)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o640

"""Published files straight into a model: conversion, other grids, bands, notes, hub ids."""

import math
import re
from functools import partial

import pytest
import timm
import torch

from rsmamba.errors import BandMismatchError, CheckpointError, ConfigError
from rsmamba.models import RoMAForPretraining
from rsmamba.models.checkpoints import convert, load_backbone, save_safetensors
from rsmamba.models.checkpoints.architecture import infer
from rsmamba.models.checkpoints.hub import locate
from rsmamba.spec import ModelSpec
from tests.models.published_files import entries, save, shallow

#: Two blocks of the fixture's width.
ROMA = {"embed_dim": 384, "depth": 2}
SPATIAL = {"depths": (1, 1, 1, 1)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.fixture
def roma_file(tmp_path):
    weights = shallow("roma_cls_tiny")
    return save(tmp_path / "roma.pth", {"model": weights, "model_ema": weights})


@pytest.fixture
def pretrain_file(tmp_path):
    return save(tmp_path / "pretrain.pth", {"model": shallow("roma_pretrain_tiny")})


# --- conversion on the way ---------------------------------------------------------------------


def test_a_published_classifier_is_converted_on_the_way(roma_file):
    model = timm.create_model("roma_tiny_patch16", **ROMA)
    report = load_backbone(model, roma_file)
    assert report.coverage == 1.0 and report.missing == report.unexpected == ()
    assert (report.source, report.key, report.others) == ("roma", "model", ("model_ema",))
    assert "from 'model' (the file also has model_ema" in str(report)
    expected = convert(shallow("roma_cls_tiny"), source="roma")
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


def test_a_segmentors_backbone_goes_into_a_pyramid_at_another_size(tmp_path):
    weights = {f"backbone.{k}": v for k, v in shallow("roma_seg_tiny").items()}
    weights["decode_head.conv_seg.weight"] = torch.zeros(2, 4, 1, 1)
    save(tmp_path / "w.pth", {"state_dict": weights})
    model = timm.create_model(
        "roma_tiny_patch16_pyramid", img_size=(64, 96), num_classes=0, **ROMA
    )  # fmt: skip
    report = load_backbone(model, tmp_path / "w.pth")
    assert report.coverage == 1.0 and "197 to 25 rows" in report.adapted[0]
    assert torch.equal(model.neck[1][0].bias, weights["backbone.fpn2.0.bias"])
    assert set(report.unexpected) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("variant", ["roma_tiny_patch16", "roma_tiny_patch16_pyramid"])
@pytest.mark.parametrize("size", [192, (64, 160)])
def test_a_published_pretraining_file_goes_into_a_backbone(variant, size, pretrain_file):
    model = timm.create_model(variant, depth=2, img_size=size, num_classes=0)
    report = load_backbone(model, pretrain_file, minimum=0.9)
    assert report.source == "roma-pretrain"
    assert set(report.missing) == {"cls_token", "norm.weight", "norm.bias"}
    assert "never trained a class token" in str(report)
    source = shallow("roma_pretrain_tiny")
    for k in range(4):
        got = model.get_parameter(f"blocks.1.mixer.scans.{k}.dt_proj.bias")
        assert torch.equal(got, source["layers.1.mixer.dt_proj.bias"])
    slot = math.prod(model.grid_size) // 2
    assert not model.pos_embed[0, slot].any()
    if size == 192:
        rest = torch.cat([model.pos_embed[:, :slot], model.pos_embed[:, slot + 1 :]], 1)
        assert torch.equal(rest, source["pos_embed"])


def test_a_backbone_without_class_token_has_nothing_to_be_noted(pretrain_file):
    options = {"depth": 2, "img_size": 192, "class_token": False, "global_pool": "avg"}
    options["num_classes"] = 0
    report = load_backbone(timm.create_model("roma_tiny_patch16", **options), pretrain_file)
    assert report.notes == () and set(report.missing) == {"norm.weight", "norm.bias"}


def test_unknown_tensors_are_reported_and_do_not_hinder(tmp_path):
    weights = shallow("roma_cls_tiny") | {"layers.0.mixer.rope": torch.zeros(1)}
    save(tmp_path / "w.pth", {"model": weights})
    report = load_backbone(timm.create_model("roma_tiny_patch16", **ROMA), tmp_path / "w.pth")
    assert report.unexpected == ("layers.0.mixer.rope",) and report.coverage == 1.0


def test_a_file_of_the_other_family_changes_nothing(roma_file):
    model = timm.create_model("spatial_mamba_tiny", embed_dim=8, **SPATIAL)
    before = state(model)
    with pytest.raises(CheckpointError, match=r"no backbone of this kind.*'stem\.conv1"):
        load_backbone(model, roma_file)
    assert_unchanged(model, before)


def test_features_only_and_smp_encoders_are_looked_into(tmp_path):
    import segmentation_models_pytorch as smp

    options = {"embed_dim": 8, **SPATIAL}
    source = timm.create_model("spatial_mamba_tiny", level_norms=True, **options)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    wrapped = timm.create_model("spatial_mamba_tiny", features_only=True, **options)
    encoder = smp.Unet("tu-spatial_mamba_tiny", encoder_weights=None, **options).encoder
    for model in (wrapped, encoder):
        assert load_backbone(model, tmp_path / "w.pth").coverage == 1.0
        found = {k.rpartition("model.")[2]: v for k, v in model.state_dict().items()}
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in found.items())


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.DataParallel,
        torch.compile,
        lambda model: torch.nn.DataParallel(torch.compile(model)),
    ],
    ids=["parallel", "compiled", "both"],
)
def test_wrapped_models_are_looked_into(wrap, tmp_path):
    source, model = small(img_size=64), small(img_size=96)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_backbone(wrap(model), tmp_path / "w.pth")
    assert report.coverage == 1.0 and "17 to 37 rows" in report.adapted[0]
    assert torch.equal(model.norm.weight, source.norm.weight)
    assert torch.equal(model.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_a_model_without_memory_is_refused(roma_file):
    with torch.device("meta"):
        model = timm.create_model("roma_tiny_patch16", **ROMA)
    with pytest.raises(ConfigError, match="to_empty"):
        load_backbone(model, roma_file)


# --- positions ---------------------------------------------------------------------------------


def small(**options):
    return timm.create_model(
        "roma_tiny_patch16", **{"embed_dim": 16, "depth": 1, "num_classes": 0, **options}
    )  # fmt: skip


def spec(**changes):
    values = {
        "task": "backbone", "task_class": "timm.create_model", "task_kwargs": {},
        "architecture": "roma_tiny_patch16", "bands": ("red", "green", "blue"),
        "mean": (0.0,) * 3, "std": (1.0,) * 3,
    }  # fmt: skip
    return ModelSpec(**(values | changes))


@pytest.mark.parametrize("place", ["top", "model_kwargs", "image_size"])
def test_a_rectangle_that_the_spec_knows_is_interpolated_as_one(place, tmp_path):
    """2 x 8 patches are as many as 4 x 4: only the spec tells them apart."""
    source = small(img_size=(32, 128))
    ramp = torch.arange(8.0).expand(2, 8).reshape(1, 16, 1).expand(1, 16, 16)
    with torch.no_grad():  # columns, and a class token in the middle
        source.pos_embed.copy_(torch.cat([ramp[:, :8], ramp[:, :1] - 5, ramp[:, 8:]], 1))
    kwargs = {
        "top": {"task_kwargs": {"img_size": [32, 128]}},
        "model_kwargs": {"task_kwargs": {"model_kwargs": {"img_size": [32, 128]}}},
        "image_size": {"image_size": (32, 128)},
    }[place]
    save_safetensors(source, spec(**kwargs), tmp_path / "w.safetensors")
    target = small(img_size=64)
    report = load_backbone(target, tmp_path / "w.safetensors")
    assert "resized from 17 to 17 rows" in report.adapted[0]
    assert target.pos_embed[0, 8, 0] == -5
    rows = torch.cat([target.pos_embed[0, :8], target.pos_embed[0, 9:]])[:, 0].unflatten(0, (4, 4))
    assert torch.allclose(rows, rows[:1].expand(4, 4), atol=1e-5)
    assert (rows[0].diff() > 1).all()


def test_a_rectangle_that_nothing_tells_is_refused(tmp_path):
    torch.save(small(img_size=(32, 96)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"pos_embed \[1, 13, 16\], not \[1, 17, 16\]"):
        load_backbone(small(img_size=64), tmp_path / "w.pth")


# --- bands -------------------------------------------------------------------------------------

SENTINEL = ("blue", "green", "red", "nir")


def test_published_weights_are_fitted_to_other_bands_by_name(roma_file):
    model = timm.create_model("roma_tiny_patch16", in_chans=4, **ROMA)
    report = load_backbone(model, roma_file, bands=SENTINEL)
    source, got = shallow("roma_cls_tiny")["patch_embed.proj.weight"], model.patch_embed.proj.weight
    for new, old in zip(range(3), (2, 1, 0), strict=True):  # each filter is scaled as a whole
        for d in (0, 7):
            cosine = torch.cosine_similarity(got[d, new].flatten(), source[d, old].flatten(), dim=0)
            assert cosine > 0.999
    assert "nir" in report.adapted[0] and report.adapted[0] in str(report)


def test_the_same_bands_in_another_order_are_permuted(roma_file):
    model = timm.create_model("roma_tiny_patch16", **ROMA)
    load_backbone(model, roma_file, bands=("blue", "green", "red"))
    source = shallow("roma_cls_tiny")["patch_embed.proj.weight"]
    assert torch.equal(model.patch_embed.proj.weight, source.flip(1))


def test_spatial_mambas_stem_is_fitted_too(tmp_path):
    save(tmp_path / "w.pth", {"model": shallow("spatialmamba_tiny", 1)})
    model = timm.create_model("spatial_mamba_tiny", in_chans=2, **SPATIAL)
    report = load_backbone(model, tmp_path / "w.pth", bands=("green", "red"))
    source = shallow("spatialmamba_tiny", 1)["patch_embed.conv1.conv.weight"]
    assert torch.equal(model.stem.conv1.conv.weight, source[:, [1, 0]])
    assert report.coverage == 1.0 and "blue" in report.adapted[0]


def test_bands_that_are_not_named_are_refused_and_change_nothing(roma_file, tmp_path):
    model = timm.create_model("roma_tiny_patch16", in_chans=13, **ROMA)
    before = state(model)
    message = r"3 bands \(red, green, blue\), the model takes 13: give bands="
    with pytest.raises(BandMismatchError, match=message):
        load_backbone(model, roma_file)
    with pytest.raises(BandMismatchError, match=r"bands= names 4 bands .*the model takes 13"):
        load_backbone(model, roma_file, bands=SENTINEL)
    with pytest.raises(BandMismatchError, match="red"):  # no sensor
        load_backbone(model, roma_file, bands="red")
    assert_unchanged(model, before)
    torch.save(small(in_chans=2).state_dict(), tmp_path / "own.pth")
    message = r"for 2 bands, the model takes 4: give source_bands= .*ModelSpec.* and bands= "
    message += r"\(in a task its option bands; .*serve_weights\(bands=\), Register: bands\).*in_ch"
    with pytest.raises(BandMismatchError, match=message):
        load_backbone(small(in_chans=4), tmp_path / "own.pth", bands=SENTINEL)


def test_bands_without_any_relation_are_refused_with_both_lists(roma_file):
    model = timm.create_model("roma_tiny_patch16", in_chans=2, **ROMA)
    before = state(model)
    with pytest.raises(BandMismatchError, match=r"vv.*vh.*red.*green.*blue"):
        load_backbone(model, roma_file, bands=("vv@", "vh@"))
    assert_unchanged(model, before)


def test_bands_that_the_file_does_not_name_are_noted(tmp_path):
    torch.save(small(in_chans=2).state_dict(), tmp_path / "w.pth")
    report = load_backbone(small(in_chans=2), tmp_path / "w.pth", bands=("nir", "red"))
    assert report.notes == ("the file does not name its bands: taken to be nir, red",)


def test_a_sensor_stands_for_its_bands(roma_file):
    model = timm.create_model("roma_tiny_patch16", in_chans=13, **ROMA)
    report = load_backbone(model, roma_file, bands="sentinel-2")
    assert len(report.bands) == 13 and report.bands[1:4] == ("blue", "green", "red")
    source, got = shallow("roma_cls_tiny")["patch_embed.proj.weight"], model.patch_embed.proj.weight
    cosine = torch.cosine_similarity(got[:, 3].flatten(1), source[:, 0].flatten(1))
    assert (cosine > 0.999).all()


def test_the_weights_bands_can_be_stated_for_a_file_that_does_not_say(tmp_path):
    source, target = small(in_chans=2), small(in_chans=3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load = partial(load_backbone, target, tmp_path / "w.pth", bands=("red", "green", "nir"))
    report = load(source_bands=("nir", "red"))
    assert report.notes == () and report.bands == ("red", "green", "nir")
    ratio = target.patch_embed.proj.weight[:, 2] / source.patch_embed.proj.weight[:, 0]
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-3)
    before = state(target)
    with pytest.raises(BandMismatchError, match=r"source_bands= names 3 .*weights are for 2: name"):
        load(source_bands=("nir", "red", "green"))
    with pytest.raises(BandMismatchError, match="source_bands= names 13 bands"):
        load(source_bands="sentinel-2")
    assert_unchanged(target, before)
    same = small(in_chans=2)
    assert load_backbone(same, tmp_path / "w.pth", source_bands=("nir", "red")).bands == (
        "nir", "red"
    )  # fmt: skip
    assert torch.equal(same.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_the_specs_bands_are_the_sources(tmp_path):
    source = small(in_chans=2)
    bands = {"bands": ("nir", "red"), "mean": (0.0, 0.0), "std": (1.0, 1.0)}
    save_safetensors(source, spec(**bands), tmp_path / "w.safetensors")
    target = small(in_chans=2)
    load_backbone(target, tmp_path / "w.safetensors", bands=("red", "nir"))
    expected = source.patch_embed.proj.weight.flip(1)
    assert torch.equal(target.patch_embed.proj.weight, expected)
    load_backbone(target, tmp_path / "w.safetensors", bands=("nir", "red"))
    assert torch.equal(target.patch_embed.proj.weight, source.patch_embed.proj.weight)


# --- notes -------------------------------------------------------------------------------------


def test_another_padding_of_the_state_fusion_is_noted_not_changed(tmp_path):
    path = save(tmp_path / "w.pth", {"model": shallow("spatialmamba_tiny", 1)})
    model = timm.create_model("spatial_mamba_tiny", **SPATIAL)
    report = load_backbone(model, path)
    assert "fusion_padding='zeros', this one with 'replicate'" in str(report)
    assert model.stages[0].blocks[0].mixer.fusion.padding == "replicate"
    same = timm.create_model("spatial_mamba_tiny", fusion_padding="zeros", **SPATIAL)
    assert load_backbone(same, path).notes == ()
    save_safetensors(
        model, spec(task_kwargs={"fusion_padding": "replicate"}), tmp_path / "own.safetensors"
    )
    assert load_backbone(model, tmp_path / "own.safetensors").notes == ()
    assert "'replicate', this one" in str(load_backbone(same, tmp_path / "own.safetensors"))


def pyramid(**options):
    return timm.create_model(
        "roma_tiny_patch16_pyramid",
        **{"embed_dim": 16, "depth": 1, "img_size": 64, "num_classes": 0, **options},
    )


def test_a_neck_that_starts_at_random_is_noted(tmp_path):
    torch.save(small(img_size=64).state_dict(), tmp_path / "plain.pth")
    report = load_backbone(pyramid(), tmp_path / "plain.pth")
    assert report.coverage == 1.0
    assert report.notes == ("neck: 0 of 8 tensors, the others start at random",)
    torch.save(pyramid().state_dict(), tmp_path / "whole.pth")
    assert load_backbone(pyramid(), tmp_path / "whole.pth").notes == ()
    assert load_backbone(small(img_size=64), tmp_path / "whole.pth").notes == ()


def test_a_neck_of_the_other_kind_is_noted(tmp_path):
    for norm in (True, False):
        torch.save(pyramid(neck_norm=norm).state_dict(), tmp_path / "w.pth")
        note = f"create it with neck_norm={norm}"
        assert note not in str(load_backbone(pyramid(neck_norm=norm), tmp_path / "w.pth"))
        report = load_backbone(pyramid(neck_norm=not norm), tmp_path / "w.pth")
        assert note in report.notes[-1] and report.coverage == 1.0
        assert ("neck: 6 of 8 tensors" in report.notes[0]) is not norm


def test_a_head_that_is_not_loaded_is_noted(roma_file, tmp_path):
    model = timm.create_model("roma_tiny_patch16", **ROMA | {"num_classes": 10})
    report = load_backbone(model, roma_file)
    assert report.notes == ("head not loaded: [1000, 384], not [10, 384]; it starts at random",)
    torch.save(small().state_dict(), tmp_path / "w.pth")
    assert load_backbone(small(num_classes=3), tmp_path / "w.pth").notes == (
        "head starts at random",
    )
    assert load_backbone(small(), tmp_path / "w.pth").notes == ()


def test_a_spec_that_cannot_be_read_is_noted(tmp_path):
    model = small()
    torch.save({"state_dict": model.state_dict(), "rsmamba_spec": "{"}, tmp_path / "w.ckpt")
    report = load_backbone(model, tmp_path / "w.ckpt")
    assert "ModelSpec is not used: the model spec is not JSON" in str(report)


# --- architecture ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "call"),
    [
        ("roma_cls_tiny", "roma", "'roma_small_patch16', num_classes=1000, img_size=224"),
        ("roma_cls_small", "roma", "'roma_tiny_patch16', embed_dim=512, num_classes=1000"),
        ("roma_cls_base", "roma", "'roma_base_patch16', num_classes=1000, img_size=224"),
        ("roma_cls_large", "roma", "'roma_large_patch16', num_classes=1000"),
        ("roma_seg_base", "roma", "'roma_base_patch16_pyramid', num_classes=1000"),
        ("roma_cd_base", "roma", "'roma_base_patch16_pyramid', .*neck_norm=False"),
        ("roma_pretrain_base", "roma-pretrain", "RoMAForPretraining.'roma_base_patch16', img"),
        ("spatialmamba_tiny", "spatial-mamba", "'spatial_mamba_tiny', fusion_padding='zeros', n"),
        ("spatialmamba_small", "spatial-mamba", "'spatial_mamba_small', fusion_padding='zeros'"),
        ("spatialmamba_base", "spatial-mamba", "'spatial_mamba_base', .*num_classes=1000"),
        ("spatialmamba_tiny:backbone", "spatial-mamba", "num_classes=0, level_norms=True"),
    ],
)
def test_every_published_architecture_is_found_from_its_shapes(name, source, call):
    tensors = {key: torch.empty(shape, device="meta") for key, shape, _ in entries(name)}
    ours = convert(tensors, source=source)
    found = infer(ours, source)
    found.build().load_state_dict(ours, strict=True, assign=True)
    assert re.search(call, str(found))


def test_what_makes_no_model_is_refused_by_tensor():
    whole = convert(shallow("roma_cls_tiny"), source="roma")
    for lost, message in (("pos_embed", "pos_embed is missing"), ("norm.bias", "norm.bias is mis")):
        with pytest.raises(CheckpointError, match=message):
            infer({k: v for k, v in whole.items() if k != lost}, "roma")
    with pytest.raises(CheckpointError, match=r"norm\.bias is"):
        infer(whole | {"norm.bias": torch.zeros(3)}, "roma")
    with pytest.raises(CheckpointError, match="195 patches, which make no square"):
        infer(whole | {"pos_embed": torch.zeros(1, 196, 384)}, "roma")


def test_a_pretraining_model_is_described_whole():
    model = RoMAForPretraining(
        depth=2, embed_dim=32, img_size=128, decoder_dim=64, decoder_heads=1, decoder_depth=3
    )  # fmt: skip
    found = infer(model.state_dict(), "roma-pretrain")
    assert found.kwargs == {
        "embed_dim": 32, "depth": 2, "img_size": 128,
        "decoder_dim": 64, "decoder_depth": 3, "decoder_heads": 1,
    }  # fmt: skip
    partial = {k: v for k, v in model.state_dict().items() if k != "query_token"}
    with pytest.raises(CheckpointError, match="not a whole roma-pretrain model: query_token"):
        infer(partial, "roma-pretrain")


# --- hub ---------------------------------------------------------------------------------------


def test_a_pinned_id_is_fetched_with_that_revision(roma_file, monkeypatch):
    calls = []

    def fetch(repo, file, *, revision):
        calls.append((repo, file, revision))
        return str(roma_file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    model = timm.create_model("roma_tiny_patch16", **ROMA)
    assert load_backbone(model, f"hf-hub:owner/name@{COMMIT}:sub/roma.pth").coverage == 1.0
    assert locate(f"hf-hub:owner/name@{COMMIT}") == roma_file
    assert calls == [
        ("owner/name", "sub/roma.pth", COMMIT), ("owner/name", "model.safetensors", COMMIT)
    ]  # fmt: skip


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", f"@{COMMIT[:7]}", f"@{COMMIT.upper()}"])
def test_what_can_move_is_refused(revision, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(CheckpointError, match=r"pin the revision.*hash of a commit"):
        locate(f"hf-hub:owner/name{revision}:w.pth")


@pytest.mark.parametrize("text", ["hf-hub:name", f"hf-hub:a/b/c@{COMMIT}", "hf-hub:"])
def test_malformed_ids_are_refused(text):
    with pytest.raises(ConfigError, match="OWNER/NAME@REVISION"):
        locate(text)
    with pytest.raises(ConfigError, match="no file of a repository"):
        locate(f"hf-hub:a/b@{COMMIT}:../w.pth")


def test_offline_the_error_says_where_the_file_goes_and_there_it_is_found(
    roma_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = timm.create_model("roma_tiny_patch16", **ROMA)
    before = state(model)
    with pytest.raises(CheckpointError, match=r"cannot fetch w\.pth of a/b at 0123") as caught:
        load_backbone(model, f"hf-hub:a/b@{COMMIT}:w.pth")
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)
    place = tmp_path / "cache" / "models--a--b" / "snapshots" / COMMIT / "w.pth"
    assert f"put that file at {place}," in str(caught.value)
    place.parent.mkdir(parents=True)
    roma_file.rename(place)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    from huggingface_hub import hf_hub_download

    assert hf_hub_download("a/b", "w.pth", revision=COMMIT, cache_dir=tmp_path / "cache") == str(
        place
    )
    assert load_backbone(model, place).coverage == 1.0

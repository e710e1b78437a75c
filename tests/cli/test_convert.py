"""`rsmamba convert`: published files to safetensors with a ModelSpec."""

import argparse
import hashlib
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from rsmamba.cli import main
from rsmamba.models import RoMAForPretraining
from rsmamba.models.checkpoints import convert, load_backbone, read_spec
from rsmamba.spec import ModelSpec
from tests.golden import fill_state_dict
from tests.models.published_files import entries, save, shallow


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1, err
    assert err.startswith("rsmamba: error: ")
    return err


@pytest.fixture
def published(tmp_path):
    return save(tmp_path / "in.pth", {"model": shallow("spatialmamba_tiny", 1)})


def test_a_whole_spatial_mamba_becomes_a_file_that_its_spec_can_load(tmp_path, capsys):
    weights = fill_state_dict(entries("spatialmamba_tiny"))
    source, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    save(source, {"model": weights, "model_ema": weights})
    assert main.run(["convert", str(source), str(out), "--licence", "MIT"]) == 0
    text = capsys.readouterr().out
    assert "553 tensors, 26,748,862 parameters" in text and "licence: MIT" in text
    assert "(spatial-mamba, key 'model' (it also has model_ema: --key)" in text
    spec = read_spec(out)
    assert spec == ModelSpec(
        task="backbone", task_class="timm.create_model", architecture="spatial_mamba_tiny",
        task_kwargs={"fusion_padding": "zeros", "num_classes": 1000},
        bands=("red", "green", "blue"),
        mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375),
        licence="MIT", source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
    )  # fmt: skip
    model = timm.create_model(spec.architecture, **spec.task_kwargs)
    model.load_state_dict(load_file(out), strict=True)
    expected = convert(weights, source="spatial-mamba")
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert model.stages[0].blocks[0].mixer.fusion.padding == "zeros"
    report = load_backbone(timm.create_model("spatial_mamba_tiny", num_classes=0), out)
    assert report.coverage == 1.0 and "fusion_padding='zeros'" in str(report)


def test_a_whole_roma_loads_into_the_model_as_published(tmp_path, capsys):
    weights = fill_state_dict(entries("roma_cls_tiny"))
    source, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save({"model": weights, "args": argparse.Namespace(lr=1e-3)}, source)
    assert main.run(["convert", str(source), str(out)]) == 0
    text = capsys.readouterr().out
    assert "22,167,400 parameters" in text and "not stated; --licence" in text
    model = timm.create_model("roma_tiny_patch16", embed_dim=384, num_classes=1000, img_size=224)
    model.load_state_dict(load_file(out), strict=True)
    spec = read_spec(out)
    assert spec.image_size == (224, 224) and spec.licence is None
    timm.create_model(spec.architecture, **spec.task_kwargs).load_state_dict(load_file(out))


def test_a_pretraining_file_becomes_the_whole_pretraining_model(tmp_path, capsys):
    weights = fill_state_dict(entries("roma_pretrain_tiny"))
    source, out = save(tmp_path / "in.pth", {"model": weights}), tmp_path / "out.safetensors"
    assert main.run(["convert", str(source), str(out)]) == 0
    assert "left out, computed by the model: dec_pos_embed, mask" in capsys.readouterr().out
    spec = read_spec(out)
    assert spec.task == "pretraining"
    assert spec.task_class == "rsmamba.models.RoMAForPretraining"
    model = RoMAForPretraining(spec.architecture, **spec.task_kwargs)
    model.load_state_dict(load_file(out), strict=True)
    backbone = timm.create_model("roma_tiny_patch16", num_classes=0)
    report = load_backbone(backbone, out)
    assert set(report.missing) == {"cls_token", "norm.weight", "norm.bias"}


def test_a_segmentors_backbone_is_taken_and_the_rest_is_listed(tmp_path, capsys):
    weights = {f"backbone.{k}": v for k, v in shallow("roma_cd_tiny").items()}
    weights |= {"decode_head.conv_seg.weight": torch.zeros(2), "decode_head.x": torch.zeros(1)}
    source, out = save(tmp_path / "in.pth", {"state_dict": weights}), tmp_path / "o.safetensors"
    assert main.run(["convert", str(source), str(out), "--source", "roma"]) == 0
    text = capsys.readouterr().out
    assert "left out, not the backbone's: decode_head.conv_seg.weight, decode_head.x" in text
    assert read_spec(out).task_kwargs["neck_norm"] is False


def test_the_key_chooses(tmp_path, capsys):
    ema = {k: v + 1 for k, v in shallow("spatialmamba_tiny", 1).items()}
    source = save(tmp_path / "in.pth", {"model": shallow("spatialmamba_tiny", 1), "model_ema": ema})
    out = tmp_path / "out.safetensors"
    assert main.run(["convert", str(source), str(out), "--key", "model_ema"]) == 0
    assert torch.equal(load_file(out)["norm.bias"], ema["norm.bias"])
    assert main.run(["convert", str(source), str(out), "--key", "state_dict", "--overwrite"]) == 2
    assert "no weights under 'state_dict': it has model, model_ema" in capsys.readouterr().err


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_mistakes_are_one_line_and_leave_nothing(published, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    bomb, own, partial = (tmp_path / f"{n}.pth" for n in ("bomb", "own", "partial"))
    evil = str(tmp_path / "evil")
    torch.save({"model": {}, "a": argparse.Namespace(x=Bomb(evil))}, bomb)
    torch.save({"stem.conv1.conv.weight": torch.zeros(1)}, own)
    weights = shallow("spatialmamba_tiny", 1)
    del weights["norm.bias"]
    torch.save(weights, partial)
    out = str(folder / "w.safetensors")
    for arguments, message in {
        (str(tmp_path / "none.pth"), out): "no checkpoint at",
        (str(bomb), out): "mkdir) and nothing was loaded",
        (str(own), out): "names of no published model",
        (str(partial), out): "norm.bias is missing",
        (str(published), out, "--source", "roma"): "not a roma checkpoint",
        (str(published), out, "--source", "vim"): "--source",
        (str(published), str(folder / "w.pth")): "must end in .safetensors",
        (str(published), str(tmp_path / "no" / "w.safetensors")): "create its folder",
        ("hf-hub:a/b:w.pth", out): "pin the revision",
    }.items():
        assert main.run(["convert", *arguments]) == 2, arguments
        assert message in one_line(capsys)
    assert not Path(evil).exists() and not any(folder.iterdir())


def test_nothing_is_replaced_unless_told(published, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    assert main.run(["convert", str(published), str(out)]) == 2
    assert "--overwrite" in one_line(capsys) and out.read_text() == "mine"
    assert main.run(["convert", str(published), str(out), "--overwrite"]) == 0
    assert read_spec(out).architecture == "spatial_mamba_tiny"


def test_other_bands_cannot_be_described(tmp_path, capsys):
    weights = shallow("spatialmamba_tiny", 1)
    weights["patch_embed.conv1.conv.weight"] = torch.zeros(32, 4, 3, 3)
    source = save(tmp_path / "in.pth", {"model": weights})
    assert main.run(["convert", str(source), str(tmp_path / "out.safetensors")]) == 2
    assert "takes 4 bands" in one_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]

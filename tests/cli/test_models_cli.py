import pytest

from rsmamba.cli import main
from rsmamba.cli.models import our_models, select


def lines(capsys, *arguments):
    assert main.run(["models", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_every_backbone_has_a_line_and_nothing_else(capsys):
    head, *rows = lines(capsys, "--size", "64")
    assert head.split() == [
        "model", "parameters", "multiply-adds", "at", "64", "x", "64", "strides", "widths"
    ]  # fmt: skip
    names = [row.split()[0] for row in rows]
    assert sorted(names) == sorted(our_models())
    assert len(names) == 11
    assert names[:4] == [f"roma_{size}_patch16" for size in ("tiny", "small", "base", "large")]
    assert names[-3:] == [f"spatial_mamba_{size}" for size in ("tiny", "small", "base")]


def test_the_figures_of_a_model(capsys):
    _, row = lines(capsys, "spatial_mamba_t*")
    assert row.split() == (
        "spatial_mamba_tiny 26,748,862 4.45 G 4 8 16 32 64 128 256 512".split()
    )  # fmt: skip
    _, larger = lines(capsys, "spatial_mamba_tiny", "--size", "448")
    assert larger.split()[2] == "17.81"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("roma_tiny", ["roma_tiny_patch16", "roma_tiny_patch16_pyramid"]),
        ("roma_tiny_patch1?", ["roma_tiny_patch16"]),
        ("Spatial_Mamba_T", ["spatial_mamba_tiny"]),
        ("*_base", ["spatial_mamba_base"]),
    ],
)
def test_patterns(pattern, names):
    assert select(pattern) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spatial_manba_tiny"], "did you mean spatial_mamba_tiny?"),
        (["vit_base_patch16_224"], "no model is called 'vit_base_patch16_224'"),
        (["spatial", "--size", "0"], "give a positive number of pixels"),
        (["spatial", "--size", "big"], "--size"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main.run(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and message in error

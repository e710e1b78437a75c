"""Every recipe that ships trains one step, on fake data and with a small model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from rsmamba.cli import main
from rsmamba.cli.recipes import shipped_recipes
from tests.data.aid import data as aid
from tests.data.eurosat import data as eurosat
from tests.data.image_folder import data as image_folder
from tests.data.instances import data as instances
from tests.data.levircd import data as levircd
from tests.data.millionaid import data as millionaid
from tests.data.oscd import data as oscd
from tests.data.resisc45 import data as resisc45
from tests.data.scenes import data as scenes
from tests.data.semantic_folder import data as semantic_folder
from tests.data.spacenet import data as spacenet
from tests.data.ucmerced import data as ucmerced
from tests.data.vhr10 import data as vhr10

TINY_PYRAMID = {
    "model.backbone": "roma_tiny_patch16_pyramid",
    "model.backbone_kwargs": {"img_size": 32, "embed_dim": 32},
    "model.norm": "groupnorm",
}


@dataclass(frozen=True)
class Case:
    """Fake data, and what makes the recipe small."""

    make: Callable[[Path], object] | None
    options: dict[str, object]
    fast: bool = False


def pairs(**options):
    return {"data.patch_size": 32, "data.length": 4, **TINY_PYRAMID, **options}


def classify(num_classes, **options):
    small = {"model.model": "roma_tiny_patch16", "model.model_kwargs": {"img_size": 32, "depth": 2}}
    return {"model.num_classes": num_classes, "data.image_size": 32, **small, **options}


SMALL_ROMA = {
    "model.architecture": "roma_tiny_patch16",
    "model.img_size": 64,
    "model.cluster_size": 2,
    "model.decoder_dim": 32,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "model.rotation_windows": [32],
    "data.size": 64,
    "data.val_fraction": 0.3,
}

CASES = {
    "pretrain/millionaid": Case(millionaid.make, SMALL_ROMA),
    "pretrain/scenes": Case(scenes.make, SMALL_ROMA, fast=True),
    "classify/aid_finetune": Case(aid.make, classify(30)),
    "classify/aid_probe": Case(
        aid.make, classify(30, **{"model.model_kwargs": {"img_size": 32, "depth": 4}})
    ),
    "classify/eurosat_finetune": Case(eurosat.make, classify(10)),
    "classify/imagenet_finetune": Case(
        image_folder.make,
        classify(
            3,
            **{
                "model.model": "spatial_mamba_tiny",
                "model.model_kwargs": {"depths": [1, 1, 1, 1], "embed_dim": 16},
            },
        ),
        fast=True,
    ),
    "classify/resisc45_finetune": Case(resisc45.make, classify(45, **{"data.train_ratio": 0.5})),
    "classify/ucmerced_finetune": Case(ucmerced.make, classify(21)),
    "change/levircd": Case(levircd.make, pairs()),
    "change/oscd": Case(oscd.make, pairs(), fast=True),
    "change/oscd_13bands": Case(oscd.make, pairs()),
    "classify/ucmerced_probe_demo": Case(None, {"data.root": "sample:ucmerced"}),
    "detect/coco": Case(
        instances.make,
        {"data.size": 64, "model.num_classes": 4, "model.backbone": "resnet18"},
        fast=True,
    ),
    "detect/vhr10": Case(vhr10.make, {"data.size": 64}),
    "pretrain/roma_tiny_demo": Case(None, {"data.root": "sample:aerial_unlabelled"}),
    "segment/ade20k": Case(
        semantic_folder.make,
        {
            "data.crop_size": 32,
            "data.eval_size": 32,
            "data.short_side": None,
            "data.classes": 4,
            "model.num_classes": 4,
            "model.backbone": "roma_tiny_patch16_pyramid",
            "model.decoder_kwargs.decoder_channels": 32,
        },
    ),
    "segment/buildings_demo": Case(
        None, {"data.images": "sample:buildings/chips", "data.patch_size": 64}
    ),
    "segment/own_scenes": Case(
        scenes.make,
        {
            "data.classes": ["house", "shed"],
            "model.labels": ["background", "house", "shed"],
            "data.patch_size": 32,
            "model.backbone": "roma_tiny_patch16_pyramid",
        },
        fast=True,
    ),
    "segment/spacenet1": Case(
        spacenet.make,
        {
            "data.patch_size": 32,
            "data.block_size": 60,
            "model.backbone": "roma_tiny_patch16_pyramid",
            "model.norm": "groupnorm",
        },
    ),
}


def test_every_recipe_is_tried():
    assert set(CASES) == set(shipped_recipes())


def arguments(name, root, runs):
    """The recipe with its options overridden, as a command line."""
    case = CASES[name]
    options = {"data.num_workers": 0, "data.batch_size": 2, **case.options}
    if case.make is not None:
        case.make(root)
        if name == "segment/own_scenes":
            options |= {"data.images": root / "images", "data.labels": root / "labels.gpkg"}
        else:
            options["data.root"] = root
    found = [
        f"--{key.replace('.', '.init_args.', 1)}={yaml.safe_dump(value, default_flow_style=True)}"
        if isinstance(value, list | dict) or value is None
        else f"--{key.replace('.', '.init_args.', 1)}={value}"
        for key, value in options.items()
    ]
    return [
        "fit",
        f"--config=recipe:{name}",
        *found,
        "--trainer.fast_dev_run=true",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={runs}",
    ]


@pytest.mark.parametrize(
    "name",
    [n if CASES[n].fast else pytest.param(n, marks=pytest.mark.slow) for n in sorted(CASES)],
)
def test_a_recipe_trains_one_step(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    root.mkdir()
    assert main.run(arguments(name, root, tmp_path)) == 0

"""What every data module promises, on fake data: typed options, stages, workers, spec, plots."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

import rsmamba.data as data
from rsmamba.data.datamodule import DataModule
from tests.data.aid import data as fake_aid
from tests.data.eurosat import data as fake_eurosat
from tests.data.image_folder import data as fake_image_folder
from tests.data.instances import data as fake_instances
from tests.data.levircd import data as fake_levircd
from tests.data.millionaid import data as fake_millionaid
from tests.data.oscd import data as fake_oscd
from tests.data.resisc45 import data as fake_resisc45
from tests.data.scenes import data as fake_scenes
from tests.data.semantic_folder import data as fake_semantic_folder
from tests.data.spacenet import data as fake_spacenet
from tests.data.ucmerced import data as fake_ucmerced
from tests.data.vhr10 import data as fake_vhr10


@dataclass(frozen=True)
class Case:
    """How to make a small data module, and what its samples hold."""

    make: Callable[[Path], Any]
    arguments: Callable[[Path], dict[str, Any]]
    target: str | None
    stages: tuple[str, ...] = ("fit", "validate", "test", "predict")
    options: dict[str, Any] = field(default_factory=dict)


def root(path):
    return {"root": path}


CASES = {
    "AIDDataModule": Case(fake_aid.make, root, "label", options={"image_size": 24}),
    "EuroSATDataModule": Case(fake_eurosat.make, root, "label"),
    "ImageFolderDataModule": Case(
        fake_image_folder.make, root, "label", options={"image_size": 24}
    ),
    "RESISC45DataModule": Case(fake_resisc45.make, root, "label", options={"image_size": 24}),
    "COCOInstancesDataModule": Case(fake_instances.make, root, "bbox_xyxy", options={"size": 64}),
    "LEVIRCDDataModule": Case(fake_levircd.make, root, "mask", options={"patch_size": 32}),
    "MillionAIDDataModule": Case(
        fake_millionaid.make,
        root,
        None,
        stages=("fit", "validate", "predict"),
        options={"size": 32, "val_fraction": 0.3},
    ),
    "OSCDDataModule": Case(fake_oscd.make, root, "mask", options={"patch_size": 32}),
    "SemanticFolderDataModule": Case(
        fake_semantic_folder.make,
        root,
        "mask",
        options={
            "classes": 4,
            "reduce_zero_label": True,
            "crop_size": 32,
            "short_side": None,
            "eval_size": 32,
        },
    ),
    "SpaceNet1DataModule": Case(
        fake_spacenet.make, root, "mask", options={"block_size": 60.0, "patch_size": 32}
    ),
    "VHR10DataModule": Case(fake_vhr10.make, root, "bbox_xyxy", options={"size": 64}),
    "LabelledScenesDataModule": Case(
        fake_scenes.make,
        lambda path: {"images": path / "images", "labels": path / "labels.gpkg"},
        "mask",
        options={
            "patch_size": 32,
            "block_size": 64,
            "test_area": [500_001, 39_900, 500_063, 39_999],
            "area_crs": fake_scenes.CRS,
        },
    ),
    "ScenePatchesDataModule": Case(
        fake_scenes.make,
        lambda path: {"root": path / "images"},
        None,
        options={"size": 32, "val_fraction": 0.3},
    ),
    "UCMercedDataModule": Case(fake_ucmerced.make, root, "label", options={"image_size": 24}),
}
#: What Lightning passes: members of an enumeration, which print otherwise than their values.
STAGES = {
    "fit": TrainerFn.FITTING,
    "validate": TrainerFn.VALIDATING,
    "test": TrainerFn.TESTING,
    "predict": TrainerFn.PREDICTING,
}
MODULES = sorted(
    n for n in data.__all__ if n.endswith("DataModule") and n != "ClassificationDataModule"
)


def module(name, tmp_path, **options) -> DataModule:
    case = CASES[name]
    folder = tmp_path / "data"
    if not folder.exists():
        folder.mkdir()
        case.make(folder)
    return getattr(data, name)(
        **{**case.arguments(folder), "batch_size": 2, **case.options, **options}
    )


def loaders(m: DataModule):
    return {
        "fit": m.train_dataloader,
        "validate": m.val_dataloader,
        "test": m.test_dataloader,
        "predict": m.predict_dataloader,
    }


def test_every_data_module_is_tested():
    assert set(CASES) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_options_are_typed_and_documented(name):
    cls = getattr(data, name)
    hints = get_type_hints(cls.__init__)
    for option in list(inspect.signature(cls.__init__).parameters)[1:]:
        assert option in hints, option
        assert f"        {option}:" in cls.__doc__, option
    assert {"batch_size", "num_workers", "mean", "std", "spec"} <= hints.keys()


@pytest.mark.parametrize("name", MODULES)
def test_every_stage_loads_samples_of_the_convention(name, tmp_path):
    case, m = CASES[name], module(name, tmp_path)
    for stage in case.stages:
        m.setup(STAGES[stage])
        batch = next(iter(loaders(m)[stage]()))
        image = batch["image"]
        assert image.dtype == torch.float32 and image.ndim == 4 + (m.dates > 1), stage
        assert image.shape[-3] == len(m.bands) == len(m.mean) == len(m.std), stage
        assert torch.isfinite(image).all()
        if case.target == "bbox_xyxy":
            assert all(
                len(b) == len(n) for b, n in zip(batch["bbox_xyxy"], batch["label"], strict=True)
            )
        elif case.target:
            target = batch[case.target]
            assert target.dtype == torch.int64
            known = target[target != 255]
            assert 0 <= known.min() and known.max() < len(m.classes)
        turned = m.aug(batch)
        assert turned["image"].shape == image.shape
    assert m.bands and all(s > 0 for s in m.std)


@pytest.mark.parametrize("name", MODULES)
def test_workers_do_not_change_what_is_loaded(name, tmp_path):
    alone, four = module(name, tmp_path), module(name, tmp_path, num_workers=4)
    for m in (alone, four):
        m.setup("fit")
    for epoch in range(2):
        pair = zip(alone.train_dataloader(), four.train_dataloader(), strict=True)
        for one, other in pair:
            assert torch.equal(one["image"], other["image"]), epoch
            break


@pytest.mark.parametrize("name", MODULES)
def test_a_batch_is_plotted_with_predictions(name, tmp_path):
    case, m = CASES[name], module(name, tmp_path)
    m.setup("fit")
    batch = next(iter(m.train_dataloader()))
    if case.target in ("label", "mask"):
        batch["prediction"] = batch[case.target].clone()
    figure = m.plot(batch, suptitle="batch")
    assert isinstance(figure, Figure) and len(figure.axes) >= 2
    assert all(axes.images for axes in figure.axes if axes.get_title())


@pytest.mark.parametrize("name", MODULES)
def test_a_spec_replaces_mean_and_deviation(name, tmp_path):
    m = module(name, tmp_path)
    m.setup("fit")
    bands = [{"name": b, "mean": 10.0 + i, "std": 2.0 + i} for i, b in enumerate(m.bands)]
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"rsmamba_stats": 1, "bands": bands}))
    other = module(name, tmp_path, spec=path)
    other.setup("fit")
    assert other.mean.tolist() == [b["mean"] for b in bands]
    assert other.std.tolist() == [b["std"] for b in bands]
    batch = {"image": torch.zeros(2, *([2] if m.dates > 1 else []), len(m.bands), 4, 4)}
    out = other.aug(batch)["image"].movedim(-3, 0).flatten(1)[:, 0]
    torch.testing.assert_close(out, -other.mean / other.std)


@pytest.mark.parametrize("name", MODULES)
def test_the_manifest_names_every_file_of_disjoint_splits(name, tmp_path):
    content = json.loads(module(name, tmp_path).write_manifest(tmp_path / "m.json").read_text())
    assert content["settings"]
    files = {
        split: {json.dumps([e["file"], e.get("window")]) for e in entries}
        for split, entries in content["splits"].items()
        if split in ("train", "val", "test")
    }
    assert files["train"]
    for a in files:
        for b in files:
            assert a == b or not files[a] & files[b], (a, b)


@pytest.mark.parametrize("name", MODULES)
def test_names_of_bands_mean_something(name, tmp_path):
    from rsmamba.sensors import bands_of

    m = module(name, tmp_path)
    m.setup("fit")
    assert len(bands_of(m.bands)) == len(m.bands)

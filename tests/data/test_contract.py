"""What every data module promises, on fake data: typed options, stages, workers, spec, plots."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import rsmamba.data as data
from rsmamba.data.datamodule import DataModule
from rsmamba.data.images import IGNORE
from rsmamba.gis.style import palette
from rsmamba.sensors import bands_of
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
    #: Pattern of the files below the root that must all be in the manifest.
    files: str = "**/*.jpg"


def root(path):
    return {"root": path}


CASES = {
    "AIDDataModule": Case(fake_aid.make, root, "label", options={"image_size": 24}),
    "EuroSATDataModule": Case(fake_eurosat.make, root, "label", files="**/*.tif"),
    "ImageFolderDataModule": Case(
        fake_image_folder.make, root, "label", options={"image_size": 24}, files="**/*.JPEG"
    ),
    "RESISC45DataModule": Case(fake_resisc45.make, root, "label", options={"image_size": 24}),
    "COCOInstancesDataModule": Case(fake_instances.make, root, "bbox_xyxy", options={"size": 64}),
    "LEVIRCDDataModule": Case(
        fake_levircd.make, root, "mask", options={"patch_size": 32}, files="**/*.png"
    ),
    "MillionAIDDataModule": Case(
        fake_millionaid.make,
        root,
        None,
        stages=("fit", "validate", "predict"),
        options={"size": 32, "val_fraction": 0.3},
    ),
    "OSCDDataModule": Case(
        fake_oscd.make, root, "mask", options={"patch_size": 32}, files="*/*/imgs_*/*.tif"
    ),
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
        fake_spacenet.make,
        root,
        "mask",
        options={"block_size": 60.0, "patch_size": 32},
        files="**/*3band*.tif",
    ),
    "VHR10DataModule": Case(
        fake_vhr10.make, root, "bbox_xyxy", options={"size": 64}, files="*/positive*/*.jpg"
    ),
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
        files="**/*.*",
    ),
    "ScenePatchesDataModule": Case(
        fake_scenes.make,
        lambda path: {"root": path / "images"},
        None,
        options={"size": 32, "val_fraction": 0.3},
        files="images/*.tif",
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
    loaders_of = (alone.train_dataloader(), four.train_dataloader())
    seen = []
    for epoch in range(2):
        for i, (one, other) in enumerate(zip(*loaders_of, strict=True)):
            assert one.keys() == other.keys()
            for key in one:
                assert_same(one[key], other[key], f"{key} of batch {i} in epoch {epoch}")
            seen.append(one["image"])
    # Another epoch has other batches: the comparison is not of one batch again and again.
    half = len(seen) // 2
    assert half >= 2
    assert any(not torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def assert_same(one, other, what):
    """Tensors, lists of them, and whatever else a batch holds."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), what
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), what
        for a, b in zip(one, other, strict=True):
            assert_same(a, b, what)
    else:
        assert one == other, what


@pytest.mark.parametrize("name", MODULES)
def test_a_batch_is_plotted_with_predictions(name, tmp_path):
    case, m = CASES[name], module(name, tmp_path)
    m.setup("fit")
    batch = next(iter(m.train_dataloader()))
    predictions = other_than(case, batch, len(m.classes))
    figure = m.plot(batch, predictions=predictions, suptitle="batch")
    assert isinstance(figure, Figure) and len(figure.axes) >= 2
    assert figure.get_suptitle() == "batch"
    assert all(axes.images for axes in figure.axes if axes.get_title())
    shown = [axes for axes in figure.axes if "prediction" in axes.get_title()]
    assert len(shown) == (0 if predictions is None else len(batch["image"]))
    for i, axes in enumerate(shown):
        if case.target == "label":
            truth, guess = (m.classes[int(t[i])] for t in (batch["label"], predictions))
            assert axes.get_title() == f"label: {truth}\nprediction: {guess}"
        elif case.target == "mask":
            colours = torch.tensor([to_rgb(c) for c in m.colours or palette(len(m.classes))])
            expected = colours[predictions[i].squeeze()]
            torch.testing.assert_close(torch.as_tensor(axes.images[0].get_array()), expected)
        else:
            (guess,) = predictions[i]["labels"].tolist()
            assert [text.get_text() for text in axes.texts] == [f"{m.classes[guess]} 0.75"]
            (box,) = axes.patches
            assert (*box.get_xy(), box.get_width(), box.get_height()) == (3.0, 5.0, 20.0, 30.0)


def other_than(case, batch, count):
    """Predictions that are all wrong; None where there is nothing to predict."""
    if case.target is None:
        return None
    if case.target == "bbox_xyxy":
        return [
            {
                "boxes": torch.tensor([[3.0, 5.0, 23.0, 35.0]]),
                "labels": torch.tensor([count - 1 - i]),
                "scores": torch.tensor([0.75]),
            }
            for i in range(len(batch["image"]))
        ]
    truth = batch[case.target]
    return torch.where(truth == IGNORE, 0, (truth + 1) % count)


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
    m = module(name, tmp_path)
    content = json.loads(m.write_manifest(tmp_path / "m.json").read_text())
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
    place = m.manifest().root
    listed = {}
    for entries in content["splits"].values():
        for entry in entries:
            listed[place / entry["file"]] = entry["sha256"]
    for path, digest in listed.items():
        assert sha256(path.read_bytes()).hexdigest() == digest, path
    there = {p for p in (tmp_path / "data").glob(CASES[name].files) if p.is_file()}
    assert there
    assert there <= set(listed)


@pytest.mark.parametrize("name", MODULES)
def test_names_of_bands_mean_something(name, tmp_path):
    m = module(name, tmp_path)
    m.setup("fit")
    bands = bands_of(m.bands)
    assert len({band.label for band in bands}) == len(m.bands)
    assert {"red", "green", "blue"} <= {band.label for band in bands}

"""OSCD: bands by name, splits by city, whole scenes scored, and the traps of the real files."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from PIL import Image
from torchgeo import datasets as stock
from torchgeo.datamodules.oscd import MEAN, STD

from rsmamba.data.images import IGNORE
from rsmamba.data.oscd import OSCD, OSCDDataModule, own_names
from rsmamba.errors import (
    ArchiveError,
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
)
from rsmamba.sensors import bands_of
from tests.data.oscd.data import FOLDER, TEST, TRAIN, make, write_band

REAL = Path(__file__).parents[2] / "../shared/data/oscd"
RGB = ["B04", "B03", "B02"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("oscd"))


@pytest.fixture
def copy(data, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "copy"))


def images(root, city, date=1):
    return root / FOLDER.format("Images") / city / f"imgs_{date}_rect"


def label(root, city, split="Train"):
    return root / FOLDER.format(f"{split} Labels") / city / "cm"


def test_samples_equal_torchgeos_where_the_files_are_as_they_should_be(data):
    for split in ("train", "test"):
        official = stock.OSCD(data, split, checksum=False)
        theirs = {
            entry["region"]: sample for entry, sample in zip(official.files, official, strict=True)
        }
        ours = OSCD(data, split)
        assert len(ours) == len(theirs)
        for pair, sample in zip(ours.pairs, ours, strict=True):
            assert sample.keys() == {"image", "mask"}
            for key in sample:
                assert sample[key].dtype == theirs[pair.name][key].dtype
                assert sample[key].equal(theirs[pair.name][key])


def test_cities_come_in_alphabetical_order(data):
    assert [f["region"] for f in OSCD(data).files] == sorted(TRAIN)
    assert [p.name for p in OSCD(data, "train", cities=["nantes", "beirut"]).pairs] == [
        "beirut",
        "nantes",
    ]
    assert OSCD(data).files[0]["dates"] == ("20160101", "20180101")


@pytest.mark.parametrize(
    "bands", [["B12", "B04", "B8A"], ["red"], ["B10", "sentinel-2:B01"], list(OSCD.all_bands)]
)
def test_bands_come_in_the_order_asked_for(data, bands):
    everything = OSCD(data, cities=["beirut"])[0]["image"]
    some = OSCD(data, bands=bands, cities=["beirut"])[0]["image"]
    positions = [OSCD.all_bands.index(name) for name in own_names(bands)]
    assert some.equal(everything[:, positions])


def test_the_data_module_names_its_bands_so_that_any_subset_is_understood():
    for bands in (["B04"], ["B11", "B10"], ["nir", "B12"], list(OSCD.all_bands)):
        module = OSCDDataModule(bands=bands)
        known = bands_of(module.bands)
        assert [band.name for band in known] == list(own_names(bands))
        assert module.mean.tolist() == pytest.approx([MEAN[band.name] for band in known])
        assert module.std.tolist() == pytest.approx([STD[band.name] for band in known])


@pytest.mark.parametrize(
    ("bands", "error", "said"),
    [
        (["B13"], BandMismatchError, "sentinel-2 has no band 'B13'"),
        (["landsat-8:B4"], BandMismatchError, "landsat-8:B4 is not one of Sentinel-2's"),
        (["red@660"], BandMismatchError, "red@660 is not one of Sentinel-2's"),
        ("B04", ConfigError, "give a list"),
        ([], ConfigError, "give a list"),
    ],
)
def test_bands_that_the_sensor_does_not_have_are_refused(bands, error, said):
    with pytest.raises(error, match=said):
        OSCDDataModule(bands=bands)


def test_a_missing_band_file_is_an_error_and_not_the_next_band(copy):
    (images(copy, "beirut", 2) / "B05.tif").unlink()
    with pytest.raises(DataNotFoundError, match=r"beirut/imgs_2_rect: no file of band B05"):
        OSCD(copy)
    assert OSCD(copy, bands=RGB)[0]["image"].shape[1] == 3


def test_bands_of_different_size_within_a_date_are_refused(copy):
    write_band(images(copy, "nantes") / "B01.tif", np.ones((4, 11)))
    with pytest.raises(GridMismatchError, match=r"B0.\.tif is .*resample the bands"):
        OSCD(copy)


def test_images_of_a_pair_of_unequal_size_are_cut_to_what_they_share(copy):
    folder = images(copy, "nantes", 2)
    for path in folder.glob("*.tif"):
        write_band(path, np.full((26, 69), 7))
    with pytest.warns(UserWarning, match=r"nantes: .*26 x 69.*cut at the bottom.*25 x 69"):
        data = OSCD(copy, cities=["nantes"])
    sample = data[0]
    assert sample["image"].shape == (2, 13, 25, 69)
    assert sample["mask"].shape == (1, 25, 69)
    assert (sample["image"][1] == 7).all()


def test_one_and_two_are_read_as_no_change_and_change(copy):
    for city in TRAIN:
        (label(copy, city) / "cm.png").unlink()
    clean = [sample["mask"] for sample in OSCD(copy)]
    assert all(0 < mask.float().mean() < 0.1 for mask in clean)
    # TorchGeo reads cm.png only; the same coding there makes every pixel a change
    Image.open(label(copy, "beirut") / "beirut-cm.tif").save(label(copy, "beirut") / "cm.png")
    assert stock.OSCD(copy, checksum=False)._load_target(label(copy, "beirut") / "cm.png").all()
    (label(copy, "beirut") / "beirut-cm.tif").unlink()
    assert OSCD(copy, cities=["beirut"])[0]["mask"].equal(clean[1])


def test_a_lossy_label_is_used_with_a_warning_only_where_there_is_no_clean_one(copy, recwarn):
    path = label(copy, "beirut") / "cm.png"
    grey = np.array(Image.open(path))
    grey[0, :5] = (3, 9, 100, 40, 250)
    grey = np.where(grey == 255, 251, grey)
    Image.fromarray(grey.astype(np.uint8)).save(path)
    clean = OSCD(copy, cities=["beirut"])[0]["mask"]
    assert not [w for w in recwarn if "grey" in str(w.message)]
    (label(copy, "beirut") / "beirut-cm.tif").unlink()
    with pytest.warns(UserWarning, match=r"beirut/cm/cm\.png: .* pixels are grey"):
        mask = OSCD(copy, cities=["beirut"])[0]["mask"]
    assert mask[0, 0, 4] == 1
    mask[0, 0, 4] = 0
    assert mask.equal(clean)


def test_missing_folders_and_labels_are_named(copy, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no OSCD in .*nowhere.*- Images.*download=True"):
        OSCD(tmp_path / "nowhere")
    for path in label(copy, "mumbai").iterdir():
        path.unlink()
    with pytest.raises(DataNotFoundError, match=r"mumbai: has no label; expected cm/cm\.png"):
        OSCD(copy)
    shutil.rmtree(images(copy, "aguasclaras").parent)
    with pytest.raises(DataNotFoundError, match=r"aguasclaras: no images of this city"):
        OSCD(copy)
    shutil.rmtree(copy / FOLDER.format("Test Labels"))
    with pytest.raises(DataNotFoundError, match="Test Labels' or its zip file"):
        OSCD(copy, "test")
    (copy / FOLDER.format("Test Labels")).mkdir()
    with pytest.raises(DataNotFoundError, match="holds no city"):
        OSCD(copy, "test")


def test_an_unknown_split_or_city_is_refused(data):
    with pytest.raises(ConfigError, match="split='val'"):
        OSCD(data, "val")
    with pytest.raises(ConfigError, match=r"no 'paris' in the train split, which has aguasclaras"):
        OSCD(data, cities=["paris", "nantes"])


def test_a_truncated_band_is_named(copy):
    path = images(copy, "beirut", 2) / "B03.tif"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ImageReadError, match=r"beirut/imgs_2_rect/B03\.tif"):
        OSCD(copy, cities=["beirut"])[0]
    path.write_bytes(b"not an image")
    with pytest.raises(ImageReadError, match=r"B03\.tif: not a readable image"):
        OSCD(copy)


def pack(data, root):
    """The folders as the zip files in which they are published."""
    root.mkdir()
    for kind in ("Images", "Train Labels", "Test Labels"):
        folder = data / FOLDER.format(kind)
        with zipfile.ZipFile(root / f"{folder.name}.zip", "w") as out:
            for path in sorted(folder.rglob("*.*")):
                out.write(path, path.relative_to(data))
    return root


def test_zip_files_that_are_there_are_checked_and_unpacked(data, tmp_path, monkeypatch):
    root = pack(data, tmp_path / "zips")
    with pytest.raises(ArchiveError, match=r"Images\.zip: its sha256 is .*expected 940b87"):
        OSCD(root)
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.iterdir()}
    monkeypatch.setattr(OSCD, "sha256s", hashes)
    assert OSCD(root)[1]["image"].equal(OSCD(data)[1]["image"])
    assert not (root / FOLDER.format("Test Labels")).exists()
    assert len(OSCD(root, "test")) == len(TEST)


def test_a_zip_file_that_leads_outside_is_refused(tmp_path):
    for kind in ("Images", "Train Labels"):
        with zipfile.ZipFile(tmp_path / f"{FOLDER.format(kind)}.zip", "w") as out:
            out.writestr("../escaped.txt", "x")
    with pytest.raises(ArchiveError, match=r"Images\.zip: .*escaped"):
        OSCD(tmp_path, checksum=False)
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_a_download_that_fails_is_our_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchgeo.datasets.oscd.download_url", refuse)
    with pytest.raises(DataNotFoundError, match=r"download of OSCD.*no route.*put its zip files"):
        OSCD(tmp_path, download=True)


def test_validation_is_by_city_and_no_window_of_it_is_trained_on(data):
    module = OSCDDataModule(data, bands=RGB, patch_size=16, batch_size=4, val_fraction=0.3)
    module.setup("fit")
    held = {pair.name for pair in module.pairs("val")}
    assert 0 < len(held) < len(TRAIN)
    trained, validated = set(), set()
    for _ in range(3):
        for batch in module.train_dataloader():
            trained |= {module.scenes[i] for i in batch["scene"]}
    for batch in module.val_dataloader():
        validated |= {module.scenes[i] for i in batch["scene"]}
    assert validated == held
    assert trained == set(TRAIN) - held
    again = OSCDDataModule(data, val_fraction=0.3)
    assert {p.name for p in again.pairs("val")} == held
    splits = [
        {p.name for p in OSCDDataModule(data, val_fraction=0.3, split_seed=s).pairs("val")}
        for s in range(8)
    ]
    assert any(split != held for split in splits)


def test_cities_to_validate_on_can_be_named(data):
    module = OSCDDataModule(data, val_cities=["nantes", "mumbai"])
    assert [p.name for p in module.pairs("val")] == ["mumbai", "nantes"]
    assert [p.name for p in module.pairs("train")] == ["aguasclaras", "beirut"]
    without = OSCDDataModule(data, val_fraction=0, batch_size=1)
    without.setup("fit")
    assert list(without.val_dataloader()) == []
    with pytest.raises(ConfigError, match="'dubai' has no training labels"):
        OSCDDataModule(data, val_cities=["dubai"]).setup("fit")
    with pytest.raises(ConfigError, match="none is left to train"):
        OSCDDataModule(data, val_cities=list(TRAIN)).setup("fit")


def test_a_city_in_both_splits_is_refused(copy):
    shutil.copytree(label(copy, "nantes").parent, label(copy, "nantes", "Test").parent)
    with pytest.raises(ConfigError, match="nantes in both the training and the test labels"):
        OSCDDataModule(copy).setup("fit")


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize(("tile", "halo"), [(16, 0), (32, 4), (96, 0)])
def test_whole_scenes_are_scored_each_pixel_once(data, stage, tile, halo):
    module = OSCDDataModule(
        data, bands=["B08"], tile_size=tile, halo=halo, batch_size=5, val_cities=["nantes"]
    )
    module.setup(stage)
    name = {"validate": "val"}.get(stage, stage)
    sizes = {"nantes": TRAIN["nantes"]} if name == "val" else TEST
    seen = {city: torch.zeros(size, dtype=torch.long) for city, size in sizes.items()}
    for batch in getattr(module, f"{name}_dataloader")():
        assert batch["image"].shape[1:] == (2, 1, tile, tile)
        for number, mask, origin in zip(
            batch["scene"], batch["mask"], batch["origin"], strict=True
        ):
            rows, cols = (mask[0] != IGNORE).nonzero(as_tuple=True)
            seen[module.scenes[number]][origin[0] + rows, origin[1] + cols] += 1
    assert all((count == 1).all() for count in seen.values())


@pytest.mark.parametrize("workers", [0, 4])
def test_batches_are_the_same_with_any_number_of_workers(data, workers):
    module = OSCDDataModule(data, bands=RGB, patch_size=16, batch_size=4, num_workers=workers)
    module.setup("fit")
    single = OSCDDataModule(data, bands=RGB, patch_size=16, batch_size=4)
    single.setup("fit")
    for one, other in zip(module.train_dataloader(), single.train_dataloader(), strict=True):
        assert one["image"].equal(other["image"])
        assert one["mask"].equal(other["mask"])


class Looking(LightningModule):
    """Keeps what reaches a task."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def step(self, batch, batch_idx):
        self.seen.append(batch)

    training_step = validation_step = test_step = predict_step = step

    def configure_optimizers(self):
        return None


def test_images_and_masks_are_turned_together_and_normalised(data):
    module = OSCDDataModule(data, bands=RGB, patch_size=24, batch_size=4, mean="auto", std="auto")
    module.setup("fit")
    batch = module.train_aug(next(iter(module.train_dataloader())))
    assert batch["image"].shape == (4, 2, 3, 24, 24)
    assert batch["mask"].shape == (4, 1, 24, 24)
    # what changed is brighter on the second date, wherever it was moved to
    rise = (batch["image"][:, 1] - batch["image"][:, 0]).mean(1, keepdim=True)
    assert (rise[batch["mask"] == 1] > rise[batch["mask"] == 0].max()).all()
    assert batch["image"].mean().abs() < 1


def test_all_four_stages_run_through_a_trainer(data, tmp_path):
    from lightning.pytorch import Trainer

    module = OSCDDataModule(data, bands=RGB, patch_size=32, batch_size=2)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        default_root_dir=tmp_path,
    )
    for verb in ("fit", "validate", "test", "predict"):
        task = Looking()
        getattr(trainer, verb)(task, datamodule=module)
        assert all(b["image"].shape[1:] == (2, 3, 32, 32) for b in task.seen)
        assert task.seen


def test_automatic_statistics_are_those_of_the_training_cities(data):
    module = OSCDDataModule(data, bands=["B02"], mean="auto", std="auto", val_cities=["nantes"])
    module.setup("test")
    train = [s["image"].flatten() for s in OSCD(data, bands=["B02"]) if s["image"].shape[-2] != 25]
    values = torch.cat(train)
    assert module.mean.item() == pytest.approx(values.mean().item(), rel=1e-4)
    assert module.std.item() == pytest.approx(values.std().item(), rel=1e-4)


def test_statistics_can_come_from_a_file_and_must_fit_the_bands(data, tmp_path):
    stats = {"rsmamba_stats": 1, "bands": [{"name": "red", "mean": 7.0, "std": 2.0}]}
    path = tmp_path / "stats.json"
    path.write_text(json.dumps(stats))
    module = OSCDDataModule(data, bands=["B04"], spec=path)
    assert (module.mean.tolist(), module.std.tolist()) == ([7.0], [2.0])
    with pytest.raises(BandMismatchError, match="no band 'sentinel-2:B8A'"):
        OSCDDataModule(data, bands=["B8A"], spec=path)
    with pytest.raises(BandMismatchError, match="1 means and 2 deviations"):
        OSCDDataModule(data, bands=["B8A", "B04"], mean=[1.0])


def test_the_manifest_lists_every_file_with_its_role(data, tmp_path):
    module = OSCDDataModule(data, bands=["B04", "B08"], val_cities=["nantes"])
    content = json.loads(module.write_manifest(tmp_path / "m.json").read_text())
    assert content["settings"]["val_cities"] == ["nantes"]
    assert content["settings"]["bands"] == ["sentinel-2:B04", "sentinel-2:B08"]
    assert {k: len(v) for k, v in content["splits"].items()} == {"train": 15, "val": 5, "test": 10}
    first = content["splits"]["val"][0]
    assert first["file"].endswith("nantes/imgs_1_rect/B04.tif")
    assert (first["scene"], first["role"], len(first["sha256"])) == ("nantes", "before", 64)


@pytest.mark.parametrize(("stage", "other"), [("fit", "Test"), ("test", "Train")])
def test_a_stage_needs_the_labels_of_its_own_split_only(copy, tmp_path, stage, other):
    shutil.rmtree(copy / FOLDER.format(f"{other} Labels"))
    module = OSCDDataModule(copy, patch_size=16, batch_size=2)
    module.setup(stage)
    content = json.loads(module.write_manifest(tmp_path / "m.json").read_text())
    assert content["splits"][other.lower()] == []
    assert content["splits"]["train" if stage == "fit" else "test"]
    with pytest.raises(DataNotFoundError, match=f"{other} Labels"):
        module.setup("test" if stage == "fit" else "fit")
    shutil.rmtree(copy / FOLDER.format("Images"))
    with pytest.raises(DataNotFoundError, match="no OSCD in"):
        OSCDDataModule(copy).manifest()


def test_the_report_gives_the_share_of_change_by_city(data):
    module = OSCDDataModule(data, val_cities=["nantes"])
    shares = module.change_shares("val")
    expected = (OSCD(data, cities=["nantes"])[0]["mask"] == 1).float().mean().item()
    assert shares == {"nantes": pytest.approx(expected)}
    assert f"val: nantes {expected:.1%}" in module.report()


def test_plots_show_both_dates_the_label_and_a_prediction(data):
    module = OSCDDataModule(data, bands=["B8A", "B04", "B03"], patch_size=32, batch_size=2)
    module.setup("test")
    batch = next(iter(module.test_dataloader()))
    figure = module.plot(batch, predictions=1 - batch["mask"].clamp(max=1))
    assert isinstance(figure, Figure)
    titles = [axis.get_title() for axis in figure.axes[:4]]
    assert titles == ["date 1", "date 2", "label", "prediction"]
    data_set = OSCD(data)
    figure = data_set.plot(data_set[0], suptitle="aguasclaras")
    assert len(figure.axes) == 3
    assert figure.get_suptitle() == "aguasclaras"


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="windows of 8 px with a margin of 4 px"):
        OSCDDataModule(tile_size=8, halo=4)
    with pytest.raises(ConfigError, match="patch_size=0 must be at least 1"):
        OSCDDataModule(patch_size=0)


@pytest.mark.shared
def test_the_real_cities_equal_torchgeos_and_are_scored_whole():
    if not REAL.is_dir():
        pytest.skip("no shared data")
    for split, count in (("train", 4), ("test", 1)):
        official = stock.OSCD(REAL, split, bands=tuple(RGB), checksum=False)
        theirs = {
            entry["region"]: sample for entry, sample in zip(official.files, official, strict=True)
        }
        ours = OSCD(REAL, split, bands=RGB)
        assert len(ours) == count
        for pair, sample in zip(ours.pairs, ours, strict=True):
            assert all(sample[key].equal(theirs[pair.name][key]) for key in ("image", "mask"))
            assert 0.005 < sample["mask"].float().mean() < 0.04
    module = OSCDDataModule(REAL, bands=RGB, val_cities=["bercy"])
    for stage, pixels in (("validate", 395 * 360), ("test", 339 * 563)):
        module.setup(stage)
        loader = module.val_dataloader() if stage == "validate" else module.test_dataloader()
        assert sum(int((batch["mask"] != IGNORE).sum()) for batch in loader) == pixels

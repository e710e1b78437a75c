"""SpaceNet 1: masks, nodata, splits by place, archives, damaged files."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from lightning.pytorch.trainer.states import TrainerFn
from pyproj import Transformer
from torchgeo.datasets import SpaceNet1 as TorchGeoSpaceNet1
from torchgeo.datasets.utils import Executable

from rsmamba.data import spacenet
from rsmamba.data.areas import footprint
from rsmamba.data.images import IGNORE
from rsmamba.data.spacenet import SpaceNet1
from rsmamba.data.spacenet_datamodule import SpaceNet1DataModule, adjoining, blocks
from rsmamba.errors import (
    ArchiveError,
    BandMismatchError,
    ConfigError,
    CRSError,
    DataNotFoundError,
    ImageReadError,
    LabelError,
)
from rsmamba.tasks.metrics import multiclass_metrics
from tests.data.spacenet import data

SHARED = Path(__file__).parents[2] / "../shared/data"
RECIPES = Path(__file__).parents[2] / "recipes"
BLOCK = 60.0  # metres: 2 x 2 to 3 x 3 of the fake tiles


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return data.make(tmp_path_factory.mktemp("spacenet"), test=2)


@pytest.fixture
def own(root, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(root, tmp_path / "own"))


def tile(root, number, part="train", product="3band"):
    return root / f"SN1_buildings/{part}/{product}/{product}_{data.PREFIX}{number}.tif"


def geojson(root, number):
    return root / f"SN1_buildings/train/geojson/Geo_{data.PREFIX}{number}.geojson"


def sample_of(dataset, number):
    keys = [t.key for t in dataset.tiles]
    return dataset[keys.index(f"{data.PREFIX}{number}")]


def expected(height=40, width=44):
    mask = torch.zeros(height, width, dtype=torch.int64)
    for top, bottom, left, right in data.BUILDINGS:
        mask[top:bottom, left:right] = 1
    return mask


def test_samples_are_the_tiles_pixel_for_pixel_with_touching_buildings_as_one(root):
    dataset = SpaceNet1(root)
    for number, width in ((0, 44), (7, 43)):  # sizes differ: nothing is resized
        sample = sample_of(dataset, number)
        with rasterio.open(tile(root, number)) as src:
            assert np.array_equal(sample["image"].numpy(), src.read())
        assert sample["image"].dtype == torch.float32
        assert torch.equal(sample["mask"], expected(width=width))
    assert dataset.bands == ("red", "green", "blue")


def test_tiles_and_masks_come_in_the_order_of_their_numbers(root):
    dataset = SpaceNet1(root)
    numbers = [int(t.key.removeprefix(data.PREFIX)) for t in dataset.tiles]
    assert numbers == [n for n in range(24) if n != data.BLANK]
    assert all(
        spacenet.key(i) == spacenet.key(m)
        for i, m in zip(dataset.images, dataset.masks, strict=True)
    )


@pytest.mark.parametrize("number", [data.ZERO_BYTES, data.NO_FEATURES])
def test_a_file_without_outlines_means_no_buildings(root, number):
    mask = sample_of(SpaceNet1(root), number)["mask"]
    assert mask.unique().tolist() == [0]


def test_null_invalid_and_outside_outlines_do_no_harm(root):
    mask = sample_of(SpaceNet1(root), data.NULLS)["mask"]
    assert torch.equal(mask[:24], expected(width=43)[:24])
    # Both triangles of the bow tie are filled: half of its box.
    assert int(mask[24:36, 30:38].sum()) == int(mask[24:].sum()) == 48
    assert mask[30, [30, 33, 34, 37]].tolist() == [1, 1, 1, 1]
    assert mask[[25, 34], [33, 34]].tolist() == [0, 0]


def test_pixels_without_observation_are_ignored_and_filled(root):
    dataset = SpaceNet1(root).subset([f"{data.PREFIX}{data.HALF}"], fill=torch.tensor([1, 2, 3]))
    sample = dataset[0]
    assert (sample["mask"][:, :21] == IGNORE).all()
    assert torch.equal(sample["mask"][:, 21:], expected(width=43)[:, 21:])
    assert sample["image"][:, 5, 5].tolist() == [1, 2, 3]
    assert sample["image"][0, 0, 0] == 1  # without observation, not only dark in one band
    whole = sample_of(SpaceNet1(root), 0)
    assert whole["image"][0, 0, 0] == 0
    assert whole["mask"][0, 0] == 0  # dark in one band only


def test_tiles_without_any_observation_are_left_out_and_named(root):
    dataset = SpaceNet1(root)
    assert [p.name for p in dataset.blank] == [f"3band_{data.PREFIX}{data.BLANK}.tif"]
    assert len(dataset) == 23


def test_a_single_bright_pixel_keeps_a_tile(own):
    with rasterio.open(tile(own, data.BLANK), "r+") as src:
        pixels = src.read()
        pixels[1, 33, 41] = 9
        src.write(pixels)
    dataset = SpaceNet1(own)
    assert dataset.blank == []
    assert (sample_of(dataset, data.BLANK)["mask"] != IGNORE).sum() == 1


def test_eight_bands_are_read_with_their_names(tmp_path):
    root = data.make(tmp_path, 1, 4, "8band")
    module = SpaceNet1DataModule(root, "8band", 2, val_ratio=0, block_size=20.0)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 8, 32, 32)
    assert module.bands[0] == "coastal"
    assert module.bands[-1] == "nir09"
    assert module.gsd == pytest.approx(1.9, rel=0.05)
    train = [t.read()[0].reshape(8, -1) for t in module.train_dataset.tiles]
    values = np.concatenate([v[:, (v != 0).any(0)] for v in train], 1)
    assert module.mean.numpy() == pytest.approx(values.mean(1), rel=1e-5)
    # A building of 12 x 20 px of half a metre covers 3 x 5 px of two metres.
    assert int((sample_of(SpaceNet1(root, image="8band"), 0)["mask"] == 1).sum()) == 15


def test_the_test_split_has_no_masks(root):
    dataset = SpaceNet1(root, "test")
    assert len(dataset) == 2
    assert set(dataset[0]) == {"image"}


@pytest.mark.parametrize("crs", ["EPSG:32723", "EPSG:3857"])
def test_outlines_in_another_crs_are_reprojected(own, crs):
    to_crs = Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    where = data.transform(0, 6)
    rings = [data.rectangle(where, *b) for b in data.BUILDINGS]
    moved = [data.polygon([list(to_crs.transform(x, y)) for x, y, _ in ring]) for ring in rings]
    geojson(own, 0).write_text(data.collection(moved, crs))
    mask = sample_of(SpaceNet1(own), 0)["mask"]
    assert int((mask != expected()).sum()) <= 2  # pixel centres do not lie on the edges


def test_a_tile_in_another_crs_than_its_outlines_is_labelled_alike(own):
    to_utm = Transformer.from_crs("OGC:CRS84", "EPSG:32723", always_xy=True)
    west, north = to_utm.transform(data.WEST, data.NORTH)
    east, south = to_utm.transform(
        data.WEST + data.WIDTH * data.STEP, data.NORTH - data.HEIGHT * data.STEP
    )
    step = ((east - west) / data.WIDTH, (south - north) / data.HEIGHT)
    with rasterio.open(tile(own, 0)) as src:
        pixels = src.read()
    where = Affine(step[0], 0, west, 0, step[1], north)
    data.write_tile(tile(own, 0), pixels, where, "EPSG:32723")
    mask = sample_of(SpaceNet1(own), 0)["mask"]
    assert int((mask != expected()).sum()) <= 24  # meridian convergence: at most the edges


def test_windows_hold_every_pixel_once(root):
    keys = [t.key for t in SpaceNet1(root).tiles]
    dataset = SpaceNet1(root).subset(keys, patch_size=16)
    for i in range(len(keys)):
        windows = [w for item, w in dataset.windows if item == i]
        tile_ = dataset.tiles[i]
        seen = np.zeros((tile_.height, tile_.width), int)
        for w in windows:
            seen[w.row : w.row + 16, w.col : w.col + 16] += 1
        assert (seen == 1).all()
    first = [dataset[i] for i in range(9)]
    assert all(s["mask"].shape == (16, 16) for s in first)
    assert sum(int((s["mask"] == 1).sum()) for s in first) == int(expected().sum())
    assert (first[8]["mask"][8:] == IGNORE).all()  # beyond the border


def test_random_windows_depend_on_seed_and_index_and_are_observed(root):
    keys = [f"{data.PREFIX}{data.HALF}", f"{data.PREFIX}0"]
    first, again, other = (
        SpaceNet1(root).subset(keys, patch_size=16, length=8, seed=seed) for seed in (0, 0, 1)
    )
    assert first.endless
    assert len(first) == 8
    for i in (0, 7, 8, 100):  # indices go on from epoch to epoch
        assert torch.equal(first[i]["image"], again[i]["image"])
        assert first[i]["image"].shape == (3, 16, 16)
        assert (first[i]["mask"] != IGNORE).any()
    assert any(not torch.equal(first[i]["image"], other[i]["image"]) for i in range(8))
    assert any(not torch.equal(first[i]["image"], first[i + 8]["image"]) for i in range(8))


def module_of(root, **options):
    return SpaceNet1DataModule(root, batch_size=2, **{"block_size": BLOCK, **options})


def parts_of(module):
    return {name: part for part, names in module.splits().items() for name in names}


def test_blocks_are_never_divided_between_splits(root):
    for seed in range(5):
        module = module_of(root, split_seed=seed, val_ratio=0.3)
        part = parts_of(module)
        cells = blocks(module.labelled.tiles, BLOCK)
        assert len(part) == 23
        assert set(part.values()) == {"train", "val", "test"}
        assert any(len(names) > 1 for names in cells.values())
        assert all(len({part[name] for name in names}) == 1 for names in cells.values())


def test_tiles_of_different_splits_share_at_most_the_border_of_two_blocks(root):
    module = module_of(root, val_ratio=0.3)
    part = parts_of(module)
    cell = {name: c for c, names in blocks(module.labelled.tiles, BLOCK).items() for name in names}
    tiles = module.labelled.tiles
    outlines = [footprint(t) for t in tiles]
    crossing = 0
    for i, a in enumerate(tiles):
        for j, b in enumerate(tiles[:i]):
            if part[a.key] != part[b.key] and outlines[i].intersects(outlines[j]):
                crossing += 1
                assert cell[a.key] != cell[b.key]
                shared = outlines[i].intersection(outlines[j]).area / outlines[i].area
                assert shared <= 1.01 * data.SHARED / data.HEIGHT  # the overlap of neighbours
    assert crossing > 0  # there are such borders


def test_a_buffer_leaves_no_tile_in_touch_with_another_split(root):
    module = module_of(root, val_ratio=0.3, buffer=True)
    part = parts_of(module)
    tiles = [t for t in module.labelled.tiles if t.key in part]
    assert set(part.values()) == {"train", "val", "test"}
    for i, a in enumerate(tiles):
        for b in tiles[:i]:
            assert part[a.key] == part[b.key] or not footprint(a).intersects(footprint(b))
    whole = module_of(root, val_ratio=0.3)
    assert module.splits()["test"] == whole.splits()["test"]
    assert len(part) < 23
    assert adjoining(whole.labelled.tiles, whole.splits()) == (
        {t.key for t in whole.labelled.tiles} - set(part)
    )


def test_a_buffer_that_leaves_nothing_of_a_split_is_refused(root, tmp_path):
    module = module_of(root, train_ratio=0.5, val_ratio=0.3, split_seed=11, buffer=True)
    with pytest.raises(ConfigError, match=r"none of the \d+ val tiles.*val_ratio.*split_seed") as e:
        module.splits()
    assert "buffer=False" in str(e.value)
    files = {}
    for part, number in (("train", 20), ("val", 7), ("test", 8)):
        files[part] = tmp_path / f"{part}.txt"
        files[part].write_text(f"{data.PREFIX}{number}")
    with pytest.raises(ConfigError, match=r"none of the 1 val tiles.*buffer=False.*val\.txt"):
        module_of(root, split_files=files, buffer=True).splits()
    files["val"].write_text(f"{data.PREFIX}{data.BLANK}")
    with pytest.raises(ConfigError, match=r"no val tile.*val\.txt"):
        module_of(root, split_files=files).splits()


def test_the_report_counts_the_tiles_of_each_split(root):
    module = module_of(root, val_ratio=0.3, buffer=True)
    split = module.splits()
    train, val, test = (len(split[part]) for part in ("train", "val", "test"))
    left = f"left out beside another split: {23 - train - val - test} tiles"
    assert module.report() == (
        f"train: {train} tiles; val: {val} tiles; test: {test} tiles; {left}; "
        "nothing observed: 1 tiles"
    )
    assert "val" not in module_of(root, val_ratio=0).report()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda p: p.stem)
def test_recipes_that_keep_the_best_epoch_keep_the_last_too(path):
    """Where nothing is validated there is no best one, and a run would leave nothing."""
    callbacks = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    kept = [c["init_args"] for c in callbacks if c["class_path"].endswith("ModelCheckpoint")]
    assert kept
    assert all(c.get("save_last") or c["filename"] == "last" for c in kept)


def test_a_buffer_sees_neighbours_in_another_crs(own):
    to_utm = Transformer.from_crs("OGC:CRS84", "EPSG:32723", always_xy=True)
    with rasterio.open(tile(own, 7)) as src:
        west, north = to_utm.transform(*(src.transform @ (0, 0)))
        pixels = src.read()
    data.write_tile(tile(own, 7), pixels, Affine(0.46, 0, west, 0, -0.5, north), "EPSG:32723")
    tiles = SpaceNet1(own).tiles
    name = data.PREFIX
    near = adjoining(tiles, {"train": [f"{name}7", f"{name}20"], "test": [f"{name}6"]})
    assert near == {f"{name}7"}


def test_the_split_depends_on_seed_and_place_only(root, own):
    first = module_of(root).splits()
    assert module_of(own).splits() == first
    assert module_of(root, split_seed=1).splits() != first
    # Written down once: another machine or version must find the same.
    assert [n.removeprefix(data.PREFIX) for n in first["test"]] == ["0", "12", "18", "5", "6"]


def test_shares_are_those_of_the_literature(tmp_path):
    root = data.make(tmp_path, 12, 12)
    split = SpaceNet1DataModule(root, block_size=25.0, val_ratio=0.1).splits()
    test = len(split["test"]) / 143
    val = len(split["val"]) / (len(split["val"]) + len(split["train"]))
    assert test == pytest.approx(1940 / 6940, abs=0.03)
    assert val == pytest.approx(0.1, abs=0.03)


def test_block_sizes_are_chosen_so_that_there_are_enough(root):
    tiles = SpaceNet1(root).tiles
    assert len(blocks(tiles, 256.0)) == len(blocks(tiles))  # the smallest that is tried
    sizes = [len(blocks(tiles, s)) for s in (256.0, 64.0, 16.0)]
    assert all(a < b for a, b in pairwise(sizes))


def test_split_files_are_followed(root, tmp_path):
    files = {}
    for part, lines in (
        ("train", "3band_AOI_1_RIO_img0.tif\nimages/AOI_1_RIO_img7\n"),
        ("test", "Geo_AOI_1_RIO_img8.geojson\n\nAOI_1_RIO_img4\n"),
    ):
        files[part] = tmp_path / f"{part}.txt"
        files[part].write_text(lines)
    module = module_of(root, split_files=files)
    name = data.PREFIX
    assert module.splits() == {"train": [f"{name}0", f"{name}7"], "val": [], "test": [f"{name}8"]}
    module.setup("fit")
    assert len(module.train_dataset) == 2
    assert not list(module.val_dataloader())


def test_split_files_that_name_a_tile_twice_or_an_unknown_one_are_refused(root, tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("AOI_1_RIO_img0")
    test.write_text("3band_AOI_1_RIO_img0.tif")
    files = {"train": train, "test": test}
    with pytest.raises(ConfigError, match=r"test\.txt: AOI_1_RIO_img0 is also in the train split"):
        module_of(root, split_files=files).setup("fit")
    test.write_text("AOI_1_RIO_img99")
    with pytest.raises(DataNotFoundError, match=r"test\.txt: names AOI_1_RIO_img99"):
        module_of(root, split_files=files).setup("fit")
    with pytest.raises(DataNotFoundError, match=r"nowhere\.txt"):
        module_of(root, split_files={**files, "test": tmp_path / "nowhere.txt"}).setup("fit")
    with pytest.raises(ConfigError, match="split_files names train, dev"):
        module_of(root, split_files={"train": train, "dev": test})


def test_every_stage_gives_batches_of_a_common_size(root):
    module = module_of(root, val_ratio=0.3, mean=[100, 100, 100], std=[50, 50, 50])
    for stage in ("fit", "validate", "test", "predict"):
        module.setup(stage)
    assert module.predict_dataset.split == "test"  # SpaceNet's own tiles without labels
    for loader in ("train", "val", "test", "predict"):
        batch = next(iter(getattr(module, f"{loader}_dataloader")()))
        assert batch["image"].shape[1:] == (3, 64, 64)
        assert (batch["image"][..., 40:, :] == 100).all()
        if loader != "predict":
            assert (batch["mask"][:, 40:] == IGNORE).all()
            assert (batch["mask"][:, :, 44:] == IGNORE).all()
    augmented = module.train_aug(next(iter(module.train_dataloader())))
    assert set(augmented["mask"].unique().tolist()) <= {0, 1, IGNORE}


def test_lightnings_own_stages_are_understood(root):
    module = module_of(root)
    for stage in TrainerFn:  # no plain strings
        module.setup(stage)
    for part in ("train", "val", "test", "predict"):
        assert len(getattr(module, f"{part}_dataset")) > 0


def test_predict_takes_the_test_tiles_where_spacenets_own_are_missing(own):
    shutil.rmtree(own / "SN1_buildings/test")
    module = module_of(own)
    module.setup("predict")
    assert sorted(t.key for t in module.predict_dataset.tiles) == module.splits()["test"]


def test_training_windows_cover_the_tiles_once_in_an_epoch(root):
    module = module_of(root, patch_size=16, val_ratio=0)
    module.setup("fit")
    assert len(module.train_dataset) == 9 * len(module.splits()["train"])
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16)


def test_the_manifest_names_every_file_once(root, tmp_path):
    module = module_of(root, val_ratio=0.3, buffer=True)
    content = json.loads(module.write_manifest(tmp_path / "split.json").read_text())
    splits = content["splits"]
    names = [e["file"] for part in splits if part != "labels" for e in splits[part]]
    assert sorted(names) == sorted(set(names))
    assert len(names) == 24
    assert splits["nothing observed"][0]["file"].endswith(f"img{data.BLANK}.tif")
    assert len(splits["labels"]) == 23
    assert content["settings"]["adjoining"] == 0
    assert splits["train"][0]["labels"].startswith("Geo_")


def test_the_score_is_mmsegs_mean_f1_without_ignored_pixels(root):
    """mFscore of mmsegmentation: per class 2 P R / (P + R) over all pixels, then the mean."""
    module = module_of(root, val_ratio=0.3)
    module.setup("test")
    metrics = multiclass_metrics(2, labels=list(module.classes), ignore_index=IGNORE)
    generator = torch.Generator().manual_seed(0)
    confusion = np.zeros((2, 2))
    for batch in module.test_dataloader():
        logits = torch.randn(len(batch["mask"]), 2, *batch["mask"].shape[1:], generator=generator)
        metrics.update(logits, batch["mask"])
        counted = batch["mask"] != IGNORE
        pairs = 2 * batch["mask"][counted] + logits.argmax(1)[counted]
        confusion += np.bincount(pairs.numpy(), minlength=4).reshape(2, 2)
    precision, recall = (np.diag(confusion) / confusion.sum(axis) for axis in (0, 1))
    f1 = 2 * precision * recall / (precision + recall)
    assert float(metrics.compute()["AverageF1Score"]) == pytest.approx(f1.mean(), rel=1e-6)
    area = sum(t.height * t.width for t in module.test_dataset.tiles)
    unseen = sum(int((s["mask"] == IGNORE).sum()) for s in module.test_dataset)
    assert confusion.sum() == area - unseen  # each pixel once, padding never


# What TorchGeo's class does with archives, and ours.


@pytest.fixture
def packed(root, tmp_path, monkeypatch):
    """A folder with the archives alone; their sums are those that the class expects."""
    folder = tmp_path / "packed"
    sums = data.archives(root, folder)
    given = {
        part: {1: [sums.get(n, "0" * 32) for n in names[1]]}
        for part, names in TorchGeoSpaceNet1.tarballs.items()
    }
    monkeypatch.setattr(SpaceNet1, "md5s", given)
    return folder


def test_archives_are_unpacked_and_found_at_once(packed, root):
    dataset = SpaceNet1(packed)
    assert len(dataset) == len(SpaceNet1(root)) == 23
    assert torch.equal(dataset[0]["mask"], expected())
    assert len(SpaceNet1(packed)) == 23


def test_torchgeos_class_is_empty_at_first(packed):
    """The defect that ours repairs; if this fails, TorchGeo has repaired it too."""
    spare = packed / "SN1_buildings/train/SN1_buildings_train_AOI_1_Rio_8band.tar.gz"
    with pytest.raises(FileNotFoundError):  # another one: it asks for bands that nobody wants
        TorchGeoSpaceNet1(packed)
    shutil.rmtree(packed / "SN1_buildings/train/3band", ignore_errors=True)
    shutil.rmtree(packed / "SN1_buildings/train/geojson", ignore_errors=True)
    shutil.copy(packed / "SN1_buildings/train/SN1_buildings_train_AOI_1_Rio_3band.tar.gz", spare)
    assert len(TorchGeoSpaceNet1(packed)) == 0
    assert len(TorchGeoSpaceNet1(packed)) == 24


def test_a_wrong_checksum_is_refused_unless_it_is_waived(packed, monkeypatch):
    monkeypatch.setattr(SpaceNet1, "md5s", TorchGeoSpaceNet1.md5s)
    with pytest.raises(ArchiveError, match=r"Rio_3band\.tar\.gz: its md5 is .* expected 279e334a"):
        SpaceNet1(packed)
    assert not (packed / "SN1_buildings/train/3band").exists()
    assert len(SpaceNet1(packed, checksum=False)) == 23


class FakeAWS(Executable):
    """`aws s3 cp ... URL PATH` from a folder."""

    def __init__(self, source):
        super().__init__("aws")
        self.source, self.asked = source, []

    def __call__(self, *args, **kwargs):
        url, target = args[-2:]
        self.asked.append(url)
        name = Path(target).name.replace("8band", "3band")
        shutil.copy(self.source / "SN1_buildings" / Path(target).parent.name / name, target)


def test_downloads_are_checked_and_only_what_is_needed_is_fetched(packed, tmp_path, monkeypatch):
    aws = FakeAWS(packed)
    monkeypatch.setattr(spacenet, "which", lambda name: aws)
    assert len(SpaceNet1(tmp_path / "fresh", download=True)) == 23
    assert [u.rsplit("/", 1)[1] for u in aws.asked] == [
        "SN1_buildings_train_AOI_1_Rio_3band.tar.gz",
        "SN1_buildings_train_AOI_1_Rio_geojson_buildings.tar.gz",
    ]
    monkeypatch.setattr(SpaceNet1, "md5s", TorchGeoSpaceNet1.md5s)
    with pytest.raises(ArchiveError, match="md5"):
        SpaceNet1(tmp_path / "other", download=True)


def test_torchgeos_class_ignores_the_checksum_of_a_download(packed, tmp_path, monkeypatch):
    """The defect that ours repairs; if this fails, TorchGeo has repaired it too."""
    monkeypatch.setattr("torchgeo.datasets.spacenet.base.which", lambda name: FakeAWS(packed))
    # None of the sums is right, and nobody minds.
    assert TorchGeoSpaceNet1(tmp_path / "fresh", download=True, checksum=True)


def test_torchgeos_class_holds_downloaded_test_tiles_twice(packed, tmp_path, monkeypatch):
    """A defect that ours does not have; if this fails, TorchGeo has repaired it."""
    options = {"split": "test", "download": True}
    monkeypatch.setattr("torchgeo.datasets.spacenet.base.which", lambda name: FakeAWS(packed))
    assert len(TorchGeoSpaceNet1(tmp_path / "theirs", **options)) == 4
    monkeypatch.setattr(spacenet, "which", lambda name: FakeAWS(packed))
    assert len(SpaceNet1(tmp_path / "ours", **options)) == 2


def test_torchgeos_class_makes_folders_and_loses_images_to_a_spare_label(own, tmp_path):
    """Defects that ours does not have; if this fails, TorchGeo has repaired them."""
    with pytest.raises(FileNotFoundError):
        TorchGeoSpaceNet1(tmp_path / "nowhere")
    assert (tmp_path / "nowhere/SN1_buildings/train").is_dir()
    tile(own, 0).unlink()
    with pytest.raises(FileNotFoundError):  # 23 images are left
        TorchGeoSpaceNet1(own)


def test_data_that_are_not_there_are_named_and_no_folder_is_made(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"SN1_buildings/train/3band/\*\.tif or .*3band\.t"):
        SpaceNet1(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_download_without_the_aws_command_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="install the AWS command line"):
        SpaceNet1(tmp_path / "nowhere", download=True)


# Damaged data.


def test_a_tile_without_outlines_is_named(own):
    geojson(own, 9).unlink()
    with pytest.raises(LabelError, match=r"Geo_AOI_1_RIO_img9\.geojson"):
        SpaceNet1(own)


def test_outlines_without_a_tile_are_reported_and_do_not_shift_the_rest(own):
    tile(own, 0).unlink()
    with pytest.warns(UserWarning, match=r"1 labelled tiles are missing, e\.g\. AOI_1_RIO_img0"):
        dataset = SpaceNet1(own)
    assert len(dataset) == 22
    assert torch.equal(sample_of(dataset, 7)["mask"], expected(width=43))


def test_broken_outlines_are_named(own):
    for content in (
        "{",
        "[]",
        '{"type": "Feature"}',
        '{"type": "FeatureCollection", "features":3}',
    ):
        geojson(own, 0).write_text(content)
        with pytest.raises(LabelError, match=r"img0\.geojson: not readable as GeoJSON") as caught:
            sample_of(SpaceNet1(own), 0)
        assert "\n" not in str(caught.value)


def test_outlines_that_are_no_polygons_are_reported(own):
    where = data.transform(0, 6)
    line = {"type": "LineString", "coordinates": data.rectangle(where, 1, 5, 1, 5)[:3]}
    geojson(own, 0).write_text(data.collection([line]))
    with pytest.warns(UserWarning, match=r"img0\.geojson: 1 geometries are no polygons"):
        mask = sample_of(SpaceNet1(own), 0)["mask"]
    assert int(mask.sum()) == 0


@pytest.mark.parametrize("crs", [None, "EPSG:31983"])
def test_outlines_whose_crs_is_wrong_are_refused(own, crs):
    to_utm = Transformer.from_crs("OGC:CRS84", "EPSG:32723", always_xy=True)
    where = data.transform(0, 6)
    source = where if crs else None
    ring = data.rectangle(where, 8, 20, 8, 16)
    if source is None:  # metres that pass for degrees
        ring = [list(to_utm.transform(x, y)) for x, y, _ in ring]
    geojson(own, 0).write_text(data.collection([data.polygon(ring)], crs))
    with pytest.raises(CRSError, match=r"img0\.geojson: its polygons lie elsewhere"):
        sample_of(SpaceNet1(own), 0)


def test_an_unknown_crs_is_named(own):
    geojson(own, 0).write_text(data.collection([], "EPSG:999999"))
    with pytest.raises(CRSError, match=r"img0\.geojson: its CRS 'EPSG:999999' is unknown"):
        sample_of(SpaceNet1(own), 0)


def test_a_tile_without_a_crs_is_named(own):
    data.write_tile(tile(own, 0), np.ones((3, 40, 44), np.uint8), data.transform(0, 6), None)
    with pytest.raises(CRSError, match=r"img0\.tif"):
        SpaceNet1(own)


def test_a_truncated_tile_is_named(own):
    path = tile(own, 0)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"3band_AOI_1_RIO_img0\.tif"):
        sample_of(SpaceNet1(own), 0)


def test_a_tile_with_too_few_bands_is_named(own):
    data.write_tile(tile(own, 0), np.ones((1, 40, 44), np.uint8), data.transform(0, 6))
    with pytest.raises(BandMismatchError, match=r"img0\.tif"):
        SpaceNet1(own)


def test_options_that_contradict_each_other_are_refused(root):
    for options in (
        {"image": "rgb"},
        {"train_ratio": 1.0},
        {"val_ratio": 1.0},
        {"patch_size": 0},
        {"length": 5},
        {"block_size": -1.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            SpaceNet1DataModule(root, **options)
    with pytest.raises(ConfigError, match="too few to divide"):
        module_of(root, block_size=5000.0).setup("fit")


def test_samples_and_batches_are_plotted(root):
    module = module_of(root, val_ratio=0)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    figure = module.plot(batch, predictions=torch.ones_like(batch["mask"]))
    assert len(figure.axes) == 6
    assert len(module.train_dataset.plot(module.train_dataset[0], suptitle="x").axes) == 2


@pytest.mark.shared
def test_real_tiles_give_the_published_masks():
    source = SHARED / "spacenet1"
    if not source.is_dir():
        pytest.skip("the developers' imagery is not here")
    dataset = SpaceNet1(source)
    ignored = {}
    for i, tile_ in enumerate(dataset.tiles):
        mask = dataset[i]["mask"]
        name = f"3band_{tile_.key}_building_mask.tif"
        with rasterio.open(source / "masks_as_published/train" / name) as src:
            truth = torch.from_numpy(src.read(1) > 0)
        known = mask != IGNORE
        assert torch.equal(mask[known] == 1, truth[known])
        ignored[tile_.key[-2:]] = int((~known).sum())
    assert ignored["57"] == 60006
    test = SpaceNet1(source, "test")
    assert [p.stem[-5:] for p in test.blank] == ["img58"]
    assert [t.key[-5:] for t in test.tiles] == ["img59"]

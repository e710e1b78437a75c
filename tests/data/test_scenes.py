"""Unlabelled windows: seeded, nodata-aware, honest about bad files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from rsmamba import samples
from rsmamba.data import ScenePatches, ScenePatchesDataModule, scene_patches
from rsmamba.data.images import Scene
from rsmamba.data.sampling import EpochSampler, Lottery, band_statistics, shuffled
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    ImageReadError,
)
from rsmamba.infer.grid import Box
from rsmamba.infer.source import SceneSource
from tests.data.scenes.data import noise, write


@pytest.fixture
def folder(tmp_path):
    """Ten JPEGs of two sizes, each of one colour: 10, 20, ... 100."""
    for i in range(10):
        size = (40, 56) if i % 2 else (48, 48)
        Image.new("RGB", size, (10 * i + 10,) * 3).save(tmp_path / f"{i}.jpg", quality=95)
    return tmp_path


def test_windows_have_the_size_and_come_from_the_images(folder):
    data = ScenePatches(folder, size=24, length=20)
    for i in range(20):
        image = data[i]["image"]
        assert image.shape == (3, 24, 24)
        assert image.dtype == torch.float32
        assert min(abs(image.mean() - v) for v in range(10, 101, 10)) < 1.5


def test_each_image_is_drawn_once_in_an_epoch_of_equal_images():
    lottery = Lottery([3.0] * 50, 50, seed=1)
    for epoch in range(3):
        drawn = [lottery.draw(50 * epoch + i)[0] for i in range(50)]
        assert sorted(drawn) == list(range(50))
        assert drawn != list(range(50))
    assert [lottery.draw(i)[0] for i in range(50)] != [lottery.draw(50 + i)[0] for i in range(50)]


def test_images_are_drawn_by_their_area():
    drawn = [Lottery([1.0, 9.0], 100, seed=0).draw(i)[0] for i in range(100)]
    assert 9 <= drawn.count(0) <= 11


def test_an_index_gives_one_sample_for_good(folder):
    a, b = ScenePatches(folder, size=24), ScenePatches(folder, size=24, cache=False)
    for i in (0, 3, 1000):
        assert torch.equal(a[i]["image"], b[i]["image"])
    other = ScenePatches(folder, size=24, seed=1)
    assert not all(torch.equal(a[i]["image"], other[i]["image"]) for i in range(5))


def test_workers_do_not_change_the_samples_and_epochs_differ(folder):
    def epochs(workers):
        module = ScenePatchesDataModule(
            folder, size=16, batch_size=4, length=8, num_workers=workers, val_fraction=0.2
        )
        module.setup("fit")
        loader = module.train_dataloader()
        return [torch.cat([b["image"] for b in loader]) for _ in range(2)]

    alone, shared = epochs(0), epochs(2)
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])
    assert not torch.equal(alone[0], alone[1])


def test_a_resumed_epoch_goes_on_where_it_was():
    sampler = EpochSampler(3)
    assert [list(sampler), list(sampler)] == [[0, 1, 2], [3, 4, 5]]
    sampler.set_epoch(1)
    assert list(sampler) == [3, 4, 5]


def test_crops_take_the_share_of_the_area_that_scale_says(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.float32), (200, 1))[None]
    path = write(tmp_path / "ramp.tif", ramp)
    data = ScenePatches(path, size=20, length=200, scale=(0.25, 0.25), window=100, flips=False)
    spans = []
    for i in range(50):
        image = data[i]["image"][0]
        spans.append(float(image[0, -1] - image[0, 0]) * 20 / 19)
    # A quarter of 100 x 100 at aspect ratios of 3/4 to 4/3.
    assert min(spans) > 50 * np.sqrt(3 / 4) - 2
    assert max(spans) < 50 * np.sqrt(4 / 3) + 2
    assert np.mean(spans) == pytest.approx(50, abs=3)


def test_flips_give_all_eight_symmetries(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_patches, "ASPECT", (1.0, 1.0))
    corner = np.zeros((1, 8, 8), np.uint8)
    corner[0, 0, 1] = 200
    path = write(tmp_path / "corner.tif", corner)
    seen = set()
    for i in range(100):
        data = ScenePatches(path, size=8, length=100, scale=(1, 1))
        seen.add(divmod(int(data[i]["image"][0].argmax()), 8))
        if len(seen) == 8:
            break
    assert seen == {(0, 1), (1, 0), (0, 6), (1, 7), (6, 0), (7, 1), (6, 7), (7, 6)}


def test_windows_with_too_much_nodata_are_drawn_again_and_the_rest_is_filled(tmp_path):
    pixels = np.zeros((2, 96, 96), np.uint8)
    pixels[:, :48] = noise(48, 96, 2) // 4 + 100
    path = write(tmp_path / "half.tif", pixels, nodata=0)
    data = ScenePatches(path, size=16, length=50, max_nodata=0.3)
    assert min(float(data[i]["image"].min()) for i in range(50)) > 99
    with pytest.raises(DataNotFoundError, match=r"empty\.tif.*max_nodata"):
        empty = write(tmp_path / "empty.tif", np.zeros((2, 40, 40), np.uint8), nodata=0)
        ScenePatches(empty, size=16, length=2)[0]


@pytest.mark.parametrize(("nodata", "value"), [(0, 0), (-9999, 5)])
def test_a_band_that_is_missing_in_a_valid_pixel_is_dark_or_filled(tmp_path, nodata, value):
    pixels = np.full((2, 2, 2), 5, np.int16)
    pixels[0, 0], pixels[1, :, 0] = nodata, nodata  # both are missing at 0, 0 alone
    path = write(tmp_path / "a.tif", pixels, nodata=nodata)
    found, valid = Scene.open(path).read()
    assert valid.tolist() == [[False, True], [True, True]]
    assert found[0, 0, 1] == found[1, 1, 0] == value
    # Of bands that are not read, nothing is told.
    assert Scene.open(path, [1]).read()[1].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("kind", ["none", "zero", "255", "nan", "mask", "alpha", "missing nan"])
def test_training_and_mapping_call_the_same_pixels_valid(tmp_path, kind):
    rng = np.random.default_rng(3)
    pixels = rng.integers(1, 255, (3, 40, 50)).astype(np.float32 if "nan" in kind else np.uint8)
    gone = {"255": 255, "nan": np.nan, "missing nan": np.nan}.get(kind, 0)
    pixels[:, :10, :10] = gone
    pixels[1, 20:25, 20:25] = gone  # one band alone
    options = {"nodata": {"zero": 0, "255": 255, "nan": np.nan}.get(kind)}
    if kind == "alpha":
        pixels = np.concatenate([pixels, (pixels[:1] > 0) * np.uint8(255)])
        options |= {"photometric": "RGB", "alpha": "YES"}
    path = write(tmp_path / "a.tif", pixels, **options)
    if kind == "mask":
        with rasterio.open(path, "r+") as target:
            target.write_mask((pixels[0] > 0) * np.uint8(255))
    _, valid = Scene.open(path).read()
    with SceneSource(path) as source:
        mapped = source.read(Box(0, 0, 40, 50)).valid
    expected = np.ones((40, 50), bool)
    expected[:10, :10] = kind in ("none",)
    assert np.array_equal(mapped, expected)
    assert np.array_equal(np.ones((40, 50), bool) if valid is None else valid, expected)


def test_borders_that_nothing_declares_can_be_named(tmp_path):
    pixels = noise(96, 96) // 4 + 100
    pixels[:, 48:] = 0
    write(tmp_path / "border.tif", pixels)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "border.png")
    for cache in (True, False):
        data = ScenePatches(tmp_path, size=16, length=50, nodata=0, max_nodata=0.3, cache=cache)
        assert min(float(data[i]["image"].min()) for i in range(50)) > 99
    module = ScenePatchesDataModule(tmp_path, 16, 1, val_fraction=0, nodata=0)
    module.setup("fit")
    np.testing.assert_allclose(module.mean, pixels[:, :48].mean((1, 2)), rtol=1e-6)
    assert module.nodata == 0
    declared = write(tmp_path / "x/declared.tif", pixels, nodata=7)
    assert Scene.open(declared).nodata == 7
    assert ScenePatches(declared, size=16, nodata=0).scenes[0].nodata == 7


def test_nan_counts_as_nodata(tmp_path):
    pixels = np.full((1, 64, 64), 5.0, np.float32)
    pixels[0, :, 40:] = np.nan
    data = ScenePatches(write(tmp_path / "nan.tif", pixels), size=16, length=30, max_nodata=0.9)
    assert all(data[i]["image"].isfinite().all() for i in range(30))
    mean, std = band_statistics([(s, s.whole) for s in data.scenes])
    assert mean.tolist() == [5.0]
    assert std.tolist() == [1.0]


def test_statistics_are_those_of_the_valid_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(1000, 1100, (3, 1500, 40)).astype(np.uint16)
    pixels[:, :500] = 0
    write(tmp_path / "a.tif", pixels, nodata=0)
    other = np.random.default_rng(1).integers(3000, 3010, (3, 30, 30)).astype(np.uint16)
    write(tmp_path / "b.tif", other, nodata=0)
    opened = [Scene.open(tmp_path / name) for name in ("a.tif", "b.tif")]
    mean, std = band_statistics([(s, s.whole) for s in opened])
    values = np.concatenate([pixels[:, 500:].reshape(3, -1), other.reshape(3, -1)], 1)
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(std, values.std(1), rtol=1e-5)


def test_alpha_is_a_mask_and_not_a_band(tmp_path):
    rgba = np.full((32, 32, 4), 90, np.uint8)
    rgba[..., 3] = 255
    rgba[16:, :, :] = 0
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    bands = np.ascontiguousarray(rgba.transpose(2, 0, 1))
    write(tmp_path / "b.tif", bands, photometric="rgb", alpha="yes")
    for name in ("a.png", "b.tif"):
        pixels, valid = Scene.open(tmp_path / name).read()
        assert pixels.shape == (3, 32, 32)
        assert valid[:16].all()
        assert not valid[16:].any()


def test_near_infrared_that_is_declared_as_alpha_is_warned_of_and_can_be_read(tmp_path):
    pixels = noise(40, 40, 4)
    pixels[3, :20] = 0
    path = write(tmp_path / "rgbn.tif", pixels)  # GDAL calls the fourth band alpha
    with pytest.warns(UserWarning, match=r"rgbn\.tif: band 4.*indexes"):
        assert ScenePatches(path, size=16).bands == ("red", "green", "blue")
    read, valid = Scene.open(path, (1, 2, 3, 4)).read()
    assert valid is None
    np.testing.assert_array_equal(read, pixels)


def test_bands_can_be_chosen_and_must_agree(tmp_path):
    four = np.stack([np.full((32, 32), b, np.uint8) for b in (1, 2, 3, 4)])
    write(tmp_path / "four.tif", four, alpha="unspecified", photometric="rgb")
    Image.new("RGB", (32, 32), (7, 8, 9)).save(tmp_path / "photo.png")
    with pytest.raises(BandMismatchError, match=r"4 bands in four\.tif; 3 bands in photo\.png"):
        ScenePatches(tmp_path, size=16)
    data = ScenePatches(tmp_path, size=16, length=20, indexes=(3, 1), bands=("nir", "red"))
    assert {tuple(data[i]["image"].mean((1, 2)).tolist()) for i in range(20)} == {(3, 1), (9, 7)}
    with pytest.raises(BandMismatchError, match="band 5"):
        ScenePatches(tmp_path / "four.tif", size=16, indexes=(5,))
    with pytest.raises(BandMismatchError, match="1 band names"):
        ScenePatches(tmp_path / "photo.png", size=16, bands=("red",))


@pytest.mark.parametrize("cache", [True, False])
def test_a_truncated_file_is_named_and_counted(folder, cache):
    bad = folder / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    options = {"size": 16, "length": 40, "cache": cache}

    def read_all(**more):
        data = ScenePatches(folder, **options, **more)
        return data, [data[i]["image"] for i in range(40)]

    with pytest.raises(ImageReadError, match=r"3\.jpg.*max_bad_files=0"):
        read_all()
    with pytest.warns(UserWarning, match=r"left out: .*3\.jpg"):
        data, images = read_all(max_bad_files=1)
    assert list(data.bad_files) == [bad]
    assert not any(abs(i.mean() - 40) < 2 for i in images)


def test_what_is_no_image_is_named(tmp_path):
    for name in ("a.tif", "b.png"):
        (tmp_path / name).write_text("nothing")
        with pytest.raises(ImageReadError, match=name):
            ScenePatches(tmp_path / name, size=16)
    with pytest.warns(UserWarning), pytest.raises(DataNotFoundError, match="none of the 2"):
        ScenePatches(tmp_path, size=16, max_bad_files=5)


def test_a_truncated_geotiff_is_named(tmp_path):
    path = write(tmp_path / "cut.tif", noise(300, 300), compress="deflate")
    path.write_bytes(path.read_bytes()[:-60_000])
    with pytest.raises(ImageReadError, match=r"cut\.tif"):
        ScenePatches(path, size=16)


def test_splits_are_by_file_and_normalised_batches_have_the_statistics(folder, tmp_path):
    module = ScenePatchesDataModule(folder, size=16, batch_size=8, length=64, val_fraction=0.3)
    module.setup("fit")
    split = module.splits()
    held = {s.path.name for s in split["val"]}
    assert len(held) == 3
    assert held.isdisjoint(s.path.name for s in split["train"])
    again = ScenePatchesDataModule(folder, val_fraction=0.3).splits()
    assert {s.path.name for s in again["val"]} == held
    batches = [module.aug(b)["image"] for b in module.train_dataloader()]
    assert torch.cat(batches).mean().abs() < 0.3
    assert torch.cat(batches).std() == pytest.approx(1, abs=0.3)
    one, two = ([b["image"] for b in module.val_dataloader()] for _ in range(2))
    assert torch.equal(torch.cat(one), torch.cat(two))
    content = json.loads(module.write_manifest(tmp_path / "m.json").read_text())
    assert {e["file"] for e in content["splits"]["val"]} == held
    assert module.bands == ("red", "green", "blue")
    assert module.classes == ()


def test_what_is_too_large_to_hash_is_listed_without_hashes(folder, tmp_path, monkeypatch):
    module = ScenePatchesDataModule(folder, val_fraction=0.3)
    entries = json.loads(module.write_manifest(tmp_path / "m.json").read_text())["splits"]
    assert all(len(e["sha256"]) == 64 for e in entries["train"])
    monkeypatch.setattr("rsmamba.data.scene_patches_datamodule.HASHED_BYTES", 100)
    bare = json.loads(module.write_manifest(tmp_path / "m.json").read_text())["splits"]
    assert bare == {k: [{"file": e["file"]} for e in v] for k, v in entries.items()}


def test_given_statistics_are_used(folder):
    module = ScenePatchesDataModule(folder, size=16, batch_size=2, mean=[1, 2, 3], std=[4, 5, 6])
    module.setup("fit")
    assert module.mean.tolist() == [1, 2, 3]
    assert module.std.tolist() == [4, 5, 6]


def test_contradictions_are_refused(folder):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        ScenePatchesDataModule(folder / "nowhere").setup("fit")
    with pytest.raises(ConfigError, match="batch of 64"):
        ScenePatchesDataModule(folder, size=16, batch_size=64, length=10).setup("fit")
    with pytest.raises(ConfigError, match="scale"):
        ScenePatches(folder, scale=(0.5, 1.5))
    with pytest.raises(ConfigError, match="stride=0"):
        ScenePatches(folder, stride=0)
    with pytest.raises(ConfigError, match="length=5: a grid"):
        ScenePatches(folder, windows="grid", length=5)
    with pytest.raises(ConfigError, match="fraction to 0"):
        ScenePatchesDataModule(folder / "1.jpg", size=16).setup("fit")


def test_a_plot_shows_the_sample(folder):
    data = ScenePatches(folder, size=16)
    figure = data.plot(data[0], suptitle="one")
    assert figure.axes[0].images[0].get_array().shape == (16, 16, 3)


# Gridded windows


def corners(data, count=None):
    """Value of the first pixel of each window, which tells where it is from."""
    return [tuple(data[i]["image"][:, 0, 0].tolist()) for i in range(count or len(data))]


@pytest.fixture
def coordinates(tmp_path):
    """An image of 48 x 40 pixels that hold their row and column."""
    return write(tmp_path / "c.tif", np.mgrid[:48, :40].astype(np.uint8))


def test_a_grid_covers_every_pixel(coordinates):
    data = ScenePatches(coordinates, size=16, windows="grid", flips=False)
    assert corners(data) == [(r, c) for r in (0, 16, 32) for c in (0, 16, 24)]
    assert torch.equal(data[9]["image"], data[0]["image"])  # the next epoch
    overlapping = ScenePatches(coordinates, size=16, windows="grid", stride=12, flips=False)
    assert corners(overlapping) == [(r, c) for r in (0, 12, 24, 32) for c in (0, 12, 24)]


def test_images_smaller_than_a_window_are_covered_by_squares(tmp_path):
    path = write(tmp_path / "thin.tif", np.mgrid[:8, :20].astype(np.uint8))
    data = ScenePatches(path, size=16, windows="grid", flips=False)
    regions = [data.grid[i][1] for i in range(len(data))]
    assert [(r.row, r.col, r.height, r.width) for r in regions] == [
        (0, 0, 8, 8),
        (0, 8, 8, 8),
        (0, 12, 8, 8),
    ]
    assert data[0]["image"].shape == (2, 16, 16)


def test_a_shuffled_grid_shows_each_window_once_in_an_epoch(coordinates):
    options = {"size": 16, "windows": "grid", "flips": False}
    data = ScenePatches(coordinates, shuffle=True, seed=3, **options)
    everything = corners(ScenePatches(coordinates, **options))
    first, second = corners(data), corners(data, 18)[9:]
    assert sorted(first) == sorted(second) == sorted(everything)
    assert len({tuple(x) for x in (first, second, everything)}) == 3


def test_a_grid_gives_way_where_there_is_nothing(tmp_path):
    pixels = np.zeros((1, 32, 32), np.uint8)
    pixels[:, :16] = 9
    path = write(tmp_path / "half.tif", pixels, nodata=0)
    data = ScenePatches(path, size=16, windows="grid")
    assert [float(data[i]["image"].mean()) for i in range(4)] == [9.0] * 4


@pytest.mark.parametrize("workers", [0, 4])
def test_gridded_windows_can_be_trained_on(coordinates, workers):
    for i in (1, 2):
        tile = np.mgrid[100 * i : 100 * i + 32, :32].astype(np.uint8)
        write(coordinates.parent / f"{i}.tif", tile)
    module = ScenePatchesDataModule(
        f"{coordinates.parent}/[12].tif", 16, 1, workers, windows="grid", flips=False,
        val_fraction=0.5,
    )  # fmt: skip
    for stage in ("fit", "validate", "test", "predict"):
        module.setup(stage)
    loader = module.train_dataloader()
    epochs = [[tuple(b["image"][0, :, 0, 0].tolist()) for b in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    held = [tuple(b["image"][0, :, 0, 0].tolist()) for b in module.val_dataloader()]
    first = 100 * int(next(iter(module.splits()["val"])).path.stem)
    assert held == [(first + r, c) for r in (0, 16) for c in (0, 16)]


# Large collections: opened when they are drawn


@pytest.fixture
def large(folder, tmp_path_factory, monkeypatch):
    """The ten JPEGs as if there were too many to open up front; options to read them."""
    monkeypatch.setattr("rsmamba.data.collection.HEADERS", 3)
    index = tmp_path_factory.mktemp("index") / "index.parquet"
    return {"root": folder, "size": 16, "index": index}


def value(image):
    """The one colour of an image."""
    return round(float(image.mean()) / 10)


def test_each_image_of_a_large_collection_is_drawn_once_in_an_epoch(large):
    data = ScenePatches(**large)
    assert len(data) == 10
    for epoch in range(2):
        drawn = [value(data[10 * epoch + i]["image"]) for i in range(10)]
        assert sorted(drawn) == list(range(1, 11))


def test_images_of_a_large_collection_are_drawn_by_area_if_asked(large, folder):
    Image.new("RGB", (400, 400), (200, 200, 200)).save(folder / "big.jpg")
    large["refresh"] = True
    equal = ScenePatches(length=110, **large)
    assert [value(equal[i]["image"]) for i in range(110)].count(20) == 10
    by_area = ScenePatches(length=110, weights="area", **large)
    share = 400 * 400 / (400 * 400 + 5 * 40 * 56 + 5 * 48 * 48)
    drawn = [value(by_area[i]["image"]) for i in range(110)]
    assert abs(drawn.count(20) - 110 * share) < 1


def test_sizes_are_looked_up_once(large, monkeypatch, caplog):
    gridded = ScenePatches(windows="grid", **large)
    assert len(gridded) == 5 * 9 + 5 * 12  # of 48 x 48 and 56 x 40 pixels
    assert "looking up the sizes of 10 images, once" in caplog.text
    monkeypatch.setattr("rsmamba.data.collection._look_up", None)
    assert len(ScenePatches(windows="grid", **large)) == 105


def test_a_copy_of_a_large_collection_gives_the_same(large):
    data = ScenePatches(**large)
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(data[i]["image"], copy[i]["image"]) for i in range(10))


def test_long_epochs_are_shuffled_without_a_table(monkeypatch):
    monkeypatch.setattr("rsmamba.data.sampling.LONGEST_TABLE", 0)
    for length in (1, 2, 3, 1000):
        for epoch in range(2):
            places = [shuffled(i, length, (7, 0, epoch)) for i in range(length)]
            assert sorted(places) == list(range(length))
    order = np.array([shuffled(i, 1000, (7, 0, 0)) for i in range(1000)])
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1
    assert (order != [shuffled(i, 1000, (8, 0, 0)) for i in range(1000)]).mean() > 0.99


@pytest.mark.parametrize("workers", [0, 4])
def test_a_large_collection_is_pretrained_on(large, workers, tmp_path, caplog):
    def module(**options):
        made = ScenePatchesDataModule(
            **large, batch_size=2, num_workers=workers, length=6, val_fraction=0.3, **options
        )
        made.prepare_data()
        for stage in ("fit", "validate", "test", "predict"):
            made.setup(stage)
        return made

    one = module()
    split = one.splits()
    assert (len(split["train"]), len(split["val"])) == (7, 3)
    names = [{s.path.name for s in part} for part in split.values()]
    assert names[0].isdisjoint(names[1])
    assert "mean and deviation are those of 7 of 7 images" in caplog.text
    again = module(mean=one.mean.tolist(), std=one.std.tolist())
    for loader in ("train", "val", "test", "predict"):
        a, b = (torch.cat([x["image"] for x in getattr(m, f"{loader}_dataloader")()])
                for m in (one, again))  # fmt: skip
        assert torch.equal(a, b)
    written = json.loads(one.write_manifest(tmp_path / "m.json").read_text())
    assert written["settings"]["images"] == {"train": 7, "val": 3}
    assert written["settings"]["index"] == str(large["index"])
    assert written["settings"]["index_sha256"] == one.find().files.sha256()
    assert written["splits"] == {}


def test_files_that_workers_opened_are_not_shared_with_them(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.tif", noise(300, 300, seed=i), compress="deflate", tiled=True,
              blockxsize=64, blockysize=64)  # fmt: skip
    batches = {}
    for workers in (0, 4):
        module = ScenePatchesDataModule(
            tmp_path, 32, 4, workers, length=64, val_fraction=0, cache=False
        )
        module.setup("fit")
        module.train_dataset[0]  # leaves a file open in the parent
        batches[workers] = torch.cat([b["image"] for b in module.train_dataloader()])
    assert torch.equal(batches[0], batches[4])


# The data module


def test_stages_see_other_windows_of_the_files_held_back(folder):
    module = ScenePatchesDataModule(folder, 16, 1, val_fraction=0.3, val_length=3)
    for stage in ("validate", "test", "predict"):
        module.setup(stage)
    assert module.train_dataset is None
    held = {int(s.path.stem) + 1 for s in module.splits()["val"]}
    seen = [
        torch.cat([b["image"] for b in loader()])
        for loader in (module.val_dataloader, module.test_dataloader, module.predict_dataloader)
    ]
    assert {value(image) for images in seen for image in images} <= held
    assert not torch.equal(seen[0], seen[1])
    everything = ScenePatchesDataModule(folder, 16, 1, val_fraction=0)
    everything.setup("predict")
    assert len(everything.predict_dataloader()) == len(everything.predict_dataset) >= 10
    with pytest.raises(ConfigError, match="set val_fraction"):
        everything.setup("test")


@pytest.mark.shared
def test_real_scenes_of_all_kinds_are_read_together():
    root = Path(__file__).parents[2] / "../shared/data/geotiff"
    if not root.is_dir():
        pytest.skip("the developers' imagery is not here")
    with pytest.raises(BandMismatchError, match="7 bands in landsat8"):
        ScenePatches(root)
    with pytest.raises(BandMismatchError, match="uint16 in cog_nodata"):
        ScenePatches(root, indexes=[1])
    data = ScenePatches(
        root, 64, 300, indexes=[1], scales={"uint8": 1, "uint16": 0.0255}, nodata=0, max_nodata=0.1
    )
    assert len(data.scenes) == 15
    images = torch.stack([data[i]["image"] for i in range(300)])
    assert images.shape == (300, 1, 64, 64)
    assert 0 <= images.min() and images.max() < 1700
    assert images.flatten(1).max(1).values.min() > 0  # no black border
    grid = ScenePatches(root / "landsat7_sf_2181x1917_nodata0.tif", 192, windows="grid")
    assert len(grid) == 12 * 10


def test_the_shipped_images_feed_pretraining():
    data = ScenePatches("sample:aerial_unlabelled/00*.jpg", size=96)
    assert len(data.scenes) == 100
    image = data[0]["image"]
    assert image.shape == (3, 96, 96)
    assert image.std() > 5
    assert ScenePatches("sample:landsat", size=64, length=3)[2]["image"].isfinite().all()
    assert samples.path("landsat").is_dir()

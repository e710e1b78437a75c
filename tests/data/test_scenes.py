"""Unlabelled windows: seeded, nodata-aware, honest about bad files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rsmamba import samples
from rsmamba.data import ScenePatches, ScenePatchesDataModule, scenes
from rsmamba.data.images import Scene
from rsmamba.data.sampling import EpochSampler, Lottery, band_statistics
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    ImageReadError,
)
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
    monkeypatch.setattr(scenes, "ASPECT", (1.0, 1.0))
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
    with pytest.raises(ConfigError, match="fraction to 0"):
        ScenePatchesDataModule(folder / "1.jpg", size=16).setup("fit")


def test_a_plot_shows_the_sample(folder):
    data = ScenePatches(folder, size=16)
    figure = data.plot(data[0], suptitle="one")
    assert figure.axes[0].images[0].get_array().shape == (16, 16, 3)


def test_the_shipped_images_feed_pretraining():
    data = ScenePatches("sample:aerial_unlabelled/00*.jpg", size=96)
    assert len(data.scenes) == 100
    image = data[0]["image"]
    assert image.shape == (3, 96, 96)
    assert image.std() > 5
    assert ScenePatches("sample:landsat", size=64, length=3)[2]["image"].isfinite().all()
    assert samples.path("landsat").is_dir()

"""Pairs: labels in their codings, sizes and places that differ, windows that count once."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin

from rsmamba.data.change import BandFiles, Pair, read_label
from rsmamba.data.change_datamodule import PairWindows, spans
from rsmamba.data.images import IGNORE, Region, Scene
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    CRSError,
    GridMismatchError,
    ImageReadError,
    LabelError,
)

SHARED = Path(__file__).parents[2] / "../shared/data"


def tiff(path, values, *, crs="EPSG:32633", origin=(500000, 5000000), nodata=None):
    bands = np.atleast_3d(values.T).T if values.ndim == 2 else values
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        dtype=bands.dtype,
        crs=crs,
        transform=from_origin(*origin, 10, 10) if crs else None,
        nodata=nodata,
    ) as out:
        out.write(bands)
    return path


def png(path, values):
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    """Makes a pair of the given size; each pixel's value is its position."""

    def make(height=50, width=70, name="town", **options):
        values = np.arange(height * width, dtype=np.uint16).reshape(1, height, width)
        before = tiff(tmp_path / f"{name}1.tif", np.concatenate([values, values + 1]), **options)
        after = tiff(tmp_path / f"{name}2.tif", np.concatenate([values + 2, values + 3]))
        changed = np.zeros((height, width), np.uint8)
        changed[::3, ::2] = 255
        label = png(tmp_path / f"{name}.png", changed)
        return Pair.open(name, Scene.open(before), Scene.open(after), label)

    return make


@given(
    st.integers(1, 400),
    st.integers(1, 130).flatmap(
        lambda size: st.tuples(st.just(size), st.integers(0, (size - 1) // 2))
    ),
)
@settings(max_examples=300, deadline=None)
def test_the_windows_of_an_axis_count_each_position_once(length, size_and_halo):
    size, halo = size_and_halo
    found = spans(length, size, halo)
    counted = [p for _, begin, end in found for p in range(begin, end)]
    assert counted == list(range(length))
    for start, begin, end in found:
        assert 0 <= start <= max(0, length - size)  # real pixels only, unless the axis is shorter
        assert begin >= (start + halo if start else 0)
        assert end <= (start + size - halo if end < length else start + size)


@pytest.mark.parametrize(
    ("height", "width", "size", "halo"),
    [
        (50, 70, 32, 0),
        (50, 70, 32, 8),
        (64, 64, 32, 0),
        (20, 70, 32, 4),
        (9, 5, 32, 0),
        (32, 33, 32, 0),
    ],
)
def test_over_all_tiles_each_pixel_of_a_scene_counts_once(pair, height, width, size, halo):
    scene = pair(height, width)
    tiles = PairWindows([scene], size, halo=halo, fill=torch.tensor([-1.0, -2.0]))
    count = torch.zeros(height, width, dtype=torch.long)
    truth = torch.full((height, width), -1)
    for sample in tiles:
        assert sample["image"].shape == (2, 2, size, size)
        assert sample["mask"].shape == (1, size, size)
        rows, cols = (sample["mask"][0] != IGNORE).nonzero(as_tuple=True)
        row, col = sample["origin"].tolist()
        for start, length, inside in ((row, height, rows), (col, width, cols)):
            assert inside.min() >= (halo if start else 0)
            assert inside.max() < (size - halo if start + size < length else size)
        # the window shows what is there, beneath the mask and beside it
        positions = (row + rows) * width + col + cols
        assert (sample["image"][0, 0, rows, cols] == positions).all()
        assert (sample["image"][1, 1, rows, cols] == positions + 3).all()
        count[row + rows, col + cols] += 1
        truth[row + rows, col + cols] = sample["mask"][0, rows, cols]
    assert (count == 1).all()
    assert truth.equal(torch.from_numpy(scene.mask()).long())


def test_tiles_at_the_border_hold_real_pixels_and_padding_is_the_fill_value(pair):
    inside = PairWindows([pair(50, 70)], 32, fill=torch.tensor([-1.0, -2.0]))
    assert len(inside) == 6
    assert all((s["image"] >= 0).all() for s in inside)
    small = PairWindows([pair(9, 5)], 32, fill=torch.tensor([-1.0, -2.0]))[0]
    assert (small["image"][:, 0, 9:] == -1).all()
    assert (small["image"][:, 1, :, 5:] == -2).all()
    assert (small["mask"][0, 9:] == IGNORE).all()


def test_random_windows_depend_on_seed_and_index_alone(pair):
    scenes = [pair(50, 70, "a"), pair(40, 90, "b"), pair(10, 10, "c")]
    first = PairWindows(scenes, 16, 40, seed=3)
    again = PairWindows(scenes, 16, 40, seed=3)
    other = PairWindows(scenes, 16, 40, seed=4)
    assert first.endless
    for index in (39, 0, 57, 1000):
        assert first[index]["image"].equal(again[index]["image"])
    assert any(not first[i]["image"].equal(other[i]["image"]) for i in range(40))
    assert any(not first[i]["image"].equal(first[40 + i]["image"]) for i in range(40))


def test_random_windows_are_drawn_by_area_and_stay_inside(pair):
    scenes = [pair(50, 80, "large"), pair(50, 20, "small")]
    samples = [PairWindows(scenes, 16, 50)[i] for i in range(50)]
    drawn = torch.stack([s["scene"] for s in samples])
    assert (drawn == 0).sum() == 40
    for sample in samples:
        scene = scenes[sample["scene"]]
        row, col = sample["origin"].tolist()
        assert row + 16 <= scene.height
        assert col + 16 <= scene.width
        assert (sample["mask"] != IGNORE).all()


def test_windows_are_the_same_from_memory_and_from_the_files(pair):
    scenes = [pair(50, 70, "a"), pair(40, 90, "b")]
    from_files = list(PairWindows(scenes, 32))
    assert not scenes[0].kept
    for scene in scenes:
        scene.keep()
    for one, other in zip(from_files, PairWindows(scenes, 32), strict=True):
        assert all(one[key].equal(other[key]) for key in ("image", "mask", "scene", "origin"))


def test_pixels_without_data_on_either_date_do_not_count(tmp_path):
    values = np.full((1, 8, 8), 5, np.uint16)
    holed = values.copy()
    holed[0, :2] = 0
    before = tiff(tmp_path / "1.tif", holed, nodata=0)
    after = tiff(tmp_path / "2.tif", np.where(np.eye(8, dtype=bool)[None], np.nan, 1).astype("f4"))
    label = png(tmp_path / "cm.png", np.zeros((8, 8)))
    scene = Pair.open("town", Scene.open(before), Scene.open(after), label)
    sample = PairWindows([scene], 8, fill=torch.tensor([7.0]))[0]
    unknown = sample["mask"][0] == IGNORE
    assert unknown.equal((torch.arange(8) < 2)[:, None] | torch.eye(8, dtype=bool))
    assert (sample["image"][:, 0, unknown] == 7).all()
    assert (sample["image"][0, 0, ~unknown] == 5).all()


@pytest.mark.parametrize(("size", "halo"), [(0, 0), (16, 8), (16, -1)])
def test_windows_that_leave_nothing_are_refused(size, halo):
    with pytest.raises(ConfigError, match=f"windows of {size} px with a margin of {halo}"):
        PairWindows([], size, halo=halo)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 2], [2, 1]], [[0, 1], [1, 0]]),
        ([[1, 1], [1, 1]], [[0, 0], [0, 0]]),
        ([[2, 2], [2, 2]], [[1, 1], [1, 1]]),
        ([[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        ([[0, 255], [255, 0]], [[0, 1], [1, 0]]),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_coding_of_a_label_is_understood(tmp_path, values, expected, suffix):
    path = tmp_path / f"cm.{suffix}"
    (png if suffix == "png" else tiff)(path, np.array(values, np.uint8))
    assert read_label(path).tolist() == expected


def test_a_lossy_label_is_parted_in_the_middle_with_a_warning(tmp_path):
    path = png(tmp_path / "cm.png", [[[v] * 3 for v in (0, 3, 120, 130, 254, 255)]])
    with pytest.warns(UserWarning, match=r"cm\.png: 4 pixels are grey"):
        assert read_label(path).tolist() == [[0, 0, 0, 1, 1, 1]]


def test_labels_that_say_nothing_are_refused_by_name(tmp_path):
    odd = png(tmp_path / "odd.png", [[0, 1, 2]])
    with pytest.raises(LabelError, match=r"odd\.png: holds the values 0, 1, 2"):
        read_label(odd)
    coloured = png(tmp_path / "coloured.png", [[[255, 0, 0], [0, 0, 0]]])
    with pytest.raises(LabelError, match=r"coloured\.png: has colours"):
        read_label(coloured)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 60000]], np.uint16)).save(deep)
    with pytest.raises(LabelError, match=r"deep\.png: more than one band of 8 bits"):
        read_label(deep)
    with pytest.raises(LabelError, match=r"deep\.tif: more than one band"):
        read_label(tiff(tmp_path / "deep.tif", np.array([[1, 300]], np.uint16)))
    with pytest.raises(LabelError, match=r"several\.tif: more than one band"):
        read_label(tiff(tmp_path / "several.tif", np.zeros((3, 2, 2), np.uint8)))


def test_a_label_with_nodata_is_unknown_there(tmp_path):
    path = tiff(tmp_path / "cm.tif", np.array([[1, 2, 0]], np.uint8), nodata=0)
    assert read_label(path).tolist() == [[0, 1, IGNORE]]


def test_a_truncated_label_is_named(tmp_path):
    path = png(tmp_path / "cm.png", np.random.default_rng(0).integers(0, 2, (64, 64)) * 255)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ImageReadError, match=r"cm\.png"):
        read_label(path)


def test_files_of_unequal_size_are_cut_to_the_common_one_with_a_warning(tmp_path):
    before = tiff(tmp_path / "1.tif", np.full((1, 50, 60), 1, np.uint16))
    after = tiff(tmp_path / "2.tif", np.full((1, 48, 61), 2, np.uint16))
    changed = np.zeros((49, 59), np.uint8)
    changed[47, 58] = 255
    label = png(tmp_path / "cm.png", changed)
    with pytest.warns(UserWarning, match=r"town: .*cm\.png is 49 x 59.*2\.tif is 48 x 61.*48 x 59"):
        scene = Pair.open("town", Scene.open(before), Scene.open(after), label)
    for _ in range(2):
        pixels, mask = scene.read(scene.whole)
        assert pixels.shape == (2, 1, 48, 59)
        assert mask.shape == (48, 59)
        assert mask[47, 58] == 1
        scene.keep()
    assert scene.change() == (1, 48 * 59)


def test_files_that_have_nothing_to_do_with_each_other_are_refused(tmp_path, pair):
    one = Scene.open(tiff(tmp_path / "1.tif", np.ones((1, 50, 60), np.uint16)))
    label = png(tmp_path / "cm.png", np.zeros((50, 60)))
    native = Scene.open(tiff(tmp_path / "20m.tif", np.ones((1, 25, 30), np.uint16), crs=None))
    with pytest.raises(GridMismatchError, match=r"20m\.tif is 25 x 30.*not the same pixels"):
        Pair.open("town", one, native, label)
    far = Scene.open(
        tiff(tmp_path / "far.tif", np.ones((1, 50, 60), np.uint16), origin=(500000, 5000200))
    )
    with pytest.raises(GridMismatchError, match=r"far\.tif show different places.*20 rows"):
        Pair.open("town", one, far, label)
    other = tiff(tmp_path / "crs.tif", np.ones((1, 50, 60), np.uint16), crs="EPSG:32634")
    with pytest.raises(CRSError, match=r"crs\.tif differ in their coordinate"):
        Pair.open("town", one, Scene.open(other), label)
    more = Scene.open(tiff(tmp_path / "more.tif", np.ones((2, 50, 60), np.uint16)))
    with pytest.raises(BandMismatchError, match=r"more\.tif"):
        Pair.open("town", one, more, label)


def test_bands_in_files_of_their_own_are_one_image(tmp_path):
    bands = np.random.default_rng(0).integers(0, 9000, (3, 20, 30), np.uint16)
    paths = [tiff(tmp_path / f"B{i}.tif", band) for i, band in enumerate(bands)]
    image = BandFiles.of(tmp_path, paths)
    assert (image.height, image.width, image.indexes) == (20, 30, (1, 2, 3))
    pixels, valid = image.read(Region(5, 6, 7, 8))
    assert valid is None
    assert (pixels == bands[:, 5:12, 6:14]).all()
    image.keep()
    assert (image.read(Region(5, 6, 7, 8))[0] == pixels).all()


def test_bands_that_do_not_fit_are_refused(tmp_path):
    ten = tiff(tmp_path / "B04.tif", np.ones((20, 30), np.uint16))
    sixty = tiff(tmp_path / "B01.tif", np.ones((4, 5), np.uint16))
    with pytest.raises(GridMismatchError, match=r"B01\.tif is 4 x 5.*B04\.tif 20 x 30"):
        BandFiles.of(tmp_path, [ten, sixty])
    stack = tiff(tmp_path / "stack.tif", np.ones((2, 20, 30), np.uint16))
    with pytest.raises(BandMismatchError, match=r"stack\.tif: has 2 bands"):
        BandFiles.of(tmp_path, [stack])


@pytest.mark.shared
def test_the_published_lossy_label_equals_the_clean_one():
    oscd = SHARED / "oscd"
    if not oscd.is_dir():
        pytest.skip("no shared data")
    with pytest.warns(UserWarning, match="pixels are grey"):
        lossy = read_label(oscd / "extra_original_labels/aguasclaras_cm_as_published.png")
    folder = oscd / "Onera Satellite Change Detection dataset - Train Labels/aguasclaras/cm"
    assert (lossy == read_label(folder / "aguasclaras-cm.tif")).all()
    assert (lossy == read_label(folder / "cm.png")).all()

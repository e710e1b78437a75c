"""Own scenes with labels: right pixels, right places, clear errors."""

import json
import warnings

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from jsonargparse import ArgumentParser
from pyproj import Transformer

from rsmamba.data import LabelledScenes, LabelledScenesDataModule
from rsmamba.data.areas import hold_out, outlines, spatial_blocks
from rsmamba.data.augment import SegmentationAugmentation
from rsmamba.data.images import Scene
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    CRSError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    LabelError,
)
from tests.data.scenes.data import CRS, EAST, NORTH, expected_mask, make, noise, write

SAMPLE = {
    "images": ["sample:buildings/chips", "sample:buildings/scene.tif"],
    "labels": ["sample:buildings/labels", "sample:buildings/scene.geojson"],
    "classes": ["building"],
    "test_area": [32.595062255859375, 0.35018702872728885, 32.59574890136719, 0.3508736613849764],
}


@pytest.fixture
def root(tmp_path):
    return make(tmp_path)


def module(root, **options):
    defaults = {"attribute": "kind", "classes": ["house", "shed"], "patch_size": 32}
    return LabelledScenesDataModule(
        root / "images", root / "labels.gpkg", **{**defaults, "batch_size": 4, **options}
    )


def scenes(root, **options):
    defaults = {"attribute": "kind", "classes": ["house", "shed"], "patch_size": 64}
    return LabelledScenes(root / "images", root / "labels.gpkg", **{**defaults, **options})


def names(data_module, split):
    data = data_module.scenes.scenes
    return [data[i].path.stem for i, _ in data_module.splits()[split]]


# labels


@pytest.mark.parametrize("cache", [True, False])
def test_polygons_fall_on_their_pixels(root, cache):
    data = scenes(root, cache=cache)
    assert data.classes == ("background", "house", "shed")
    assert len(data) == 6
    for i in range(6):
        sample = data[i]
        np.testing.assert_array_equal(sample["mask"].numpy(), expected_mask())
        assert sample["mask"].dtype == torch.int64
        np.testing.assert_array_equal(sample["image"], noise(64, 64, seed=[0, 1, 2, 10, 11, 12][i]))


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".shp", ".parquet"])
@pytest.mark.parametrize("crs", ["EPSG:32636", "EPSG:4326", "EPSG:32635"])
def test_layers_of_any_format_and_crs_are_reprojected(root, tmp_path, suffix, crs):
    frame = gpd.read_file(root / "labels.gpkg").to_crs(crs)
    path = tmp_path / f"other{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, **({"COORDINATE_PRECISION": 12} if suffix == ".geojson" else {}))
    data = LabelledScenes(
        root / "images", path, attribute="kind", classes=["house", "shed"], patch_size=64
    )
    for i in range(6):
        wrong = data[i]["mask"].numpy() != expected_mask()
        assert wrong.mean() < 2e-3  # GeoJSON rounds, and edges lie on pixel borders


def test_a_rotated_grid_is_respected(tmp_path):
    turn = Affine.translation(EAST, NORTH) @ Affine.rotation(30) @ Affine.scale(2, -2)
    write(tmp_path / "turned.tif", noise(40, 40), transform=turn)
    corners = [turn @ c for c in ((10, 4), (20, 4), (20, 30), (10, 30))]
    frame = gpd.GeoDataFrame(geometry=[shapely.Polygon(corners).buffer(-0.01)], crs=CRS)
    frame.to_file(tmp_path / "l.gpkg")
    data = LabelledScenes(tmp_path / "turned.tif", tmp_path / "l.gpkg", patch_size=40)
    expected = np.zeros((40, 40), np.int64)
    expected[4:30, 10:20] = 1
    np.testing.assert_array_equal(data[0]["mask"], expected)
    assert data.classes == ("background", "foreground")


def test_classes_can_be_mapped_merged_ignored_and_derived(root):
    merged = scenes(root, classes={"house": "building", "shed": "building"})
    assert merged.classes == ("background", "building")
    assert (merged[0]["mask"].numpy() == (expected_mask() > 0)).all()
    ignored = scenes(root, classes={"house": "house", "shed": None})
    assert (ignored[0]["mask"][40:48, 40:48] == 255).all()
    derived = scenes(root, attribute="code", classes=None)
    assert derived.classes == ("background", *sorted(str(i) for i in range(12)))
    typed = scenes(root, attribute="code", classes={str(i): "any" for i in range(12)})
    assert typed.classes == ("background", "any")
    lone = scenes(root, attribute=None, classes=["building"], background=None)
    assert lone.classes == ("building",)
    assert set(lone[0]["mask"].unique().tolist()) == {0, 255}


def test_openstreetmaps_yes_survives_yaml(root, tmp_path):
    frame = gpd.read_file(root / "labels.gpkg")
    frame["building"] = ["yes", "no"] * 6
    frame.to_file(tmp_path / "osm.gpkg")
    parser = ArgumentParser()
    parser.add_class_arguments(LabelledScenesDataModule, "data")
    config = f"""data:
      images: [{root}/images/s00.tif, {root}/images/s01.tif]
      labels: {tmp_path}/osm.gpkg
      attribute: building
      classes: {{yes: house, no: null}}
      test_area: [1, 2, 3, 4]
    """
    parsed = parser.instantiate_classes(parser.parse_string(config)).data
    assert parsed.test_area == [1, 2, 3, 4]
    data = parsed.scenes
    assert [s.path.name for s in data.scenes] == ["s00.tif", "s01.tif"]
    assert data.classes == ("background", "house")
    expected = expected_mask()
    expected[expected == 2] = 255
    np.testing.assert_array_equal(data.subset(data.parts)[0]["mask"][:64, :64], expected)


def test_masks_by_stem_on_the_same_grid(root, tmp_path):
    for path in (root / "images").glob("*.tif"):
        mask = expected_mask().astype(np.uint8)
        mask[0, 0] = 255
        with rasterio.open(path) as src:
            origin = src.transform.c, src.transform.f
        write(path.with_suffix(".mask.tif"), mask[None], *origin)
    data = LabelledScenes(
        root / "images",
        root / "images/*.mask.tif",
        classes=["none", "house", "shed"],
        patch_size=64,
    )
    assert len(data.scenes) == 6  # the masks beside the images are not images
    expected = expected_mask()
    expected[0, 0] = 255
    np.testing.assert_array_equal(data[3]["mask"], expected)
    mapped = LabelledScenes(
        root / "images",
        root / "images",
        classes={0: "none", 1: "any", 2: "any", 255: "odd"},
        patch_size=64,
    )
    assert mapped.classes == ("none", "any", "odd")
    assert mapped[0]["mask"][0, 0] == 2


def test_nodata_is_ignored_and_filled(tmp_path):
    pixels = noise(40, 40)
    pixels[:, :10] = 0
    write(tmp_path / "a.tif", pixels, nodata=0)
    box = shapely.box(EAST, NORTH - 20, EAST + 40, NORTH)
    gpd.GeoDataFrame(geometry=[box], crs=CRS).to_file(tmp_path / "l.gpkg")
    data = LabelledScenes(tmp_path / "a.tif", tmp_path / "l.gpkg", patch_size=48)
    view = data.subset(data.parts, fill=torch.tensor([7.0, 8.0, 9.0]))
    sample = view[0]
    assert (sample["mask"][:10, :40] == 255).all()
    assert (sample["mask"][10:20, :40] == 1).all()
    assert (sample["mask"][40:] == 255).all()
    assert (sample["mask"][:, 40:] == 255).all()
    assert sample["image"][:, 0, 0].tolist() == [7, 8, 9]
    assert sample["image"][:, 47, 47].tolist() == [7, 8, 9]
    assert data.class_balance() == pytest.approx(
        {"background": 0.5, "foreground": 0.25, "(unlabelled)": 0.25}
    )


# windows


def test_the_grid_holds_every_pixel_once(tmp_path):
    pixels = np.arange(70 * 45, dtype=np.int32).reshape(1, 70, 45)
    write(tmp_path / "a.tif", pixels)
    write(tmp_path / "m.tif", np.zeros((1, 70, 45), np.uint8))
    (tmp_path / "masks").mkdir()
    (tmp_path / "m.tif").rename(tmp_path / "masks/a.tif")
    data = LabelledScenes(tmp_path / "a.tif", tmp_path / "masks", classes=["x"], patch_size=32)
    seen = torch.cat([s["image"][0][s["mask"] != 255] for s in (data[i] for i in range(len(data)))])
    assert sorted(seen.long().tolist()) == list(range(70 * 45))
    with pytest.raises(IndexError):
        data[len(data)]


def test_random_windows_agree_with_the_image_and_repeat(root):
    data = scenes(root)
    view = data.subset(data.parts, length=30, seed=4)
    view.patch_size = 20
    full = {i: data[i] for i in range(6)}
    for i in (0, 7, 29, 1000):
        sample = view[i]
        assert torch.equal(sample["image"], view[i]["image"])
        hits = [
            (r, c)
            for f in full.values()
            for r in range(45)
            for c in range(45)
            if f["image"][0, r, c] == sample["image"][0, 0, 0]
            and torch.equal(f["image"][:, r : r + 20, c : c + 20], sample["image"])
            and torch.equal(f["mask"][r : r + 20, c : c + 20], sample["mask"])
        ]
        assert len(hits) == 1


def test_training_windows_hold_a_labelled_pixel(root):
    data = scenes(root, background=None, attribute=None, classes=["building"], patch_size=12)
    view = data.subset(data.parts, length=60)
    assert all((view[i]["mask"] != 255).any() for i in range(60))


# splits


def area_of(col, row, size=64):
    """A scene's bounds in metres."""
    return [
        EAST + col * size,
        NORTH - (row + 1) * size,
        EAST + (col + 1) * size,
        NORTH - row * size,
    ]


def test_images_in_the_areas_are_held_out_and_touching_borders_do_not_count(root):
    m = module(root, test_area=area_of(1, 0), val_area=area_of(2, 1), area_crs=CRS)
    assert names(m, "test") == ["s01"]
    assert names(m, "val") == ["s12"]
    assert names(m, "train") == ["s00", "s02", "s10", "s11"]


def test_an_area_in_longitude_and_latitude_or_in_a_file_gives_the_same(root, tmp_path):
    minx, miny, maxx, maxy = area_of(1, 0)
    inner = shapely.box(minx + 1, miny + 1, maxx - 1, maxy - 1)
    gpd.GeoSeries([inner], crs=CRS).to_crs(3857).to_file(tmp_path / "area.gpkg")
    to_degrees = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)
    degrees = to_degrees.transform_bounds(*inner.bounds)
    for area in (tmp_path / "area.gpkg", str(tmp_path / "area.gpkg"), list(degrees)):
        assert names(module(root, test_area=area), "test") == ["s01"]


def test_a_tiny_overlap_counts_and_a_tinier_does_not(root):
    minx, miny, maxx, maxy = area_of(1, 0)
    grown = [minx, miny, maxx + 1e-3, maxy]  # 1e-3 / 64 of the neighbour's area
    assert names(module(root, test_area=grown, area_crs=CRS), "test") == ["s01", "s02"]
    grown = [minx, miny, maxx + 1e-5, maxy]
    assert names(module(root, test_area=grown, area_crs=CRS), "test") == ["s01"]


def test_areas_that_miss_or_swallow_everything_are_refused(root, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"test_area overlaps none of the 6.*longitudes"):
        module(root, test_area=[0, 0, 1, 1]).splits()
    with pytest.raises(ConfigError, match="all 6 images"):
        module(root, test_area=[32, 0, 34, 1]).splits()
    with pytest.raises(ConfigError, match="minx, miny"):
        module(root, test_area=[1, 1, 0, 0]).splits()
    with pytest.raises(DataNotFoundError, match=r"no\.gpkg"):
        module(root, test_area=tmp_path / "no.gpkg").splits()
    with pytest.raises(CRSError, match="area_crs='EPSG:0'"):
        module(root, test_area=[0, 0, 1, 1], area_crs="EPSG:0").splits()
    with pytest.raises(ConfigError, match="set test_area"):
        module(root).setup("test")


def test_a_fraction_is_held_out_in_blocks_by_seed(root):
    m = module(root, val_fraction=0.34, block_size=64)
    assert len(names(m, "val")) == 2
    assert set(names(m, "val")).isdisjoint(names(m, "train"))
    assert names(m, "val") == names(module(root, val_fraction=0.34, block_size=64), "val")
    other = {
        tuple(names(module(root, val_fraction=0.34, block_size=64, split_seed=s), "val"))
        for s in range(6)
    }
    assert len(other) > 1
    assert names(module(root, val_fraction=0), "val") == []


def test_neighbours_share_a_block_and_a_large_image_is_divided(root, tmp_path):
    small = [Scene.open(p) for p in sorted((root / "images").glob("*.tif"))]
    cells = spatial_blocks(small, 128)
    assert max(len(parts) for parts in cells.values()) > 1
    assert sum(len(parts) for parts in cells.values()) == 6
    large = Scene.open(write(tmp_path / "large.tif", noise(300, 500)))
    kept, held = hold_out([large], 0.25, seed=0, patch_size=32)
    covered = np.zeros((300, 500), int)
    for _, r in kept + held:
        covered[r.row : r.row + r.height, r.col : r.col + r.width] += 1
    assert (covered == 1).all()
    share = sum(r.area for _, r in held) / covered.size
    assert share == pytest.approx(0.25, abs=0.07)


def test_too_few_blocks_name_what_limits_them(root):
    one = [Scene.open(root / "images/s00.tif")]
    with pytest.raises(ConfigError, match=r"two blocks of 64 px.*lower patch_size=64"):
        hold_out(one, 0.2, seed=0, patch_size=64)
    with pytest.raises(ConfigError, match=r"two blocks of 4096 px.*lower patch_size=5000"):
        hold_out(one, 0.2, seed=0, patch_size=5000)
    with pytest.raises(ConfigError, match=r"two blocks of 50 px.*lower block_size=50") as caught:
        hold_out(one, 0.2, seed=0, patch_size=64, block_size=50)
    assert "patch_size" not in str(caught.value)


def test_validation_windows_stay_in_their_blocks(tmp_path):
    row = np.arange(256 * 256, dtype=np.int32).reshape(1, 256, 256)
    write(tmp_path / "images/a.tif", row)
    write(tmp_path / "masks/a.tif", np.zeros((1, 256, 256), np.uint8))
    m = LabelledScenesDataModule(
        tmp_path / "images",
        tmp_path / "masks",
        classes=["x"],
        patch_size=32,
        length=200,
        batch_size=4,
    )
    m.setup("fit")

    def pixels(data):
        found = (data[i] for i in range(len(data)))
        return set(torch.cat([s["image"][0][s["mask"] != 255] for s in found]).long().tolist())

    val, train = pixels(m.val_dataset), pixels(m.train_dataset)
    assert val.isdisjoint(train)
    assert len(val) == sum(r.area for _, r in m.splits()["val"])


def test_images_of_the_same_ground_in_two_splits_are_warned_of(root):
    write(root / "images/again.tif", noise(64, 64, seed=5), EAST + 96, NORTH)
    area = [EAST + 66, NORTH - 60, EAST + 90, NORTH - 4]  # inside s01, outside its half copy
    with pytest.warns(UserWarning, match=r"train .*also in test.*again\.tif"):
        module(root, test_area=area, area_crs=CRS, val_fraction=0).splits()
    (root / "images/again.tif").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(root, test_area=area, area_crs=CRS, val_fraction=0).splits()
        ends = {"test_area": area_of(0, 0), "val_area": area_of(2, 0)}  # far from each other
        module(root, **ends, area_crs=CRS).splits()


def test_validation_and_test_images_of_the_same_ground_are_warned_of(root):
    write(root / "images/again.tif", noise(64, 64, seed=5), EAST + 96, NORTH)
    left = [EAST + 66, NORTH - 60, EAST + 90, NORTH - 4]  # in s01 only
    right = [EAST + 140, NORTH - 60, EAST + 150, NORTH - 4]  # in s02 and its half copy
    m = module(root, test_area=left, val_area=right, area_crs=CRS)
    said = r"1 images of val .*also in test.*again\.tif \(val\) and .*s01\.tif \(test\)"
    with pytest.warns(UserWarning, match=said) as caught:
        m.splits()
    assert len(caught) == 1


def test_a_small_image_within_a_large_one_of_another_split_is_warned_of(root):
    write(root / "images/large.tif", np.ones((3, 512, 2560), np.uint8), EAST + 64, NORTH)
    write(root / "images/small.tif", noise(32, 32), EAST + 50, NORTH - 20)  # 18 x 32 px of it
    area = [EAST + 51, NORTH - 50, EAST + 60, NORTH - 21]  # in s00 and small
    with pytest.warns(UserWarning, match=r"large\.tif \(train\) and .*small\.tif \(test\)"):
        module(root, test_area=area, area_crs=CRS, val_fraction=0).splits()


# module


def test_the_module_describes_its_data_and_runs_all_stages(root):
    m = module(root, test_area=area_of(0, 0), area_crs=CRS, block_size=64, length=16)
    for stage in ("fit", "test", "predict"):
        m.setup(stage)
    assert m.bands == ("red", "green", "blue")
    assert m.classes == ("background", "house", "shed")
    assert m.gsd == pytest.approx(1)
    assert m.nodata is None
    pixels = [m.scenes.scenes[i].read()[0].reshape(3, -1) for i, _ in m.splits()["train"]]
    np.testing.assert_allclose(m.mean, np.concatenate(pixels, 1).mean(1), rtol=1e-5)
    batches = list(m.train_dataloader())
    assert len(batches) == 4
    assert batches[0]["image"].shape == (4, 3, 32, 32)
    assert batches[0]["mask"].shape == (4, 32, 32)
    assert sum(len(b["mask"]) for b in m.test_dataloader()) == 4
    assert sum(len(b["mask"]) for b in m.predict_dataloader()) == 4
    out = m.aug(next(iter(m.val_dataloader())))
    assert out["mask"].dtype == torch.int64
    assert abs(float(out["image"].mean())) < 0.1
    assert sum(m.class_balance("test").values()) == pytest.approx(1)
    assert m.class_balance("test")["house"] == pytest.approx(16 * 32 / 64**2)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_the_windows(root, workers):
    m = module(root, length=8, num_workers=workers, block_size=64)
    m.setup("fit")
    loader = m.train_dataloader()
    epochs = [torch.cat([b["image"] for b in loader]) for _ in range(2)]
    plain = [torch.stack([m.train_dataset[8 * e + i]["image"] for i in range(8)]) for e in (0, 1)]
    assert torch.equal(epochs[0], plain[0])
    assert torch.equal(epochs[1], plain[1])


def test_manifest_lists_windows_and_labels(root, tmp_path):
    m = module(root, test_area=area_of(1, 0), area_crs=CRS, block_size=64)
    content = json.loads(m.write_manifest(tmp_path / "m.json").read_text())
    assert content["splits"]["test"][0]["file"] == "images/s01.tif"
    assert content["splits"]["test"][0]["window"] == [0, 0, 64, 64]
    assert [e["file"] for e in content["splits"]["labels"]] == ["labels.gpkg"]
    assert content["settings"]["test_area"] == area_of(1, 0)
    balance = content["settings"]["class_balance"]
    assert balance["test"] == {
        "background": 0.859375,
        "house": 0.125,
        "shed": 0.015625,
        "(unlabelled)": 0.0,
    }


def test_the_report_counts_images_and_classes_of_each_split(root):
    m = module(root, test_area=area_of(1, 0), area_crs=CRS, val_fraction=0)
    share = "(background 85.9%, house 12.5%, shed 1.6%, (unlabelled) 0.0%)"
    assert m.report() == f"train: 5 images {share}; test: 1 images {share}"


def test_the_shipped_buildings_train_with_the_scene_held_out():
    m = LabelledScenesDataModule(**SAMPLE, patch_size=192, length=16, batch_size=4)
    m.setup("fit")
    m.setup("test")
    assert names(m, "test") == ["scene"]
    assert len(names(m, "train")) + len(names(m, "val")) == 64
    assert m.classes == ("background", "building")
    assert m.gsd == pytest.approx(0.0746, abs=1e-3)
    assert 0.1 < m.class_balance()["building"] < 0.5
    batch = m.train_aug(next(iter(m.train_dataloader())))
    assert set(batch["mask"].unique().tolist()) <= {0, 1, 255}


def test_the_merged_polygons_of_the_scene_equal_those_of_its_chips():
    frame = gpd.read_file("rsmamba/samples/buildings/scene.geojson")
    data = LabelledScenes(
        "sample:buildings/scene.tif",
        "sample:buildings/scene.geojson",
        classes=["building"],
        patch_size=1024,
    )
    share = float((data[0]["mask"] == 1).float().mean())
    area = frame.union_all().area / shapely.box(*SAMPLE["test_area"]).area
    assert share == pytest.approx(area, rel=2e-3)
    # No seam along the borders of the chips that the polygons were cut at.
    mask = data[0]["mask"].numpy()
    for k in (256, 512, 768):
        for a in (mask, mask.T):
            assert ((a[k - 1] != a[k]) & (a[k - 2] == a[k + 1])).mean() < 0.02


# augmentation


def batch_of(size=32):
    mask = torch.zeros(8, size, size, dtype=torch.int64)
    mask[:, 4:12, 6:20] = 1
    mask[:, 0, :] = 255
    return {"image": mask[:, None].float() * 50 + 100, "mask": mask}


def test_without_jitter_image_and_mask_are_turned_alike_and_exactly():
    torch.manual_seed(0)
    augment = SegmentationAugmentation(torch.tensor([0.0]), torch.tensor([1.0]), 0, 0)
    batch = batch_of()
    out = augment({k: v.clone() for k, v in batch.items()})
    assert out["mask"].dtype == torch.int64
    torch.testing.assert_close(out["image"][:, 0], out["mask"].float() * 50 + 100, atol=0.1, rtol=0)
    one = batch["mask"][0]
    all_eight = [torch.rot90(m, k) for m in (one, one.flip(1)) for k in range(4)]
    found = {next(i for i, e in enumerate(all_eight) if torch.equal(e, m)) for m in out["mask"]}
    assert len(found) > 2


def test_zooming_out_fills_with_the_mean_and_ignore():
    torch.manual_seed(0)
    augment = SegmentationAugmentation(torch.tensor([80.0]), torch.tensor([10.0]), 1.0, 0)
    image = torch.full((16, 1, 32, 32), 100.0)
    out = augment({"image": image, "mask": torch.ones(16, 32, 32, dtype=torch.int64)})
    assert set(out["mask"].unique().tolist()) == {1, 255}
    border = out["mask"] == 255
    assert out["image"][:, 0][border].mean().abs() < 0.3
    inside = out["image"][:, 0][~border]
    assert (inside - 2).abs().median() < 1e-4


def test_colour_jitter_is_mild_and_leaves_the_mask():
    torch.manual_seed(0)
    augment = SegmentationAugmentation(torch.zeros(5), torch.ones(5), 0, 0.1)
    image = torch.randn(8, 5, 16, 16)  # five bands, negative values: nothing is clipped
    out = augment({"image": image, "mask": torch.zeros(8, 16, 16, dtype=torch.int64)})
    assert (out["mask"] == 0).all()
    low, high = image.amin((1, 2, 3)), image.amax((1, 2, 3))
    assert (out["image"].amin((1, 2, 3)) - low).abs().max() < 0.1 * low.abs().max() + 0.11
    assert (out["image"].amax((1, 2, 3)) - high).abs().max() < 0.1 * high.abs().max() + 0.11
    assert (out["image"].std((1, 2, 3)) != image.std((1, 2, 3))).all()


def test_a_plot_shows_image_label_and_prediction(root):
    data = scenes(root)
    sample = data[0]
    sample["prediction"] = sample["mask"].clone()
    figure = data.plot(sample, suptitle="scene")
    assert [a.get_title() for a in figure.axes] == ["image", "label", "prediction"]
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["background", "house", "shed"]


# errors


def test_an_image_without_crs_is_refused_with_the_remedy(root):
    write(root / "images/none.tif", noise(64, 64), crs=None)
    with pytest.raises(CRSError, match=r"none\.tif.*gdal_edit"):
        scenes(root)


@pytest.mark.parametrize("transform", [None, Affine(1e-4, 0, 30, 0, -1e-4, 95)])
def test_coordinates_that_are_none_of_the_crs_are_refused_with_the_remedy(root, transform):
    path = write(root / "images/wrong.tif", noise(64, 64), crs="EPSG:4326", transform=transform)
    for part in ("images", "masks"):
        target = root / f"good_{part}" / "wrong.tif"
        write(target, np.zeros((1, 64, 64), np.uint8), crs="EPSG:4326", transform=transform)
    masks = LabelledScenesDataModule(
        root / "good_images", root / "good_masks", classes=["a"], val_fraction=0, batch_size=1
    )
    scene = [Scene.open(path)]
    for call in (
        lambda: module(root).splits(),
        lambda: module(root, test_area=area_of(0, 0), area_crs=CRS).splits(),
        lambda: masks.setup("fit"),  # else with a resolution that makes no sense
        lambda: spatial_blocks(scene, 32),
        lambda: outlines(scene, [(0, scene[0].whole)]),
    ):
        with pytest.raises(CRSError, match=r"wrong\.tif.*EPSG:4326.*-a_srs EPSG:<code> FILE`"):
            call()


def test_a_raster_of_the_whole_earth_is_no_mistake(tmp_path):
    where = Affine(0.5, 0, -180.25, 0, -0.5, 90.25)  # pixel centres on the poles
    path = write(tmp_path / "earth.tif", noise(361, 720), crs="EPSG:4326", transform=where)
    cells = spatial_blocks([Scene.open(path)], 64)
    assert sum(r.area for parts in cells.values() for _, r in parts) == 361 * 720


def test_a_layer_without_crs_is_refused(root, tmp_path):
    frame = gpd.read_file(root / "labels.gpkg").set_crs(None, allow_override=True)
    frame.to_file(tmp_path / "bare.shp")
    with pytest.raises(CRSError, match=r"bare\.shp.*ogr2ogr"):
        LabelledScenes(root / "images", tmp_path / "bare.shp")


def test_an_empty_layer_is_refused_naming_labels_and_images(root, tmp_path):
    empty = gpd.GeoDataFrame({"kind": []}, geometry=[], crs=CRS)
    empty.to_file(tmp_path / "empty.gpkg")
    with pytest.raises(LabelError, match=r"empty\.gpkg.*images"):
        LabelledScenes(root / "images", tmp_path / "empty.gpkg", attribute="kind")


def test_a_layer_that_lies_elsewhere_is_refused_naming_both(root, tmp_path):
    far = gpd.read_file(root / "labels.gpkg")
    far.geometry = far.geometry.translate(5000, 0)
    far.to_file(tmp_path / "far.gpkg")
    with pytest.raises(LabelError, match=r"far\.gpkg: none of the 12 polygons.*6 images.*images"):
        LabelledScenes(root / "images", tmp_path / "far.gpkg", attribute="kind")


def test_a_missing_attribute_is_refused_listing_the_columns(root):
    with pytest.raises(LabelError, match=r"no attribute 'type'; it has kind, code"):
        scenes(root, attribute="type")


def test_an_unknown_or_missing_class_value_is_refused(root, tmp_path):
    with pytest.raises(LabelError, match=r"6 polygons have kind = shed.*names house"):
        scenes(root, classes=["house"])
    frame = gpd.read_file(root / "labels.gpkg")
    frame.loc[0, "kind"] = None
    frame.to_file(tmp_path / "null.gpkg")
    with pytest.raises(LabelError, match=r"1 polygons have kind = \(none\)"):
        LabelledScenes(root / "images", tmp_path / "null.gpkg", attribute="kind")
    with pytest.raises(LabelError, match="without attribute"):
        scenes(root, attribute=None, classes=["house", "shed"])


def test_lines_are_refused(root, tmp_path):
    line = shapely.LineString([(EAST, NORTH), (EAST + 9, NORTH - 9)])
    gpd.GeoDataFrame(geometry=[line], crs=CRS).to_file(tmp_path / "line.gpkg")
    with pytest.raises(LabelError, match=r"line\.gpkg: holds LineString"):
        LabelledScenes(root / "images", tmp_path / "line.gpkg")


def test_several_layers_are_refused(root):
    frame = gpd.read_file(root / "labels.gpkg")
    frame.to_file(root / "labels.gpkg", layer="second")
    with pytest.raises(LabelError, match="labels, second"):
        scenes(root)


def test_different_bands_are_refused_listing_files(root):
    write(root / "images/four.tif", noise(64, 64, 4), alpha="unspecified", photometric="rgb")
    with pytest.raises(BandMismatchError, match=r"4 bands in four\.tif; 3 bands in s00\.tif"):
        scenes(root)


def test_images_of_different_depth_need_a_rule(root):
    path = root / "images/s00.tif"
    deep = noise(64, 64, seed=0).astype(np.uint16) * 40
    write(path, deep)
    with pytest.raises(BandMismatchError, match=r"uint16 in s00\.tif.*scales="):
        scenes(root)
    data = scenes(root, scales={"uint8": 1.0, "uint16": 1 / 40})
    np.testing.assert_allclose(data[0]["image"], deep / 40, rtol=1e-6)
    one = scenes(root, scales={"uint8": 0.5, "uint16": 0.0125})[1]["image"]
    np.testing.assert_allclose(one, noise(64, 64, seed=1) * 0.5)


def test_undeclared_nodata_can_be_named(tmp_path):
    pixels = noise(64, 64)
    pixels[:, :10] = 0
    fake_root = tmp_path / "d"
    make(fake_root, rows=1, cols=2)
    write(fake_root / "images/s00.tif", pixels)
    plain, told = scenes(fake_root)[0]["mask"], scenes(fake_root, nodata=0)[0]["mask"]
    assert (plain[:10] != 255).all()
    assert (told[:10] == 255).all() and torch.equal(told[10:], plain[10:])


def test_masks_that_do_not_fit_are_refused(root, tmp_path):
    images, masks = root / "images", tmp_path / "masks"
    one = images / "s00.tif"

    def load(**options):
        return LabelledScenes(one, masks, patch_size=64, **{"classes": ["a", "b"], **options})

    write(masks / "other.tif", np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(LabelError, match=r"no mask in .*masks for s00\.tif"):
        load()
    write(masks / "s00.tif", np.zeros((1, 60, 64), np.uint8))
    grid = r"gdalwarp -r near -te 500000 39936 500064 40000 -ts 64 64 MASK NEW`"
    with pytest.raises(GridMismatchError, match=f"60 x 64.*{grid}"):
        load()
    write(masks / "s00.tif", np.zeros((1, 60, 64), np.uint8), crs="EPSG:32637")
    with pytest.raises(GridMismatchError, match=r"`gdalwarp -r near -t_srs EPSG:32636 -te 500000"):
        load()
    with rasterio.open(
        masks / "s00.tif", "w", driver="GTiff", count=1, height=60, width=64, dtype="uint8"
    ) as out:
        out.write(np.zeros((1, 60, 64), np.uint8))
    with pytest.raises(GridMismatchError, match=r"60 x 64.*`gdal_translate .*-outsize 64 64 MASK"):
        load()
    write(masks / "s00.tif", np.zeros((1, 64, 64), np.uint8), EAST + 3)
    with pytest.raises(GridMismatchError, match=f"elsewhere.*{grid}"):
        load()
    write(masks / "s00.tif", np.zeros((1, 64, 64), np.uint8), crs="EPSG:32637")
    with pytest.raises(CRSError, match=r"s00\.tif: is in EPSG:32637.*gdalwarp.*EPSG:32636"):
        load()
    write(masks / "s00.tif", np.full((1, 64, 64), 7, np.uint8))
    with pytest.raises(LabelError, match=r"s00\.tif: value 7 belongs to no class.*0=a, 1=b"):
        load()[0]
    with pytest.raises(LabelError, match="name the values"):
        load(classes=None)
    write(masks / "s00.tif", np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(LabelError, match="3 bands"):
        load()
    write(masks / "s00.tif", np.zeros((1, 64, 64), np.uint8))
    write(masks / "s00.mask.tif", np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(LabelError, match="several masks"):
        load()


def test_a_truncated_scene_is_named(root):
    path = write(root / "images/s00.tif", noise(64, 64), compress="deflate")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"s00\.tif"):
        scenes(root)


def test_missing_folders_are_named(root, tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        LabelledScenes(tmp_path / "nowhere", root / "labels.gpkg")
    with pytest.raises(DataNotFoundError, match="nothing"):
        LabelledScenes(root / "images", tmp_path / "nothing.gpkg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0 must be at least 1"),
        ({"length": -1}, "length=-1"),
        ({"block_size": -5}, "block_size=-5"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"indexes": []}, r"indexes=\[\]"),
        ({"indexes": [0]}, r"indexes=\[0\]"),
        ({"bands": ["red", "red", "red"]}, "red twice"),
        ({"colour_jitter": 1.5}, "colour_jitter=1.5"),
        ({"scale_jitter": -2.0}, "scale_jitter=-2.0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"mean": [float("nan"), 1.0, 2.0], "std": [1.0, 1.0, 1.0]}, "finite"),
        ({"test_area": ["a", "b", "c", "d"]}, "in numbers"),
    ],
)
def test_options_out_of_range_are_refused_by_name(root, options, message):
    with pytest.raises(ConfigError, match=message):
        module(root, **options).setup("fit")


def test_a_column_of_masks_is_refused(root, tmp_path):
    for path in (root / "images").glob("*.tif"):
        write(tmp_path / "masks" / path.name, np.zeros((1, 64, 64), np.uint8))
    with pytest.raises(LabelError, match="holds masks, which have no column 'kind'"):
        LabelledScenes(root / "images", tmp_path / "masks", attribute="kind", classes=["a"])

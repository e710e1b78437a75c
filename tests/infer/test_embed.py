"""Embeddings: one vector per patch, where it lies, with nothing of what is not there."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
import timm
import torch
from affine import Affine
from pyarrow import parquet

import rsmamba.models  # noqa: F401
from rsmamba.errors import BandMismatchError, ConfigError, OutputExistsError, SpecError
from rsmamba.infer import embed_scene, load_embedder
from rsmamba.infer.embed import Embedder
from rsmamba.models.checkpoints import save_safetensors
from rsmamba.spec import SPEC_KEY
from tests.infer.conftest import NORTH_UP, leftovers, spec

SPEC = spec(task="backbone", task_class="timm.create_model", architecture="roma_tiny_patch16")
SMALL = {"tile": 32, "batch_size": 3}


class Means(torch.nn.Module):
    """The mean of each 8 px patch and band: what is expected can be told by hand."""

    feature_info = ({"reduction": 8, "num_chs": 3},)

    def forward_intermediates(self, image, indices, norm, intermediates_only):
        return [torch.nn.functional.avg_pool2d(image, 8)]


@pytest.fixture
def means():
    return Embedder(Means(), spec(mean=(0.0,) * 3, std=(1.0,) * 3), device="cpu")


def noise(height=70, width=100, seed=0):
    return np.random.default_rng(seed).integers(1, 250, (3, height, width), np.uint8)


@pytest.mark.parametrize("halo", [0, 8])
def test_vectors_are_those_of_the_pixels_under_their_outlines(make_scene, means, tmp_path, halo):
    pixels, out = noise(), tmp_path / "e.parquet"
    transform = Affine(8, 6, 300000, 6, -8, 5000000)
    scene = make_scene(pixels, transform=transform)
    report = embed_scene(means, scene, out, halo=halo, **SMALL)
    table = gpd.read_parquet(out)
    assert table.crs.to_epsg() == 32633
    assert len(table) == report.rows == 9 * 13 and report.size == 3 and report.pixels == 8
    assert set(table.scene) == {"scene"}
    assert len({(r, c) for r, c in zip(table.row, table.col, strict=True)}) == len(table)
    inner = table[(table.row + 8 <= 70) & (table.col + 8 <= 100)]
    assert len(inner) == 8 * 12
    for _, row in inner.iterrows():
        window = pixels[:, row.row : row.row + 8, row.col : row.col + 8]
        np.testing.assert_allclose(row.embedding, window.mean((1, 2)), rtol=1e-5)
        corners = [transform @ (row.col + x, row.row + y) for x, y in ((0, 0), (8, 0), (8, 8))]
        assert all(row.geometry.exterior.distance(shapely.Point(c)) < 1e-6 for c in corners)
    assert table.geometry.area.sum() == pytest.approx(70 * 100 * 100)


def test_patches_without_data_are_left_out_and_shares_are_told(make_scene, means, tmp_path):
    pixels = noise(64, 64)
    pixels[:, :16, :16] = 0
    pixels[:, 16:20, 16:24] = 0
    out = tmp_path / "e.parquet"
    report = embed_scene(means, make_scene(pixels, nodata=0), out, **SMALL)
    table = gpd.read_parquet(out).set_index(["row", "col"])
    assert report.skipped == 4 and len(table) == 60
    assert table.loc[(16, 16)].valid == 0.5 and (0, 0) not in table.index
    assert (table.valid[table.index != (16, 16)] == 1).all()


def test_a_tile_gives_the_mean_over_its_valid_patches(make_scene, means, tmp_path):
    pixels = noise(64, 64)
    pixels[:, :32, :16] = 0
    out = tmp_path / "e.parquet"
    embed_scene(means, make_scene(pixels, nodata=0), out, per="tile", **SMALL)
    table = gpd.read_parquet(out).set_index(["row", "col"])
    assert len(table) == 4 and table.loc[(0, 0)].valid == 0.5
    expected = pixels[:, :32, 16:32].mean((1, 2))
    np.testing.assert_allclose(table.loc[(0, 0)].embedding, expected, rtol=1e-5)
    expected = pixels[:, 32:, 32:].mean((1, 2))
    np.testing.assert_allclose(table.loc[(32, 32)].embedding, expected, rtol=1e-5)


def test_an_area_keeps_its_patches(make_scene, means, tmp_path):
    bounds = [*(NORTH_UP @ (16, 48)), *(NORTH_UP @ (48, 16))]
    out = tmp_path / "e.parquet"
    embed_scene(means, make_scene(noise(64, 64)), out, aoi=bounds, aoi_crs="EPSG:32633", **SMALL)
    table = gpd.read_parquet(out)
    assert len(table) == 16 and shapely.box(*bounds).covers(table.union_all())


def test_a_checkpoint_gives_the_features_of_its_backbone(make_scene, tmp_path):
    torch.manual_seed(0)
    backbone = timm.create_model("roma_tiny_patch16", num_classes=0, img_size=32).eval()
    described = spec(
        task="backbone",
        task_class="timm.create_model",
        architecture="roma_tiny_patch16",
        task_kwargs={"img_size": 32},
    )
    save_safetensors(backbone, described, tmp_path / "w.safetensors")
    pixels = noise(32, 32)
    out = tmp_path / "e.parquet"
    report = embed_scene(tmp_path / "w.safetensors", make_scene(pixels), out, tile=32)
    table = gpd.read_parquet(out).set_index(["row", "col"])
    assert (report.rows, report.size, report.pixels) == (4, 192, 16)
    image = torch.from_numpy(pixels.astype(np.float32))[None]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (described.mean, described.std))
    with torch.no_grad():
        (features,) = backbone.forward_intermediates(
            (image - mean) / std, indices=1, norm=True, intermediates_only=True
        )
    for (row, col), found in table.embedding.items():
        np.testing.assert_allclose(
            found, features[0, :, row // 16, col // 16], rtol=1e-4, atol=1e-5
        )
    assert SPEC_KEY.encode() in parquet.read_schema(out).metadata


def test_what_does_not_fit_is_refused_and_leaves_nothing(make_scene, means, tmp_path):
    scene, out = make_scene(noise()), tmp_path / "e.parquet"
    for options, error, message in (
        ({"tile": 30}, ConfigError, "tile=30 is no multiple"),
        ({"tile": 32, "halo": 4}, ConfigError, "halo=4 is no multiple"),
        ({"tile": 32, "halo": 16}, ConfigError, "leaves nothing"),
        ({"per": "pixel"}, ConfigError, "per='pixel'"),
    ):
        with pytest.raises(error, match=message):
            embed_scene(means, scene, out, **options)
    with pytest.raises(ConfigError, match=r"\.parquet"):
        embed_scene(means, scene, tmp_path / "e.gpkg")
    five = make_scene(np.ones((5, 40, 40), np.uint8), "five.tif")
    with pytest.raises(BandMismatchError, match=r"five\.tif has 5"):
        embed_scene(means, five, out, **SMALL)
    assert leftovers(tmp_path) == ["five.tif", "scene.tif"]
    out.touch()
    with pytest.raises(OutputExistsError):
        embed_scene(means, scene, out, **SMALL)
    save_safetensors({"w": torch.zeros(1)}, None, tmp_path / "bare.safetensors")
    with pytest.raises(SpecError, match="--spec"):
        load_embedder(tmp_path / "bare.safetensors")

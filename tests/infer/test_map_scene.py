"""From a scene to a map: what it holds, what it never depends on, and what failures leave."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from rsmamba import __version__
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    CRSError,
    DataNotFoundError,
    ImageReadError,
    OutputExistsError,
    OutputNotWritableError,
)
from rsmamba.infer import map_scene
from rsmamba.infer.grid import TileGrid
from rsmamba.infer.sink import BlockFiles
from rsmamba.spec import SPEC_KEY, ModelSpec
from tests.infer.conftest import NORTH_UP, brightest, leftovers, spec

GEOTIFF = Path(__file__).parents[2] / "../shared/data/geotiff"
SMALL = {"tile": 48, "halo": 8, "block": 96, "progress": False, "device": "cpu"}


def noise(height, width, bands=3, seed=0):
    return np.random.default_rng(seed).integers(1, 250, (bands, height, width), dtype=np.uint8)


def blur(radius):
    """Scores from box means of (2 radius + 1)^2 pixels: a known receptive field."""

    def model(images):
        mean = F.avg_pool2d(images, 2 * radius + 1, 1, radius, count_include_pad=False)
        return brightest(mean)

    return model


def untiled(image, model, radius):
    """The model on the whole scene, mirrored at its border, as tiles see it."""
    padded = np.pad(image, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    scores = model(torch.from_numpy(padded.astype(np.float32))[None])[0]
    return scores[:, radius:-radius, radius:-radius].numpy()


def read(path):
    with rasterio.open(path) as source:
        return source.read()


@pytest.mark.parametrize("blend", ["linear", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (225, 1), (30, 20), (131, 257)])
def test_a_constant_model_gives_the_constant_at_any_size(make_scene, tmp_path, shape, blend):
    def constant(images):
        levels = torch.tensor([0.2, 0.5, 0.3])[:, None, None]
        return levels.expand(len(images), 3, *images.shape[2:])

    scores = tmp_path / "scores.tif"
    report = map_scene(
        constant,
        make_scene(noise(*shape)),
        tmp_path / "map.tif",
        scores=scores,
        blend=blend,
        **SMALL,
    )
    assert (read(tmp_path / "map.tif") == np.ones((1, *shape))).all()
    expected = np.round(np.array([0.2, 0.5, 0.3]) * 254)[:, None, None]
    assert (read(scores) == expected).all()
    assert report.pixels == {"class_0": 0, "class_1": shape[0] * shape[1], "class_2": 0}


@pytest.mark.parametrize(("blend", "radius"), [("crop", 8), ("linear", 4)])
def test_tiles_give_the_untiled_answer_within_the_receptive_field(
    make_scene, tmp_path, blend, radius
):
    image = noise(150, 170)
    model = blur(radius)
    map_scene(
        model,
        make_scene(image),
        tmp_path / "map.tif",
        scores=tmp_path / "scores.tif",
        blend=blend,
        **SMALL,
    )
    whole = untiled(image, model, radius)
    got = read(tmp_path / "scores.tif").astype(float) / 254
    assert np.abs(got - whole).max() <= 0.5 / 254 + 1e-5
    assert (read(tmp_path / "map.tif")[0] == whole.argmax(0)).mean() > 0.9999


def test_a_receptive_field_beyond_the_halo_shows(make_scene, tmp_path):
    # the test above can fail: without context the same model disagrees at the seams
    image = noise(150, 170)
    map_scene(
        blur(8),
        make_scene(image),
        tmp_path / "map.tif",
        scores=tmp_path / "scores.tif",
        **SMALL | {"halo": 0},
    )
    whole = untiled(image, blur(8), 8)
    assert np.abs(read(tmp_path / "scores.tif") / 254 - whole).max() > 0.01


@pytest.mark.parametrize("blend", ["linear", "crop"])
def test_neither_block_nor_batch_changes_a_bit(make_scene, tmp_path, blend):
    image = noise(141, 127)
    image[:, 30:110, 20:80] = 0
    scene = make_scene(image, nodata=0)
    results = []
    for i, (block, batch) in enumerate([(4096, 1), (96, 1), (1, 3), (70, 16), (150, 5)]):
        out, scores = tmp_path / f"map{i}.tif", tmp_path / f"scores{i}.tif"
        options = SMALL | {"block": block, "batch_size": batch, "blend": blend}
        report = map_scene(blur(12), scene, out, scores=scores, **options)
        results.append((read(out), read(scores), report))
    for classes, scores, report in results[1:]:
        np.testing.assert_array_equal(classes, results[0][0])
        np.testing.assert_array_equal(scores, results[0][1])
        assert report.pixels == results[0][2].pixels
        assert report.tiles_predicted == results[0][2].tiles_predicted


def test_nodata_is_never_predicted_and_empty_tiles_are_skipped(make_scene, tmp_path):
    image = noise(200, 200)
    image[:, :100, :120] = 0
    seen = []

    def model(images):
        seen.extend(images)
        return brightest(images)

    report = map_scene(
        model,
        make_scene(image, nodata=0),
        tmp_path / "map.tif",
        scores=tmp_path / "scores.tif",
        spec=spec(),
        **SMALL | {"block": 4096},
    )
    assert ((read(tmp_path / "map.tif")[0] == 255) == (image == 0).all(0)).all()
    assert (read(tmp_path / "scores.tif")[:, :100, :120] == 255).all()
    assert report.tiles == 49 == report.tiles_predicted + report.tiles_skipped
    assert len(seen) == report.tiles_predicted < report.tiles
    assert report.tiles_skipped >= 6 and report.tiles_recomputed == 0
    assert report.pixels_nodata == 100 * 120
    assert sum(report.pixels.values()) + report.pixels_nodata == 200 * 200
    # what a tile sees of a gap is the band mean, which the normalisation turns into zero
    means = torch.tensor([10.0, 20.0, 30.0])[:, None, None]
    assert any((tile == means).all(0).any() for tile in seen)
    assert not any((tile == 0).all(0).any() for tile in seen)


def test_a_scene_without_a_valid_pixel_gives_an_empty_map(make_scene, tmp_path):
    def never(images):
        raise AssertionError("the model ran on nodata")

    scene = make_scene(np.zeros((3, 60, 70), np.uint8), nodata=0)
    out, scores = tmp_path / "map.tif", tmp_path / "scores.tif"
    report = map_scene(never, scene, out, scores=scores, spec=spec(), **SMALL)
    assert (read(out) == 255).all() and (read(scores) == 255).all() and len(read(scores)) == 3
    assert report.pixels_nodata == 60 * 70 and report.tiles_predicted == 0


def test_pixels_without_a_finite_score_are_nodata_and_counted(make_scene, tmp_path):
    image = noise(60, 70)
    image[0, 20, 30] = 251

    def model(images):
        scores = brightest(images)
        return scores.masked_fill((images[:, :1] == 251), float("nan"))

    report = map_scene(model, make_scene(image), tmp_path / "map.tif", **SMALL)
    assert report.pixels_not_finite == 1 and report.pixels_nodata == 0
    assert np.argwhere(read(tmp_path / "map.tif")[0] == 255).tolist() == [[20, 30]]


TRANSFORMS = {
    "utm": ("EPSG:32633", NORTH_UP),
    "mercator": (
        "EPSG:3857",
        Affine(0.5971640348434448, 0, 14321853.115736904, 0, -0.5971, 1e7 / 3),
    ),
    "dutch": ("EPSG:28992", Affine(0.25, 0, 127375.1, 0, -0.25, 428250.7)),
    "degrees": (
        "EPSG:4326",
        Affine(0.00026949458523585647, 0, -112.9090535109483, 0, -1 / 3e3, 41.1),
    ),
    "rotated": ("EPSG:32633", Affine(8.1, 1.3, 300000.123456789, 1.2, -7.9, 5e6 + 1 / 3)),
    "south-up": ("EPSG:32633", Affine(10.1, 0, 300000.3, 0, 10.1, 4e6 + 1 / 7)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_georeferencing_is_kept_to_the_last_bit(make_scene, tmp_path, name):
    crs, transform = TRANSFORMS[name]
    scene = make_scene(noise(60, 70), crs=crs, transform=transform)
    report = map_scene(brightest, scene, tmp_path / "map.tif", **SMALL)
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "map.tif") as result:
        assert tuple(result.transform) == tuple(source.transform)
        assert result.crs == source.crs
        assert (result.width, result.height) == (70, 60)
    assert report.area_km2 > 0


def test_areas_are_geodesic(make_scene, tmp_path):
    # 60 x 70 pixels of 10 m in UTM, near the central meridian: scale factor 0.9996 squared
    report = map_scene(
        brightest,
        make_scene(noise(60, 70), transform=Affine(10, 0, 5e5, 0, -10, 5e6)),
        tmp_path / "map.tif",
        **SMALL,
    )
    assert report.area_km2 == pytest.approx(0.42 / 0.9996**2, rel=1e-5)
    assert report.km2_per_second == pytest.approx(
        report.area_km2 / report.seconds["total"], rel=0.1
    )


def test_the_map_is_a_cog_that_explains_itself(make_scene, tmp_path):
    described = spec(colours=("#0000ff", "#ffff00", "#008000"))
    out, scores = tmp_path / "map.tif", tmp_path / "scores.tif"
    report = map_scene(
        brightest,
        make_scene(noise(700, 600)),
        out,
        scores=scores,
        spec=described,
        progress=False,
        device="cpu",
    )
    for path in (out, scores):
        valid, errors, warnings = cog_validate(path, strict=True)
        assert valid and not errors and not warnings
    with rasterio.open(out) as source:
        tags = source.tags()
        assert source.dtypes == ("uint8",) and source.nodata == 255
        assert source.overviews(1) == [2]
        table = source.colormap(1)
        assert [table[i] for i in range(3)] == [
            (0, 0, 255, 255),
            (255, 255, 0, 255),
            (0, 128, 0, 255),
        ]
        assert ModelSpec.from_json(tags[SPEC_KEY]) == described
        assert json.loads(tags["class_names"]) == ["water", "field", "wood"]
        assert tags["rsmamba_version"] == __version__
        assert float(source.tags(1)["STATISTICS_MAXIMUM"]) == 2
        # overviews show classes that exist, not averages of them
        assert set(np.unique(source.read(out_shape=(1, 350, 300)))) <= {0, 1, 2}
    with rasterio.open(scores) as source:
        assert source.descriptions == ("water", "field", "wood")
        assert source.scales == (1 / 254,) * 3 and source.offsets == (0,) * 3
        values = source.read() * source.scales[0]
        np.testing.assert_allclose(values.sum(0), 1, atol=2 / 254)
        assert source.nodata == 255
    assert report.parameters["tile"] == 512 and len(report.spec_sha256) == 64
    assert json.loads(report.to_json())["pixels"] == report.pixels
    assert set(report.seconds) == {"read", "forward", "blend", "write", "total"}
    assert report.peak_rss_mb > 10


def test_finished_files_have_the_usual_permissions(make_scene, tmp_path):
    map_scene(brightest, make_scene(noise(20, 20)), tmp_path / "map.tif", **SMALL)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "map.tif").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
def test_whatever_stops_the_run_leaves_nothing(make_scene, tmp_path, failure):
    calls = []

    def model(images):
        calls.append(len(images))
        if len(calls) == 8:  # some blocks are written by then
            raise failure
        return brightest(images)

    scene = make_scene(noise(300, 300))
    with pytest.raises(type(failure)):
        map_scene(model, scene, tmp_path / "map.tif", scores=tmp_path / "scores.tif", **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]


def test_a_failed_run_keeps_the_earlier_map(make_scene, tmp_path):
    def broken(images):
        raise RuntimeError("boom")

    scene, out = make_scene(noise(60, 60)), tmp_path / "map.tif"
    map_scene(brightest, scene, out, **SMALL)
    before = out.read_bytes()
    with pytest.raises(RuntimeError):
        map_scene(broken, scene, out, overwrite=True, **SMALL)
    assert out.read_bytes() == before and leftovers(tmp_path) == ["map.tif", "scene.tif"]


def test_a_truncated_scene_leaves_nothing_if_strict(make_scene, tmp_path):
    scene = make_scene(
        noise(256, 256), compress="deflate", tiled=True, blockxsize=64, blockysize=64
    )
    scene.write_bytes(scene.read_bytes()[: scene.stat().st_size // 2])
    with pytest.raises(ImageReadError, match=r"scene\.tif"):
        map_scene(brightest, scene, tmp_path / "map.tif", strict=True, **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]


def test_a_write_that_is_lost_is_noticed(make_scene, tmp_path, monkeypatch):
    def lossy(self, layer, top, values):
        if top == 0:  # the file is made, and what is written to it gets lost
            write(self, layer, top, np.full_like(values, 255))

    write = BlockFiles.write
    monkeypatch.setattr(BlockFiles, "write", lossy)
    with pytest.raises(OutputNotWritableError, match="room on the disk"):
        map_scene(brightest, make_scene(noise(60, 60)), tmp_path / "map.tif", **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]


def forbidden(images):
    raise AssertionError("the model ran before the outputs were checked")


def test_existing_outputs_are_refused_before_any_work(make_scene, tmp_path):
    scene = make_scene(noise(60, 60))
    for name, options in {
        "map.tif": {},
        "scores.tif": {"scores": tmp_path / "scores.tif"},
    }.items():
        (tmp_path / name).write_text("precious")
        with pytest.raises(OutputExistsError, match="--overwrite"):
            map_scene(forbidden, scene, tmp_path / "map.tif", **options, **SMALL)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
    (tmp_path / "map.tif").write_text("precious")
    map_scene(brightest, scene, tmp_path / "map.tif", overwrite=True, **SMALL)
    assert read(tmp_path / "map.tif").shape == (1, 60, 60)


def test_unwritable_outputs_are_refused_before_any_work(make_scene, tmp_path, monkeypatch):
    scene = make_scene(noise(20, 20))
    for out in (tmp_path / "absent" / "map.tif", scene / "map.tif", "/vsis3/bucket/map.tif"):
        with pytest.raises(OutputNotWritableError):
            map_scene(forbidden, scene, out, **SMALL)
    with pytest.raises(ConfigError, match=r"\.tif"):
        map_scene(forbidden, scene, tmp_path / "map.png", **SMALL)
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    with pytest.raises(OutputNotWritableError, match="permission"):
        map_scene(forbidden, scene, tmp_path / "map.tif", **SMALL)


def test_options_that_make_no_sense_are_refused(make_scene, tmp_path):
    scene, out = make_scene(noise(20, 20)), tmp_path / "map.tif"
    for options in (
        {"batch_size": 0},
        {"block": 0},
        {"halo": 24},
        {"halo": -1},
        {"blend": "cosine"},
        {"scores": out},
    ):
        with pytest.raises(ConfigError):
            map_scene(forbidden, scene, out, **SMALL | options)
    with pytest.raises(ConfigError, match="is the scene"):
        map_scene(forbidden, scene, scene, overwrite=True, **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]


def test_scores_that_are_no_probabilities_do_not_fit_a_score_raster(make_scene, tmp_path):
    scene, out = make_scene(noise(20, 20)), tmp_path / "map.tif"
    with pytest.raises(ConfigError, match="0 to 1"):
        map_scene(lambda x: x, scene, out, scores=tmp_path / "scores.tif", **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]
    map_scene(lambda x: x, scene, out, **SMALL)  # classes alone need no scale
    assert (read(out)[0] == noise(20, 20).argmax(0)).all()


def test_bands_and_reference_system_are_checked(make_scene, tmp_path):
    two = make_scene(noise(20, 20, bands=2))
    with pytest.raises(BandMismatchError):
        map_scene(brightest, two, tmp_path / "map.tif", spec=spec(), **SMALL)
    nowhere = make_scene(noise(20, 20), "nowhere.tif", crs=None)
    with pytest.raises(CRSError, match="--assume-crs"):
        map_scene(brightest, nowhere, tmp_path / "map.tif", **SMALL)
    map_scene(brightest, nowhere, tmp_path / "map.tif", assume_crs="EPSG:28992", **SMALL)
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.crs.to_epsg() == 28992


def test_an_unknown_sample_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="atlantis"):
        map_scene(brightest, "sample:atlantis/a.tif", tmp_path / "map.tif", **SMALL)


def test_a_shipped_sample_can_be_mapped(tmp_path):
    report = map_scene(
        brightest,
        "sample:landsat/bahamas.tif",
        tmp_path / "map.tif",
        tile=256,
        halo=32,
        progress=False,
        device="cpu",
    )
    assert (report.width, report.height) == (791, 718)
    assert report.pixels_nodata > 0 < report.pixels["class_0"]


REAL = {
    "landsat7_sf_2181x1917_nodata0.tif": 3,
    "landsat8_1489x1482_7band.tif": 7,
    "cog_nodata_2658x2667_uint16.tif": 1,
    "nl_ortho_1000x1000_EPSG28992.tif": 3,
    "planet_rapideye_ships_4band.tif": 3,
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_scenes(tmp_path, name):
    scene = GEOTIFF / name
    if not scene.exists():
        pytest.skip(f"{scene} is not here")
    bands = REAL[name]

    def model(images):
        assert images.shape[1] == bands and images.isfinite().all()
        grey = images.mean(1, keepdim=True)
        return torch.cat([grey < 60, (grey >= 60) & (grey < 120), grey >= 120], 1).float()

    out = tmp_path / "map.tif"
    report = map_scene(model, scene, out, block=2048, batch_size=2, progress=False, device="cpu")
    assert cog_validate(out, strict=True)[0]
    with rasterio.open(scene) as source, rasterio.open(out) as result:
        assert tuple(result.transform) == tuple(source.transform) and result.crs == source.crs
        observed = source.dataset_mask() > 0
        classes = result.read(1)
    assert ((classes != 255) == observed).all()
    assert report.tiles == len(TileGrid(*classes.shape))


@pytest.mark.gpu
def test_the_gpu_gives_the_map_of_the_cpu(make_scene, tmp_path):
    scene = make_scene(noise(300, 280))
    for device in ("cpu", "cuda"):
        map_scene(blur(4), scene, tmp_path / f"{device}.tif", **SMALL | {"device": device})
    same = read(tmp_path / "cpu.tif") == read(tmp_path / "cuda.tif")
    assert same.mean() > 0.9999

"""Runs that are interrupted, shared out, repeated, or meet what cannot be read."""

import json
import multiprocessing
import os
import random
import time

import numpy as np
import pytest
import rasterio
import torch
from filelock import FileLock
from torch import nn

from rsmamba.errors import BusyError, ConfigError, OutputNotWritableError, RunMismatchError
from rsmamba.infer import map_scene
from rsmamba.infer.work import Shard, WorkFolder
from tests.infer.conftest import leftovers, spec

SMALL = {"tile": 32, "halo": 4, "block": 64, "batch_size": 2, "progress": False}
SPEC = spec()


@pytest.fixture(scope="module")
def processes():
    """Processes that start from a server with everything imported and no thread of GDAL's yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Model(nn.Module):
    """Three classes by a fixed convolution; can be told to stop."""

    def __init__(self, stop_after=None, pause=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-1, 1, 81).view(3, 3, 3, 3))
            self.conv.bias.zero_()
        self.stop_after, self.pause, self.calls = stop_after, pause, 0

    def forward(self, images):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        return self.conv(images)


def noise(height=200, width=170, seed=0):
    return np.random.default_rng(seed).integers(1, 250, (3, height, width), np.uint8)


def run(scene, out, model=None, **options):
    return map_scene(model or Model(), scene, out, spec=SPEC, **{**SMALL, **options})


@pytest.fixture
def scene(make_scene):
    return make_scene(noise())


@pytest.fixture
def whole(scene, tmp_path):
    """Bytes of an uninterrupted run, with scores."""
    folder = tmp_path / "whole"
    folder.mkdir()
    run(scene, folder / "map.tif", scores=folder / "scores.tif")
    return (folder / "map.tif").read_bytes(), (folder / "scores.tif").read_bytes()


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(scene, whole, tmp_path):
    out, scores = tmp_path / "map.tif", tmp_path / "scores.tif"
    with pytest.raises(KeyboardInterrupt):
        run(scene, out, Model(stop_after=20), scores=scores)
    assert not out.exists() and not scores.exists()
    assert ".map.tif.rsmamba" in leftovers(tmp_path)
    model = Model()
    report = run(scene, out, model, scores=scores)
    assert 0 < report.blocks_resumed < 12
    alone = Model()
    (tmp_path / "again").mkdir()
    run(scene, tmp_path / "again/map.tif", alone)
    assert model.calls < alone.calls
    assert (out.read_bytes(), scores.read_bytes()) == whole
    assert leftovers(tmp_path) == ["again", "map.tif", "scene.tif", "scores.tif", "whole"]
    assert sum(report.pixels.values()) + report.pixels_nodata == 200 * 170


def _forked(scene, out):
    run(scene, out, Model(pause=0.002))
    os._exit(0)


def killed(processes, scene, out, times, rng):
    """Kill a run at random times, then let it end; how often there was something to go on with."""
    resumed = 0
    for _ in range(times):
        process = processes.Process(target=_forked, args=(scene, out))
        process.start()
        process.join(rng.uniform(0.05, 0.6))
        process.kill()  # SIGKILL; it may have ended by itself
        process.join()
        visible = [n for n in leftovers(out.parent) if not n.startswith(".")]
        assert set(visible) <= {"scene.tif", "whole", "map.tif"}
        if out.exists():
            out.unlink()
        resumed += (out.parent / f".{out.name}.rsmamba").exists()
    report = run(scene, out)
    return resumed + report.blocks_resumed


@pytest.mark.parametrize("times", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_sigkill_at_random_times_changes_no_byte(processes, scene, whole, tmp_path, times):
    out = tmp_path / "map.tif"
    assert killed(processes, scene, out, times, random.Random(times)) > 0
    assert out.read_bytes() == whole[0]
    assert leftovers(tmp_path) == ["map.tif", "scene.tif", "whole"]


def test_a_run_that_differs_is_refused_until_told_to_begin_anew(scene, tmp_path):
    out = tmp_path / "map.tif"
    with pytest.raises(KeyboardInterrupt):
        run(scene, out, Model(stop_after=20))
    with pytest.raises(RunMismatchError, match=r"map\.tif.*halo \(4 before, 6 now\).*--restart"):
        run(scene, out, halo=6)
    other = Model()
    with torch.no_grad():
        other.conv.bias += 1
    with pytest.raises(RunMismatchError, match=r"model\.weights"):
        run(scene, out, other)
    os.utime(scene, ns=(1, 1))
    with pytest.raises(RunMismatchError, match=r"scene\.mtime"):
        run(scene, out)
    assert run(scene, out, halo=6, restart=True).blocks_resumed == 0
    assert leftovers(tmp_path) == ["map.tif", "scene.tif"]


def test_a_damaged_manifest_counts_as_another_run(scene, tmp_path):
    out = tmp_path / "map.tif"
    with pytest.raises(KeyboardInterrupt):
        run(scene, out, Model(stop_after=20))
    (tmp_path / ".map.tif.rsmamba/manifest.json").write_text("{")
    with pytest.raises(RunMismatchError, match="--restart"):
        run(scene, out)


def test_functions_begin_anew_and_leave_nothing(scene, tmp_path):
    module = Model(stop_after=20)

    def function(images):
        return module(images)

    with pytest.raises(KeyboardInterrupt):
        map_scene(function, scene, tmp_path / "map.tif", **SMALL)
    assert leftovers(tmp_path) == ["scene.tif"]


def test_a_run_stopped_before_its_first_block_leaves_nothing(scene, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "map.tif", Model(stop_after=0))
    assert leftovers(tmp_path) == ["scene.tif"]


def test_a_second_run_names_the_process_that_holds_the_output(scene, tmp_path):
    out = tmp_path / "map.tif"
    with (
        WorkFolder(out, {}, Shard()),
        pytest.raises(BusyError, match=rf"map\.tif is being made by process {os.getpid()} on "),
    ):
        run(scene, out)
    assert not out.exists()


# --- shards


def test_shards_in_any_order_give_the_map_of_one_run(scene, whole, tmp_path):
    out, scores = tmp_path / "map.tif", tmp_path / "scores.tif"
    reports = [run(scene, out, shard=f"{i}/3", scores=scores) for i in (2, 3, 1)]
    assert [r.complete for r in reports] == [False, False, True]
    assert (out.read_bytes(), scores.read_bytes()) == whole
    assert sum(reports[-1].pixels.values()) == 200 * 170
    assert leftovers(tmp_path) == ["map.tif", "scene.tif", "scores.tif", "whole"]


def _shard(scene, out, shard):
    run(scene, out, Model(pause=0.001), shard=shard)
    os._exit(0)


def test_shards_at_the_same_time_give_the_map_of_one_run(processes, scene, whole, tmp_path):
    out = tmp_path / "map.tif"
    jobs = [processes.Process(target=_shard, args=(scene, out, f"{i}/3")) for i in (1, 2, 3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert out.read_bytes() == whole[0]
    assert leftovers(tmp_path) == ["map.tif", "scene.tif", "whole"]


def test_the_same_shard_twice_and_other_numbers_of_shards_are_refused(scene, tmp_path):
    out = tmp_path / "map.tif"
    run(scene, out, shard="1/3")
    with pytest.raises(RunMismatchError, match="shards"):
        run(scene, out, shard="1/2")
    with FileLock(tmp_path / ".map.tif.rsmamba/lock-2-of-3"), pytest.raises(BusyError):
        run(scene, out, shard="2/3")
    with FileLock(tmp_path / ".map.tif.rsmamba/lock-2-of-3"), pytest.raises(BusyError):
        run(scene, out, shard="1/3", restart=True)
    for bad in ("0/2", "3/2", "2", "a/b", "1/-1"):
        with pytest.raises(ConfigError, match="such as 3/8"):
            run(scene, out, shard=bad)


# --- what cannot be read or held


def test_what_cannot_be_read_is_nodata_named_and_does_not_stop_the_run(make_scene, tmp_path):
    pixels = noise(256, 256)
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    scene = make_scene(pixels, interleave="pixel", **options)
    whole = tmp_path / "whole.tif"
    run(scene, whole, blend="crop")
    scene.write_bytes(scene.read_bytes()[:-2000])  # the last of the file's blocks is cut off
    report = run(scene, tmp_path / "map.tif", blend="crop")
    assert report.failed
    assert all("scene.tif at row 192, column 192 (64 x 64 px)" in m for m in report.failed)
    with rasterio.open(whole) as expected, rasterio.open(tmp_path / "map.tif") as made:
        before, after = expected.read(1), made.read(1)
    assert (after[192:, 192:] == 255).all()
    assert report.pixels_nodata == 64 * 64
    away = np.ones((256, 256), bool)
    away[188:, 188:] = False
    assert np.array_equal(before[away], after[away])


class Greedy(Model):
    """Runs out of memory with more than a number of images."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_out_of_memory_halves_the_batch_and_changes_nothing(scene, whole, tmp_path, caplog):
    run(scene, tmp_path / "map.tif", Greedy(1), batch_size=8)
    with rasterio.open(tmp_path / "map.tif") as made:
        found = made.read(1)
    with rasterio.open(tmp_path / "whole/map.tif") as made:
        assert np.array_equal(found, made.read(1))
    assert "4 tiles per forward" in caplog.text and "1 tiles per forward" in caplog.text
    with pytest.raises(ConfigError, match="--tile smaller"):
        run(scene, tmp_path / "other.tif", Greedy(0))


def test_a_full_disk_is_a_typed_error(scene, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsmamba.gis.raster.write_mosaic", full)
    with pytest.raises(OutputNotWritableError, match=r"map\.tif.*No space left"):
        run(scene, tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()


def test_facts_of_a_block_survive_their_file(tmp_path, scene):
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "map.tif", Model(stop_after=20))
    folder = tmp_path / ".map.tif.rsmamba"
    facts = json.loads(next(iter(sorted(folder.glob("0*.json")))).read_text())
    assert facts["classes"] == ["water", "field", "wood"]
    assert sum(facts["pixels"]) + facts["nodata"] > 0

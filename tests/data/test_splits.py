"""Shares, manifests, files and windows."""

import json

import pytest

from rsmamba.data.images import Region, clip, grid
from rsmamba.data.listing import find_files
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import ConfigError, DataNotFoundError, OutputNotWritableError

TIF = frozenset({".tif"})


def test_a_share_is_taken_by_size_and_something_is_always_left():
    sizes = {f"f{i}": float(1 + i % 3) for i in range(60)}
    for seed in range(5):
        chosen = take_share(sizes, 0.25, seed)
        assert abs(sum(sizes[n] for n in chosen) / sum(sizes.values()) - 0.25) < 0.03
    assert take_share(sizes, 0.25, 0) != take_share(sizes, 0.25, 1)
    assert len(take_share({"a": 1.0, "b": 1.0}, 0.01, 0)) == 1
    assert len(take_share({"a": 1.0, "b": 1.0}, 0.99, 0)) == 1


@pytest.mark.parametrize(("sizes", "share"), [({"a": 1.0}, 0.5), ({"a": 1.0, "b": 1.0}, 1.0)])
def test_an_impossible_share_is_refused(sizes, share):
    with pytest.raises(ConfigError):
        take_share(sizes, share, 0)


def test_a_failed_manifest_leaves_nothing_behind(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    target = tmp_path / "m.json"
    with pytest.raises(TypeError):
        Manifest("d", tmp_path, {"bad": object()}, {"train": [(file, {})]}).write(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]
    with pytest.raises(OutputNotWritableError, match="missing"):
        Manifest("d", tmp_path, {}, {}).write(tmp_path / "missing/m.json")
    Manifest("d", tmp_path, {}, {"train": [(file, {"n": 1})]}).write(target)
    assert json.loads(target.read_text())["splits"]["train"] == [
        {
            "file": "a.txt",
            "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
            "n": 1,
        }
    ]
    assert target.stat().st_mode & 0o777 == 0o644


def test_files_are_found_in_folders_patterns_and_lists(tmp_path):
    for name in ("a.tif", "sub/b.TIF", "c.png", ".hidden.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b, c = tmp_path / "a.tif", tmp_path / "sub/b.TIF", tmp_path / "c.png"
    assert find_files(tmp_path, TIF) == [a, b]
    assert find_files(f"{tmp_path}/*.tif", TIF) == [a]
    assert find_files(f"{tmp_path}/**/*", TIF) == [a, b]
    assert find_files([tmp_path, a, c], TIF) == [a, c, b]  # a named file counts whatever its suffix
    for missing in (tmp_path / "none", f"{tmp_path}/*.gpkg", [], tmp_path / "sub/none.tif"):
        with pytest.raises(DataNotFoundError):
            find_files(missing, TIF)


def test_a_grid_covers_a_region_once():
    region = Region(5, 7, 70, 33)
    seen = [
        (y, x)
        for window in grid(region, 32)
        for part in [clip(window, region)]
        for y in range(part.row, part.row + part.height)
        for x in range(part.col, part.col + part.width)
    ]
    assert len(seen) == len(set(seen)) == region.area
    assert min(seen) == (5, 7)
    assert max(seen) == (74, 39)

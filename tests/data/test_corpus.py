"""The index of a collection: what is listed, when it is listed again, what it survives."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rsmamba.data import ScenePatches, corpus
from rsmamba.data.corpus import FileIndex, find_images
from rsmamba.data.listing import IMAGE_SUFFIXES, find_files, to_path
from rsmamba.data.many_names import hashes, hold_back
from rsmamba.errors import (
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    GridMismatchError,
    ImageReadError,
    OutputNotWritableError,
)
from tests.data.scenes.data import noise, write

NAMES = ("a/1.tif", "a/2.jpg", "a.png", "b/c/3.tiff", "b/c/4.TIF", "z.jpeg")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six empty files in folders, beside some that do not count; a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for name in (*NAMES, "notes.txt", ".hidden.tif", ".trash/5.tif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(index):
    return [str(index.paths(i)[0]) for i in range(len(index))]


def touch(folder, name):
    """Add a file as if it were done later, whatever the resolution of the clock."""
    (folder / name).touch()
    later = (folder / name).parent.stat().st_mtime_ns + 10**9
    os.utime((folder / name).parent, ns=(later, later))


# Listing


def test_files_are_listed_in_the_order_of_paths(folder):
    index = find_images(folder)
    assert listed(index) == [str(p) for p in sorted(folder / n for n in NAMES)]
    assert index.names.to_pylist() == [str(p) for p in sorted(map(Path, NAMES))]
    assert index.base == str(folder)
    several = find_images([folder / "b", folder / "z.jpeg", str(folder / "a*"), folder / "a"])
    assert sorted(listed(several)) == sorted(listed(index))
    matching = find_images(f"{folder}/**/*.tif*")
    assert listed(matching) == [str(folder / n) for n in ("a/1.tif", "b/c/3.tiff")]


def test_links_to_folders_are_followed_once(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "there").symlink_to(folder / "b")
    (folder / "gone.tif").symlink_to(folder / "nowhere.tif")
    assert len(find_images(folder)) == len(NAMES)


def test_a_folder_that_cannot_be_listed_and_an_empty_one_are_named(folder, monkeypatch):
    (folder / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match=r"empty: no images in there; .*\.tif"):
        find_images(folder / "empty")

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataNotFoundError, match=r"images: cannot be listed.*permissions"):
        find_images(folder)


def test_a_name_that_is_not_text_is_refused(folder):
    (folder / os.fsdecode(b"caf\xe9.tif")).touch()
    with pytest.raises(DataNotFoundError, match=r"caf.*not UTF-8; rename"):
        find_images(folder)


def test_a_pattern_may_spell_out_another_suffix(folder):
    (folder / "mosaic.vrt").touch()
    assert listed(find_images(f"{folder}/*.vrt")) == [str(folder / "mosaic.vrt")]
    assert len(find_images(folder)) == len(NAMES)


# The file


def test_a_small_collection_leaves_nothing_in_the_cache(folder):
    assert find_images(folder).file is None
    assert not corpus.cache_folder().exists()


def test_a_large_collection_is_listed_once(folder, monkeypatch, caplog):
    monkeypatch.setattr(corpus, "KEEP_ABOVE", 3)
    first = find_images(folder)
    assert "listed 6 images" in caplog.text
    assert first.file.parent == corpus.cache_folder()
    monkeypatch.setattr(corpus, "iter_files", None)
    again = find_images(folder)
    assert listed(again) == listed(first)
    assert again.about["sha256"] == first.sha256()
    monkeypatch.chdir(folder.parent)
    assert listed(find_images("images")) == listed(first)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("change", ["added", "removed", "refresh"])
def test_an_index_is_used_until_a_folder_changes(folder, tmp_path, change, inside, monkeypatch):
    file = (folder / "b/c" if inside else tmp_path) / "index.parquet"
    assert len(find_images(folder, index=file)) == 6
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "iter_files", None)
        patch.chdir(folder)
        assert len(find_images(".", index=file)) == 6
    if change == "added":
        touch(folder, "b/c/9.tif")
    elif change == "removed":
        (folder / "b/c/3.tiff").unlink()
    found = find_images(folder, index=file, refresh=change == "refresh")
    assert len(found) == {"added": 7, "removed": 5, "refresh": 6}[change]
    assert FileIndex.read(file).names == found.names


def test_only_some_of_very_many_folders_are_looked_at(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_STAMPS", 2)
    index = find_images(folder, index=tmp_path / "index.parquet")
    assert len(index.about["stamps"]) == 2
    assert str(folder) in index.about["stamps"]


def test_the_hash_is_that_of_the_names_wherever_they_are(folder, tmp_path):
    other = tmp_path / "moved"
    shutil.copytree(folder, other)
    assert find_images(other).sha256() == find_images(folder).sha256()
    (other / "z.jpeg").rename(other / "y.jpeg")
    assert find_images(other).sha256() != find_images(folder).sha256()
    joined = [FileIndex(pa.array(n, pa.large_string())).sha256() for n in (["ab"], ["a", "b"])]
    assert joined[0] != joined[1]


def test_an_index_of_another_root_is_refused(folder, tmp_path):
    file = tmp_path / "index.parquet"
    find_images(folder / "a", index=file)
    with pytest.raises(
        ConfigError, match=r"index\.parquet: is the index of .*/a, not of .*refresh"
    ):
        find_images(folder, index=file)
    assert len(find_images(folder, index=file, refresh=True)) == 6


@pytest.mark.parametrize("fault", ["cut", "bit", "text", "table", "version"])
def test_a_damaged_index_is_named_or_made_anew(folder, tmp_path, fault, monkeypatch, caplog):
    monkeypatch.setattr(corpus, "KEEP_ABOVE", 3)
    file = find_images(folder).file
    content = file.read_bytes()
    if fault == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif fault == "bit":
        middle = content.index(b"\x28\xb5\x2f\xfd") + 8  # inside the first compressed page
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    elif fault == "text":
        file.write_text("nothing")
    elif fault == "table":
        pq.write_table(pa.table({"path": ["a"]}), file)
    else:
        table = pq.read_table(file)
        about = {corpus._KEY: json.dumps({"version": 99, "base": ""})}
        pq.write_table(table.replace_schema_metadata(about), file)
    with pytest.raises(ConfigError, match=r"\.parquet: not an index.*refresh=True"):
        find_images(folder, index=file)
    assert len(find_images(folder)) == 6
    assert "listing the images again" in caplog.text
    assert len(FileIndex.read(file)) == 6


def test_a_place_that_cannot_be_written_is_named_or_done_without(folder, monkeypatch, caplog):
    (folder.parent / "cache").write_text("a file")
    monkeypatch.setattr(corpus, "KEEP_ABOVE", 3)
    assert find_images(folder).file is None
    assert "not kept" in caplog.text
    with pytest.raises(OutputNotWritableError, match=r"cache/i\.parquet.*index=PATH"):
        find_images(folder, index=folder.parent / "cache/i.parquet")


# Splits


def test_the_hash_is_fnv_1a():
    found = hashes(pa.array(["", "a", "foobar"], pa.large_string()))
    # Test vectors of the authors: http://www.isthe.com/chongo/src/fnv/test_fnv.c
    assert [hex(h) for h in found] == [
        "0xcbf29ce484222325",
        "0xaf63dc4c8601ec8c",
        "0x85944171f73967e8",
    ]
    assert hashes(pa.array(["bar"], pa.large_string()), "foo")[0] == found[2]


def test_a_share_of_many_names_is_the_same_everywhere():
    names = pa.array([f"train/c{i % 7}/P{i:06d}.jpg" for i in range(100_000)], pa.large_string())
    held = hold_back(names, None, 0.05, 0)
    assert held.sum() == 5000
    assert np.flatnonzero(held)[:5].tolist() == [19, 29, 31, 55, 67]
    for c in range(7):  # as many of each class
        assert abs(held[c::7].mean() - 0.05) < 0.006
    other = hold_back(names, None, 0.05, 1)
    assert 150 < (held & other).sum() < 350
    sizes = np.random.default_rng(0).integers(1, 100, len(names))
    by_size = hold_back(names, sizes, 0.3, 0)
    assert abs(sizes[by_size].sum() / sizes.sum() - 0.3) < 0.001


@pytest.mark.parametrize(("count", "share"), [(2, 0.01), (2, 0.99), (3, 0.01), (3, 0.99)])
def test_something_is_always_held_and_left(count, share):
    names = pa.array([f"{i}.jpg" for i in range(count)], pa.large_string())
    assert 0 < hold_back(names, None, share, 0).sum() < count


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (5, 0.0), (5, 1.0)])
def test_an_impossible_share_is_refused(count, share):
    names = pa.array([f"{i}.jpg" for i in range(count)], pa.large_string())
    with pytest.raises(ConfigError, match="fraction"):
        hold_back(names, None, share, 0)


# Archives and servers


@pytest.fixture
def scenes(tmp_path):
    """Two GeoTIFFs and a PNG in folders, in a zip and a tar archive as well."""
    root = tmp_path / "in"
    write(root / "a.tif", noise(40, 50, seed=1))
    write(root / "sub/b.tif", noise(40, 50, seed=2))
    Image.fromarray(noise(40, 50, seed=3).transpose(1, 2, 0)).save(root / "sub/c.png")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for path in root.rglob("*.*"):
            file.write(path, path.relative_to(root))
    with tarfile.open(tmp_path / "in.tar", "w") as file:
        file.add(root, "in")
    return root


@pytest.fixture
def server(scenes):
    """The address of a server of the folder; in a process of its own, for GDAL holds Python up."""
    command = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(scenes)]
    process = subprocess.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    port = re.search(rb"port (\d+)", process.stdout.readline())[1].decode()
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    process.stdout.close()


def images(root, **options):
    data = ScenePatches(root, size=16, length=6, **options)
    return torch.stack([data[i]["image"] for i in range(6)])


def test_images_are_read_from_archives(scenes, tmp_path):
    expected = images(scenes)
    for root in (f"/vsizip/{tmp_path}/in.zip", f"/vsitar/{tmp_path}/in.tar/in/"):
        assert "//" in root or "in/" in root
        assert len(find_images(root)) == 3
        for cache in (True, False):
            assert torch.equal(images(root, cache=cache), expected)
    pattern = f"/vsizip/{tmp_path}/in.zip/**/*.tif"
    assert [Path(f).name for f in listed(find_images(pattern))] == ["a.tif", "b.tif"]
    assert len(find_images(f"/vsizip/{tmp_path}/in.zip/sub/*.png")) == 1


def test_an_archive_that_changes_is_listed_again(scenes, tmp_path):
    root, file = f"/vsizip/{tmp_path}/in.zip", tmp_path / "index.parquet"
    find_images(root, index=file)
    assert str(tmp_path / "in.zip") in FileIndex.read(file).about["stamps"]


def test_a_missing_archive_and_member_are_named(scenes, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"none\.zip.*check path"):
        find_images(f"/vsizip/{tmp_path}/none.zip")
    with pytest.raises(ImageReadError, match=r"in\.zip/none\.tif"):
        ScenePatches(f"/vsizip/{tmp_path}/in.zip/none.tif", size=16)


def test_images_are_read_from_a_server(scenes, server):
    names = ["a.tif", "sub/b.tif", "sub/c.png"]
    found = images([f"{server}/{n}" for n in names])
    assert torch.equal(found, images([scenes / n for n in names]))
    assert str(find_files(f"{server}/a.tif", IMAGE_SUFFIXES)[0]) == f"/vsicurl/{server}/a.tif"
    with pytest.raises(ImageReadError, match=f"{server}/none.tif.*404"):
        ScenePatches(f"{server}/none.tif", size=16)
    with pytest.raises(DataNotFoundError, match=f"{server}/sub/.*name the files"):
        ScenePatches(f"{server}/sub/", size=16)


def test_a_folder_of_a_server_that_lists_it_is_read(scenes, server):
    rows = "".join(f'<a href="{n}">{n}</a> 2026-01-01 00:00 1K\n' for n in ("b.tif", "c.png"))
    # As Apache writes it, line by line.
    page = f"<html><head>\n<title>Index of /sub</title>\n</head><body>\n<pre>\n{rows}</pre></body>"
    (scenes / "sub/index.html").write_text(page)
    assert [Path(f).name for f in listed(find_images(f"{server}/sub/"))] == ["b.tif", "c.png"]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://h/a//b.tif", "/vsicurl/https://h/a//b.tif"),
        ("s3://bucket/a.tif", "/vsis3/bucket/a.tif"),
        ("gs://bucket/a.tif", "/vsigs/bucket/a.tif"),
        ("file:///d/a.tif", "/d/a.tif"),
        ("/vsizip//d/a.zip/b.tif", "/vsizip//d/a.zip/b.tif"),
    ],
)
def test_urls_become_what_gdal_opens(url, path):
    assert str(to_path(url)) == path
    assert find_files(url, IMAGE_SUFFIXES) == [to_path(url)] if path.startswith("/vsi") else True


# STAC


def item(name, assets):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2026-01-01T00:00:00Z"},
        "links": [],
        "assets": assets,
    }


TIFF = "image/tiff; application=geotiff"


@pytest.fixture
def items(tmp_path):
    """Two items of three files with one band each, with a thumbnail and metadata."""
    found = []
    for k in range(2):
        assets = {
            "thumbnail": {"href": "./t.png", "type": "image/png", "roles": ["thumbnail"]},
            "metadata": {"href": "./m.xml", "type": "application/xml", "roles": ["metadata"]},
        }
        for band, name in enumerate(("B04", "B03", "B02")):
            values = np.full((1, 40, 40), 10 * (band + 1) + k, np.uint16)
            write(tmp_path / f"s{k}/{name}.tif", values, nodata=0)
            assets[name] = {"href": f"./s{k}/{name}.tif", "type": TIFF, "roles": ["data"]}
        found.append(item(f"s{k}", assets))
    return found


def save(tmp_path, content):
    path = tmp_path / "items.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("form", ["collection", "list", "item"])
def test_items_stand_for_their_images(tmp_path, items, form):
    count = 1 if form == "item" else 2
    content = {"collection": {"type": "FeatureCollection", "features": items}, "list": items}
    path = save(tmp_path, content.get(form, items[0]))
    each = find_images(path)
    assert [Path(f).name for f in listed(each)] == ["B04.tif", "B03.tif", "B02.tif"] * count
    assert ScenePatches(path, size=16).bands == ("band_1",)
    stacked = ScenePatches(path, size=16, assets=["B02", "B04"], bands=("blue", "red"), length=8)
    means = {tuple(stacked[i]["image"].mean((1, 2)).tolist()) for i in range(8)}
    assert means == {(30.0 + k, 10.0 + k) for k in range(count)}
    chosen = ScenePatches(path, size=16, assets=["B02", "B04"], indexes=[2], length=1)
    assert float(chosen[0]["image"].mean()) in (10.0, 11.0)


def test_items_on_a_server_are_read_with_their_relative_paths(scenes, server):
    assets = {"data": {"href": "./sub/b.tif", "type": TIFF}}
    (scenes / "items.json").write_text(json.dumps([item("x", assets)]))
    index = find_images(f"{server}/items.json")
    assert listed(index) == [f"/vsicurl/{server}/sub/b.tif"]
    assert images(f"{server}/items.json").shape == (6, 3, 16, 16)
    with pytest.raises(DataNotFoundError, match=f"{server}/none.json.*cannot be fetched"):
        find_images(f"{server}/none.json")


def test_hrefs_of_items_become_what_gdal_opens(tmp_path):
    hrefs = {"s3://b/k.tif": "/vsis3/b/k.tif", "https://h/k.tif": "/vsicurl/https://h/k.tif"}
    content = [item(h[:2], {"data": {"href": h, "type": TIFF}}) for h in hrefs]
    assert listed(find_images(save(tmp_path, content))) == list(hrefs.values())


def test_what_items_lack_is_named(tmp_path, items):
    path = save(tmp_path, items)
    with pytest.raises(DataNotFoundError, match=r"items\.json: item s0 has no asset 'B08'.*B04"):
        find_images(path, assets=["B08"])
    with pytest.raises(DataNotFoundError, match="item x has no image among its assets"):
        find_images(save(tmp_path, [item("x", {})]))
    for content in ({"type": "Catalog"}, 3, [{"id": 1}], {"type": "FeatureCollection"}):
        with pytest.raises(ImageReadError, match=r"items\.json: not a STAC item"):
            find_images(save(tmp_path, content))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ImageReadError, match=r"text\.json: not a STAC item"):
        find_images(tmp_path / "text.json")
    with pytest.raises(DataNotFoundError, match=r"none\.json"):
        find_images(tmp_path / "none.json")


def test_bands_of_an_item_that_do_not_fit_each_other_are_a_bad_file(tmp_path, items):
    path = save(tmp_path, items)
    write(tmp_path / "s1/B03.tif", np.ones((1, 20, 20), np.uint16))
    options = {"size": 16, "assets": ["B04", "B03"], "length": 4}
    with pytest.raises(GridMismatchError, match=r"s1/B03\.tif is 20 x 20"):
        ScenePatches(path, **options)
    with pytest.warns(UserWarning, match="B03"):
        data = ScenePatches(path, max_bad_files=1, **options)
    assert len(data.scenes) == 1
    write(tmp_path / "s1/B03.tif", np.ones((1, 40, 40), np.uint16), east=7.0)
    with pytest.raises(GridMismatchError, match=r"s1/B03\.tif is not on the grid"):
        ScenePatches(path, **options)
    write(tmp_path / "s1/B03.tif", np.ones((2, 40, 40), np.uint16))
    with pytest.raises(BandMismatchError, match=r"s1/B03\.tif: has 2 bands"):
        ScenePatches(path, **options)

"""Shipped samples: complete, small, readable, disjoint, attributed."""

import io
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from rsmamba import samples
from rsmamba.errors import DataNotFoundError

SHARED = Path(__file__).parents[1] / "../shared/data"
AREA = (32.595062255859375, 0.35018702872728885, 32.59574890136719, 0.3508736613849764)


def thumbnails(images):
    small = [i.convert("L").resize((32, 32), Image.Resampling.BOX) for i in images]
    return np.stack([np.asarray(i, np.float32) for i in small]).reshape(len(small), -1)


def nearest(queries, others):
    """Least mean difference in grey levels of each query to any of the others."""
    distance = torch.cdist(torch.from_numpy(queries), torch.from_numpy(others), p=1)
    return distance.min(1).values / others.shape[1]


def test_every_sample_is_described_and_together_they_are_small():
    found = samples.list()
    assert {s.name for s in found} == {"ucmerced", "aerial_unlabelled", "buildings", "landsat"}
    assert sum(s.bytes for s in found) <= 11.5e6
    readme = (Path(samples.__file__).parent / "README.md").read_text()
    for sample in found:
        assert sample.path.is_dir()
        assert sample.bytes > 100_000
        assert sample.licence
        assert sample.attribution
        assert f"## `{sample.name}`" in readme


def test_a_sample_path_resolves_and_any_other_path_passes_through(tmp_path):
    assert samples.resolve("sample:landsat/bahamas.tif").is_file()
    assert samples.resolve("sample:ucmerced") == samples.path("ucmerced")
    assert samples.resolve(tmp_path) == tmp_path
    assert samples.resolve("some/where.tif") == Path("some/where.tif")


def test_an_unknown_sample_is_refused_with_the_known_names():
    with pytest.raises(DataNotFoundError, match=r"'nowhere'.*ucmerced.*landsat"):
        samples.resolve("sample:nowhere/x.tif")


def test_the_module_imports_nothing_beside_the_standard_library():
    code = "import sys, rsmamba.samples as s; s.list(); print([m for m in sys.modules if m in " + (
        "('torch', 'numpy', 'PIL', 'rasterio', 'torchgeo')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_ucmerced_has_equal_classes_and_a_stratified_split():
    root = samples.path("ucmerced")
    images = sorted((root / "UCMerced_LandUse/Images").glob("*/*.jpg"))
    assert len({p.parent.name for p in images}) == 21
    names = {p.name: p.parent.name for p in images}
    split = {s: (root / f"uc_merced-{s}.txt").read_text().split() for s in ("train", "val", "test")}
    assert sorted(n for part in split.values() for n in part) == sorted(names)
    for part, count in (("train", 15), ("val", 3), ("test", 12)):
        classes = [names[n] for n in split[part]]
        assert {classes.count(c) for c in classes} == {count}
    assert {Image.open(p).size for p in images[::50]} == {(128, 128)}


def test_the_unlabelled_images_are_no_copies_of_the_labelled_ones():
    labelled = sorted((samples.path("ucmerced") / "UCMerced_LandUse/Images").glob("*/*.jpg"))
    unlabelled = sorted(samples.path("aerial_unlabelled").glob("*.jpg"))
    assert len(unlabelled) == 1000
    assert all(p.stem.isdigit() for p in unlabelled)
    ours = thumbnails([Image.open(p) for p in labelled])
    copies = []
    for path in labelled[::20]:  # the check must see a copy: another encoding of one image
        buffer = io.BytesIO()
        Image.open(path).save(buffer, "JPEG", quality=75)
        copies.append(Image.open(buffer))
    assert nearest(thumbnails(copies), ours).max() < 2
    assert nearest(thumbnails([Image.open(p) for p in unlabelled]), ours).min() > 3


def test_building_chips_have_labels_and_do_not_overlap_the_scene():
    root = samples.path("buildings")
    chips = sorted((root / "chips").glob("*.tif"))
    assert len(chips) == 64
    for chip in chips:
        assert (root / "labels" / f"{chip.stem}.geojson").is_file()
        with rasterio.open(chip) as src:
            assert src.crs.to_epsg() == 4326
            assert src.compression.name == "jpeg"
            left, bottom, right, top = src.bounds
        width = min(right, AREA[2]) - max(left, AREA[0])
        height = min(top, AREA[3]) - max(bottom, AREA[1])
        assert width <= 1e-12 or height <= 1e-12


def test_the_scene_lies_in_the_test_area_of_the_readme_with_whole_buildings():
    root = samples.path("buildings")
    with rasterio.open(root / "scene.tif") as src:
        assert src.shape == (1024, 1024)
        assert tuple(src.bounds) == pytest.approx(AREA, abs=1e-12)
    assert str(list(AREA)) in (root.parent / "README.md").read_text()
    frame = gpd.read_file(root / "scene.geojson")
    assert len(frame) == 18
    assert frame.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"}
    named = frame.osm_id.dropna()
    assert named.is_unique


def test_the_landsat_scene_has_a_nodata_collar():
    with rasterio.open(samples.path("landsat") / "bahamas.tif") as src:
        assert src.nodata == 0
        assert src.crs.to_epsg() == 32618
        assert 0.2 < (src.dataset_mask() == 0).mean() < 0.5


@pytest.mark.shared
def test_samples_equal_their_sources_on_the_ground():
    source = SHARED / "hotosm_buildings/chips"
    if not source.is_dir():
        pytest.skip("the developers' imagery is not here")
    root = samples.path("buildings")
    with rasterio.open(root / "scene.tif") as scene:
        pixels, to_scene = scene.read().astype(int), ~scene.transform
    for chip in sorted((root / "chips").glob("*.tif"))[::7]:
        with rasterio.open(chip) as ours, rasterio.open(source / chip.name) as theirs:
            assert tuple(ours.transform) == tuple(theirs.transform)
            assert np.abs(ours.read().astype(int) - theirs.read()).mean() < 4
    for x in range(1238456, 1238460):
        for y in range(1046532, 1046536):
            with rasterio.open(source / f"OAM-{x}-{y}-21.tif") as src:
                col, row = to_scene @ (src.transform @ (0, 0))
                assert abs(col - round(col)) < 1e-3
                assert abs(row - round(row)) < 1e-3
                col, row = round(col), round(row)
                part = pixels[:, row : row + 256, col : col + 256]
                assert np.abs(part - src.read()).mean() < 4

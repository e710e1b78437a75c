"""Bands go by what the files say of them, in the order in which they are read."""

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.enums import ColorInterp
from torch import nn

from rsmamba.data import LabelledScenes, ScenePatches
from rsmamba.data.images import Scene
from rsmamba.data.scene_facts import band_names
from rsmamba.errors import BandMismatchError
from rsmamba.infer import map_scene
from rsmamba.spec import ModelSpec
from tests.data.scenes.data import write

SMALL = {"tile": 32, "halo": 4, "progress": False}


def flat(*values, side=40):
    return np.stack([np.full((side, side), v, np.uint8) for v in values])


def described(path, pixels, names=None, colours=None):
    write(path, pixels, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as target:
        if names:
            target.descriptions = names
        if colours:
            target.colorinterp = [getattr(ColorInterp, c) for c in colours]
    return path


def named(*paths, indexes=None, bands=None):
    return band_names(bands, [Scene.open(path, indexes) for path in paths])


def test_names_follow_the_order_in_which_bands_are_read(tmp_path):
    path = described(tmp_path / "a.tif", flat(1, 2, 3), colours=["red", "green", "blue"])
    assert named(path) == ("red", "green", "blue")
    assert named(path, indexes=[3, 2, 1]) == ("blue", "green", "red")
    assert ScenePatches(path, size=8, length=1, indexes=[3, 1]).bands == ("blue", "red")
    photo = tmp_path / "a.png"
    Image.fromarray(flat(1, 2, 3).transpose(1, 2, 0)).save(photo)
    assert named(photo, indexes=[2, 3]) == ("green", "blue")


def test_descriptions_come_before_colours_and_numbers_stand_for_what_nobody_names(tmp_path):
    path = described(tmp_path / "a.tif", flat(1, 2, 3), ["NIR", "Red", "Green"])
    assert named(path) == ("nir", "red", "green")
    plain = described(tmp_path / "b.tif", flat(1, 2, 3, 4))
    assert named(plain) == ("band_1", "band_2", "band_3", "band_4")
    assert named(plain, indexes=[4, 2]) == ("band_4", "band_2")
    assert named(plain, indexes=[3, 2, 1]) == ("band_3", "band_2", "band_1")
    three = described(tmp_path / "c.tif", flat(1, 2, 3))
    assert named(three) == ("red", "green", "blue")
    strange = described(tmp_path / "d.tif", flat(1, 2), ["mean of August", "red"])
    assert named(strange) == ("band_1", "red")


def test_files_that_differ_in_their_bands_are_refused(tmp_path):
    a = described(tmp_path / "a.tif", flat(1, 2, 3), ["red", "green", "blue"])
    b = described(tmp_path / "b.tif", flat(1, 2, 3), ["blue", "green", "red"])
    with pytest.raises(BandMismatchError, match=r"b\.tif: band 1 is blue, in .*a\.tif it is red"):
        named(a, b)
    assert named(a, described(tmp_path / "c.tif", flat(1, 2, 3))) == ("red", "green", "blue")


def test_given_names_must_not_contradict_descriptions(tmp_path):
    a = described(tmp_path / "a.tif", flat(1, 2, 3), ["nir", "red", "green"])
    with pytest.raises(
        BandMismatchError, match=r"a\.tif: the list of bands is 3 \(nir, red, green"
    ):
        named(a, bands=["red", "green", "blue"])
    # Colours are a habit of image formats: false colour is stored as red, green and blue.
    b = described(tmp_path / "b.tif", flat(1, 2, 3), colours=["red", "green", "blue"])
    assert named(b, bands=["nir", "red", "green"]) == ("nir", "red", "green")


class Brightest(nn.Module):
    """The class is the brightest band."""

    def forward(self, images):
        return images


def spec_of(data):
    return ModelSpec(
        task="segmentation",
        task_class="rsmamba.tasks.SemanticSegmentation",
        task_kwargs={},
        architecture="none",
        bands=data.bands,
        mean=(0.0,) * len(data.bands),
        std=(1.0,) * len(data.bands),
        classes=tuple(f"c{i}" for i in range(len(data.bands))),
    )


def test_a_map_takes_the_bands_that_the_model_was_trained_on(tmp_path):
    scene = described(tmp_path / "a.tif", flat(20, 100, 220), colours=["red", "green", "blue"])
    spec = spec_of(ScenePatches(scene, size=8, length=1, indexes=[3, 2, 1]))
    out = tmp_path / "map.tif"
    with pytest.raises(BandMismatchError, match=r"blue, green, red\): .*--bands 3 2 1"):
        map_scene(Brightest(), scene, out, spec=spec, **SMALL)
    report = map_scene(Brightest(), scene, out, spec=spec, bands=[3, 2, 1], **SMALL)
    assert report.pixels == {"c0": 1600, "c1": 0, "c2": 0}  # blue, the model's first


def test_a_band_called_alpha_that_was_trained_on_is_mapped(tmp_path):
    pixels = flat(20, 100, 60, 220)
    pixels[3, :5] = 0  # a near infrared of 0 is no hole
    scene = write(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES")
    with rasterio.open(scene) as source:
        assert source.colorinterp[3] == ColorInterp.alpha
    data = ScenePatches(scene, size=8, length=1, indexes=[1, 2, 3, 4])
    assert data.bands == ("red", "green", "blue", "band_4")
    out = tmp_path / "map.tif"
    with pytest.raises(BandMismatchError, match="--bands 1 2 3 4"):
        map_scene(Brightest(), scene, out, spec=spec_of(data), **SMALL)
    report = map_scene(Brightest(), scene, out, spec=spec_of(data), bands=[1, 2, 3, 4], **SMALL)
    assert report.pixels == {"c0": 0, "c1": 200, "c2": 0, "c3": 1400}
    assert report.pixels_nodata == 0
    with pytest.raises(BandMismatchError, match="band 9 was asked for, there are 4"):
        map_scene(Brightest(), scene, out, spec=spec_of(data), bands=[9], overwrite=True, **SMALL)


def test_labelled_scenes_name_bands_likewise(tmp_path):
    described(tmp_path / "images/a.tif", flat(1, 2, 3), ["nir", "red", "green"])
    write(tmp_path / "masks/a.tif", np.zeros((1, 40, 40), np.uint8))
    data = LabelledScenes(tmp_path / "images", tmp_path / "masks", classes=["a"], patch_size=16)
    assert data.bands == ("nir", "red", "green")
    assert torch.equal(data[0]["image"][:, 0, 0], torch.tensor([1.0, 2.0, 3.0]))

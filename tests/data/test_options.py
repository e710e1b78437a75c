"""Option values that make no sense: refused in one line that says what is allowed."""

import math

import pytest
import torch

from rsmamba.data import (
    AIDDataModule,
    EuroSATDataModule,
    ImageFolderDataModule,
    OSCDDataModule,
    ScenePatches,
    ScenePatchesDataModule,
    UCMercedDataModule,
)
from rsmamba.data.augment import ImageAugmentation, SegmentationAugmentation
from rsmamba.data.options import at_least, chosen_bands, distinct, finite, one_of, positive, share
from rsmamba.errors import ConfigError
from tests.data.scenes import data as scenes

NAN, INF = math.nan, math.inf

#: Data module, a wrong option, and what the message says is allowed.
WRONG = [
    (AIDDataModule, {"colour_jitter": 5.0}, r"\[0, 1\)"),
    (AIDDataModule, {"colour_jitter": -0.1}, r"\[0, 1\)"),
    (EuroSATDataModule, {"colour_jitter": 1.0}, r"\[0, 1\)"),
    (ImageFolderDataModule, {"colour_jitter": NAN}, r"\[0, 1\)"),
    (OSCDDataModule, {"colour_jitter": 5.0}, r"\[0, 1\)"),
    (OSCDDataModule, {"colour_jitter": 5.0, "mean": "auto", "std": "auto"}, r"\[0, 1\)"),
    (OSCDDataModule, {"scale_jitter": -0.5}, r"\[0, 1\]"),
    (OSCDDataModule, {"scale_jitter": 1.5}, r"\[0, 1\]"),
    (OSCDDataModule, {"length": 0}, "at least 1"),
    (OSCDDataModule, {"length": -1}, "at least 1"),
    (OSCDDataModule, {"tile_size": 0}, "at least 1"),
    (OSCDDataModule, {"patch_size": 0}, "at least 1"),
    (OSCDDataModule, {"val_fraction": 1.0}, r"\[0, 1\)"),
    (OSCDDataModule, {"bands": ["B04", "red"]}, "B04 twice"),
    (AIDDataModule, {"image_size": -5}, "at least 1"),
    (AIDDataModule, {"image_size": 0}, "at least 1"),
    (AIDDataModule, {"val_ratio": 1.0}, r"\[0, 1\)"),
    (AIDDataModule, {"batch_size": 0}, "at least 1"),
    (AIDDataModule, {"num_workers": -1}, "at least 0"),
    (AIDDataModule, {"mean": [NAN, 1.0, 1.0]}, "finite"),
    (UCMercedDataModule, {"mean": [INF, 1.0, 1.0]}, "finite"),
    (UCMercedDataModule, {"std": [NAN, 1.0, 1.0]}, "finite"),
    (UCMercedDataModule, {"std": [INF, 1.0, 1.0]}, "finite"),
    (UCMercedDataModule, {"std": [0.0, 1.0, 1.0]}, "positive"),
    (EuroSATDataModule, {"bands": ["B04", "B04"]}, "B04 twice"),
    (ScenePatchesDataModule, {"size": 0}, "at least 1"),
    (ScenePatchesDataModule, {"length": 0}, "at least 1"),
    (ScenePatchesDataModule, {"length": -1}, "at least 1"),
    (ScenePatchesDataModule, {"val_length": 0}, "at least 1"),
    (ScenePatchesDataModule, {"window": -5}, "at least 1"),
    (ScenePatchesDataModule, {"window": 0}, "at least 1"),
    (ScenePatchesDataModule, {"stride": 0}, "at least 1"),
    (ScenePatchesDataModule, {"windows": "gird"}, "random.*grid"),
    (ScenePatchesDataModule, {"weights": "aera"}, "auto.*area.*equal"),
    (ScenePatchesDataModule, {"scale": (2.0, 0.1)}, r"\(0, 1\]"),
    (ScenePatchesDataModule, {"max_nodata": -1.0}, r"\[0, 1\)"),
    (ScenePatchesDataModule, {"max_nodata": 1.0}, r"\[0, 1\)"),
    (ScenePatchesDataModule, {"val_fraction": 1.5}, r"\[0, 1\)"),
    (ScenePatchesDataModule, {"indexes": []}, "at least one"),
    (ScenePatchesDataModule, {"indexes": [0]}, "from 1"),
    (ScenePatchesDataModule, {"bands": ["red", "red", "red"]}, "red twice"),
]


@pytest.mark.parametrize(
    ("module", "options", "allowed"), WRONG, ids=[f"{m.__name__}-{o}" for m, o, _ in WRONG]
)
def test_a_wrong_value_is_named_with_what_is_allowed(module, options, allowed, tmp_path):
    name = next(iter(options))
    with pytest.raises(ConfigError, match=rf"{name}.*{allowed}") as caught:
        module(root=tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (options, allowed)
        for module, options, allowed in WRONG
        if module is ScenePatchesDataModule and not set(options) & {"val_length", "val_fraction"}
    ],
)
def test_the_data_set_refuses_what_its_data_module_does(options, allowed, tmp_path):
    with pytest.raises(ConfigError, match=rf"{next(iter(options))}.*{allowed}"):
        ScenePatches(scenes.make(tmp_path) / "images", **options)


def test_jitter_is_checked_by_whatever_uses_it():
    one = torch.ones(1)
    for make in (
        lambda: ImageAugmentation(one, one, colour_jitter=1.0),
        lambda: SegmentationAugmentation(one, one, 0.0, -1.0),
    ):
        with pytest.raises(ConfigError, match=r"colour_jitter=\S+ must lie in \[0, 1\)"):
            make()
    with pytest.raises(ConfigError, match=r"scale_jitter=-2.0 must lie in \[0, 1\]"):
        SegmentationAugmentation(one, one, scale_jitter=-2.0)


def test_what_is_allowed_passes():
    positive("size", None)
    positive("size", 1)
    at_least("halo", 0, 0)
    share("share", 0)
    share("share", 1.0, whole=True)
    one_of("windows", "grid", ("random", "grid"))
    finite("mean", [0, -1.5])
    distinct("bands", None)
    distinct("bands", ["red", "nir"])
    chosen_bands("indexes", None)
    chosen_bands("indexes", [3, 1, 1])

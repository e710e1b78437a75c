import dataclasses

import pytest

from rsmamba.errors import SpecError
from rsmamba.spec import ModelSpec


def spec(**changes):
    values = {
        "task": "segmentation",
        "task_class": "rsmamba.tasks.segment.SemanticSegmentation",
        "task_kwargs": {"backbone": "spatial_mamba_tiny", "num_classes": 2},
        "architecture": "spatial_mamba_tiny",
        "bands": ("red", "green", "blue"),
        "mean": (1.0, 2.0, 3.0),
        "std": (4.0, 5.0, 6.0),
        "classes": ("background", "building"),
    }
    return ModelSpec(**(values | changes))


def test_json_round_trip_keeps_every_field():
    original = spec(
        nodata=0.0,
        gsd=0.3,
        image_size=(96, 96),
        colours=("#000000", "#ff0000"),
        licence="CC BY 4.0",
    )
    again = ModelSpec.from_json(original.to_json())
    assert again == original
    assert isinstance(again.bands, tuple)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "painting"}, "painting"),
        ({"bands": (), "mean": (), "std": ()}, "at least one band"),
        ({"mean": (1.0,)}, "one mean and one deviation per band"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"std": (1.0, float("nan"), 1.0)}, "positive"),
        ({"colours": ("#000000",)}, "2 classes but 1 colours"),
        ({"version": 99}, "upgrade rsmamba"),
    ],
)
def test_a_contradiction_is_refused_by_name(changes, message):
    with pytest.raises(SpecError, match=message):
        spec(**changes)


def test_unknown_and_missing_keys_are_named():
    values = spec().to_dict()
    with pytest.raises(SpecError, match="colour_of_the_sky"):
        ModelSpec.from_dict(values | {"colour_of_the_sky": "blue"})
    del values["bands"]
    with pytest.raises(SpecError, match="bands"):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{not json"])
def test_text_that_is_no_spec_is_refused(text):
    with pytest.raises(SpecError):
        ModelSpec.from_json(text)


def test_a_spec_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().task = "change"


def test_a_backbone_pretends_to_no_task():
    original = spec(task="backbone", task_class="timm.create_model", classes=())
    assert ModelSpec.from_json(original.to_json()) == original

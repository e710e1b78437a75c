"""Models as STAC items: the Machine Learning Model (MLM) extension, version 1.4.

What MLM asks for is in a ModelSpec: bands and their scaling, classes, task. Fields and their rules:
https://github.com/stac-extensions/mlm (v1.4.0); class objects:
https://github.com/stac-extensions/classification (v2.0.0).
"""

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.extensions.classification import Classification
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import (
    AssetGeneralMLMExtension,
    Hyperparameters,
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ResultStructure,
    TaskType,
    ValueScaling,
    ValueScalingType,
)
from pystac.extensions.raster import DataType, RasterBand, RasterExtension

from rsmamba.errors import SpecError
from rsmamba.gis.style import palette, parse_colour
from rsmamba.spec import ModelSpec, TaskName

#: MLM's words for the tasks. It has none for change detection, which labels pixels, nor for
#: features, which serve to find alike images.
TASKS: dict[TaskName, tuple[TaskType, ...]] = {
    "pretraining": (TaskType.GENERATIVE,),
    "backbone": (TaskType.SIMILARITY_SEARCH,),
    "classification": (TaskType.SCENE_CLASSIFICATION,),
    "segmentation": (TaskType.SEMANTIC_SEGMENTATION,),
    "change": (TaskType.SEMANTIC_SEGMENTATION,),
    "detection": (TaskType.OBJECT_DETECTION, TaskType.INSTANCE_SEGMENTATION),
}
_IMAGE = ["batch", "channel", "height", "width"]


def model_name(spec: ModelSpec) -> str:
    """Name of a model by architecture and task, in the letters that ``mlm:name`` allows."""
    words = re.sub(r"[^0-9A-Za-z_.\- ]", "-", f"{spec.architecture} {spec.task}")
    return re.sub(r"^[^A-Za-z]+", "", words)


def class_objects(classes: Sequence[str], colours: Sequence[str] = ()) -> list[Classification]:
    """Class objects of the classification extension, one per pixel value.

    Their ``name`` is for machines, of ASCII letters, digits, ``-`` and ``_``; the class's own is
    the ``title``.

    Args:
        classes: Class names by pixel value, at least one.
        colours: ``#rrggbb`` per class; empty for the default palette.

    Raises:
        SpecError: If there is no class, a colour cannot be parsed, or their numbers differ.
    """
    colours = list(colours) or palette(len(classes))
    if not classes or len(colours) != len(classes):
        raise SpecError(
            f"{len(classes)} classes and {len(colours)} colours: give one colour per class, and "
            "at least one class"
        )
    objects: list[Classification] = []
    taken: set[str] = set()
    for value, (title, colour) in enumerate(zip(classes, colours, strict=True)):
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
        name = re.sub(r"[^0-9A-Za-z_-]+", "_", plain).strip("_") or f"class_{value}"
        if name in taken:
            name = f"{name}_{value}"
        taken.add(name)
        hint = "".join(f"{channel:02X}" for channel in parse_colour(colour))
        objects.append(
            Classification.create(value, name=name, title=title, description=title, color_hint=hint)
        )
    return objects


def model_item(
    spec: ModelSpec,
    weights: str | Path,
    *,
    sha256: str | None = None,
    created: datetime | None = None,
    item_id: str | None = None,
) -> pystac.Item:
    """A STAC item of a model, which the items of its maps can refer to.

    It has no geometry: a ModelSpec does not say where the training data lie.

    Args:
        spec: What the model is.
        weights: Its file or URL; not opened.
        sha256: Hash of that file in hexadecimal digits, if known.
        created: Date of the item; now if None.
        item_id: Identifier; the file's name without its suffix if None.
    """
    path = Path(weights)
    created = (created or datetime.now(UTC)).replace(microsecond=0)
    item = pystac.Item(item_id or path.stem, None, None, created, properties={})
    item.common_metadata.title = model_name(spec)
    if spec.licence is not None:  # STAC takes SPDX identifiers
        known = re.fullmatch(r"[\w.+-]+", spec.licence, re.ASCII)
        item.common_metadata.license = spec.licence if known else "other"
    if spec.gsd is not None:
        item.common_metadata.gsd = spec.gsd
    if spec.source_sha256 is not None:
        item.properties["rsmamba:source_sha256"] = spec.source_sha256
    tasks = list(TASKS[spec.task])
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=model_name(spec),
        architecture=spec.architecture,
        tasks=tasks,
        input=[_input(spec)],
        output=[_output(spec, tasks)],
        framework="PyTorch",
        hyperparameters=Hyperparameters.create(**spec.task_kwargs) if spec.task_kwargs else None,
    )
    # pystac writes null for what it was not told; here that would claim "trained from scratch"
    item.properties.pop("mlm:pretrained_source", None)
    plain = path.suffix == ".safetensors"
    asset = pystac.Asset(
        str(weights) if "://" in str(weights) else str(path.absolute()),
        title="Weights",
        media_type="application/octet-stream; framework=pytorch",
        roles=["mlm:model", "mlm:weights" if plain else "mlm:checkpoint"],
    )
    item.add_asset("model", asset)
    kind = "safetensors.torch.save_file" if plain else "torch.save"
    AssetGeneralMLMExtension.ext(asset).apply(artifact_type=kind)
    # What the names in mlm:input refer to. MLM would also take "bands" among the item's properties,
    # which the schema of STAC 1.1 forbids where no asset has them.
    bands = [RasterBand.create(nodata=spec.nodata) for _ in spec.bands]
    for band, name in zip(bands, spec.bands, strict=True):
        band.properties["name"] = name
    RasterExtension.ext(asset, add_if_missing=True).apply(bands=bands)
    if sha256 is not None:
        FileExtension.ext(asset, add_if_missing=True).checksum = multihash(sha256)
    return item


def multihash(sha256: str) -> str:
    """A SHA-256 as ``file:checksum`` has it (https://github.com/multiformats/multihash)."""
    return f"1220{sha256}"


def _input(spec: ModelSpec) -> ModelInput:
    """What enters the model, from the pixels as they are stored."""
    height, width = spec.image_size or (-1, -1)
    structure = InputStructure.create(
        [-1, spec.in_channels, height, width], _IMAGE, DataType.FLOAT32
    )
    scaling = [  # (v * scale - mean) / std, in MLM's one step
        ValueScaling.create(
            ValueScalingType.Z_SCORE, mean=mean / spec.scale, stddev=std / spec.scale
        )
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    image = ModelInput.create(
        name="image",
        bands=list(spec.bands),
        input=structure,
        description="Pixels as they are stored; missing ones are filled with the band's mean",
    )
    # pystac 1.15 writes a single object here, MLM 1.4 wants a list with one per band
    image.properties["value_scaling"] = [step.to_dict() for step in scaling]
    return image


def _output(spec: ModelSpec, tasks: list[TaskType]) -> ModelOutput:
    """What leaves the model."""
    count = len(spec.classes) or -1
    shapes: dict[TaskName, tuple[list[int], list[str]]] = {
        "pretraining": ([-1, -1, -1], ["batch", "token", "channel"]),
        "backbone": ([-1, -1, -1, -1], _IMAGE),
        "classification": ([-1, count], ["batch", "class"]),
        "detection": ([-1, -1], ["batch", "detection"]),
    }
    pixels = [-1, count, -1, -1], ["batch", "class", "height", "width"]
    shape, order = shapes.get(spec.task, pixels)
    classes: Any = class_objects(spec.classes, spec.colours) if spec.classes else None
    return ModelOutput.create(
        name=spec.task,
        tasks=tasks,
        result=ResultStructure.create(shape, order, DataType.FLOAT32),
        classes=classes,
    )

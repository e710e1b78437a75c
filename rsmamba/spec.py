"""ModelSpec: everything that a map needs to know about a model, in one JSON form.

It travels in Lightning checkpoints, safetensors metadata and GeoTIFF tags, so that
``rsmamba map last.ckpt scene.tif out.tif`` needs no further options. A leaf module: it imports
nothing but the standard library and :mod:`rsmamba.errors`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from rsmamba.errors import SpecError

TaskName = Literal[
    "pretraining", "classification", "segmentation", "change", "detection", "backbone"
]

#: Key of the JSON text in a Lightning checkpoint, in safetensors metadata and in GeoTIFF tags.
SPEC_KEY = "rsmamba_spec"
SPEC_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a checkpoint is, and what pixels it expects.

    A pixel value ``v`` of band ``i`` enters the model as ``(v * scale - mean[i]) / std[i]``.

    Attributes:
        task: What the model predicts; ``"backbone"`` for weights that are to be trained further,
            which predict nothing that a map could show.
        task_class: Import path of what rebuilds it, called with ``task_kwargs``: a task, for
            example ``rsmamba.tasks.segment.SemanticSegmentation``; for a backbone
            ``timm.create_model``, called with ``architecture`` first.
        task_kwargs: Its arguments (JSON values only).
        architecture: timm name of the backbone.
        bands: Band names, in the order of the model's input channels.
        mean: Mean per band, after ``scale``.
        std: Standard deviation per band, after ``scale``.
        scale: Factor on the stored pixel values.
        nodata: Pixel value that means "no observation" in the training data, if any.
        gsd: Ground sampling distance of the training data in metres, if known.
        image_size: Height and width in pixels that the model was trained on, if fixed.
        classes: Class names by index (empty for pretraining).
        colours: One ``#rrggbb`` per class; empty for the default palette.
        licence: Licence of the weights.
        source_sha256: Hash of the file that the weights were converted from.
    """

    task: TaskName
    task_class: str
    task_kwargs: dict[str, Any]
    architecture: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0
    nodata: float | None = None
    gsd: float | None = None
    image_size: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    licence: str | None = None
    source_sha256: str | None = None
    version: int = field(default=SPEC_VERSION)

    def __post_init__(self) -> None:
        """Refuse a spec that contradicts itself.

        Raises:
            SpecError: If lengths differ, a deviation is not positive or the task is unknown.
        """
        if self.task not in get_args(TaskName):
            raise SpecError(f"unknown task {self.task!r}; expected one of {get_args(TaskName)}")
        if not self.bands:
            raise SpecError("a model spec needs at least one band name")
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise SpecError(
                f"{len(self.bands)} bands, {len(self.mean)} means and {len(self.std)} deviations: "
                "give one mean and one deviation per band"
            )
        if any(not s > 0 for s in self.std):
            raise SpecError(f"standard deviations must be positive, got {self.std}")
        if self.colours and len(self.colours) != len(self.classes):
            raise SpecError(f"{len(self.classes)} classes but {len(self.colours)} colours")
        if self.version > SPEC_VERSION:
            raise SpecError(
                f"spec version {self.version} is newer than this rsmamba reads "
                f"({SPEC_VERSION}): upgrade rsmamba"
            )

    @property
    def in_channels(self) -> int:
        """Number of input bands."""
        return len(self.bands)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Build a spec from its JSON mapping.

        Raises:
            SpecError: If a required key is missing or a key is unknown.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(f"unknown keys in the model spec: {', '.join(unknown)}")
        arguments: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        try:
            return cls(**arguments)
        except TypeError as error:
            raise SpecError(f"incomplete model spec: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Parse what :meth:`to_json` wrote.

        Raises:
            SpecError: If the text is not a JSON object or not a valid spec.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"the model spec is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise SpecError("the model spec is not a JSON object")
        return cls.from_dict(values)

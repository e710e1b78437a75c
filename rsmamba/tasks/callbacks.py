"""Callbacks: the ModelSpec in every checkpoint, and registration under stock TorchGeo."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

import rsmamba.models  # noqa: F401  (registers our backbones with timm: all that Register needs)
from rsmamba.errors import SpecError
from rsmamba.spec import SPEC_KEY, ModelSpec, TaskName

#: Stock TorchGeo tasks whose checkpoints `rsmamba map` reads.
_TORCHGEO_TASKS: dict[str, TaskName] = {
    "SemanticSegmentation": "segmentation",
    "Classification": "classification",
    "ChangeDetection": "change",
}


class WriteModelSpec(Callback):
    """Write the :class:`~rsmamba.spec.ModelSpec` into every checkpoint that is saved.

    Bands, mean, deviation, classes and ground sampling distance come from the data module, the
    architecture from the task's hyperparameters. Also the callback to name in a recipe for stock
    ``torchgeo fit``: its import path loads rsmamba, which registers the backbones with timm::

        trainer:
          callbacks:
          - class_path: rsmamba.tasks.callbacks.WriteModelSpec

    Args:
        gsd: Ground sampling distance in metres, where the data module does not know it.
        licence: Licence of the resulting weights.
    """

    def __init__(self, gsd: float | None = None, licence: str | None = None) -> None:
        self.gsd = gsd
        self.licence = licence

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the spec as JSON text."""
        spec = build_spec(
            pl_module,
            trainer.datamodule,  # type: ignore[attr-defined]
            gsd=self.gsd,
            licence=self.licence,
        )
        checkpoint[SPEC_KEY] = spec.to_json()


def build_spec(
    task: LightningModule,
    data: LightningDataModule | None,
    *,
    gsd: float | None = None,
    licence: str | None = None,
) -> ModelSpec:
    """Describe a trained task by its hyperparameters and its data module.

    Args:
        task: One of ours, or a stock TorchGeo task.
        data: The data module that it was trained with.
        gsd: Overrides the data module's ground sampling distance, metres.
        licence: Licence of the weights.

    Returns:
        The spec.

    Raises:
        SpecError: If there is no data module, or the task is not one that rsmamba knows.
    """
    if data is None:
        raise SpecError(
            "a ModelSpec needs a data module (bands, mean, deviation): train with `data:` in the "
            "recipe, or leave the WriteModelSpec callback out"
        )
    name = getattr(task, "task_name", None) or _TORCHGEO_TASKS.get(type(task).__name__)
    if name is None:
        raise SpecError(f"no ModelSpec for tasks of class {type(task).__name__}")
    hparams = {k: _plain(v) for k, v in task.hparams.items() if not k.startswith("_")}
    channels = int(hparams.get("in_channels", 3))
    size = hparams.get("img_size")
    sizes = (int(size), int(size)) if isinstance(size, int) else None
    classes = getattr(data, "classes", None) or hparams.get("labels") or ()
    return ModelSpec(
        task=name,
        task_class=f"{type(task).__module__}.{type(task).__qualname__}",
        task_kwargs=hparams,
        architecture=str(
            getattr(task, "architecture", None) or hparams.get("backbone") or hparams.get("model")
        ),
        bands=tuple(getattr(data, "bands", None) or _default_bands(channels)),
        mean=_per_band(getattr(data, "mean", 0.0), channels),
        std=_per_band(getattr(data, "std", 1.0), channels),
        nodata=getattr(data, "nodata", None),
        gsd=gsd if gsd is not None else getattr(data, "gsd", None),
        image_size=sizes,
        classes=tuple(classes),
        colours=tuple(getattr(data, "colours", ()) or ()),
        licence=licence,
    )


def _default_bands(channels: int) -> tuple[str, ...]:
    if channels == 3:
        return ("red", "green", "blue")
    return tuple(f"band_{i + 1}" for i in range(channels))


def _per_band(value: Any, channels: int) -> tuple[float, ...]:
    """A scalar or one value per band, as floats."""
    values = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    return tuple(values * channels) if len(values) == 1 else tuple(values)


def _plain(value: Any) -> Any:
    """JSON-ready copy of a hyperparameter."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value

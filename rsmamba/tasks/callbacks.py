"""Callbacks: the ModelSpec in every checkpoint, and registration under stock TorchGeo."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

import rsmamba.models
from rsmamba.errors import SpecError
from rsmamba.models.checkpoints import load_backbone
from rsmamba.sensors import check_bands
from rsmamba.spec import SPEC_KEY, ModelSpec, TaskName
from rsmamba.tasks.checks import input_bands

_LOG = logging.getLogger(__name__)
_REMEDY = "name the data's bands (bands of the Register callback), or take other weights"

#: What stock TorchGeo tasks train.
_TORCHGEO_TASKS: dict[str, TaskName] = {
    "SemanticSegmentation": "segmentation",
    "Classification": "classification",
    "ChangeDetection": "change",
    "ObjectDetection": "detection",
    "InstanceSegmentation": "detection",
    "BYOL": "backbone",
    "MoCo": "backbone",
    "SimCLR": "backbone",
}


class WriteModelSpec(Callback):
    """Write the :class:`~rsmamba.spec.ModelSpec` into every checkpoint that is saved.

    Bands, mean, deviation, classes and ground sampling distance come from the data module, the
    architecture from the task's hyperparameters.

    Args:
        gsd: Ground sampling distance in metres, where the data module does not know it.
        licence: Licence of the resulting weights.
        bands: Names of the data's bands, where the data module does not know them; see
            :mod:`rsmamba.sensors`.
    """

    def __init__(
        self,
        gsd: float | None = None,
        licence: str | None = None,
        bands: list[str] | None = None,
    ) -> None:
        self.gsd = gsd
        self.licence = licence
        self.bands = bands

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first step whether there will be a spec."""
        self._spec(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the spec as JSON text."""
        checkpoint[SPEC_KEY] = self._spec(trainer, pl_module).to_json()

    def _spec(self, trainer: Trainer, task: LightningModule) -> ModelSpec:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return build_spec(task, data, gsd=self.gsd, licence=self.licence, bands=self.bands)


class WriteManifest(Callback):
    """Write which files make up each split beside the run, when training or testing starts.

    The file is ``splits.json`` in the logger's folder (``default_root_dir`` without one): settings
    of the split, and per file its SHA-256 and its window or class. Large pretraining corpora are
    listed without hashes. Data modules that have no :meth:`write_manifest` (TorchGeo's own) pass.

    Args:
        path: File to write instead.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest."""
        self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write = getattr(trainer.datamodule, "write_manifest", None)  # type: ignore[attr-defined]
        # Asked for on every process, because loggers agree on a folder among themselves.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if write is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(self.path) if self.path else folder / "splits.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)


class Register(WriteModelSpec):
    """What a YAML for stock ``torchgeo fit`` names to train our backbones; no Python is needed.

    Naming it registers the backbones with timm, where TorchGeo's tasks find them, and adds them to
    ``torchgeo.models.get_model``; checkpoints get their ModelSpec, so that ``rsmamba map`` reads
    them. ``weights: true`` in the task then loads a file that has a tag here::

        model:
          class_path: Classification
          init_args: {model: roma_base_patch16.aerial, weights: true}
        trainer:
          callbacks:
          - class_path: rsmamba.tasks.callbacks.Register
            init_args: {weights: {roma_base_patch16.aerial: encoder.safetensors}}

    Args:
        weights: File by architecture and tag, see :func:`rsmamba.models.serve_weights`.
        bands: Names of the data's bands, for which the weights' stems are adapted; see
            :class:`WriteModelSpec` and :mod:`rsmamba.models.bands`.
        gsd: See :class:`WriteModelSpec`.
        licence: See :class:`WriteModelSpec`.
    """

    def __init__(
        self,
        weights: dict[str, str] | None = None,
        bands: list[str] | None = None,
        gsd: float | None = None,
        licence: str | None = None,
    ) -> None:
        super().__init__(gsd, licence, bands)
        for name, path in (weights or {}).items():
            rsmamba.models.serve_weights(name, path, bands=bands)
        add_builders()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the data's bands with the weights'; say so where there will be no spec."""
        # Of tasks that look at several dates, the channels are more than the bands.
        expected = input_bands(pl_module)
        data = getattr(trainer, "datamodule", None)
        bands = tuple(self.bands or getattr(data, "bands", None) or ())
        if bands and expected:
            dates = max(1, len(expected) // len(bands))
            check_bands(bands * dates, expected, "the data", remedy=_REMEDY)
        try:
            self._spec(trainer, pl_module)
        except SpecError as error:
            _LOG.warning("Checkpoints of this run carry no ModelSpec: %s", error)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the spec where there is one."""
        with suppress(SpecError):
            super().on_save_checkpoint(trainer, pl_module, checkpoint)


def add_builders() -> None:
    """Let ``torchgeo.models.get_model`` and ``list_models`` know our backbones.

    TorchGeo 0.10 has no public way to do so; where its registry is gone, timm's serves alone.
    """
    from torchgeo.models import api

    builders: dict[str, Any] = getattr(api, "_model", {})
    for name in rsmamba.models.__all__:
        if timm.is_model(name):
            builders.setdefault(name, partial(_build_for_torchgeo, name))


def _build_for_torchgeo(
    name: str, weights: str | None = None, bands: Sequence[str] | None = None, **kwargs: Any
) -> nn.Module:
    """A backbone as TorchGeo's builders make theirs: weights first, then the model's options."""
    model: nn.Module = timm.create_model(name, **kwargs)
    if weights is not None:
        load_backbone(model, weights, bands=bands)
    return model


def build_spec(
    task: LightningModule,
    data: LightningDataModule | None,
    *,
    gsd: float | None = None,
    licence: str | None = None,
    bands: Sequence[str] | None = None,
) -> ModelSpec:
    """Describe a trained task by its hyperparameters and its data module.

    Args:
        task: One of ours, or a stock TorchGeo task.
        data: The data module that it was trained with.
        gsd: Overrides the data module's ground sampling distance, metres.
        licence: Licence of the weights.
        bands: Names of the data's bands, where the data module does not know them.

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
    architecture = str(
        getattr(task, "architecture", None) or hparams.get("backbone") or hparams.get("model")
    )
    classes = getattr(data, "classes", None) or hparams.get("labels") or ()
    task_class = f"{type(task).__module__}.{type(task).__qualname__}"
    if name == "backbone":
        task_class, hparams = "timm.create_model", {"in_chans": channels}
    return ModelSpec(
        task=name,
        task_class=task_class,
        task_kwargs=hparams,
        architecture=architecture,
        bands=_bands(task, data, bands, channels),
        mean=_per_band(getattr(data, "mean", 0.0), channels),
        std=_per_band(getattr(data, "std", 1.0), channels),
        scale=getattr(data, "factor", 1.0),
        nodata=getattr(data, "nodata", None),
        gsd=gsd if gsd is not None else getattr(data, "gsd", None),
        image_size=sizes,
        classes=tuple(classes),
        colours=tuple(getattr(data, "colours", ()) or ()),
        licence=licence,
    )


def _bands(
    task: LightningModule, data: LightningDataModule, given: Sequence[str] | None, channels: int
) -> tuple[str, ...]:
    """Names of a date's bands: the task's, the data's, the callback's, the weights', or none."""
    known = (
        task.hparams.get("bands"),
        getattr(data, "bands", None),
        given,
        input_bands(task)[:channels],
    )
    unnamed = tuple(f"band_{i + 1}" for i in range(channels))
    return tuple(next(filter(None, known), unnamed))


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

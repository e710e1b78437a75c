"""Checks that every task makes before its first step."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import timm

import rsmamba.models  # noqa: F401  (registers our backbones with timm)
from rsmamba import sensors
from rsmamba.errors import BandMismatchError, ConfigError, UnknownModelError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from rsmamba.models.checkpoints import LoadReport


def check_backbone_name(name: str) -> None:
    """Refuse a name that timm's registry does not hold.

    Raises:
        UnknownModelError: Names the nearest ones.
    """
    if timm.is_model(name):
        return
    # Ours first: to a typing error in one of them timm's thousand names come closer than they are.
    ours = timm.list_models(["roma_*", "spatial_mamba_*"])
    near = get_close_matches(name, ours, n=3) or get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
    raise UnknownModelError(f"unknown backbone {name!r}: {hint}")


def check_band_names(bands: Sequence[str] | None, in_channels: int) -> None:
    """Refuse a task's option ``bands`` that does not name ``in_channels`` bands.

    Raises:
        ConfigError: Names both.
    """
    if isinstance(bands, str):
        raise ConfigError(f"bands={bands!r}: give a list of band names")
    if bands is not None and len(bands) != in_channels:
        raise ConfigError(
            f"bands names {len(bands)} bands ({', '.join(bands)}), but in_channels={in_channels}: "
            "make them agree"
        )


def check_classes(task: "LightningModule", num_classes: int, labels: Sequence[str] | None) -> None:
    """Refuse data whose bands or classes differ from the task's, naming both sides.

    Data modules without ``classes`` or ``bands`` (plain TorchGeo ones) pass.

    Raises:
        ConfigError: If the data have another number of classes, or other names.
        BandMismatchError: If the data have another number of bands.
    """
    data = getattr(task.trainer, "datamodule", None)
    classes: tuple[str, ...] = tuple(getattr(data, "classes", ()) or ())
    if classes and len(classes) != num_classes:
        raise ConfigError(
            f"the data have {len(classes)} classes ({', '.join(classes[:8])}), the model has "
            f"num_classes={num_classes}: make them agree"
        )
    if classes and labels is not None and tuple(labels) != classes:
        raise ConfigError(
            f"the data's classes are {', '.join(classes)}; the model's labels are "
            f"{', '.join(labels)}: make them agree"
        )
    check_bands(task)


def loaded_weights(task: "LightningModule") -> "LoadReport | None":
    """What the task, or a backbone inside it, loaded; None for random weights."""
    reports = (getattr(module, "load_report", None) for module in task.modules())
    return next((report for report in reports if report is not None), None)


def input_bands(task: "LightningModule") -> tuple[str, ...]:
    """Names of a task's input bands: its own option, or what its weights were trained on.

    Returns:
        One name per channel; empty if neither is known.
    """
    loaded = loaded_weights(task)
    return tuple(task.hparams.get("bands") or (loaded.bands if loaded else ()))


def check_bands(task: "LightningModule") -> None:
    """Refuse data with another number of bands than the model, or other bands than it is for.

    Raises:
        BandMismatchError: Names both sides.
    """
    data = getattr(task.trainer, "datamodule", None)
    bands = tuple(getattr(data, "bands", ()) or ())
    in_channels = task.hparams["in_channels"]
    if bands and len(bands) != in_channels:
        raise BandMismatchError(
            f"the data have {len(bands)} bands ({', '.join(bands)}), the model has "
            f"in_channels={in_channels}: select bands or set in_channels"
        )
    if bands and (expected := input_bands(task)):
        remedy = "select and order them alike, or correct the task's bands"
        if not task.hparams.get("bands"):
            remedy = (
                "select and order them alike, or name the data's in the task's option bands, to "
                "which the weights are then fitted"
            )
        sensors.check_bands(bands, expected, "the data", remedy=remedy)

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


def check_bands(task: "LightningModule") -> None:
    """Refuse data with another number of bands than the model, or others than its weights are for.

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
    loaded = getattr(task, "load_report", None) or getattr(
        getattr(task, "features", None), "load_report", None
    )
    trained: Sequence[str] = getattr(loaded, "bands", None) or ()
    if bands and trained:
        sensors.check_bands(bands, trained, "the data")

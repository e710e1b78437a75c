"""Mean and deviation of the bands: as given, of the data, or as a model's spec has them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rsmamba.errors import BandMismatchError, DataNotFoundError, SpecError
from rsmamba.samples import resolve
from rsmamba.sensors import bands_of
from rsmamba.weights_file import read_spec

#: Mean and deviation of ImageNet's red, green and blue in units of 0 to 255: what timm's models
#: expect unless they say otherwise.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

#: Marks a JSON file as the output of ``rsmamba stats``.
STATS_KEY = "rsmamba_stats"


def read_normalisation(
    path: str | Path, bands: Sequence[str], factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of bands from a model's spec or from ``rsmamba stats``.

    Args:
        path: A checkpoint (``.ckpt``, ``.safetensors``) that carries a ModelSpec, a ModelSpec as
            JSON, or what ``rsmamba stats --out`` wrote.
        bands: Names of the data's bands, which are looked up by their meaning
            (:mod:`rsmamba.sensors`), or else by their name.
        factor: What stored values are multiplied with before they are normalised.

    Returns:
        Mean (C,) and deviation (C,), float32, of stored values times ``factor``, in the order of
        ``bands``.

    Raises:
        DataNotFoundError: If there is no such file.
        SpecError: If it is neither, or contradicts itself.
        CheckpointError: If a checkpoint is unreadable.
        BandMismatchError: If it lacks one of the bands.
    """
    path = resolve(path)
    if path.suffix == ".json":
        names, mean, std, scale = _from_json(path)
    else:
        spec = read_spec(path)
        names, mean, std, scale = spec.bands, spec.mean, spec.std, spec.scale
    order = _positions(path, tuple(bands), tuple(names))
    # The file's values are those after its scale: (v * scale - mean) / std.
    return (
        torch.tensor([mean[i] / scale * factor for i in order], dtype=torch.float32),
        torch.tensor([std[i] / scale * factor for i in order], dtype=torch.float32),
    )


def _from_json(path: Path) -> tuple[Sequence[str], Sequence[float], Sequence[float], float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataNotFoundError(f"no file {path}: check the path of the spec") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict) or STATS_KEY not in content:
        spec = read_spec(path)
        return spec.bands, spec.mean, spec.std, spec.scale
    try:
        each = content["bands"]
        return (
            [str(band["name"]) for band in each],
            [float(band["mean"]) for band in each],
            [float(band["std"]) for band in each],
            float(content.get("scale", 1.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{path}: incomplete statistics ({error!r}); write them anew with `rsmamba stats`"
        ) from error


def _positions(path: Path, wanted: tuple[str, ...], there: tuple[str, ...]) -> list[int]:
    """Where each wanted band is in the file."""
    if wanted == there:
        return list(range(len(there)))
    labels, known = band_labels(wanted), band_labels(there)
    if missing := [w for w, label in zip(wanted, labels, strict=True) if label not in known]:
        raise BandMismatchError(
            f"{path} has no band {missing[0]!r}: it describes {', '.join(there)}, the data have "
            f"{', '.join(wanted)}; name the data's bands alike, or give mean and std"
        )
    return [known.index(label) for label in labels]


def band_labels(names: Sequence[str]) -> list[str]:
    """What the bands mean (STAC's common names); their own names where that is not known."""
    try:
        return [band.label for band in bands_of(tuple(names))]
    except BandMismatchError:
        return [name.lower() for name in names]


def rgb_positions(bands: Sequence[str]) -> tuple[int, ...]:
    """Positions of the bands that stand for red, green and blue in pictures; one for grey."""
    labels = band_labels(bands)
    if {"red", "green", "blue"} <= set(labels):
        return tuple(labels.index(colour) for colour in ("red", "green", "blue"))
    return (0, 1, 2) if len(labels) >= 3 else (0,)

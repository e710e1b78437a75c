"""A backbone's weights from any file: converted, fitted to the model, and counted."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn

from rsmamba.errors import BandMismatchError, CheckpointError, ConfigError, SpecError
from rsmamba.models.bands import adapt_stem
from rsmamba.models.checkpoints.architecture import size_of
from rsmamba.models.checkpoints.hub import locate
from rsmamba.models.checkpoints.published import (
    BANDS,
    FUSION_PADDING,
    Source,
    detect,
    listed,
    rename,
)
from rsmamba.models.position import adapt_state_dict
from rsmamba.models.roma import RoMA
from rsmamba.sensors import Band, bands_of
from rsmamba.spec import ModelSpec
from rsmamba.weights_file import WeightsFile, read_weights

#: Parts of a model that belong to a task, not to the backbone that a checkpoint must cover.
_TASK_PARTS = ("head.", "neck.")
#: Of the norm in the neck's 4x branch.
_NECK_NORM = "neck.0.1.weight"
#: What wrappers call the model that they hold as their only child.
_WRAPPED = ("model", "module", "_orig_mod")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What :func:`load_backbone` did.

    Attributes:
        matched: Tensors of the backbone that the file supplied.
        total: Tensors of the backbone, without head and neck.
        missing: Backbone tensors that keep their random start, e.g. a class token that the source
            never trained.
        unexpected: Tensors of the file, under its backbone prefix, that the model has no place for.
        prefix: Prefix under which the backbone was found in the file (after conversion).
        adapted: What was changed to make it fit, in words.
        source: The published model that the file's names are of; None for our own names.
        key: Which of the file's weights were taken; None for a bare state dict.
        others: Which others it has.
        notes: What the user should know, in words.
        bands: Names of the model's input bands: those asked for, else those that the weights were
            trained on; empty if neither is known.
    """

    matched: int
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    prefix: str
    adapted: tuple[str, ...]
    source: Source | None = None
    key: str | None = None
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Part of the backbone's tensors that was loaded."""
        return self.matched / self.total

    def __str__(self) -> str:
        """One line for a log."""
        origin = f" from {self.key!r}" if self.key else ""
        if self.others:
            origin += f" (the file also has {', '.join(self.others)}: key=)"
        parts = [
            f"{self.matched} of {self.total} backbone tensors loaded ({self.coverage:.1%}){origin}"
        ]
        if self.source:
            parts.append(f"published names of {self.source} converted")
        if self.missing:
            parts.append(listed("not in the file", self.missing))
        if self.unexpected:
            parts.append(listed("not used", self.unexpected))
        return "; ".join([*parts, *self.adapted, *self.notes])


def load_backbone(
    model: nn.Module,
    path_or_id: str | os.PathLike[str],
    *,
    key: str | None = None,
    bands: str | Sequence[str | Band] | None = None,
    source_bands: str | Sequence[str | Band] | None = None,
    minimum: float = 0.95,
) -> LoadReport:
    """Load a backbone's weights, in place, and say how much of it was covered.

    Reads safetensors, a Lightning checkpoint, a plain state dict, or a file as RoMA's and
    Spatial-Mamba's authors published it, without executing pickled code, and finds the backbone
    under any prefix (``model.``, ``encoder.``, ...). For a RoMA, position embeddings are
    interpolated, the class token's slot is inserted, and one scan direction is copied to four. The
    stem is fitted to other bands. The head is loaded too if it is there and fits. The model is
    unchanged after any error.

    Args:
        model: The backbone, e.g. from ``timm.create_model``; also inside ``features_only``, smp's
            encoders, ``DataParallel`` and ``torch.compile``.
        path_or_id: File with the weights; or ``hf-hub:OWNER/NAME@COMMIT[:FILE]`` with the full
            hash of a commit.
        key: Which of the file's weights to take, ``"model"``, ``"state_dict"`` or ``"model_ema"``;
            by default the first of these that is there.
        bands: What the model's input bands measure: names, or a sensor (see
            :mod:`rsmamba.sensors`). Needed where they are not those that the weights were trained
            on.
        source_bands: What the weights' bands measure, for a file that does not say; it goes before
            what the file says.
        minimum: Least part of the backbone's tensors (head and neck do not count) that must match.

    Returns:
        What was loaded and what was not.

    Raises:
        ConfigError: If ``key`` or a hub id is malformed, or the model is on the meta device.
        DataNotFoundError: If there is no such file.
        CheckpointError: If the file cannot be fetched or is not pinned, is unreadable, holds
            pickled objects, covers less than ``minimum``, or holds a tensor in another shape.
        BandMismatchError: If the bands differ and cannot be related.
    """
    model = _unwrap(model)
    wanted = model.state_dict()
    if any(value.is_meta for value in wanted.values()):
        raise ConfigError("the model is on the meta device: call model.to_empty(device=...) first")
    file = read_weights(locate(path_or_id), key=key)
    source = detect(file.tensors)
    tensors = file.tensors
    unknown: tuple[str, ...] = ()
    if source is not None:
        renamed = rename(tensors, source)
        tensors, unknown = renamed.tensors, renamed.unknown
    prefix, found = _find_backbone(tensors, wanted, file.path)
    spec, notes = _spec(file)
    bands = _listed_bands(bands)
    known = _listed_bands(source_bands) or _source_bands(source, spec)
    if source_bands is not None:
        _check_source_bands(known or (), found.get(_stem(model)))
    stem, adapted = _fit_bands(found, model, known, bands, file.path)
    found |= stem
    if bands is not None and known is None:
        notes.append(f"the file does not name its bands: taken to be {_names(bands)}")
    if isinstance(model, RoMA):
        before, found = found, adapt_state_dict(found, model, _grid(found, spec))
        adapted += _changes(before, found)
        notes += _class_token(found, wanted)
    notes += _padding(model, source, spec)
    fitting = {k: v for k, v in found.items() if k in wanted and v.shape == wanted[k].shape}
    notes += _task_parts(found, wanted, fitting)
    backbone = [k for k in wanted if not k.startswith(_TASK_PARTS)]
    if different := [k for k in backbone if k in found and k not in fitting]:
        shapes = [f"{k} {[*found[k].shape]}, not {[*wanted[k].shape]}" for k in different]
        raise CheckpointError(
            f"{file.path} is of another architecture: {listed('it has', tuple(shapes))}"
            f"{_advice(found, model)}"
        )
    report = LoadReport(
        matched=sum(k in fitting for k in backbone),
        total=len(backbone),
        missing=tuple(k for k in backbone if k not in found),
        unexpected=(*(k for k in found if k not in wanted), *unknown),
        prefix=prefix,
        adapted=tuple(adapted),
        source=source,
        key=file.key,
        others=file.others,
        notes=tuple(notes),
        bands=_input_bands(known, bands, wanted.get(_stem(model))),
    )
    if report.coverage < minimum:
        raise CheckpointError(
            f"{file.path}: {report}; at least {minimum:.0%} must match: take the file of this "
            "architecture, or lower minimum"
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _unwrap(model: nn.Module) -> nn.Module:
    """The backbone inside the wrappers of timm, smp, ``DataParallel`` and ``torch.compile``."""
    while len(names := [name for name, _ in model.named_children()]) == 1 and names[0] in _WRAPPED:
        model = model.get_submodule(names[0])
    return model


def _find_backbone(
    tensors: dict[str, Tensor], wanted: dict[str, Tensor], path: Path
) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which most of the wanted names are, and the tensors under it."""
    first = next(iter(k for k in wanted if not k.startswith(_TASK_PARTS) and "." in k))
    prefixes = sorted({k.removesuffix(first) for k in tensors if k.endswith(first)}, key=len)
    prefixes = [p for p in prefixes if not p or p.endswith(".")]
    if not prefixes:
        raise CheckpointError(
            f"{path} holds no backbone of this kind: no tensor is called '{first}'; "
            f"{listed('it has', tuple(tensors))}"
        )
    prefix = max(prefixes, key=lambda p: sum(p + key in tensors for key in wanted))
    return prefix, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _spec(file: WeightsFile) -> tuple[ModelSpec | None, list[str]]:
    """The file's spec, and a note if it cannot be read: the weights do not depend on it."""
    if file.spec is None:
        return None, []
    try:
        return ModelSpec.from_json(file.spec), []
    except SpecError as error:
        return None, [f"the file's ModelSpec is not used: {error}"]


def _listed_bands(bands: str | Sequence[str | Band] | None) -> Sequence[str | Band] | None:
    """Bands one by one, where a sensor is named."""
    return bands_of(bands) if isinstance(bands, str) else bands


def _check_source_bands(bands: Sequence[str | Band], stem: Tensor | None) -> None:
    if stem is not None and len(bands) != stem.shape[1]:
        raise BandMismatchError(
            f"source_bands= names {len(bands)} bands ({_names(bands)}), but the weights are for "
            f"{stem.shape[1]}: name those that they were trained on"
        )


def _source_bands(source: Source | None, spec: ModelSpec | None) -> Sequence[str | Band] | None:
    """What the weights' bands measure, if that is known."""
    if spec is not None:
        return spec.bands
    return BANDS if source is not None else None


def _stem(model: nn.Module) -> str:
    """Name of the first convolution's weights, as timm's configuration has it."""
    return f"{(getattr(model, 'pretrained_cfg', None) or {}).get('first_conv')}.weight"


def _input_bands(
    source: Sequence[str | Band] | None,
    target: Sequence[str | Band] | None,
    stem: Tensor | None,
) -> tuple[str, ...]:
    """Names of the model's input bands, once the stem's weights have been fitted to them."""
    bands = target
    if target is None and source is not None and stem is not None:
        # Not e.g. of a pair of dates, which share one stem.
        bands = source if len(source) == stem.shape[1] else None
    return tuple(b if isinstance(b, str) else b.label for b in bands or ())


def _fit_bands(
    found: dict[str, Tensor],
    model: nn.Module,
    source: Sequence[str | Band] | None,
    target: Sequence[str | Band] | None,
    path: Path,
) -> tuple[dict[str, Tensor], list[str]]:
    """The stem's weights for the model's bands, and what was done in words; both may be empty."""
    name = _stem(model)
    own = model.state_dict()
    if name not in own or name not in found or found[name].ndim != own[name].ndim:
        return {}, []
    weight, have, want = found[name], found[name].shape[1], own[name].shape[1]
    if target is not None and len(target) != want:
        raise BandMismatchError(
            f"bands= names {len(target)} bands ({_names(target)}), but the model takes {want}"
        )
    if source is not None and len(source) != have:
        source = None  # e.g. of a pair of dates, which share one stem
    if have == want and (source is None or target is None or list(source) == list(target)):
        return {}, []
    if source is None or target is None:
        theirs = f" ({_names(source)})" if source else ""
        missing = "bands= with the names of the model's bands"
        if source is None:
            missing = "source_bands= (or a file whose ModelSpec names its bands) and bands="
        missing += " (in a task its option bands; with timm serve_weights(bands=), Register: bands)"
        raise BandMismatchError(
            f"{path} has weights for {have} bands{theirs}, the model takes {want}: give {missing}"
            f"{_advice(found, model)}"
        )
    adapted, sentence = adapt_stem(weight, source, target)
    return {name: adapted}, [sentence]


def _names(bands: Sequence[str | Band]) -> str:
    return ", ".join(b if isinstance(b, str) else b.name for b in bands)


def _changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """What :func:`adapt_state_dict` did, in words."""
    changes = []
    old, new = before.get("pos_embed"), after.get("pos_embed")
    if old is not None and new is not None and old is not new:
        changes.append(f"position embedding resized from {old.shape[1]} to {new.shape[1]} rows")
    if len(after) > len(before):
        changes.append("one scan direction copied to all")
    return changes


def _task_parts(
    found: dict[str, Tensor], wanted: dict[str, Tensor], fitting: dict[str, Tensor]
) -> list[str]:
    """Notes on what of head and neck was not loaded: they do not count in the coverage."""
    notes = []
    neck = [k for k in wanted if k.startswith("neck.")]
    loaded = sum(k in fitting for k in neck)
    if loaded < len(neck):
        notes.append(f"neck: {loaded} of {len(neck)} tensors, the others start at random")
    if "neck.0.0.weight" in wanted and "neck.0.0.weight" in found:
        theirs, ours = _NECK_NORM in found, _NECK_NORM in wanted
        if theirs != ours:
            notes.append(
                f"the file's neck has {'a' if theirs else 'no'} norm, this one has "
                f"{'one' if ours else 'none'}: create it with neck_norm={theirs}"
            )
    lost = [k for k in wanted if k.startswith("head.") and k not in fitting]
    if lost and lost[0] in found:
        shapes = f"{[*found[lost[0]].shape]}, not {[*wanted[lost[0]].shape]}"
        notes.append(f"head not loaded: {shapes}; it starts at random")
    elif lost:
        notes.append("head starts at random")
    return notes


def _class_token(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """A note if the model has a class token and the source has none."""
    if "cls_token" not in wanted or "cls_token" in found:
        return []
    return [
        "the source never trained a class token: cls_token keeps its random start; fine-tune it, "
        "or read the patches out (global_pool='avg')"
    ]


def spec_option(spec: ModelSpec | None, name: str) -> Any:
    """An argument of the model that a spec describes; None if it does not say."""
    if spec is None:
        return None
    kwargs = spec.task_kwargs
    parts = (kwargs.get("model_kwargs"), kwargs.get("backbone_kwargs"), kwargs)
    return next((p[name] for p in parts if isinstance(p, dict) and name in p), None)


def _grid(found: dict[str, Tensor], spec: ModelSpec | None) -> tuple[int, int] | None:
    """Rows and columns of the file's position embedding, if its spec tells the image size."""
    size = spec_option(spec, "img_size") or (spec.image_size if spec is not None else None)
    stem = found.get("patch_embed.proj.weight")
    if size is None or stem is None:
        return None
    height, width = to_2tuple(size)
    return math.ceil(height / stem.shape[-2]), math.ceil(width / stem.shape[-1])


def _padding(model: nn.Module, source: Source | None, spec: ModelSpec | None) -> list[str]:
    """A note if a Spatial-Mamba continues its maps otherwise than the file's does."""
    # spatial_mamba takes the published names from this package.
    from rsmamba.models.spatial_mamba_layers import StateFusion

    theirs = spec_option(spec, "fusion_padding")
    if theirs is None and source == "spatial-mamba":
        theirs = FUSION_PADDING
    ours = next((m.padding for m in model.modules() if isinstance(m, StateFusion)), None)
    if theirs is None or ours is None or ours == theirs:
        return []
    return [
        f"the file's model pads its state fusion with fusion_padding={theirs!r}, this one with "
        f"{ours!r}: outputs differ near borders unless created with fusion_padding={theirs!r}"
    ]


def _advice(found: dict[str, Tensor], model: nn.Module) -> str:
    """How to create the RoMA that the file fits."""
    stem = found.get("patch_embed.proj.weight")
    if not isinstance(model, RoMA) or stem is None:
        return ""
    width, bands, patch = stem.shape[:3]
    depth = len({key.split(".")[1] for key in found if key.startswith("blocks.")})
    name, changed = size_of(width, depth)
    usual = {"in_chans": 3, "patch_size": 16}
    changed |= {k: v for k, v in zip(usual, (bands, patch), strict=True) if v != usual[k]}
    options = "".join(f", {key}={value}" for key, value in changed.items())
    return f"; it fits timm.create_model('roma_{name}_patch16'{options})"

"""Weights in and out: published files to our names, safe loading with coverage, safetensors."""

import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsmamba.errors import (
    CheckpointError,
    ConfigError,
    DataNotFoundError,
    SpecError,
)
from rsmamba.files import atomic_path, check_output
from rsmamba.models.roma import SIZES, RoMA, adapt_state_dict
from rsmamba.models.spatial_mamba import convert_state_dict
from rsmamba.spec import SPEC_KEY, ModelSpec

__all__ = ["LoadReport", "convert", "load_backbone", "read_spec", "save_safetensors"]

Source = Literal["roma", "roma-pretrain", "spatial-mamba"]

#: Parts of a model that belong to a task, not to the backbone that a checkpoint must cover.
_TASK_PARTS = ("head.", "neck.")
#: The published suffixes of the four scan directions, in our order.
_DIRECTIONS = {"": 0, "_b": 1, "_c": 2, "_c_b": 3}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What :func:`load_backbone` did.

    Attributes:
        matched: Tensors of the backbone that the file supplied.
        total: Tensors of the backbone, without head and neck.
        missing: Backbone tensors that keep their random start, e.g. a class token that the source
            never trained.
        unexpected: Tensors of the file, under its backbone prefix, that the model has no place for.
        prefix: Prefix under which the backbone was found in the file.
        adapted: What was changed to make it fit, in words.
    """

    matched: int
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    prefix: str
    adapted: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Part of the backbone's tensors that was loaded."""
        return self.matched / self.total

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{self.matched} of {self.total} backbone tensors loaded ({self.coverage:.1%})"]
        if self.missing:
            parts.append(_listed("not in the file", self.missing))
        if self.unexpected:
            parts.append(_listed("not used", self.unexpected))
        return "; ".join([*parts, *self.adapted])


def _listed(label: str, names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{label}: {shown}{more}"


def convert(state_dict: Mapping[str, Tensor], *, source: Source) -> dict[str, Tensor]:
    """Rename the tensors of a published file to ours; no values change.

    Args:
        state_dict: Tensors under their published names.
        source: ``"roma"`` (classification, segmentation and change-detection backbones, for
            ``roma_*`` and ``roma_*_pyramid``), ``"roma-pretrain"`` (for
            :class:`rsmamba.models.RoMAForPretraining`) or ``"spatial-mamba"``.

    Returns:
        A state dict that the model loads with ``strict=True``.

    Raises:
        ConfigError: If the source is unknown.
        CheckpointError: If a name does not belong to that source.
    """
    if source == "spatial-mamba":
        return convert_state_dict(dict(state_dict))
    renamers: dict[str, Callable[[str], str | None]] = {
        "roma": _roma_key,
        "roma-pretrain": _pretrain_key,
    }
    if source not in renamers:
        known = ", ".join([*renamers, "spatial-mamba"])
        raise ConfigError(f"source={source!r}: choose one of {known}")
    rename = renamers[source]
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, value in state_dict.items():
        try:
            new = rename(key.removeprefix("module."))
        except KeyError:
            unknown.append(key)
            continue
        if new is not None:
            converted[new] = value
    if unknown:
        raise CheckpointError(
            f"not a {source} checkpoint: {_listed('unknown tensors', tuple(unknown))}; "
            "choose another source"
        )
    return converted


_MIXER = re.compile(
    r"(?P<stem>A|D|conv1d|x_proj|dt_proj)(?P<direction>_c_b|_b|_c|)(?P<rest>_log|\.weight|\.bias|)$"
)
_MLP = {"w1": "fc1_g", "w2": "fc1_x", "w3": "fc2"}
#: The 4x branch of the neck, with its norm (entries 0, 1, 3) and without (0, 2).
_NECK = {
    "fpn1.0": "neck.0.0",
    "fpn1.1.ln": "neck.0.1",
    "fpn1.2": "neck.0.3",
    "fpn1.3": "neck.0.3",
    "fpn2.0": "neck.1.0",
}


def _roma_key(key: str) -> str:
    """Our name of a published backbone tensor; KeyError if there is none."""
    if key in ("cls_token", "pos_embed") or key.startswith(("patch_embed.proj.", "head.")):
        return key
    module, _, leaf = key.rpartition(".")
    if module == "norm_f":
        return f"norm.{leaf}"
    if module in _NECK:
        return f"{_NECK[module]}.{leaf}"
    match = re.fullmatch(r"layers\.(\d+)\.(norm1|norm2|mlp|mixer)\.(.+)", key)
    if match is None:
        raise KeyError(key)
    block, part, rest = match.groups()
    if part == "mlp":
        name, _, leaf = rest.partition(".")
        rest = f"{_MLP[name]}.{leaf}"
    elif part == "mixer" and not rest.startswith(("in_proj.", "out_proj.")):
        scan = _MIXER.match(rest)
        if scan is None:
            raise KeyError(key)
        direction = _DIRECTIONS[scan["direction"]]
        rest = f"scans.{direction}.{scan['stem']}{scan['rest']}"
    return f"blocks.{block}.{part}.{rest}"


_DECODER = {"attn2": "attn", "norm2_1": "norm_query", "norm2_2": "norm_memory"}
_PRETRAIN = {"ar_token": "query_token", "angle_embed": "angle_embed"}
_PRETRAIN_MODULES = {"ar_norm": "decoder_norm", "ar_pred": "predictor", "enc2dec": "enc2dec"}
#: Tables that are computed, not stored.
_COMPUTED = ("mask", "dec_pos_embed")


def _pretrain_key(key: str) -> str | None:
    """Our name of a published pretraining tensor, None if it is computed; KeyError if unknown."""
    if key in _COMPUTED:
        return None
    if key in _PRETRAIN:
        return _PRETRAIN[key]
    head, _, rest = key.partition(".")
    if head in _PRETRAIN_MODULES:
        return f"{_PRETRAIN_MODULES[head]}.{rest}"
    if match := re.fullmatch(r"norm_([1-4])", head):
        return f"tap_norms.{int(match[1]) - 1}.{rest}"
    if head == "dec_block":
        block, part, leaf = rest.split(".", 2)
        return f"decoder.{block}.{_DECODER.get(part, part)}.{leaf}"
    return f"encoder.{_roma_key(key)}"


def load_backbone(
    model: nn.Module, path: str | os.PathLike[str], *, minimum: float = 0.95
) -> LoadReport:
    """Load a backbone's weights from a file, in place, and say how much of it was covered.

    Reads a Lightning checkpoint, a plain state dict (both without executing pickled code) or
    safetensors, and finds the backbone under any prefix (``model.``, ``encoder.``, ...). For a
    RoMA, position embeddings are interpolated, the class token's slot is inserted, and one scan
    direction is copied to four. The head is loaded too if it is there and fits.

    Args:
        model: The backbone, e.g. from ``timm.create_model``.
        path: File with the weights.
        minimum: Least part of the backbone's tensors (head and neck do not count) that must match.

    Returns:
        What was loaded and what was not.

    Raises:
        DataNotFoundError: If there is no such file.
        CheckpointError: If the file is unreadable, holds pickled objects, or covers less than
            ``minimum`` or holds a tensor in another shape; the model is unchanged then.
    """
    path = Path(path)
    tensors = _tensors(_read(path), path)
    wanted = model.state_dict()
    prefix, found = _find_backbone(tensors, wanted, path)
    adapted: list[str] = []
    if isinstance(model, RoMA):
        before, found = found, adapt_state_dict(found, model)
        adapted = _changes(before, found)
    fitting = {k: v for k, v in found.items() if k in wanted and v.shape == wanted[k].shape}
    backbone = [k for k in wanted if not k.startswith(_TASK_PARTS)]
    if different := [k for k in backbone if k in found and k not in fitting]:
        shapes = [f"{k} {[*found[k].shape]}, not {[*wanted[k].shape]}" for k in different]
        raise CheckpointError(
            f"{path} is of another architecture: {_listed('it has', tuple(shapes))}"
            f"{_advice(found, model)}"
        )
    report = LoadReport(
        matched=sum(k in fitting for k in backbone),
        total=len(backbone),
        missing=tuple(k for k in backbone if k not in found),
        unexpected=tuple(k for k in found if k not in wanted),
        prefix=prefix,
        adapted=tuple(adapted),
    )
    if report.coverage < minimum:
        raise CheckpointError(
            f"{path}: {report}; at least {minimum:.0%} must match: take the file of this "
            "architecture, or lower minimum"
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _find_backbone(
    tensors: dict[str, Tensor], wanted: dict[str, Tensor], path: Path
) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which most of the wanted names are, and the tensors under it."""
    first = next(iter(k for k in wanted if not k.startswith(_TASK_PARTS) and "." in k))
    prefixes = sorted({k.removesuffix(first) for k in tensors if k.endswith(first)}, key=len)
    prefixes = [p for p in prefixes if not p or p.endswith(".")]
    if not prefixes:
        for source, mark in (("roma", "layers.0.mixer."), ("spatial-mamba", "self_attention.")):
            if any(mark in key for key in tensors):
                raise CheckpointError(
                    f"{path} has the published names of {source}: convert it first "
                    "(rsmamba.models.checkpoints.convert)"
                )
        raise CheckpointError(
            f"{path} holds no backbone of this kind: no tensor is called '{first}'; "
            f"{_listed('it has', tuple(tensors))}"
        )
    prefix = max(prefixes, key=lambda p: sum(p + key in tensors for key in wanted))
    return prefix, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """What :func:`adapt_state_dict` did, in words."""
    changes = []
    old, new = before.get("pos_embed"), after.get("pos_embed")
    if old is not None and new is not None and old.shape != new.shape:
        changes.append(f"position embedding resized from {old.shape[1]} to {new.shape[1]} rows")
    if len(after) > len(before):
        changes.append("one scan direction copied to all")
    return changes


def _advice(found: dict[str, Tensor], model: nn.Module) -> str:
    """How to create the RoMA that the file fits."""
    stem = found.get("patch_embed.proj.weight")
    if not isinstance(model, RoMA) or stem is None:
        return ""
    width, bands, patch = stem.shape[:3]
    depth = len({key.split(".")[1] for key in found if key.startswith("blocks.")})
    options = {"embed_dim": width, "depth": depth, "in_chans": bands, "patch_size": patch}
    name = next((n for n, s in SIZES.items() if s.items() <= options.items()), "tiny")
    usual = {**SIZES[name], "in_chans": 3, "patch_size": 16}
    changed = [f", {k}={v}" for k, v in options.items() if v != usual[k]]
    return f"; it fits timm.create_model('roma_{name}_patch16'{''.join(changed)})"


def save_safetensors(
    model: nn.Module | Mapping[str, Tensor], spec: ModelSpec | None, path: str | os.PathLike[str]
) -> None:
    """Write weights and their ModelSpec to one file, which appears complete or not at all.

    Args:
        model: A module, or a state dict.
        spec: Stored as JSON in the file's metadata; None for bare weights.
        path: The file, ending in ``.safetensors``.

    Raises:
        OutputNotWritableError: If the folder does not exist or cannot be written.
    """
    from safetensors.torch import save_file

    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    # safetensors refuses views and tensors that share memory.
    own = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    metadata = {"format": "pt"} | ({SPEC_KEY: spec.to_json()} if spec is not None else {})
    with atomic_path(check_output(Path(path), overwrite=True)) as temporary:
        save_file(own, temporary, metadata=metadata)


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The ModelSpec inside a Lightning checkpoint or a safetensors file.

    Raises:
        DataNotFoundError: If there is no such file.
        CheckpointError: If the file is unreadable or holds pickled objects.
        SpecError: If it has no spec or an invalid one.
    """
    path = Path(path)
    text = _spec_text(path, _read(path))
    if not isinstance(text, str):
        raise SpecError(f"{path} carries no model spec: give one with --spec FILE")
    return ModelSpec.from_json(text)


def _metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    _require(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error})") from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise DataNotFoundError(f"no checkpoint at {path}: check the path")


def _read(path: Path) -> Any:
    """Content of a weights file, without executing anything in it."""
    _require(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        _metadata(path)
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"it holds {named[1]}" if named else "it is damaged or no PyTorch file"
        raise CheckpointError(
            f"{path} is not a plain weights file ({found}) and nothing was loaded: "
            "save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is no readable checkpoint ({reason}): copy it again"
        ) from error


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str | None]:
    """Weights and ModelSpec text of a ``.ckpt``, ``.pth`` or ``.safetensors`` file.

    Runs no code of the file.

    Args:
        path: The file.

    Returns:
        The state dict, and the spec's JSON text if the file carries one.

    Raises:
        DataNotFoundError: If there is no such file.
        CheckpointError: If it is unreadable, holds pickled objects, or no state dict.
    """
    path = Path(path)
    content = _read(path)
    return _tensors(content, path), _spec_text(path, content)


def _spec_text(path: Path, content: Any) -> str | None:
    """The spec's JSON in a safetensors file's metadata, or under its key in a checkpoint."""
    if path.suffix == ".safetensors":
        return _metadata(path).get(SPEC_KEY)
    return content.get(SPEC_KEY) if isinstance(content, dict) else None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a file's content."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict: save model.state_dict(), or a Lightning checkpoint"
        )
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}

"""Tensors and ModelSpec of a weights file, in any of the formats, without executing it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsmamba.errors import CheckpointError, ConfigError, DataNotFoundError, SpecError
from rsmamba.spec import SPEC_KEY, ModelSpec
from rsmamba.unpickling import load_pickle

#: Where files keep their weights, the preferred one first.
KEYS = ("model", "state_dict", "model_ema")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """What is in a weights file.

    Attributes:
        path: The file.
        tensors: Its weights by name.
        key: Which of :data:`KEYS` they were under; None for a bare state dict.
        others: Which others of them hold weights too.
        spec: JSON text of its ModelSpec, if it carries one.
    """

    path: Path
    tensors: dict[str, Tensor]
    key: str | None
    others: tuple[str, ...]
    spec: str | None


def read_weights(
    path: str | os.PathLike[str], *, key: str | None = None, stand_ins: bool = True
) -> WeightsFile:
    """Read a ``.ckpt``, ``.pth`` or ``.safetensors`` file without running code of it.

    Args:
        path: The file.
        key: Which of :data:`KEYS` to take; by default the first that is there.
        stand_ins: Whether training arguments and configurations in published files are read as
            inert objects; otherwise they are refused.

    Returns:
        Its content.

    Raises:
        ConfigError: If the key is none of :data:`KEYS`.
        DataNotFoundError: If there is no such file.
        CheckpointError: If it is unreadable, holds pickled objects, or no weights (under that key).
    """
    path = Path(path)
    if key is not None and key not in KEYS:
        raise ConfigError(f"key={key!r}: choose one of {', '.join(KEYS)}")
    content = _content(path, stand_ins)
    present = [name for name in KEYS if name in content and _states(content[name])]
    if key is not None and key not in present:
        held = ", ".join(present) or "a bare state dict (leave the key out)"
        raise CheckpointError(f"{path} holds no weights under {key!r}: it has {held}")
    chosen = key or (present[0] if present else None)
    tensors = _states(content if chosen is None else content[chosen])
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict: save model.state_dict(), or a Lightning checkpoint"
        )
    if odd := [name for name, value in tensors.items() if not _is_plain(value)]:
        raise CheckpointError(
            f"{path}: {odd[0]} is a sparse, quantised, complex or empty (meta) tensor: "
            "save dense weights"
        )
    others = tuple(name for name in present if name != chosen)
    return WeightsFile(path, tensors, chosen, others, _spec_text(path, content))


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str | None]:
    """Weights and ModelSpec text of a ``.ckpt``, ``.pth`` or ``.safetensors`` file.

    Runs no code of the file. Stricter than :func:`load_backbone`: files with training arguments or
    configurations in them are refused, as Lightning refuses them.

    Args:
        path: The file.

    Returns:
        The state dict, and the spec's JSON text if the file carries one.

    Raises:
        DataNotFoundError: If there is no such file.
        CheckpointError: If it is unreadable, holds pickled objects, or no state dict.
    """
    file = read_weights(path, stand_ins=False)
    return file.tensors, file.spec


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The ModelSpec inside a Lightning checkpoint or a safetensors file, or of a JSON file.

    Raises:
        DataNotFoundError: If there is no such file.
        CheckpointError: If the file is unreadable or holds pickled objects.
        SpecError: If it has no spec or an invalid one.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read_json(path)
    _require(path)
    # The metadata of safetensors are read without the tensors.
    content = {} if path.suffix == ".safetensors" else _content(path, stand_ins=False)
    text = _spec_text(path, content)
    if text is None:
        raise SpecError(f"{path} carries no model spec: give one with --spec FILE")
    return ModelSpec.from_json(text)


def _read_json(path: Path) -> ModelSpec:
    """A spec from a JSON file."""
    try:
        return ModelSpec.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(f"{path}: no readable spec ({error}); give a JSON file") from error
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _require(path: Path) -> None:
    """Refuse a file that is not there or holds nothing."""
    if not path.is_file():
        raise DataNotFoundError(f"no checkpoint at {path}: check the path")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty: copy or download it again")


def _content(path: Path, stand_ins: bool) -> dict[Any, Any]:
    """What was saved, as a plain dict; empty if it is none."""
    _require(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        _metadata(path)
        return dict(load_file(path))
    content = load_pickle(path, stand_ins=stand_ins)
    return _plain_dict(content) if isinstance(content, dict) else {}


def _plain_dict(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """A copy by dict's own methods: a pickle may give its OrderedDicts attributes of any name."""
    return dict(dict.items(mapping))


def _states(content: object) -> dict[str, Tensor]:
    """The tensors of a state dict; empty if it is none."""
    if not isinstance(content, dict):
        return {}
    items = _plain_dict(content).items()
    return {k: v.detach() for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor's values can be copied into a model's."""
    dense = value.layout == torch.strided and not value.is_quantized
    return dense and not value.is_complex() and not value.is_meta


def _metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no complete safetensors file ({error}): copy or download it again, or "
            "name it .pth if it is a PyTorch file"
        ) from error


def _spec_text(path: Path, content: dict[Any, Any]) -> str | None:
    """The spec's JSON in a safetensors file's metadata, or under its key in a checkpoint."""
    text = _metadata(path).get(SPEC_KEY) if path.suffix == ".safetensors" else content.get(SPEC_KEY)
    return text if isinstance(text, str) else None

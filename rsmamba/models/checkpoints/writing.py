"""Weights and their ModelSpec as safetensors."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rsmamba.errors import OutputNotWritableError
from rsmamba.files import atomic_path, check_output
from rsmamba.spec import SPEC_KEY, ModelSpec


def save_safetensors(
    model: nn.Module | Mapping[str, Tensor], spec: ModelSpec | None, path: str | os.PathLike[str]
) -> None:
    """Write weights and their ModelSpec to one file, which appears complete or not at all.

    Args:
        model: A module, or a state dict.
        spec: Stored as JSON in the file's metadata; None for bare weights.
        path: The file, ending in ``.safetensors``.

    Raises:
        OutputNotWritableError: If the folder does not exist or cannot be written, or is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    # safetensors refuses views and tensors that share memory.
    own = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    metadata = {"format": "pt"} | ({SPEC_KEY: spec.to_json()} if spec is not None else {})
    try:
        with atomic_path(check_output(Path(path), overwrite=True)) as temporary:
            save_file(own, temporary, metadata=metadata)
    except SafetensorError as error:
        raise OutputNotWritableError(f"cannot write {path}: {error}; free some space") from error

"""Published files as safetensors with a ModelSpec."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rsmamba.errors import BandMismatchError, CheckpointError, ConfigError
from rsmamba.files import check_output
from rsmamba.models.checkpoints.architecture import Architecture, infer
from rsmamba.models.checkpoints.hub import locate
from rsmamba.models.checkpoints.published import (
    BANDS,
    MEAN,
    STD,
    Renamed,
    Source,
    convert,
    detect,
    listed,
    rename,
    sources,
)
from rsmamba.models.checkpoints.writing import save_safetensors
from rsmamba.spec import ModelSpec
from rsmamba.weights_file import WeightsFile, read_weights


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What :func:`convert_file` did.

    Attributes:
        path: The file that was read.
        out: The file that was written.
        architecture: What the tensors make.
        tensors: Number of tensors written.
        parameters: Number of parameters, without running statistics.
        key: Where the weights were in the file; None for a bare state dict.
        others: Where else it holds weights.
        computed: Tensors left out because our model computes them.
        outside: Tensors left out because they are not the backbone's.
        spec: The ModelSpec written.
    """

    path: Path
    out: Path
    architecture: Architecture
    tensors: int
    parameters: int
    key: str | None
    others: tuple[str, ...]
    computed: tuple[str, ...]
    outside: tuple[str, ...]
    spec: ModelSpec

    def __str__(self) -> str:
        """A few lines for the command line."""
        key = f", key {self.key!r}" if self.key else ""
        if self.others:
            key += f" (it also has {', '.join(self.others)}: --key)"
        lines = [
            f"{self.out}: {self.tensors} tensors, {self.parameters:,} parameters",
            f"from {self.path} ({self.architecture.source}{key})",
            f"model: {self.architecture}",
        ]
        if self.computed:
            lines.append(listed("left out, computed by the model", self.computed))
        if self.outside:
            lines.append(listed("left out, not the backbone's", self.outside))
        lines.append(f"licence: {self.spec.licence or 'not stated; --licence TEXT records it'}")
        return "\n".join(lines)


def convert_file(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source: Source | None = None,
    key: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Turn a published file into safetensors that carry a ModelSpec.

    The architecture is found from the shapes, and built once (without memory) to make sure that it
    takes the tensors with ``strict=True``.

    Args:
        path: The published file, or a hub id (see :func:`load_backbone`).
        out: The file to write, ending in ``.safetensors``.
        source: What it is; by default found from the names of its tensors.
        key: Which weights to take, ``"model"``, ``"state_dict"`` or ``"model_ema"``; by default
            the first of these that is there.
        licence: Licence of the weights, for the spec.
        overwrite: Whether an existing ``out`` may be replaced.

    Returns:
        What was written and what was left out.

    Raises:
        ConfigError: If an option is unknown or ``out`` has another suffix.
        OutputExistsError: If ``out`` is there.
        OutputNotWritableError: If it cannot be written.
        DataNotFoundError: If there is no such file.
        CheckpointError: If it is unreadable, unsafe, or not a whole published model.
        BandMismatchError: If its bands are not red, green and blue.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the output must end in .safetensors")
    check_output(out, overwrite=overwrite)
    if source is not None and source not in sources():
        raise ConfigError(f"source={source!r}: choose one of {', '.join(sources())}")
    path = locate(path)
    file = read_weights(path, key=key)
    found = detect(file.tensors)
    if found is None:
        raise CheckpointError(
            f"{path} has the names of no published model ({', '.join(sources())}); "
            f"{listed('it has', tuple(file.tensors))}"
        )
    if source not in (None, found):
        raise CheckpointError(
            f"{path} is not a {source} checkpoint, it looks like {found}: leave the source "
            "out, or take another file"
        )
    renamed, architecture = _understand(file, found)
    if architecture.in_chans != len(BANDS):
        raise BandMismatchError(
            f"{path} takes {architecture.in_chans} bands, published models take "
            f"{', '.join(BANDS)}: it cannot be described; load_backbone reads it as it is"
        )
    spec = _spec(architecture, licence, _sha256(path))
    save_safetensors(renamed.tensors, spec, out)
    return ConversionReport(
        path=path,
        out=out,
        architecture=architecture,
        tensors=len(renamed.tensors),
        parameters=sum(p.numel() for p in architecture.build().parameters()),
        key=file.key,
        others=file.others,
        computed=renamed.computed,
        outside=renamed.outside,
        spec=spec,
    )


def _understand(file: WeightsFile, source: Source) -> tuple[Renamed, Architecture]:
    """Tensors under our names, and what they make; errors name the file."""
    try:
        convert(file.tensors, source=source)  # refuses unknown names
        renamed = rename(file.tensors, source)
        return renamed, infer(renamed.tensors, source)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _spec(architecture: Architecture, licence: str | None, sha256: str) -> ModelSpec:
    """The spec of a published model: a backbone by timm's name, or a whole pretraining model."""
    pretraining = architecture.source == "roma-pretrain"
    return ModelSpec(
        task="pretraining" if pretraining else "backbone",
        task_class="rsmamba.models.RoMAForPretraining" if pretraining else "timm.create_model",
        task_kwargs=architecture.kwargs,
        architecture=architecture.name,
        bands=BANDS,
        mean=MEAN,
        std=STD,
        image_size=architecture.image_size,
        licence=licence,
        source_sha256=sha256,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

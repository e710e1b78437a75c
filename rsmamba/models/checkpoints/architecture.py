"""Which model a file's tensors make, from their names and shapes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from rsmamba.errors import CheckpointError
from rsmamba.models.checkpoints.published import FUSION_PADDING, Source, listed
from rsmamba.models.roma import SIZES

#: Channels of an attention head in the published decoders; the tensors do not tell.
_HEAD_CHANNELS = 64
#: Width of the first level and blocks per level of the registered Spatial-Mambas.
_SPATIAL_MAMBAS = {
    "spatial_mamba_tiny": (64, (2, 4, 8, 4)),
    "spatial_mamba_small": (64, (2, 4, 21, 5)),
    "spatial_mamba_base": (96, (2, 4, 21, 5)),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build the model of a file.

    Attributes:
        source: The published family.
        name: timm name of the (pretraining model's) backbone.
        kwargs: Arguments of ``timm.create_model``, or of
            :class:`rsmamba.models.RoMAForPretraining`; JSON values.
        in_chans: Number of input bands.
        image_size: Height and width that the position embedding is made for; None if any.
    """

    source: Source
    name: str
    kwargs: dict[str, Any]
    in_chans: int
    image_size: tuple[int, int] | None

    def build(self) -> nn.Module:
        """The model, without memory for its weights (on the meta device)."""
        with torch.device("meta"):
            if self.source != "roma-pretrain":
                return timm.create_model(self.name, **self.kwargs)
            from rsmamba.models.roma_pretrain import RoMAForPretraining

            return RoMAForPretraining(self.name, **self.kwargs)

    def __str__(self) -> str:
        """The call that builds it."""
        given = [repr(self.name), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        call = "RoMAForPretraining" if self.source == "roma-pretrain" else "timm.create_model"
        return f"{call}({', '.join(given)})"


def infer(tensors: Mapping[str, Tensor], source: Source) -> Architecture:
    """Describe the model that loads these tensors with ``strict=True``.

    Args:
        tensors: All tensors of the model, by our names.
        source: The family they are from.

    Raises:
        CheckpointError: If they make no such model: a tensor is missing, or one too many.
    """
    try:
        found = {
            "roma": _roma,
            "roma-pretrain": _pretraining,
            "spatial-mamba": _spatial_mamba,
        }[source](tensors)
    except KeyError as error:
        raise CheckpointError(
            f"not a whole {source} model: {error.args[0]} is missing; take a complete file"
        ) from error
    wanted = found.build().state_dict()
    problems = [(k, "is missing") for k in wanted if k not in tensors]
    problems += [(k, "has no place") for k in tensors if k not in wanted]
    problems += [
        (k, f"is {[*tensors[k].shape]}, not {[*value.shape]}")
        for k, value in wanted.items()
        if k in tensors and tensors[k].shape != value.shape
    ]
    if problems:
        shown = tuple(" ".join(problem) for problem in problems)
        raise CheckpointError(f"not a whole {source} model, e.g. {found}; {listed('as', shown)}")
    return found


def size_of(width: int, depth: int) -> tuple[str, dict[str, int]]:
    """The RoMA of this width and depth: its size's name, and what differs from that."""
    options = {"embed_dim": width, "depth": depth}
    name = next((n for n, size in SIZES.items() if size == options), "tiny")
    return name, {k: v for k, v in options.items() if v != SIZES[name][k]}


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of indices that follow a prefix."""
    names = (key.removeprefix(prefix) for key in tensors if key.startswith(prefix))
    return len({name.partition(".")[0] for name in names})


def _square(rows: int) -> int:
    """Side of a square grid of patches."""
    side = math.isqrt(rows)
    if side**2 != rows:
        raise CheckpointError(f"pos_embed has {rows} patches, which make no square image")
    return side


def _roma(tensors: Mapping[str, Tensor]) -> Architecture:
    width, bands, patch, _ = tensors["patch_embed.proj.weight"].shape
    name, kwargs = size_of(width, _count(tensors, "blocks."))
    name = f"roma_{name}_patch16"
    options: dict[str, Any] = dict(kwargs)
    options["num_classes"] = len(tensors["head.weight"]) if "head.weight" in tensors else 0
    has_token = "cls_token" in tensors
    side = _square(tensors["pos_embed"].shape[1] - has_token) * patch
    options["img_size"] = side
    if not has_token:
        options |= {"class_token": False, "global_pool": "avg"}
    if _count(tensors, "blocks.0.mixer.scans.") == 1:
        options["directions"] = 1
    if patch != 16:
        options["patch_size"] = patch
    if bands != 3:
        options["in_chans"] = bands
    if any(key.startswith("neck.") for key in tensors):
        name += "_pyramid"
        if "neck.0.1.weight" not in tensors:
            options["neck_norm"] = False
    return Architecture("roma", name, options, bands, (side, side))


def _pretraining(tensors: Mapping[str, Tensor]) -> Architecture:
    width, bands, patch, _ = tensors["encoder.patch_embed.proj.weight"].shape
    name, kwargs = size_of(width, _count(tensors, "encoder.blocks."))
    side = _square(tensors["encoder.pos_embed"].shape[1]) * patch
    decoder = tensors["query_token"].shape[-1]
    options: dict[str, Any] = {**kwargs, "img_size": side, "decoder_dim": decoder}
    options["decoder_depth"] = _count(tensors, "decoder.")
    options["decoder_heads"] = max(1, decoder // _HEAD_CHANNELS)
    if patch != 16:
        options["patch_size"] = patch
    if bands != 3:
        options["in_chans"] = bands
    name = f"roma_{name}_patch16"
    return Architecture("roma-pretrain", name, options, bands, (side, side))


def _spatial_mamba(tensors: Mapping[str, Tensor]) -> Architecture:
    bands = tensors["stem.conv1.conv.weight"].shape[1]
    width = len(tensors["stages.0.blocks.0.norm1.weight"])
    levels = range(_count(tensors, "stages."))
    depths = tuple(_count(tensors, f"stages.{level}.blocks.") for level in levels)
    options: dict[str, Any] = {"fusion_padding": FUSION_PADDING}
    name = next((n for n, size in _SPATIAL_MAMBAS.items() if size == (width, depths)), None)
    if name is None:
        name = "spatial_mamba_tiny"
        options |= {"embed_dim": width, "depths": list(depths)}
    options["num_classes"] = len(tensors["head.weight"]) if "head.weight" in tensors else 0
    hidden = len(tensors["stages.0.blocks.0.mlp.fc1.weight"])
    if hidden != 4 * width:
        options["mlp_ratio"] = hidden / width
    if any(key.startswith("level_norms.") for key in tensors):
        options["level_norms"] = True
    if bands != 3:
        options["in_chans"] = bands
    return Architecture("spatial-mamba", name, options, bands, None)

"""Names in the published files of RoMA and Spatial-Mamba, and ours.

Depends on no model, so that the models can use it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from rsmamba.errors import CheckpointError, ConfigError

Source = Literal["roma", "roma-pretrain", "spatial-mamba"]

#: What the published models were trained on: RGB, of 0 to 255 here, normalised as ImageNet is.
BANDS = ("red", "green", "blue")
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
#: Spatial-Mamba was trained with replicated borders, and evaluated with zeros.
FUSION_PADDING = "zeros"

_SHOWN = 5


def listed(label: str, names: tuple[str, ...]) -> str:
    """``label: a, b and 3 more``."""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{label}: {shown}{more}"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A published state dict under our names.

    Attributes:
        tensors: By our names.
        computed: Published names of tables that our models compute.
        outside: Published names outside the backbone, e.g. of a segmentor's decoder.
        unknown: Published names, in the backbone, that are not this source's.
    """

    tensors: dict[str, Tensor]
    computed: tuple[str, ...]
    outside: tuple[str, ...]
    unknown: tuple[str, ...]


def convert(state_dict: Mapping[str, Tensor], *, source: Source) -> dict[str, Tensor]:
    """Rename the tensors of a published file to ours; no values change.

    Of a whole segmentor or detector, the tensors under ``backbone.`` are taken. Spatial-Mamba's
    decay rates and fusion kernels lose axes of length 1.

    Args:
        state_dict: Tensors under their published names; not changed.
        source: ``"roma"`` (classification, segmentation and change-detection backbones, for
            ``roma_*`` and ``roma_*_pyramid``), ``"roma-pretrain"`` (for
            :class:`rsmamba.models.RoMAForPretraining`) or ``"spatial-mamba"``.

    Returns:
        A state dict that the model loads with ``strict=True``.

    Raises:
        ConfigError: If the source is unknown.
        CheckpointError: If a name does not belong to that source, or there is no block at all.
    """
    renamed = rename(state_dict, source)
    if renamed.unknown:
        raise CheckpointError(
            f"not a {source} checkpoint: {listed('unknown tensors', renamed.unknown)}; "
            f"{_remedy(state_dict, source)}"
        )
    if not any(_OUR_BLOCK.match(name) for name in renamed.tensors):
        raise CheckpointError(
            f"not a {source} checkpoint: no tensor of a block is in it; "
            f"{_remedy(state_dict, source)}"
        )
    return renamed.tensors


def _remedy(names: Mapping[str, Tensor], source: Source) -> str:
    """What to do about a file that is not of the source asked for."""
    found = detect(names)
    if found == source:
        return "take the file as it was published"
    return f"it looks like {found}: choose that source" if found else "choose another source"


_OUR_BLOCK = re.compile(r"(?:(?:encoder\.)?blocks|stages\.\d+\.blocks)\.\d+\.")


def rename(state_dict: Mapping[str, Tensor], source: Source) -> Renamed:
    """As :func:`convert`, but names that are not the source's are returned.

    Raises:
        ConfigError: If the source is unknown.
    """
    renamers: dict[str, Callable[[str], str | None]] = {
        "roma": _roma_key,
        "roma-pretrain": _pretrain_key,
        "spatial-mamba": _spatial_mamba_key,
    }
    if source not in renamers:
        raise ConfigError(f"source={source!r}: choose one of {', '.join(renamers)}")
    prefix = _prefix(state_dict, source) or ""
    tensors: dict[str, Tensor] = {}
    computed, outside, unknown = [], [], []
    for key, value in state_dict.items():
        if not key.startswith(prefix):
            outside.append(key)
            continue
        try:
            name = renamers[source](key.removeprefix(prefix))
        except (KeyError, ValueError):  # a name that is cut short does not split
            unknown.append(key)
            continue
        if name is None:
            computed.append(key)
        else:
            tensors[name] = _reshape(name, value) if source == "spatial-mamba" else value
    return Renamed(tensors, tuple(computed), tuple(outside), tuple(unknown))


#: What only the files of a family have, after any prefix.
_MARKS = {
    "roma": re.compile(r"((?:.*\.)?)layers\.\d+\.mixer\."),
    "spatial-mamba": re.compile(r"((?:.*\.)?)layers\.\d+\.blocks\.\d+\.self_attention\."),
}
_PRETRAINING = ("ar_token", "enc2dec.", "dec_block.")


def _prefix(names: Mapping[str, Tensor], source: str) -> str | None:
    """The shortest prefix of the backbone's names, e.g. ``backbone.``; None if there is none."""
    mark = _MARKS["spatial-mamba" if source == "spatial-mamba" else "roma"]
    found = {match[1] for name in names if (match := mark.match(name))}
    return min(found, key=len) if found else None


def detect(names: Mapping[str, Tensor]) -> Source | None:
    """Which published model these names belong to; None if to none."""
    if _prefix(names, "spatial-mamba") is not None:
        return "spatial-mamba"
    prefix = _prefix(names, "roma")
    if prefix is None:
        return None
    marks = tuple(prefix + mark for mark in _PRETRAINING)
    return "roma-pretrain" if any(name.startswith(marks) for name in names) else "roma"


def sources() -> tuple[str, ...]:
    """The published families."""
    return get_args(Source)


#: The published suffixes of the four scan directions, in our order.
_DIRECTIONS = {"": 0, "_b": 1, "_c": 2, "_c_b": 3}
_DIRECTION = "(?P<direction>_c_b|_b|_c|)"
_MIXER = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<stem>A){_DIRECTION}(?P<rest>_log)",
        rf"(?P<stem>D){_DIRECTION}(?P<rest>)",
        rf"(?P<stem>x_proj){_DIRECTION}(?P<rest>\.weight)",
        rf"(?P<stem>conv1d|dt_proj){_DIRECTION}(?P<rest>\.(?:weight|bias))",
    )
)
_LAYER = re.compile(
    r"layers\.(?P<block>\d+)\."
    r"(?:(?P<norm>norm[12])|mlp\.(?P<mlp>w[123])|mixer\.(?P<proj>in_proj|out_proj))\."
    r"(?P<leaf>weight|bias)"
)
_SCAN = re.compile(r"layers\.(?P<block>\d+)\.mixer\.(?P<rest>.+)")
_LEAVES = ("weight", "bias")
_MLP = {"w1": "fc1_g", "w2": "fc1_x", "w3": "fc2"}
#: Single modules of the backbone, and of the neck's 4x branch with its norm (entries 0, 1, 3) and
#: without (0, 2).
_MODULES = {
    "patch_embed.proj": "patch_embed.proj",
    "head": "head",
    "norm_f": "norm",
    "fpn1.0": "neck.0.0",
    "fpn1.1.ln": "neck.0.1",
    "fpn1.2": "neck.0.3",
    "fpn1.3": "neck.0.3",
    "fpn2.0": "neck.1.0",
}


def _roma_key(key: str) -> str:
    """Our name of a published backbone tensor; KeyError if there is none."""
    if key in ("cls_token", "pos_embed"):
        return key
    module, _, leaf = key.rpartition(".")
    if module in _MODULES and leaf in _LEAVES:
        return f"{_MODULES[module]}.{leaf}"
    if match := _LAYER.fullmatch(key):
        block = f"blocks.{match['block']}"
        if match["mlp"]:
            return f"{block}.mlp.{_MLP[match['mlp']]}.{match['leaf']}"
        return f"{block}.{match['norm'] or 'mixer.' + match['proj']}.{match['leaf']}"
    layer = _SCAN.fullmatch(key)
    scans = (pattern.fullmatch(layer["rest"]) for pattern in _MIXER) if layer else ()
    scan = next(filter(None, scans), None)
    if layer is None or scan is None:
        raise KeyError(key)
    direction = _DIRECTIONS[scan["direction"]]
    return f"blocks.{layer['block']}.mixer.scans.{direction}.{scan['stem']}{scan['rest']}"


_DECODER = {"attn2": "attn", "norm2_1": "norm_query", "norm2_2": "norm_memory"}
_DECODER_BLOCK = re.compile(
    r"dec_block\.(?P<block>\d+)\.(?P<part>norm2(?:_[12])?|attn2\.(?:q|kv|proj)|mlp\.fc[12])\."
    r"(?P<leaf>weight|bias)"
)
#: Of the backbone's names, ours, those of its pretraining: one direction, no class token or head.
_ENCODER = re.compile(r"pos_embed$|patch_embed\.|blocks\.\d+\.(?!mixer\.scans\.[123]\.)")
_PRETRAIN = {"ar_token": "query_token", "angle_embed": "angle_embed"}
_PRETRAIN_MODULES = {
    "ar_norm": "decoder_norm",
    "ar_pred": "predictor",
    "enc2dec": "enc2dec",
    **{f"norm_{i + 1}": f"tap_norms.{i}" for i in range(4)},
}
#: Tables that are computed, not stored.
_COMPUTED = ("mask", "dec_pos_embed")


def _pretrain_key(key: str) -> str | None:
    """Our name of a published pretraining tensor, None if it is computed; KeyError if unknown."""
    if key in _COMPUTED:
        return None
    if key in _PRETRAIN:
        return _PRETRAIN[key]
    module, _, leaf = key.rpartition(".")
    if module in _PRETRAIN_MODULES and leaf in _LEAVES:
        return f"{_PRETRAIN_MODULES[module]}.{leaf}"
    if match := _DECODER_BLOCK.fullmatch(key):
        part, _, leaf = match["part"].partition(".")
        part = _DECODER.get(part, part)
        return ".".join(filter(None, ("decoder", match["block"], part, leaf, match["leaf"])))
    name = _roma_key(key)
    if not _ENCODER.match(name):
        raise KeyError(key)
    return f"encoder.{name}"


_SPATIAL_MAMBA = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embed\.(conv\d(?:\.\d)?)\.conv\.", r"stem.\1.conv."),
        (r"^patch_embed\.(conv\d(?:\.\d)?)\.norm\.", r"stem.\1.bn."),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.ln_(\d)\.", r"stages.\1.blocks.\2.norm\3."),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.self_attention\.", ".mixer."),
        (r"\.mixer\.(x_proj|dt_proj)s?_(weight|bias)$", r".mixer.\1.\2"),
        (r"\.mixer\.A_logs$", ".mixer.A_log"),
        (r"\.mixer\.Ds$", ".mixer.D"),
        (r"\.mixer\.conv2d\.", ".mixer.conv."),
        (r"\.state_fusion\.alpha$", ".fusion.alpha"),
        (r"\.state_fusion\.kernel_3$", ".fusion.kernel_1"),
        (r"\.state_fusion\.kernel_3_1$", ".fusion.kernel_3"),
        (r"\.state_fusion\.kernel_3_2$", ".fusion.kernel_5"),
        (r"\.downsample\.conv\.0\.conv\.", ".downsample.expand."),
        (r"\.downsample\.conv\.1\.conv\.", ".downsample.depthwise."),
        (r"\.downsample\.conv\.2\.conv\.", ".downsample.reduce.conv."),
        (r"\.downsample\.conv\.2\.norm\.", ".downsample.reduce.bn."),
        (r"^outnorm(\d)\.", r"level_norms.\1."),
    )
)
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")
_LEAF = r"\.(?:weight|bias)"
_BATCH_NORM = r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
#: Every name that a Spatial-Mamba of ours can have.
_OURS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:head|norm|level_norms\.\d){_LEAF}",
        rf"stem\.conv\d(?:\.\d)?\.(?:conv{_LEAF}|bn{_BATCH_NORM})",
        rf"stages\.\d+\.blocks\.\d+\.(?:norm[12]|cpe[12]|mlp\.fc[12]){_LEAF}",
        rf"stages\.\d+\.blocks\.\d+\.mixer\.(?:in_proj|out_proj|out_norm|conv|dt_proj){_LEAF}",
        r"stages\.\d+\.blocks\.\d+\.mixer\.(?:A_log|D|x_proj\.weight)",
        r"stages\.\d+\.blocks\.\d+\.mixer\.fusion\.(?:alpha|kernel_[135])",
        rf"stages\.\d+\.downsample\.(?:expand|depthwise|reduce\.conv){_LEAF}",
        rf"stages\.\d+\.downsample\.reduce\.bn{_BATCH_NORM}",
    )
)


def _spatial_mamba_key(key: str) -> str:
    """Our name of a published (or of our own) Spatial-Mamba tensor; KeyError if there is none."""
    # Published levels end with the downsampling that ours start with.
    name = _DOWNSAMPLE.sub(lambda match: f"stages.{int(match[1]) + 1}.downsample.", key)
    for pattern, replacement in _SPATIAL_MAMBA:
        name = pattern.sub(replacement, name)
    if not any(pattern.fullmatch(name) for pattern in _OURS):
        raise KeyError(key)
    return name


def _reshape(name: str, value: Tensor) -> Tensor:
    """Drop the axes of length 1 of Spatial-Mamba's decay rates and fusion kernels."""
    if name.endswith(".A_log"):
        return value.reshape(-1)
    if ".fusion.kernel_" in name and value.shape[-2:] == (3, 3):
        return value.reshape(-1, 3, 3)
    return value

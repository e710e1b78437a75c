"""Spatial-Mamba: a four-level state-space backbone with structure-aware state fusion.

Xiao et al., "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion",
ICLR 2025, https://arxiv.org/abs/2410.15091. One raster scan with a single state per channel is
followed by three dilated depthwise convolutions of the states, so that every pixel sees its
neighbours in both directions at the cost of one scan.

Tensors are channels last (B, H, W, C) inside the network and (B, C, H, W) at its borders. Height
and width are free: every stride-2 step gives ``ceil(size / 2)``.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, get_args

import torch
from timm.layers import create_classifier
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from rsmamba.errors import ConfigError
from rsmamba.models.checkpoints.published import convert
from rsmamba.models.options import check_positive, drop_path_rates
from rsmamba.models.registry import create, default_cfg
from rsmamba.models.spatial_mamba_layers import (
    Padding,
    SpatialMambaStage,
    Stem,
    init_weights,
    to_nchw,
)

__all__ = [
    "SpatialMamba",
    "convert_state_dict",
    "spatial_mamba_base",
    "spatial_mamba_small",
    "spatial_mamba_tiny",
]

#: timm's poolings of maps; those without "fast" go through torch's adaptive modules.
_POOLS = ("avg", "max", "avgmax", "catavgmax",
          "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")  # fmt: skip


def check_pool(global_pool: str, num_classes: int) -> None:
    """Refuse poolings that timm does not have for maps, and a classifier without pooling.

    Raises:
        ConfigError: If it is one of these.
    """
    if global_pool and global_pool not in _POOLS:
        raise ConfigError(f"global_pool={global_pool!r}: choose one of {', '.join(_POOLS)}")
    if num_classes and not global_pool:
        raise ConfigError("global_pool='' needs num_classes=0; or choose 'avg'")


class SpatialMamba(nn.Module):
    """Spatial-Mamba as a timm model: classifier, feature pyramid and dense encoder.

    Args:
        in_chans: Bands of the image.
        num_classes: Outputs of the classifier; 0 for pooled features.
        global_pool: timm pooling name, ``""`` for none (needs ``num_classes=0``).
        img_size: Accepted for timm's sake; any size works without it.
        embed_dim: Width of the first level; it doubles from level to level.
        depths: Blocks per level.
        mlp_ratio: Hidden width of the MLPs in units of the level's width.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        fusion_padding: How the state fusion continues the map beyond its border, in training and
            in evaluation. ``"zeros"`` reproduces the evaluation of the published weights, which
            were trained with ``"replicate"`` and evaluated otherwise.
        level_norms: One LayerNorm per level instead of the single final one, as the published
            dense models have. ``features_only=True`` switches it on.

    Raises:
        ConfigError: For another ``fusion_padding`` or ``global_pool``, and numbers out of range.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] | None = None,
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        fusion_padding: Padding = "replicate",
        level_norms: bool = False,
    ) -> None:
        super().__init__()
        if fusion_padding not in get_args(Padding):
            raise ConfigError(
                f"fusion_padding={fusion_padding!r} is unknown; use 'replicate' or 'zeros'"
            )
        if not depths or min(depths) < 1:
            raise ConfigError(f"depths={tuple(depths)}: give every level at least one block")
        check_positive(in_chans=in_chans, embed_dim=embed_dim)
        check_pool(global_pool, num_classes)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        widths = [embed_dim * 2**level for level in range(len(depths))]
        self.num_features = self.head_hidden_size = widths[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**level, "module": f"stages.{level}"}
            for level, width in enumerate(widths)
        ]

        self.stem = Stem(in_chans, embed_dim)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        per_level = [list(islice(rates, depth)) for depth in depths]
        self.stages = nn.ModuleList(
            SpatialMambaStage(dim_in, dim, mlp_ratio, drop_path, fusion_padding)
            for dim_in, dim, drop_path in zip(
                [embed_dim, *widths[:-1]], widths, per_level, strict=True
            )
        )
        self.level_norms = nn.ModuleList(
            nn.LayerNorm(width) if level_norms else nn.Identity() for width in widths
        )
        self.norm = nn.Identity() if level_norms else nn.LayerNorm(self.num_features)
        self.global_pool, self.head_drop, self.head = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        self.apply(init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay would harm: norms, dynamics, skips, steps and fusion."""
        undecayed = ("A_log", ".D", "dt_proj.bias", ".alpha", *(f".kernel_{d}" for d in (1, 3, 5)))
        norms = {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
            for parameter in ("weight", "bias")
        }
        return norms | {name for name, _ in self.named_parameters() if name.endswith(undecayed)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from the stem to the head, for layer-wise learning rates."""
        blocks: Any = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^(?:norm|level_norms)\b", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        for module in self.modules():
            if isinstance(module, SpatialMambaStage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer: Linear, or Identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one.

        Args:
            num_classes: Outputs, 0 for pooled features.
            global_pool: New pooling; by default the present one stays.

        Raises:
            ConfigError: For an unknown pooling, or none with classes.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        check_pool(pool, num_classes)
        self.num_classes = num_classes
        self.global_pool, head = create_classifier(self.num_features, num_classes, pool_type=pool)
        weight = self.stem.conv1.conv.weight
        self.head = head.to(device=weight.device, dtype=weight.dtype)
        self.head.apply(init_weights)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Levels of the pyramid, after their own norms where the model has them.

        Args:
            x: (B, in_chans, H, W) images.
            indices: The last n levels, these levels, or all.
            norm: Apply the final norm to the last level.
            stop_early: Leave out levels behind the last one asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: Return the list only.
            output_dict: Return a dictionary of ``"image_intermediates"`` and, unless
                ``intermediates_only``, ``"image_features"``.

        Returns:
            The levels, at 1/4, 1/8, 1/16 and 1/32 of the resolution (rounded up); preceded by
            the final features (B, C, h, w) unless ``intermediates_only``: those of the last level
            that was run, normalised if it is the model's last.

        Raises:
            ConfigError: For another ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt={output_fmt!r} is unknown; use NCHW or NHWC")
        wanted, deepest = feature_take_indices(len(self.stages), indices)
        # As built: the final norm is as wide as that level, and pruning may have removed it.
        last = len(self.feature_info) - 1
        levels: list[Tensor] = []
        x = self.stem(x)
        index = 0
        for index, stage in enumerate(self.stages[: deepest + 1] if stop_early else self.stages):
            x = stage(x)
            if index in wanted:
                level = self.level_norms[index](x)
                if norm and index == last:
                    level = self.norm(level)
                levels.append(level if output_fmt == "NHWC" else to_nchw(level))
        if intermediates_only:
            return {"image_intermediates": levels} if output_dict else levels
        if index == last:
            x = self.norm(self.level_norms[index](x))
        final = to_nchw(x)
        if output_dict:
            return {"image_intermediates": levels, "image_features": final}
        return final, levels

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the given levels do not need, so that no parameter stays without gradient.

        Args:
            indices: The last n levels, or these levels.
            prune_norm: Drop the final norm.
            prune_head: Drop the classifier.

        Returns:
            The levels as indices from 0.
        """
        wanted, deepest = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: deepest + 1]
        self.level_norms = nn.ModuleList(
            norm if level in wanted else nn.Identity()
            for level, norm in enumerate(self.level_norms[: deepest + 1])
        )
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return sorted(set(wanted))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to normalised (B, C, ceil(H / 32), ceil(W / 32))."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return to_nchw(self.norm(self.level_norms[-1](x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features (B, C) with ``pre_logits``, else logits (B, num_classes)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Other keywords are ignored: some frameworks hand the whole batch to the encoder.
        """
        return self.forward_head(self.forward_features(x))


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`rsmamba.models.checkpoints.convert` for Spatial-Mamba; our own names stay."""
    return convert(state_dict, source="spatial-mamba")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Fit a file to a model for timm: published or own keys, with or without level norms."""
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    tensors = convert_state_dict(state_dict)
    own = model.state_dict()
    # A classifier's weights in a dense model, or the reverse: norms that the file lacks keep their
    # initial values, norms that the model lacks are dropped.
    is_norm = re.compile(r"^(?:level_norms\.\d|norm)\.")
    kept = {key: value for key, value in tensors.items() if key in own or not is_norm.match(key)}
    return kept | {key: own[key] for key in own if is_norm.match(key) and key not in kept}


def _cfg() -> dict[str, Any]:
    return default_cfg(
        "stem.conv1.conv",
        pool_size=(7, 7),
        crop_pct=0.875,
        paper_ids="arXiv:2410.15091",
        paper_name="Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State "
        "Fusion",
    )


default_cfgs = generate_default_cfgs(
    {
        "spatial_mamba_tiny": _cfg(),
        "spatial_mamba_small": _cfg(),
        "spatial_mamba_base": _cfg(),
    }
)


def _create_spatial_mamba(variant: str, pretrained: bool, **kwargs: Any) -> SpatialMamba:
    if kwargs.get("features_only"):
        kwargs.setdefault("level_norms", True)
    model: SpatialMamba = create(
        SpatialMamba,
        variant,
        pretrained,
        levels=(0, 1, 2, 3),
        filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
    return model


@register_model
def spatial_mamba_tiny(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-T: 26.7 million parameters."""
    return _create_spatial_mamba("spatial_mamba_tiny", pretrained, **kwargs)


@register_model
def spatial_mamba_small(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-S: 43.1 million parameters."""
    kwargs = {"depths": (2, 4, 21, 5), **kwargs}
    return _create_spatial_mamba("spatial_mamba_small", pretrained, **kwargs)


@register_model
def spatial_mamba_base(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-B: 95.7 million parameters."""
    kwargs = {"embed_dim": 96, "depths": (2, 4, 21, 5), **kwargs}
    return _create_spatial_mamba("spatial_mamba_base", pretrained, **kwargs)

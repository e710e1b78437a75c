"""Spatial-Mamba: a four-level state-space backbone with structure-aware state fusion.

Xiao et al., "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion",
ICLR 2025, https://arxiv.org/abs/2410.15091. One raster scan with a single state per channel is
followed by three dilated depthwise convolutions of the states, so that every pixel sees its
neighbours in both directions at the cost of one scan.

Tensors are channels last (B, H, W, C) inside the network and (B, C, H, W) at its borders. Height
and width are free: every stride-2 step gives ``ceil(size / 2)``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ConvNormAct, DropPath, Mlp, create_classifier, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsmamba.errors import ConfigError
from rsmamba.models.checkpoints.published import convert
from rsmamba.models.registry import create
from rsmamba_kernels.state_fusion import state_fusion
from rsmamba_kernels.state_scan import state_scan

__all__ = [
    "SpatialMamba",
    "convert_state_dict",
    "spatial_mamba_base",
    "spatial_mamba_small",
    "spatial_mamba_tiny",
]

Padding = Literal["replicate", "zeros"]


def _to_nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _depthwise(dim: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim)


class Stem(nn.Module):
    """Image to the first level, at a quarter of its resolution.

    Args:
        in_chans: Bands of the image.
        dim: Width of the first level.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNormAct(in_chans, half, 3, stride=2)
        self.conv2 = nn.Sequential(
            ConvNormAct(half, half, 3), ConvNormAct(half, half, 3, apply_act=False)
        )
        self.conv3 = nn.Sequential(
            ConvNormAct(half, 4 * dim, 3, stride=2), ConvNormAct(4 * dim, dim, 1, apply_act=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, ceil(H / 4), ceil(W / 4), dim)."""
        # One copy here spares every depthwise convolution below a layout change.
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x = x + self.conv2(x)
        return _to_nhwc(self.conv3(x))


class Downsample(nn.Module):
    """Inverted bottleneck of stride 2 between two levels.

    Args:
        dim: Width of the finer level.
        dim_out: Width of the coarser level.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        hidden = 4 * dim_out
        self.expand = nn.Conv2d(dim, hidden, 1)
        self.depthwise = _depthwise(hidden, stride=2)
        self.reduce = ConvNormAct(hidden, dim_out, 1, bias=True, apply_act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, ceil(H / 2), ceil(W / 2), dim_out)."""
        x = F.relu(self.expand(_to_nchw(x)))
        return _to_nhwc(self.reduce(F.relu(self.depthwise(x))))


class StateFusion(nn.Module):
    """Weights of the fusion: three depthwise 3x3 kernels at dilations 1, 3 and 5, and their shares.

    They are used as they are at every call. Merging them into one kernel once, as is customary for
    inference, would go stale with the next optimiser step or loaded checkpoint.

    Args:
        dim: Number of states, i.e. inner channels.
        padding: ``"replicate"``, or ``"zeros"`` as published models are evaluated.
    """

    def __init__(self, dim: int, padding: Padding = "replicate") -> None:
        super().__init__()
        self.padding = padding
        self.kernel_1 = nn.Parameter(torch.ones(dim, 3, 3))
        self.kernel_3 = nn.Parameter(torch.ones(dim, 3, 3))
        self.kernel_5 = nn.Parameter(torch.ones(dim, 3, 3))
        self.alpha = nn.Parameter(torch.ones(3))

    def forward(self, h: Tensor, x: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """``C * fuse(h) + D * x``, see :func:`rsmamba_kernels.state_fusion`."""
        return state_fusion(
            h,
            x,
            C,
            D,
            self.kernel_1,
            self.kernel_3,
            self.kernel_5,
            self.alpha,
            padding=self.padding,
        )

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.kernel_1.shape[0]}, padding={self.padding!r}"


class SpatialMambaMixer(nn.Module):
    """Structure-aware state-space layer (section 4 of the paper).

    Args:
        dim: Width of the tokens.
        fusion_padding: See :class:`StateFusion`.
    """

    def __init__(self, dim: int, fusion_padding: Padding = "replicate") -> None:
        super().__init__()
        inner = 2 * dim
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = _depthwise(inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner))
        self.D = nn.Parameter(torch.ones(inner))
        self.fusion = StateFusion(inner, fusion_padding)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        # No copy where the convolution keeps channels last; it need not, on other devices.
        x = _to_nhwc(F.silu(self.conv(_to_nchw(x)))).contiguous()
        dt, B, C = self.x_proj(x).split([self.dt_rank, 1, 1], dim=-1)
        # The bias enters inside the scan, in float32: under autocast a 16-bit sum would round the
        # step size before softplus.
        dt = F.linear(dt, self.dt_proj.weight)
        A = -torch.exp(self.A_log)
        h = state_scan(x, dt, A, B, dt_bias=self.dt_proj.bias)
        y = self.fusion(h, x, C, self.D)
        return self.out_proj(self.out_norm(y) * F.silu(gate))


class SpatialMambaBlock(nn.Module):
    """Mixer and MLP, each behind a depthwise convolution that encodes position.

    Args:
        dim: Width of the tokens.
        mlp_ratio: Hidden width of the MLP in units of ``dim``.
        drop_path: Probability of dropping a residual branch.
        fusion_padding: See :class:`StateFusion`.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        fusion_padding: Padding = "replicate",
    ) -> None:
        super().__init__()
        self.cpe1 = _depthwise(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = SpatialMambaMixer(dim, fusion_padding)
        self.cpe2 = _depthwise(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same shape."""
        x = x + _to_nhwc(self.cpe1(_to_nchw(x)))
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + _to_nhwc(self.cpe2(_to_nchw(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SpatialMambaStage(nn.Module):
    """One level: an optional :class:`Downsample`, then its blocks.

    Args:
        dim_in: Width of the input.
        dim: Width of the level; differs from ``dim_in`` where the level starts by downsampling.
        mlp_ratio: Hidden width of the MLPs in units of ``dim``.
        drop_path: One probability per block; their number is the depth.
        fusion_padding: See :class:`StateFusion`.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        mlp_ratio: float,
        drop_path: Sequence[float],
        fusion_padding: Padding,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = nn.Identity() if dim_in == dim else Downsample(dim_in, dim)
        self.blocks = nn.ModuleList(
            SpatialMambaBlock(dim, mlp_ratio, rate, fusion_padding) for rate in drop_path
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim_in) to the level's (B, H', W', dim)."""
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


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
        ConfigError: For another ``fusion_padding``.
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
        # On the CPU even where the model is built on the meta device: rates are numbers.
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.stages = nn.ModuleList(
            SpatialMambaStage(dim_in, dim, mlp_ratio, drop_path.tolist(), fusion_padding)
            for dim_in, dim, drop_path in zip([embed_dim, *widths[:-1]], widths, rates, strict=True)
        )
        self.level_norms = nn.ModuleList(
            nn.LayerNorm(width) if level_norms else nn.Identity() for width in widths
        )
        self.norm = nn.Identity() if level_norms else nn.LayerNorm(self.num_features)
        self.global_pool, self.head_drop, self.head = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        self.apply(_init_weights)

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
        """
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, head = create_classifier(self.num_features, num_classes, pool_type=pool)
        weight = self.stem.conv1.conv.weight
        self.head = head.to(device=weight.device, dtype=weight.dtype)
        self.head.apply(_init_weights)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Levels of the pyramid, after their own norms where the model has them.

        Args:
            x: (B, in_chans, H, W) images.
            indices: The last n levels, these levels, or all.
            norm: Apply the final norm to the last level.
            stop_early: Leave out levels behind the last one asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: Return the list only.

        Returns:
            The levels, at 1/4, 1/8, 1/16 and 1/32 of the resolution (rounded up); preceded by
            the final features (B, C, h, w) unless ``intermediates_only``.

        Raises:
            ConfigError: For another ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt={output_fmt!r} is unknown; use NCHW or NHWC")
        wanted, deepest = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        levels: list[Tensor] = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > deepest:
                break
            x = stage(x)
            if index in wanted:
                level = self.level_norms[index](x)
                if norm and index == last:
                    level = self.norm(level)
                levels.append(level if output_fmt == "NHWC" else _to_nchw(level))
        if intermediates_only:
            return levels
        if index == last:
            x = self.norm(self.level_norms[index](x))
        return _to_nchw(x), levels

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
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to normalised (B, C, ceil(H / 32), ceil(W / 32))."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return _to_nchw(self.norm(self.level_norms[-1](x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features (B, C) with ``pre_logits``, else logits (B, num_classes)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes).

        Other keywords are ignored: some frameworks hand the whole batch to the encoder.
        """
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    """Truncated normal projections; step sizes log-uniform in 1e-3 ... 1e-1 as in Mamba."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # Parents come after their children in Module.apply, so this overrides the rule above.
    elif isinstance(module, SpatialMambaMixer):
        bound = module.dt_rank**-0.5
        nn.init.uniform_(module.dt_proj.weight, -bound, bound)
        with torch.no_grad():
            low, high = math.log(1e-3), math.log(1e-1)
            dt = torch.empty_like(module.dt_proj.bias).uniform_(low, high).exp_()
            # The inverse of softplus.
            module.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))


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


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.conv",
        "classifier": "head",
        "paper_ids": "arXiv:2410.15091",
        "paper_name": "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware "
        "State Fusion",
        **kwargs,
    }


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

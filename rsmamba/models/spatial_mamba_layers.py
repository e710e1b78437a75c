"""What a Spatial-Mamba is made of (https://arxiv.org/abs/2410.15091, section 4).

Tensors are channels last (B, H, W, C). Height and width are free: every stride-2 step gives
``ceil(size / 2)``.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsmamba_kernels.state_fusion import state_fusion
from rsmamba_kernels.state_scan import state_scan

Padding = Literal["replicate", "zeros"]


def to_nchw(x: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C)."""
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
        return to_nhwc(self.conv3(x))


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
        x = F.relu(self.expand(to_nchw(x)))
        return to_nhwc(self.reduce(F.relu(self.depthwise(x))))


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
        x = to_nhwc(F.silu(self.conv(to_nchw(x)))).contiguous()
        if x.shape[0] == 0:
            # Any strides count as contiguous where there is nothing; the scan wants them in order.
            x = x.new_empty(x.shape)
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
        x = x + to_nhwc(self.cpe1(to_nchw(x)))
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + to_nhwc(self.cpe2(to_nchw(x)))
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
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def init_weights(module: nn.Module) -> None:
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

"""What a RoMA is made of: Mamba mixers with several scan directions, and their blocks.

Gu & Dao 2023, https://arxiv.org/abs/2312.00752; Wang et al. 2025, https://arxiv.org/abs/2503.10392.
"""

import math
from operator import attrgetter
from typing import Any

import torch
from timm.layers import DropPath, SwiGLU
from torch import Tensor, nn

from rsmamba_kernels import conv1d_silu, gate, selective_scan_multi
from rsmamba_kernels.order import ClassToken

_D_STATE = 16
_D_CONV = 4
_DT_RANGE = (1e-3, 1e-1)


class DirectionalScan(nn.Module):
    """Parameters of one direction: convolution, input-dependent projections, decay rates.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dt_rank = math.ceil(dim / 16)
        self.conv1d = nn.Conv1d(dim, dim, _D_CONV, groups=dim)
        self.x_proj = nn.Linear(dim, self.dt_rank + 2 * _D_STATE, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, dim)
        self.A_log = nn.Parameter(torch.empty(dim, _D_STATE))
        self.D = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """S4D-real decay rates, and steps log-uniform in [0.001, 0.1] (Mamba, section 3.6)."""
        nn.init.ones_(self.D)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, _D_STATE + 1).log().expand_as(self.A_log))
            low, high = (math.log(value) for value in _DT_RANGE)
            dt = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
            # The inverse of softplus, so that softplus(bias) is the step.
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))


class MambaMixer(nn.Module):
    """Mamba mixer whose directions share the input, the gate and the output projection.

    ``out = W_out (silu(z) * mean_k scan_k(x))`` with ``x, z = W_in tokens``; every direction k has
    its own convolution, projections and decay rates.

    Args:
        dim: Channels, inside and outside (expansion 1).
        directions: 1 (along rows) or 4.
    """

    def __init__(self, dim: int, directions: int = 4) -> None:
        super().__init__()
        self.orders = tuple(range(directions))
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.scans = nn.ModuleList(DirectionalScan(dim) for _ in self.orders)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int], cls: ClassToken) -> Tensor:
        """Map (B, L, D) to (B, L, D); L tokens on ``grid``, with a class token if ``cls`` says."""

        def stacked(parameter: str) -> Tensor:
            """(K, ...) of the directions: copies of these spare copies of activations."""
            return torch.stack(list(map(attrgetter(parameter), self.scans)))

        x, z = self.in_proj(x).chunk(2, dim=-1)
        path: dict[str, Any] = {"orders": self.orders, "grid": grid, "cls": cls}
        u = conv1d_silu(x, stacked("conv1d.weight").squeeze(2), stacked("conv1d.bias"), **path)
        # One product for all directions; (K, B * L, D) is a view.
        projected = torch.bmm(u.flatten(1, 2), stacked("x_proj.weight").mT)
        rank = projected.shape[-1] - 2 * _D_STATE
        dt, B, C = projected.split([rank, _D_STATE, _D_STATE], dim=-1)
        y = selective_scan_multi(
            u,
            # The bias is added inside the scan, in its precision.
            torch.bmm(dt, stacked("dt_proj.weight").mT).view(u.shape),
            -torch.exp(stacked("A_log")),
            B.unflatten(1, u.shape[1:3]),
            C.unflatten(1, u.shape[1:3]),
            stacked("D"),
            dt_bias=stacked("dt_proj.bias"),
            **path,
        )
        return self.out_proj(gate(y, z, scale=1 / len(self.orders)))


class Block(nn.Module):
    """Pre-norm residual block: mixer, then SwiGLU."""

    def __init__(self, dim: int, directions: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = MambaMixer(dim, directions)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = SwiGLU(dim, 8 * dim // 3)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int], cls: ClassToken) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        x = x + self.drop_path(self.mixer(self.norm1(x), grid, cls))
        return x + self.drop_path(self.mlp(self.norm2(x)))

"""The selective scan in PyTorch: the one specification of its mathematics."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rsmamba_kernels.recurrence import linear_recurrence

ClassToken = Literal["none", "middle", "first"]

#: From here on softplus(x) = x to the last bit of a float64; torch's default of 20 is 2e-9 off.
_SOFTPLUS_THRESHOLD = 40.0


def scan_index(
    length: int,
    order: int,
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
    device: torch.device | None = None,
) -> Tensor:
    """Positions of the tokens in the sequence that a scan order visits, first to last.

    Args:
        length: Number of tokens, with the class token.
        order: 0 along rows, 1 rows reversed, 2 along columns, 3 columns reversed.
        grid: (H, W) of the patches; orders 0 and 1 do not need it.
        cls: Where the class token stands; it keeps its slot when the patches are transposed.
        device: Device of the index.

    Returns:
        (length,) int64 permutation.

    Raises:
        ValueError: If the order is unknown, or the length does not fit the grid.
    """
    if order not in (0, 1, 2, 3):
        raise ValueError(f"order={order!r}: choose 0, 1 (rows) or 2, 3 (columns)")
    extra = int(cls != "none")
    if grid is not None and length != grid[0] * grid[1] + extra:
        raise ValueError(
            f"{length} tokens on a grid of {grid[0]} x {grid[1]} with cls={cls!r}: "
            f"expected {grid[0] * grid[1] + extra}"
        )
    index = torch.arange(length, device=device)
    if order >= 2:
        if grid is None:
            raise ValueError(f"order={order} runs along columns: give grid=(H, W)")
        slot = {"none": length, "middle": (length - 1) // 2, "first": 0}[cls]
        patches = torch.cat([index[:slot], index[slot + 1 :]]).view(grid).t().reshape(-1)
        index = torch.cat([patches[:slot], index[slot : slot + 1], patches[slot:]])
    return index.flip(0) if order % 2 else index


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = True,
    order: int = 0,
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
) -> Tensor:
    """See :func:`rsmamba_kernels.selective_scan`: same arguments, less ``backend``.

    Differentiable any number of times, on any device and floating dtype. It holds several tensors
    of L x D x N numbers per sample until the backward pass.
    """
    length, dtype = u.shape[1], u.dtype
    # Checks the arguments in order 0 too.
    index = scan_index(length, order, grid, cls, u.device)
    # A 16-bit state forgets: the sum over steps is kept in float32 at least.
    state = torch.promote_types(torch.promote_types(dtype, A.dtype), torch.float32)
    u, dt, A, B, C = (t.to(state) for t in (u, dt, A, B, C))
    if order:
        u, dt, B, C = (t.index_select(1, index) for t in (u, dt, B, C))
    if dt_bias is not None:
        dt = dt + dt_bias.to(state)
    if softplus:
        dt = F.softplus(dt, threshold=_SOFTPLUS_THRESHOLD)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    drive = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    y = (linear_recurrence(decay, drive) @ C.unsqueeze(-1)).squeeze(-1)
    if D is not None:
        y = y + D.to(state) * u
    if order:
        y = torch.empty_like(y).index_copy(1, index, y)
    return y.to(dtype)

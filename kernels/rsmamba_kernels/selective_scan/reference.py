"""The selective scan in PyTorch: the one specification of its mathematics."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rsmamba_kernels.order import path_index
from rsmamba_kernels.recurrence import linear_recurrence

#: From here on softplus(x) = x to the last bit of a float64; torch's default of 20 is 2e-9 off.
SOFTPLUS_THRESHOLD = 40.0


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> Tensor:
    """Sum of the scans of all directions; see :func:`rsmamba_kernels.selective_scan_multi`.

    Differentiable any number of times, on any device and floating dtype. It holds several tensors
    of L x D x N numbers per sample and direction until the backward pass.
    """
    # A 16-bit state forgets: the sum over steps is kept in float32 at least.
    state = torch.promote_types(torch.promote_types(u.dtype, A.dtype), torch.float32)
    total: Tensor | None = None
    for k, order in enumerate(orders):
        index = path_index(order, height, width, slot, u.device) if order else None
        x, step, b, c = (
            t[k].to(state) if index is None else t[k].to(state).index_select(1, index)
            for t in (u, dt, B, C)
        )
        bias = None if dt_bias is None else dt_bias[k].to(state)
        y = _scan(x, step, A[k].to(state), b, c, bias, softplus)
        if D is not None:
            y = y + D[k].to(state) * x
        if index is not None:
            y = torch.empty_like(y).index_copy(1, index, y)
        total = y if total is None else total + y
    assert total is not None  # noqa: S101 - there is a direction
    return total.to(u.dtype)


def _scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, softplus: bool
) -> Tensor:
    """One direction, tokens in the order of the scan, without the skip."""
    if bias is not None:
        dt = dt + bias
    if softplus:
        dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    drive = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    return (linear_recurrence(decay, drive) @ C.unsqueeze(-1)).squeeze(-1)

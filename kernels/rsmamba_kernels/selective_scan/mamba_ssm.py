"""The published CUDA kernel (pip install mamba-ssm): oracle and comparison, on request only.

It scans (B, D, L) in one direction: every direction is gathered, transposed and scattered, and its
gradients are sums in no fixed order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rsmamba_kernels import extension
from rsmamba_kernels.dispatch import Request
from rsmamba_kernels.order import path_index


def refuses(request: Request) -> str | None:
    """Why it cannot take a call, or None if it can."""
    return extension.refuses("selective_scan_cuda", request)


def selective_scan_mamba_ssm(
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
    """Sum of the scans of all directions; see :func:`rsmamba_kernels.selective_scan_multi`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    total: Tensor | None = None
    for k, order in enumerate(orders):
        index = path_index(order, height, width, slot, u.device) if order else None
        x, step, b, c = (
            (t[k] if index is None else t[k].index_select(1, index))
            .to(u.dtype)
            .transpose(1, 2)
            .contiguous()
            for t in (u, dt, B, C)
        )
        y = selective_scan_fn(
            x,
            step,
            A[k].float(),
            b,
            c,
            None if D is None else D[k].float(),
            delta_bias=None if dt_bias is None else dt_bias[k].float(),
            delta_softplus=softplus,
        ).transpose(1, 2)
        if index is not None:
            y = torch.empty_like(y).index_copy(1, index, y)
        total = y.float() if total is None else total + y
    assert total is not None  # noqa: S101 - there is a direction
    return total.to(u.dtype)

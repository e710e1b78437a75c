"""The published CUDA kernel (pip install causal-conv1d): oracle and comparison, on request only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rsmamba_kernels import extension
from rsmamba_kernels.dispatch import Request
from rsmamba_kernels.order import path_index


def refuses(request: Request) -> str | None:
    """Why it cannot take a call, or None if it can."""
    return extension.refuses("causal_conv1d_cuda", request)


def conv1d_silu_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> Tensor:
    """(K, B, L, D) outputs; see :func:`rsmamba_kernels.conv1d_silu`."""
    from causal_conv1d import causal_conv1d_fn

    outputs = []
    for k, order in enumerate(orders):
        index = path_index(order, height, width, slot, x.device) if order else None
        row = (x if index is None else x.index_select(1, index)).transpose(1, 2).contiguous()
        taps = weight[k].to(x.dtype).contiguous()
        shift = None if bias is None else bias[k].to(x.dtype).contiguous()
        out = causal_conv1d_fn(row, taps, shift, activation="silu").transpose(1, 2)
        if index is not None:
            out = torch.empty_like(out).index_copy(1, index, out)
        outputs.append(out)
    return torch.stack(outputs)

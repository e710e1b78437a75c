"""Causal convolution along scan orders in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rsmamba_kernels.order import path_index


def conv1d_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> Tensor:
    """See :func:`rsmamba_kernels.conv1d_silu`; differentiable, any floating dtype and device."""
    compute = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    length, taps = x.shape[1], weight.shape[2]
    outputs = []
    for k, order in enumerate(orders):
        visited = x.to(compute)
        index = path_index(order, height, width, slot, x.device) if order else None
        if index is not None:
            visited = visited.index_select(1, index)
        padded = F.pad(visited, (0, 0, taps - 1, 0))
        kernel = weight[k].to(compute)
        total = kernel[:, 0] * padded[:, :length]
        for tap in range(1, taps):
            total = total + kernel[:, tap] * padded[:, tap : tap + length]
        if bias is not None:
            total = total + bias[k].to(compute)
        out = F.silu(total)
        if index is not None:
            out = torch.empty_like(out).index_copy(1, index, out)
        outputs.append(out.to(x.dtype))
    return torch.stack(outputs)

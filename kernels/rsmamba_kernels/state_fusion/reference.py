"""State fusion in plain PyTorch: the specification that every other backend is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

_DILATIONS = (1, 3, 5)


def state_fusion_reference(
    h: Tensor,
    x: Tensor,
    C: Tensor,
    D: Tensor,
    k1: Tensor,
    k3: Tensor,
    k5: Tensor,
    alpha: Tensor,
    zeros: bool,
) -> Tensor:
    """See :func:`rsmamba_kernels.state_fusion`; differentiable, any floating dtype and device."""
    compute = torch.promote_types(torch.promote_types(h.dtype, D.dtype), torch.float32)
    # A permuted view of a channels-last tensor is what the depthwise kernels want.
    image = h.to(compute).permute(0, 3, 1, 2)
    parts = [
        _dilated(image, weight * kernel.to(compute), dilation, zeros)
        for dilation, kernel, weight in zip(
            _DILATIONS, (k1, k3, k5), alpha.to(compute).unbind(), strict=True
        )
    ]
    fused = (parts[0] + parts[1] + parts[2]).permute(0, 2, 3, 1)
    y = C.to(compute) * fused + D.to(compute) * x.to(compute)
    return y.to(h.dtype)


def _dilated(image: Tensor, kernel: Tensor, dilation: int, zeros: bool) -> Tensor:
    """Depthwise 3x3 convolution of (B, D, H, W) that keeps the size; ``kernel`` is (D, 3, 3)."""
    margin = dilation
    if not zeros:
        image, margin = F.pad(image, (dilation,) * 4, mode="replicate"), 0
    return F.conv2d(
        image, kernel.unsqueeze(1), padding=margin, dilation=dilation, groups=image.shape[1]
    )

"""Gate in plain PyTorch: the specification."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gate_reference(y: Tensor, z: Tensor, scale: float) -> Tensor:
    """See :func:`rsmamba_kernels.gate`; differentiable, any floating dtype and device."""
    compute = torch.promote_types(y.dtype, torch.float32)
    return (F.silu(z.to(compute)) * y.to(compute) * scale).to(y.dtype)

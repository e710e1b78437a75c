"""State scan in plain PyTorch: the specification that every other backend is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rsmamba_kernels.recurrence import linear_recurrence
from rsmamba_kernels.selective_scan.reference import SOFTPLUS_THRESHOLD


def state_scan_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, softplus: bool
) -> Tensor:
    """See :func:`rsmamba_kernels.state_scan`; differentiable, any floating dtype and device."""
    # Products of many decays lose everything in 16 bits: the state is float32 at least.
    compute = torch.promote_types(torch.promote_types(x.dtype, A.dtype), torch.float32)
    step = dt.to(compute)
    if dt_bias is not None:
        step = step + dt_bias.to(compute)
    if softplus:
        step = F.softplus(step, threshold=SOFTPLUS_THRESHOLD)
    decay = torch.exp(step * A.to(compute))
    drive = step * B.to(compute) * x.to(compute)
    h = linear_recurrence(decay.flatten(1, 2), drive.flatten(1, 2))
    return h.unflatten(1, x.shape[1:3]).to(x.dtype)

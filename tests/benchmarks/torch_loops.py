"""The fastest forms of the operators in PyTorch alone that we know: what our kernels must beat.

``make bench`` times every function here that bears an operator's name, on what it makes: float32,
one direction along the rows. That they agree with the operators is tested with the benchmark.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Scan(torch.autograd.Function):
    """One step at a time, in place, states as (B, N, D), and gradients step by step as well.

    Beside autograd over the same loop it makes two, not five, tensors that outlive a step.
    """

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool
    ) -> Tensor:
        rates = A.t().contiguous()
        y = torch.empty_like(drive)
        h = drive.new_zeros(drive.shape[0], *rates.shape)
        decays, kept = h.new_empty(2, drive.shape[1] if keep else 1, *h.shape).unbind()
        for t in range(drive.shape[1]):
            decay = decays[t if keep else 0]
            torch.mul(delta[:, t].unsqueeze(1), rates, out=decay).exp_()
            h.mul_(decay)
            if keep:
                kept[t].copy_(h)
            h.addcmul_(B[:, t].unsqueeze(-1), drive[:, t].unsqueeze(1))
            y[:, t] = torch.bmm(C[:, t].unsqueeze(1), h).squeeze(1)
        if keep:
            ctx.save_for_backward(delta, drive, rates, B, C, decays, kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        delta, drive, rates, B, C, decays, kept = ctx.saved_tensors
        ddelta, ddrive, dB, dC = (torch.empty_like(t) for t in (delta, drive, B, C))
        dA, carried = torch.zeros_like(rates), torch.zeros_like(kept[0])
        gradient = torch.empty_like(carried)
        for t in reversed(range(drive.shape[1])):
            # A state is what is left of the one before, plus B times the drive.
            rest, gy = kept[t], dy[:, t].unsqueeze(1)
            torch.addcmul(carried, C[:, t].unsqueeze(-1), gy, out=gradient)
            torch.mul(gradient, decays[t], out=carried)
            dB[:, t] = torch.bmm(gradient, drive[:, t].unsqueeze(-1)).squeeze(-1)
            ddrive[:, t] = torch.bmm(B[:, t].unsqueeze(1), gradient).squeeze(1)
            dC[:, t] = torch.bmm(rest, gy.mT).squeeze(-1)
            over_exponent = gradient.mul_(rest)
            dA.add_(torch.einsum("bnd,bd->nd", over_exponent, delta[:, t]))
            ddelta[:, t] = over_exponent.mul_(rates).sum(1)
        dC += B * (dy * drive).sum(-1, keepdim=True)
        return ddelta, ddrive, dA.t(), dB, dC, None


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """A scan; tensors of one direction, with its dimension in front."""
    u, dt, A, B, C, D, dt_bias = (t.squeeze(0) for t in (u, dt, A, B, C, D, dt_bias))
    delta = F.softplus(dt + dt_bias)
    y: Tensor = _Scan.apply(delta, delta * u, A, B, C, torch.is_grad_enabled())
    return torch.addcmul(y, D, u)


def state_fusion(
    h: Tensor, x: Tensor, C: Tensor, D: Tensor, k1: Tensor, k3: Tensor, k5: Tensor, alpha: Tensor
) -> Tensor:
    """Three depthwise convolutions in the channels-last layout, which oneDNN likes best."""
    image, fused = h.permute(0, 3, 1, 2), torch.zeros(())
    for dilation, kernel, weight in zip((1, 3, 5), (k1, k3, k5), alpha, strict=True):
        padded = F.pad(image, (dilation,) * 4, mode="replicate")
        weights = (weight * kernel).unsqueeze(1)
        fused = fused + F.conv2d(padded, weights, dilation=dilation, groups=h.shape[-1])
    return torch.addcmul(D * x, C, fused.permute(0, 2, 3, 1))

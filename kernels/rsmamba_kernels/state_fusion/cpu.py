"""State fusion in C++: three dilated kernels folded to 25 taps, afresh in every call."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation
from rsmamba_kernels.state_fusion.reference import state_fusion_reference

_DILATIONS = (1, 3, 5)
#: (row, column) of every tap of the three kernels, in the order of their weights.
_OFFSETS = [(d * i, d * j) for d in _DILATIONS for i in (-1, 0, 1) for j in (-1, 0, 1)]
#: The distinct ones, in the order of csrc/state_fusion.h; the kernels share their centre.
_TAPS = sorted(set(_OFFSETS))
_TAP_OF_WEIGHT = torch.tensor([_TAPS.index(offset) for offset in _OFFSETS])


class _Args(ctypes.Structure):
    """FusionArgs of csrc/abi.h."""

    _fields_ = cpu.fields(
        (
            ("batch height width channels zeros", ctypes.c_int64),
            ("h x C", cpu.Rows),
            ("taps D y", ctypes.c_void_p),
            ("dy", cpu.Rows),
            ("dh dx dC dtaps dD", ctypes.c_void_p),
        )
    )


def state_fusion_cpu(
    h: Tensor,
    x: Tensor,
    C: Tensor,
    D: Tensor,
    k1: Tensor,
    k3: Tensor,
    k5: Tensor,
    alpha: Tensor,
    *,
    padding: str = "replicate",
) -> Tensor:
    """See :func:`rsmamba_kernels.state_fusion`: same arguments, less ``backend``.

    Computes in float32 and saves its inputs only; the gradient is not differentiable once more.
    float64 parameters go to the reference.
    """
    tensors = (h, x, C, D, k1, k3, k5, alpha)
    if not cpu.computable(*tensors):
        return state_fusion_reference(*tensors, padding=padding)
    kernels = torch.stack([k.float() for k in (k1, k3, k5)])
    inputs = (h.float(), x.float(), C.float(), D.float(), kernels, alpha.float())
    y: Tensor = _StateFusion.apply(*inputs, padding == "zeros")
    return y.to(h.dtype)


def _by_weight(kernels: Tensor) -> Tensor:
    """(3, D, 3, 3) kernels as (27, D)."""
    return kernels.flatten(2).transpose(1, 2).flatten(0, 1)


def _fold(kernels: Tensor, alpha: Tensor) -> Tensor:
    """(25, D) distinct taps."""
    weights = _by_weight(alpha.view(3, 1, 1, 1) * kernels)
    return weights.new_zeros(len(_TAPS), weights.shape[1]).index_add_(0, _TAP_OF_WEIGHT, weights)


def _unfold(dtaps: Tensor, kernels: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the kernels and of alpha from that of the taps."""
    # Channel by channel first: a long sum in one go would depend on the number of threads.
    by_kernel = dtaps[_TAP_OF_WEIGHT].view(3, 9, -1).transpose(1, 2).reshape(kernels.shape)
    dalpha = (by_kernel * kernels).sum((2, 3)).sum(1)
    return alpha.view(3, 1, 1, 1) * by_kernel, dalpha


class _StateFusion(torch.autograd.Function):
    """Float32 tensors of checked shapes; ``kernels`` is (3, D, 3, 3)."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        x: Tensor,
        C: Tensor,
        D: Tensor,
        kernels: Tensor,
        alpha: Tensor,
        zeros: bool,
    ) -> Tensor:
        ctx.save_for_backward(h, x, C, D, kernels, alpha)
        ctx.zeros = zeros
        y = torch.empty(h.shape)
        _run(Operation.FUSION_FORWARD, (h, x, C, D, kernels, alpha), zeros, {"y": y})
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # Read once: gradient checkpointing hands the saved tensors out a single time.
        saved = ctx.saved_tensors
        h, _, C, _, kernels, alpha = saved
        batch, height, width, channels = h.shape
        groups = cpu.groups(channels, cpu.FUSION_GROUP)
        out = {
            "dh": torch.empty(h.shape),
            "dx": torch.empty(h.shape),
            "dC": torch.empty(groups, batch, height, width),
            "dtaps": torch.empty(batch, len(_TAPS), channels),
            "dD": torch.empty(batch, channels),
        }
        _run(Operation.FUSION_BACKWARD, saved, ctx.zeros, out, dy)
        dkernels, dalpha = _unfold(cpu.add_in_order(out["dtaps"]), kernels, alpha)
        return (
            out["dh"],
            out["dx"],
            cpu.add_in_order(out["dC"]).view(C.shape),
            cpu.add_in_order(out["dD"]),
            dkernels,
            dalpha,
            None,
        )


def _run(
    operation: Operation,
    tensors: tuple[Tensor, ...],
    zeros: bool,
    out: dict[str, Tensor],
    dy: Tensor | None = None,
) -> None:
    """Call the kernel; ``out`` names the members of :class:`_Args` that it fills."""
    h, x, C, D, kernels, alpha = tensors
    inputs = cpu.row_tensors(h=h, x=x, C=C, dy=dy)
    parameters = {"taps": _fold(kernels, alpha), "D": cpu.weights(D)}
    args = _Args(
        *h.shape,
        zeros,
        **{name: cpu.rows(tensor) for name, tensor in inputs.items()},
        **{name: cpu.pointer(tensor) for name, tensor in (parameters | out).items()},
    )
    units = h.shape[0] * cpu.groups(h.shape[3], cpu.FUSION_GROUP)
    cpu.run(operation, args, units, 3 * h.numel())

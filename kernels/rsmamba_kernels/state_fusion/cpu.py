"""State fusion in C++: three dilated kernels folded to 25 taps, afresh in every call."""

import ctypes

from torch import Tensor

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation
from rsmamba_kernels.state_fusion.taps import TAPS, fold, unfold


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


def forward(
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
    """Fused states with output and skip weights, computed in float32, in ``h.dtype``."""
    y = cpu.empty(*h.shape)
    _run(Operation.FUSION_FORWARD, (h, x, C, D, fold(k1, k3, k5, alpha)), zeros, {"y": y})
    return y.to(h.dtype)


def backward(
    dy: Tensor,
    h: Tensor,
    x: Tensor,
    C: Tensor,
    D: Tensor,
    k1: Tensor,
    k3: Tensor,
    k5: Tensor,
    alpha: Tensor,
    zeros: bool,
) -> tuple[Tensor, ...]:
    """Gradients of the eight tensors, in float32."""
    batch, height, width, channels = h.shape
    groups = cpu.groups(channels, cpu.FUSION_GROUP)
    out = {
        "dh": cpu.empty(*h.shape),
        "dx": cpu.empty(*h.shape),
        "dC": cpu.empty(groups, batch, height, width),
        "dtaps": cpu.empty(batch, len(TAPS), channels),
        "dD": cpu.empty(batch, channels),
    }
    _run(Operation.FUSION_BACKWARD, (h, x, C, D, fold(k1, k3, k5, alpha)), zeros, out, dy)
    return (
        out["dh"],
        out["dx"],
        cpu.add_in_order(out["dC"]).view(C.shape),
        cpu.add_in_order(out["dD"]),
        *unfold(cpu.add_in_order(out["dtaps"]), k1, k3, k5, alpha),
    )


def _run(
    operation: Operation,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    zeros: bool,
    out: dict[str, Tensor],
    dy: Tensor | None = None,
) -> None:
    """Call the kernel; ``out`` names the members of :class:`_Args` that it fills."""
    h, x, C, D, taps = tensors
    inputs = cpu.row_tensors(h=h, x=x, C=C, dy=dy)
    parameters = {"taps": taps, "D": cpu.weights(D)}
    args = _Args(
        *h.shape,
        zeros,
        **{name: cpu.rows(tensor) for name, tensor in inputs.items()},
        **{name: cpu.pointer(tensor) for name, tensor in (parameters | out).items()},
    )
    units = h.shape[0] * cpu.groups(h.shape[3], cpu.FUSION_GROUP)
    cpu.run(operation, args, units, 3 * h.numel())

"""The state scan in C++; its backward reads the states that the forward returned."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation
from rsmamba_kernels.state_scan.reference import state_scan_reference


class _Args(ctypes.Structure):
    """StateScanArgs of csrc/abi.h."""

    _fields_ = cpu.fields(
        (
            ("batch length channels softplus", ctypes.c_int64),
            ("x dt B", cpu.Rows),
            ("A bias h", ctypes.c_void_p),
            ("dh", cpu.Rows),
            ("dx ddt dA dbias dB", ctypes.c_void_p),
        )
    )


def state_scan_cpu(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = True,
) -> Tensor:
    """See :func:`rsmamba_kernels.state_scan`: same arguments, less ``backend``.

    Computes in float32; the gradient is not differentiable once more. float64 parameters go to the
    reference.
    """
    tensors = (x, dt, A, B, dt_bias)
    if not cpu.computable(*tensors):
        return state_scan_reference(x, dt, A, B, dt_bias=dt_bias, softplus=softplus)
    h: Tensor = _StateScan.apply(*(t if t is None else t.float() for t in tensors), softplus)
    return h.to(x.dtype)


class _StateScan(torch.autograd.Function):
    """Float32 tensors of checked shapes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, softplus: bool
    ) -> Tensor:
        h = torch.empty(x.shape)
        _run(Operation.STATE_SCAN_FORWARD, (x, dt, A, B, bias), softplus, {"h": h})
        ctx.save_for_backward(x, dt, A, B, bias, h)
        ctx.softplus = softplus
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, h = ctx.saved_tensors
        x, _, _, B, bias = inputs
        batch, length, channels = x.shape[0], x.shape[1] * x.shape[2], x.shape[3]
        out = {
            "h": h,
            "dx": torch.empty(x.shape),
            "ddt": torch.empty(x.shape),
            "dA": torch.empty(batch, channels),
            "dbias": torch.empty(batch, channels),
            "dB": torch.empty(cpu.groups(channels, cpu.SCAN_GROUP), batch, length),
        }
        _run(Operation.STATE_SCAN_BACKWARD, tuple(inputs), ctx.softplus, out, dh)
        return (
            out["dx"],
            out["ddt"],
            cpu.add_in_order(out["dA"]),
            cpu.add_in_order(out["dB"]).view(B.shape),
            None if bias is None else cpu.add_in_order(out["dbias"]),
            None,
        )


def _run(
    operation: Operation,
    tensors: tuple[Tensor | None, ...],
    softplus: bool,
    out: dict[str, Tensor],
    dh: Tensor | None = None,
) -> None:
    """Call the kernel; ``out`` names the members of :class:`_Args` that it fills or reads."""
    x, dt, A, B, bias = tensors
    inputs = cpu.row_tensors(x=x, dt=dt, B=B, dh=dh)
    parameters = {"A": cpu.weights(A), "bias": cpu.weights(bias)}
    batch, length, channels = inputs["x"].shape
    args = _Args(
        batch,
        length,
        channels,
        softplus,
        **{name: cpu.rows(tensor) for name, tensor in inputs.items()},
        **{name: cpu.pointer(tensor) for name, tensor in (parameters | out).items()},
    )
    units = batch * cpu.groups(channels, cpu.SCAN_GROUP)
    cpu.run(operation, args, units, 2 * inputs["x"].numel())

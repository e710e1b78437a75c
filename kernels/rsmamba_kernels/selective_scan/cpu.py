"""The selective scan in C++: forward and backward keep nothing but the inputs."""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation
from rsmamba_kernels.selective_scan.reference import (
    ClassToken,
    scan_index,
    selective_scan_reference,
)

#: Numbers of states that the kernels are compiled for.
_STATES = (1, 4, 8, 16)


class _Args(ctypes.Structure):
    """ScanArgs of csrc/abi.h."""

    _fields_ = cpu.fields(
        (
            ("batch length channels states softplus order height width slot", ctypes.c_int64),
            ("u dt B C", cpu.Rows),
            ("A D bias y", ctypes.c_void_p),
            ("dy", cpu.Rows),
            ("du ddt dA dD dbias dB dC", ctypes.c_void_p),
        )
    )


def selective_scan_cpu(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = True,
    order: int = 0,
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
) -> Tensor:
    """See :func:`rsmamba_kernels.selective_scan`: same arguments, less ``backend``.

    Computes in float32 and saves its inputs only; the gradient is not differentiable once more.
    Other numbers of states than 1, 4, 8 and 16, and float64 parameters, go to the reference.
    """
    tensors = (u, dt, A, B, C, D, dt_bias)
    if A.shape[-1] not in _STATES or not cpu.computable(*tensors):
        return selective_scan_reference(
            u, dt, A, B, C, D, dt_bias=dt_bias, softplus=softplus, order=order, grid=grid, cls=cls
        )
    _check_shapes(*tensors)
    path = _path(u.shape[1], order, None if grid is None else tuple(grid), cls)
    y: Tensor = _SelectiveScan.apply(
        *(t if t is None else t.float() for t in tensors), softplus, path
    )
    return y.to(u.dtype)


def _check_shapes(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> None:
    """C++ trusts the shapes: a wrong one must not reach it."""
    batch, length, channels = u.shape
    expected = {
        "dt": (dt, (batch, length, channels)),
        "A": (A, (channels, A.shape[-1])),
        "B": (B, (batch, length, A.shape[-1])),
        "C": (C, (batch, length, A.shape[-1])),
        "D": (D, (channels,)),
        "dt_bias": (bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(tensor.shape)}, expected {shape} "
                f"for u {tuple(u.shape)}"
            )


@functools.lru_cache(256)
def _path(
    length: int, order: int, grid: tuple[int, int] | None, cls: ClassToken
) -> tuple[int, int, int, int]:
    """(order, height, width, slot of the class token or -1) as the kernels want it.

    Raises:
        ValueError: As :func:`scan_index` does.
    """
    scan_index(length, order, grid, cls)
    height, width = grid or (1, length)
    slot = {"none": -1, "middle": (length - 1) // 2, "first": 0}[cls]
    return order, height, width, slot


class _SelectiveScan(torch.autograd.Function):
    """Float32 tensors of checked shapes."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        bias: Tensor | None,
        softplus: bool,
        path: tuple[int, int, int, int],
    ) -> Tensor:
        ctx.save_for_backward(u, dt, A, B, C, D, bias)
        ctx.options = softplus, path
        y = torch.empty(u.shape)
        _run(Operation.SCAN_FORWARD, (u, dt, A, B, C, D, bias), softplus, path, {"y": y})
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # Read once: gradient checkpointing hands the saved tensors out a single time.
        saved = ctx.saved_tensors
        softplus, path = ctx.options
        u, _, A, _, _, D, bias = saved
        (batch, length, channels), states = u.shape, A.shape[1]
        groups = cpu.groups(channels, cpu.SCAN_GROUP)
        out = {
            "du": torch.empty(u.shape),
            "ddt": torch.empty(u.shape),
            "dA": torch.empty(batch, channels, states),
            "dD": torch.empty(batch, channels),
            "dbias": torch.empty(batch, channels),
            "dB": torch.empty(groups, batch, length, states),
            "dC": torch.empty(groups, batch, length, states),
        }
        _run(Operation.SCAN_BACKWARD, saved, softplus, path, out, dy)
        for name in ("dA", "dB", "dC", "dD", "dbias"):
            out[name] = cpu.add_in_order(out[name])
        return (
            *(out[name] for name in ("du", "ddt", "dA", "dB", "dC")),
            None if D is None else out["dD"],
            None if bias is None else out["dbias"],
            None,
            None,
        )


def _run(
    operation: Operation,
    tensors: tuple[Tensor | None, ...],
    softplus: bool,
    path: tuple[int, int, int, int],
    out: dict[str, Tensor],
    dy: Tensor | None = None,
) -> None:
    """Call the kernel; ``out`` names the members of :class:`_Args` that it fills."""
    u, dt, A, B, C, D, bias = tensors
    inputs = cpu.row_tensors(u=u, dt=dt, B=B, C=C, dy=dy)
    parameters = {"A": cpu.weights(A), "D": cpu.weights(D), "bias": cpu.weights(bias)}
    (batch, length, channels), states = inputs["u"].shape, inputs["B"].shape[2]
    args = _Args(
        batch,
        length,
        channels,
        states,
        softplus,
        *path,
        **{name: cpu.rows(tensor) for name, tensor in inputs.items()},
        **{name: cpu.pointer(tensor) for name, tensor in (parameters | out).items()},
    )
    units = batch * cpu.groups(channels, cpu.SCAN_GROUP)
    cpu.run(operation, args, units, inputs["u"].numel() * states)

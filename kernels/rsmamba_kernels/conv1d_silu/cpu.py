"""The convolution in C++: forward and backward keep nothing but the inputs."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation


class _Args(ctypes.Structure):
    """ConvolutionArgs of csrc/abi.h."""

    _fields_ = cpu.fields(
        (
            ("batch length channels directions taps height width slot", ctypes.c_int64),
            ("orders", ctypes.c_void_p),
            ("x", cpu.Rows),
            ("weight bias out dout dx dweight dbias", ctypes.c_void_p),
        )
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> Tensor:
    """(K, B, L, D) outputs, computed in float32, in ``x.dtype``."""
    out = cpu.empty(len(orders), *x.shape)
    path = (orders, height, width, slot)
    _run(Operation.CONVOLUTION_FORWARD, x, weight, bias, path, {"out": out})
    return out.to(x.dtype)


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the three tensors, in float32."""
    batch, channels = x.shape[0], x.shape[2]
    out = {
        "dout": dout.float().contiguous(),
        "dx": cpu.empty(*x.shape),
        "dweight": cpu.empty(batch, len(orders), weight.shape[2], channels),
        "dbias": cpu.empty(batch, len(orders), channels),
    }
    path = (orders, height, width, slot)
    _run(Operation.CONVOLUTION_BACKWARD, x, weight, bias, path, out)
    dweight = cpu.add_in_order(out["dweight"]).transpose(1, 2)
    return out["dx"], dweight, cpu.add_in_order(out["dbias"])


def _run(
    operation: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    path: tuple[Sequence[int], int, int, int],
    out: dict[str, Tensor],
) -> None:
    """Call the kernel; ``out`` names the members of :class:`_Args` that it fills or reads."""
    orders = torch.tensor(path[0], dtype=torch.int64)
    inputs = cpu.row_tensors(x=x)
    # Tap by tap, so that a vector of channels is contiguous.
    parameters = {"weight": cpu.weights(weight.transpose(1, 2)), "bias": cpu.weights(bias)}
    batch, length, channels = inputs["x"].shape
    directions, _, taps = weight.shape
    args = _Args(
        *(batch, length, channels, directions, taps, *path[1:]),
        orders=cpu.pointer(orders),
        x=cpu.rows(inputs["x"]),
        **{name: cpu.pointer(tensor) for name, tensor in (parameters | out).items()},
    )
    units = batch * cpu.groups(channels, cpu.SCAN_GROUP)
    cpu.run(operation, args, units, inputs["x"].numel() * directions * taps)

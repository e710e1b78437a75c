"""The state scan in C++; its backward reads the states that the forward returned."""

import ctypes

from torch import Tensor

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation


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


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, softplus: bool
) -> Tensor:
    """States, computed in float32, in ``x.dtype``."""
    h = cpu.empty(*x.shape)
    _run(Operation.STATE_SCAN_FORWARD, (x, dt, A, B, dt_bias), softplus, {"h": h})
    return h.to(x.dtype)


def backward(
    dh: Tensor,
    h: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """Gradients of the five tensors, in float32."""
    batch, length, channels = x.shape[0], x.shape[1] * x.shape[2], x.shape[3]
    out = {
        "h": h.float().contiguous(),
        "dx": cpu.empty(*x.shape),
        "ddt": cpu.empty(*x.shape),
        "dA": cpu.empty(batch, channels),
        "dbias": cpu.empty(batch, channels),
        "dB": cpu.empty(cpu.groups(channels, cpu.SCAN_GROUP), batch, length),
    }
    _run(Operation.STATE_SCAN_BACKWARD, (x, dt, A, B, dt_bias), softplus, out, dh)
    return (
        out["dx"],
        out["ddt"],
        cpu.add_in_order(out["dA"]),
        cpu.add_in_order(out["dB"]).view(B.shape),
        cpu.add_in_order(out["dbias"]),
    )


def _run(
    operation: Operation,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
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

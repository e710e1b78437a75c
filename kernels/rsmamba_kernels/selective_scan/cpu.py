"""The selective scan in C++: forward and backward keep nothing but the inputs."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from rsmamba_kernels import cpu
from rsmamba_kernels.cpu import Operation

#: What every kernel takes of one direction: u, dt, A, B, C, D, dt_bias.
_Inputs = Sequence[Tensor | None]


class _Args(ctypes.Structure):
    """ScanArgs of csrc/abi.h."""

    _fields_ = cpu.fields(
        (
            ("batch length channels states softplus accumulate", ctypes.c_int64),
            ("order height width slot", ctypes.c_int64),
            ("u dt B C", cpu.Rows),
            ("A D bias y", ctypes.c_void_p),
            ("dy", cpu.Rows),
            ("du ddt dA dD dbias dB dC", ctypes.c_void_p),
        )
    )


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> Tensor:
    """Sum of the scans of all directions, in float32, rounded once to ``u.dtype``."""
    y = cpu.empty(*u.shape[1:])
    for k, inputs in enumerate(_directions(u, dt, A, B, C, D, dt_bias)):
        # The first direction writes, the others add to what is there.
        options = (softplus, k > 0, orders[k], height, width, slot)
        _run(Operation.SCAN_FORWARD, inputs, options, {"y": y})
    return y.to(u.dtype)


def backward(
    dy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    orders: Sequence[int],
    height: int,
    width: int,
    slot: int,
) -> list[Tensor]:
    """Gradients of the seven tensors, in float32."""
    (_, batch, length, channels), states = u.shape, A.shape[2]
    groups = cpu.groups(channels, cpu.SCAN_GROUP)
    du, ddt = cpu.empty(*u.shape), cpu.empty(*u.shape)
    weights: list[list[Tensor]] = []
    for k, inputs in enumerate(_directions(u, dt, A, B, C, D, dt_bias)):
        parts = {
            "dA": cpu.empty(batch, channels, states),
            "dB": cpu.empty(groups, batch, length, states),
            "dC": cpu.empty(groups, batch, length, states),
            "dD": cpu.empty(batch, channels),
            "dbias": cpu.empty(batch, channels),
        }
        options = (softplus, False, orders[k], height, width, slot)
        _run(Operation.SCAN_BACKWARD, inputs, options, {"du": du[k], "ddt": ddt[k]} | parts, dy)
        weights.append([cpu.add_in_order(part) for part in parts.values()])
    stacked = [torch.stack(parts) for parts in zip(*weights, strict=True)]
    return [du, ddt, *stacked]


def _directions(*tensors: Tensor | None) -> list[_Inputs]:
    """Inputs of each direction."""
    first = tensors[0]
    assert first is not None  # noqa: S101 - u
    return [[None if t is None else t[k] for t in tensors] for k in range(len(first))]


def _run(
    operation: Operation,
    tensors: _Inputs,
    options: tuple[int, ...],
    out: dict[str, Tensor],
    dy: Tensor | None = None,
) -> None:
    """Call the kernel; ``out`` names the members of :class:`_Args` that it fills.

    The options are the members from ``softplus`` to ``slot``.
    """
    u, dt, A, B, C, D, bias = tensors
    inputs = cpu.row_tensors(u=u, dt=dt, B=B, C=C, dy=dy)
    parameters = {"A": cpu.weights(A), "D": cpu.weights(D), "bias": cpu.weights(bias)}
    (batch, length, channels), states = inputs["u"].shape, inputs["B"].shape[2]
    args = _Args(
        batch,
        length,
        channels,
        states,
        *options,
        **{name: cpu.rows(tensor) for name, tensor in inputs.items()},
        **{name: cpu.pointer(tensor) for name, tensor in (parameters | out).items()},
    )
    units = batch * cpu.groups(channels, cpu.SCAN_GROUP)
    cpu.run(operation, args, units, inputs["u"].numel() * states)

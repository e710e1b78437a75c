"""The gate on a GPU: what its Triton kernels are launched with."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels.triton_support import MOST_PROGRAMS, Launch, as_rows, ceil_div, power_of_two

#: Channels per program at most, and numbers: two vector loads in 16 bits for each thread.
_CHANNELS = 256
_NUMBERS, _WARPS = 2048, 4


def _width(channels: int) -> int:
    """Channels per program: whole blocks where a power of two divides them, else masked ones."""
    divisor = channels & -channels
    return min(_CHANNELS, divisor if divisor >= 64 else power_of_two(channels))


def launch(kernel: str, shape: torch.Size, **arguments: Any) -> Launch:
    """The launch over contiguous outputs of a shape and inputs as rows, for which it adds strides.

    Args:
        kernel: Its name.
        shape: (..., D).
        arguments: By name; the rows (N, D) among them are those of the inputs.
    """
    channels = shape[-1]
    width = _width(channels)
    rows = shape.numel() // channels
    height = _NUMBERS // width
    strides = {f"{n}_row": arguments[n].stride(0) for n in ("dout", "y", "z") if n in arguments}
    numbers = {"rows": rows, "channels": channels, "ROWS": height, "CHANNELS": width}
    return Launch(
        f"rsmamba_kernels.gate.triton_kernels:{kernel}",
        (ceil_div(rows, height), ceil_div(channels, width)),
        arguments | strides | numbers,
        {"num_warps": _WARPS},
    )


def refuses(shapes: Sequence[Sequence[int]]) -> str | None:
    """Why the kernels cannot take such tensors, or None if they can.

    Args:
        shapes: Those of the tensors, at least of the first.
    """
    *rows, channels = shapes[0]
    most = MOST_PROGRAMS * _width(channels)
    if channels > most:
        return f"it takes {most} channels at most, not {channels}"
    if math.prod(rows) > 2**31 - _NUMBERS:
        return f"it counts rows in 32 bits, {tuple(rows)} are too many: cut batches up"
    return None


def forward(y: Tensor, z: Tensor, scale: float) -> Tensor:
    """``scale * y * silu(z)`` in ``y.dtype``.

    Args:
        y: (..., D); of evenly spaced rows nothing is copied, as of ``z``.
        z: (..., D).
        scale: Factor.
    """
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    launch("gate_forward", y.shape, y=as_rows(y), z=as_rows(z), out=out, scale=scale)()
    return out


def backward(dout: Tensor, y: Tensor, z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of ``y`` and ``z``.

    Args:
        dout: Gradient of the output.
        y: See :func:`forward`, like the following.
        z: Gate.
        scale: Factor.
    """
    dy, dz = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (y, z))
    inputs = {"dout": as_rows(dout), "y": as_rows(y), "z": as_rows(z)}
    launch("gate_backward", y.shape, **inputs, dy=dy, dz=dz, scale=scale)()
    return dy, dz

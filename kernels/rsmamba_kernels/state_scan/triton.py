"""The state scan on a GPU: what its Triton kernels are launched with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels.triton_support import (
    MOST_PROGRAMS,
    Launch,
    as_images,
    ceil_div,
    image_problem,
    parameter,
    power_of_two,
    register_limit,
)

#: Channels per program: 128 bytes of a token in 16 bits, a whole cache line.
_CHANNELS = 64
#: Values per thread and step: one vector load in 16 bits or 32.
_VECTOR = 4
_WARPS = 4
#: Programs below which each gets twice the threads: a large GPU has as many multiprocessors.
_FEW_PROGRAMS = 128
#: Tokens per span to choose from. The longer, the fewer spans there are to scan over, and the more
#: registers it takes.
_STEPS = (8, 7)
_STEPS_BACKWARD = (4,)
#: Left alone, NVIDIA's assembler takes 128 for the backward in 32 bits, and spills.
_REGISTERS = 152


class Scan:
    """Inputs of a scan, and the launches that it takes.

    Args:
        x: (B, H, W, D) input; of evenly spaced tokens nothing is copied.
        dt: (B, H, W, D) step sizes before bias and softplus.
        A: (D,) decay rates.
        B: (B, H, W, 1) input weights.
        dt_bias: (D,), or None.
        softplus: Whether ``dt`` passes through softplus.
    """

    def __init__(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, softplus: bool
    ) -> None:
        self.shape = x.shape
        x, dt, B = as_images(x), as_images(dt), as_images(B)
        self.batch, self.length, self.channels = x.shape
        self.width = min(_CHANNELS, power_of_two(self.channels))
        self.blocks = ceil_div(self.channels, self.width)
        self.arguments: dict[str, Any] = {
            **{"x": x, "dt": dt, "A": parameter(A), "B": B, "bias": parameter(dt_bias)},
            **{"length": self.length, "channels": self.channels},
            **{"x_batch": x.stride(0), "x_row": x.stride(1)},
            **{"dt_batch": dt.stride(0), "dt_row": dt.stride(1)},
            **{"B_batch": B.stride(0), "B_row": B.stride(1)},
            **{"SOFTPLUS": softplus, "CHANNELS": self.width},
        }

    def forward(self) -> tuple[Tensor, Launch]:
        """The states, and what fills them."""
        x = self.arguments["x"]
        h = torch.empty(self.shape, dtype=x.dtype, device=x.device)
        return h, self._launch("state_scan_forward", {"h": h}, _STEPS)

    def backward(self, dh: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Launch]:
        """Gradients for a contiguous ``dh`` and ``h``, and what fills them.

        ``dA`` and ``dbias`` (B, D) are sums per image, ``dB`` (blocks, B, L) per block of channels.
        """
        x, dt = self.arguments["x"], self.arguments["dt"]
        float32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        filled = {
            "dx": torch.empty(self.shape, dtype=x.dtype, device=x.device),
            "ddt": torch.empty(self.shape, dtype=dt.dtype, device=x.device),
            "dA": torch.empty(self.batch, self.channels, **float32),
            "dB": torch.empty(self.blocks, self.batch, self.length, **float32),
            "dbias": torch.empty(self.batch, self.channels, **float32),
        }
        arguments = filled | {"dh": dh, "h": h}
        launch = self._launch("state_scan_backward", arguments, _STEPS_BACKWARD)
        if x.dtype == torch.float32 and launch.options["num_warps"] == _WARPS:
            launch.options.update(register_limit(x.device, _REGISTERS))
        return filled, launch

    def _launch(self, kernel: str, arguments: dict[str, Any], steps: tuple[int, ...]) -> Launch:
        warps = _WARPS if self.batch * self.blocks >= _FEW_PROGRAMS else 2 * _WARPS
        spans = min(32 * warps * _VECTOR // self.width, 64)
        # The fewest steps beyond the end.
        chosen = min(steps, key=lambda n: ceil_div(self.length, spans * n) * n)
        return Launch(
            f"rsmamba_kernels.state_scan.triton_kernels:{kernel}",
            (self.batch, self.blocks),
            self.arguments | arguments | {"SPANS": spans, "STEPS": chosen},
            {"num_warps": warps},
        )


def refuses(shapes: Sequence[Sequence[int]]) -> str | None:
    """Why the kernels cannot take such tensors, or None if they can.

    Args:
        shapes: Those of :class:`Scan`'s tensors, at least of the first.
    """
    most = MOST_PROGRAMS * _CHANNELS
    if shapes[0][-1] > most:
        return f"it takes {most} channels at most, not {shapes[0][-1]}"
    return image_problem(shapes[0])


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, softplus: bool
) -> Tensor:
    """States of :func:`rsmamba_kernels.state_scan`.

    Args:
        x: (B, H, W, D) input.
        dt: (B, H, W, D) step sizes before bias and softplus.
        A: (D,) decay rates.
        B: (B, H, W, 1) input weights.
        dt_bias: (D,), or None.
        softplus: Whether ``dt`` passes through softplus.

    Returns:
        (B, H, W, D) states in ``x.dtype``.
    """
    h, launch = Scan(x, dt, A, B, dt_bias, softplus).forward()
    launch()
    return h


def backward(
    dh: Tensor,
    h: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the tensors of :func:`forward`, of the parameters in float32.

    Args:
        dh: Gradient of the states.
        h: What :func:`forward` returned.
        x: See :func:`forward`, like all that follow.
        dt: Step sizes.
        A: Decay rates.
        B: Input weights.
        dt_bias: Bias; its gradient is there even if it is None.
        softplus: Whether ``dt`` passes through softplus.
    """
    scan = Scan(x, dt, A, B, dt_bias, softplus)
    filled, launch = scan.backward(dh.contiguous(), h.contiguous())
    launch()
    # In a fixed order: two runs agree to the last bit.
    dB = filled["dB"].sum(0).view(B.shape).to(B.dtype)
    return filled["dx"], filled["ddt"], filled["dA"].sum(0), dB, filled["dbias"].sum(0)

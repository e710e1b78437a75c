"""The state fusion on a GPU: what its Triton kernels are launched with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels.state_fusion.taps import TAPS, fold, unfold
from rsmamba_kernels.triton_support import (
    MOST_PROGRAMS,
    Launch,
    as_images,
    ceil_div,
    image_problem,
    join_images,
    parameter,
    power_of_two,
    split_images,
)

#: Image columns and channels per program: 64 bytes of a pixel in 16 bits, four values per thread.
_COLUMNS, _CHANNELS, _WARPS = 16, 32, 4
#: Heights of a strip to choose from. Higher ones load less of the margin; with zeros beyond the
#: border, and in the gradients, they would take too many registers.
_STRIPS = (16, 14, 8, 7)
_LOW_STRIPS, _LOWEST_STRIPS = (8, 7), (7,)
#: What a strip costs whatever its height, in rows.
_OVERHEAD = 6
#: With fewer programs, which walk down the whole image, the image is cut into several.
_FEW_PROGRAMS = 512


class Fusion:
    """Inputs of a fusion, and the launches that it takes.

    Args:
        h: (B, H, W, D) states; of evenly spaced pixels nothing is copied.
        x: (B, H, W, D) input of the scan.
        C: (B, H, W, 1) output weights.
        D: (D,) skip weights.
        taps: (25, D) float32, see :func:`rsmamba_kernels.state_fusion.taps.fold`.
        zeros: Whether the map goes on with zeros beyond its border, else with its nearest pixel.
    """

    def __init__(
        self, h: Tensor, x: Tensor, C: Tensor, D: Tensor, taps: Tensor, zeros: bool
    ) -> None:
        self.shape, self.zeros = h.shape, zeros
        self.h, self.x, self.C = as_images(h), as_images(x), as_images(C)
        self.D, self.taps = parameter(D), taps.contiguous()
        channels = h.shape[3]
        self.width = min(_CHANNELS, power_of_two(channels))
        self.blocks = ceil_div(channels, self.width)

    def forward(self) -> tuple[Tensor, Launch]:
        """The output, and what fills it."""
        y = torch.empty(self.shape, dtype=self.h.dtype, device=self.h.device)
        arguments = self._tensors("h x C D taps") | {"y": y} | self._strides("h x C")
        strips = _LOW_STRIPS if self.zeros else _STRIPS
        return y, self._launch("state_fusion_forward", arguments, self.shape[2], strips)

    def backward_states(self, dy: Tensor) -> tuple[Tensor, list[Launch]]:
        """Gradient of ``h`` for a contiguous ``dy``, and what fills it."""
        dh = torch.empty(self.shape, dtype=self.h.dtype, device=self.h.device)
        arguments = {"dy": dy, "dh": dh} | self._tensors("C taps") | self._strides("C")
        width = self.shape[2]
        if self.zeros:
            parts = [(False, width)]
        else:
            parts = [(True, min(width, 2)), (False, width - 2)]
        return dh, [
            self._launch(
                "state_fusion_backward_states", arguments | {"BORDER": border}, count, _LOW_STRIPS
            )
            for border, count in parts
            if count > 0
        ]

    def backward_weights(self, dy: Tensor) -> tuple[dict[str, Tensor], Launch]:
        """The other gradients for a contiguous ``dy``, and what fills them.

        ``dC`` (blocks, B, H, W, 1) and ``sums`` (programs, 26, D), of the taps and of D, are sums
        of parts of the channels and of the pixels.
        """
        float32: dict[str, Any] = {"dtype": torch.float32, "device": dy.device}
        strips = _LOWEST_STRIPS if dy.dtype == torch.float32 else _LOW_STRIPS
        launch = self._launch("state_fusion_backward_weights", {}, self.shape[2], strips)
        programs = launch.grid[1] * launch.grid[2]
        filled = {
            "dx": torch.empty(self.shape, dtype=self.x.dtype, device=dy.device),
            "dC": torch.empty(self.blocks, *self.shape[:3], 1, **float32),
            "sums": torch.empty(programs, len(TAPS) + 1, self.shape[3], **float32),
        }
        launch.arguments.update(self._tensors("h x C D taps") | self._strides("h x C"))
        launch.arguments.update(filled | {"dy": dy})
        return filled, launch

    def _tensors(self, names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names.split()}

    def _strides(self, names: str) -> dict[str, int]:
        strides = {}
        for name in names.split():
            strides[f"{name}_image"], strides[f"{name}_pixel"], _ = getattr(self, name).stride()
        return strides

    def _launch(
        self, kernel: str, arguments: dict[str, Any], columns: int, heights: tuple[int, ...]
    ) -> Launch:
        """The launch for some columns of each image."""
        images, height, width, channels = self.shape
        rows = min(heights, key=lambda n: ceil_div(height, n) * (n + _OVERHEAD))
        strips, across = ceil_div(height, rows), ceil_div(images * columns, _COLUMNS)
        parts = min(strips, ceil_div(_FEW_PROGRAMS, self.blocks * across))
        walked = ceil_div(strips, parts) * rows
        numbers = {
            **{"images": images, "height": height, "width": width, "channels": channels},
            **{"rows": walked, "ZEROS": self.zeros, "FULL": channels % self.width == 0},
            **{"ROWS": rows, "COLUMNS": _COLUMNS, "CHANNELS": self.width},
        }
        grid = (self.blocks, across, ceil_div(height, walked))
        name = f"rsmamba_kernels.state_fusion.triton_kernels:{kernel}"
        return Launch(name, grid, arguments | numbers, {"num_warps": _WARPS})


def refuses(shapes: Sequence[Sequence[int]]) -> str | None:
    """Why the kernels cannot take such tensors, or None if they can.

    Args:
        shapes: Those of :class:`Fusion`'s tensors, at least of the first.
    """
    most = MOST_PROGRAMS * _COLUMNS
    if shapes[0][2] > most:
        return f"it takes {most} columns at most, not {shapes[0][2]}: cut images up"
    return image_problem(shapes[0])


def _most_images(h: Tensor) -> int:
    """How many images a grid has room for."""
    return max(1, MOST_PROGRAMS * _COLUMNS // h.shape[2])


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
    """Fused states with output and skip weights, see :func:`rsmamba_kernels.state_fusion`.

    Args:
        h: (B, H, W, D) states.
        x: (B, H, W, D) input of the scan.
        C: (B, H, W, 1) output weights.
        D: (D,) skip weights.
        k1: (D, 3, 3) taps at dilation 1.
        k3: (D, 3, 3) taps at dilation 3.
        k5: (D, 3, 3) taps at dilation 5.
        alpha: (3,) share of each dilation.
        zeros: Whether the map goes on with zeros beyond its border, else with its nearest pixel.

    Returns:
        (B, H, W, D) in ``h.dtype``.
    """
    if h.shape[0] > _most_images(h):
        inputs = (h, x, C, D, k1, k3, k5, alpha, zeros)
        few = split_images(inputs, (0, 0, 0), _most_images(h))
        return torch.cat([forward(*part) for part in few])
    y, launch = Fusion(h, x, C, D, fold(k1, k3, k5, alpha), zeros).forward()
    launch()
    return y


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
    """Gradients of the eight tensors of :func:`forward`, of the parameters in float32.

    Sums over pixels and channels are made of parts in a fixed order: two runs agree to the last
    bit.
    """
    if h.shape[0] > _most_images(h):
        inputs = (dy, h, x, C, D, k1, k3, k5, alpha, zeros)
        few = split_images(inputs, (0, 0, 0, 0), _most_images(h))
        return join_images((backward(*part) for part in few), (0, 0, 0, *[None] * 5))
    dy = dy.contiguous()
    fusion = Fusion(h, x, C, D, fold(k1, k3, k5, alpha), zeros)
    dh, launches = fusion.backward_states(dy)
    filled, launch = fusion.backward_weights(dy)
    for one in (*launches, launch):
        one()
    sums = filled["sums"].sum(0)
    return (
        dh,
        filled["dx"],
        filled["dC"].sum(0).to(C.dtype),
        sums[-1].clone(),
        *unfold(sums[:-1], k1, k3, k5, alpha),
    )

"""The convolution on a GPU: what its Triton kernels are launched with."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

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

#: Channels per program, which is one warp: two in each lane.
_CHANNELS = 64
#: Tokens that a program's window passes: each program reads the tokens before them as well.
_SHORTEST, _LONGEST, _TURN = 16, 64, 4
#: With fewer programs, sequences are cut into more parts.
_FEW_PROGRAMS = 2048


class Convolution:
    """Inputs of a convolution, and the launches that it takes: one for rows, one for columns.

    Args:
        x: (B, L, D) input; of evenly spaced tokens nothing is copied.
        weight: (K, D, TAPS).
        bias: (K, D), or None.
        orders: K orders, see :func:`rsmamba_kernels.order.path_index`.
        height: Rows of the grid.
        width: Columns of the grid.
        slot: Position of the class token, -1 without one.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        orders: Sequence[int],
        height: int,
        width: int,
        slot: int,
    ) -> None:
        self.x, self.weight, self.bias = as_images(x), parameter(weight), parameter(bias)
        self.batch, self.length, self.channels = self.x.shape
        self.directions, self.taps = len(orders), weight.shape[2]
        self.ways = _ways(orders)
        self.path = {"height": height, "width": width, "slot": slot}
        self.block = min(_CHANNELS, power_of_two(self.channels))
        self.blocks = ceil_div(self.channels, self.block)

    def forward(self) -> tuple[Tensor, list[Launch]]:
        """The (K, B, L, D) output, and what fills it."""
        shape = (self.directions, *self.x.shape)
        out = torch.empty(shape, dtype=self.x.dtype, device=self.x.device)
        # The direction back is done when the window has left the sequence.
        windows = self.length + self.taps - 1
        return out, [
            self._launch("conv1d_silu_forward", windows, way, out=out) for way in self.ways
        ]

    def backward(self, dout: Tensor) -> tuple[Tensor, list[Tensor], list[Launch]]:
        """Gradients for a contiguous ``dout``, and what fills them.

        Of each launch there are the (parts, 2, TAPS + 1, D) parts of the gradients of the taps and
        the bias of its directions.
        """
        dx = torch.empty(self.x.shape, dtype=self.x.dtype, device=dout.device)
        total = torch.empty(self.x.shape, dtype=torch.float32, device=dout.device)
        parts = self.batch * ceil_div(self.length, self._size(self.length))
        sums, launches = [], []
        for i, way in enumerate(self.ways):
            sums.append(total.new_empty(parts, 2, self.taps + 1, self.channels))
            outputs = {"dout": dout, "dx": dx, "total": total, "sums": sums[-1]}
            turns = {"FIRST": i == 0, "LAST": i == len(self.ways) - 1}
            launches.append(
                self._launch("conv1d_silu_backward", self.length, way, **outputs, **turns)
            )
        return dx, sums, launches

    def _size(self, tokens: int) -> int:
        """How many tokens a program takes."""
        parts = ceil_div(_FEW_PROGRAMS, self.blocks * self.batch)
        parts = min(max(parts, ceil_div(tokens, _LONGEST)), ceil_div(tokens, _SHORTEST))
        return ceil_div(ceil_div(tokens, parts), _TURN) * _TURN

    def _launch(
        self, kernel: str, tokens: int, way: "Way", **outputs: Tensor | int | bool
    ) -> Launch:
        columns, there, back = way
        size = self._size(tokens)
        arguments = {
            **{"x": self.x, "weight": self.weight, "bias": self.bias},
            **{"length": self.length, "channels": self.channels, "size": size},
            **{"x_batch": self.x.stride(0), "x_row": self.x.stride(1)},
            **{"columns": 2 * columns, "there": there or 0, "back": back or 0},
            **{"THERE": there is not None, "BACK": back is not None},
            **{"TAPS": self.taps, "CHANNELS": self.block},
        }
        return Launch(
            f"rsmamba_kernels.conv1d_silu.triton_kernels:{kernel}",
            (self.blocks, ceil_div(tokens, size), self.batch),
            arguments | self.path | outputs,
            {"num_warps": 1},
        )


#: Whether along columns; numbers of the direction there and of the one back, or None.
Way = tuple[bool, int | None, int | None]


def _ways(orders: Sequence[int]) -> list[Way]:
    """The directions in pairs that read the same tokens."""
    ways: list[Way] = []
    for columns in (False, True):
        there = [k for k, order in enumerate(orders) if order == 2 * columns]
        back = [k for k, order in enumerate(orders) if order == 2 * columns + 1]
        ways += [(columns, *pair) for pair in zip_longest(there, back)]
    return ways


def refuses(shapes: Sequence[Sequence[int]]) -> str | None:
    """Why the kernels cannot take such tensors, or None if they can.

    Args:
        shapes: Those of :class:`Convolution`'s tensors, at least of the first two.
    """
    (_, length, _), taps = shapes[0], shapes[1][2]
    most = MOST_PROGRAMS * _LONGEST
    if length + taps > most:
        return f"it takes {most} tokens at most, not {length}: cut images up"
    return image_problem(shapes[0])


def forward(x: Tensor, *others: Any) -> Tensor:
    """(K, B, L, D) outputs in ``x.dtype``; arguments as of :class:`Convolution`."""
    if x.shape[0] > MOST_PROGRAMS:
        few = split_images((x, *others), (0,), MOST_PROGRAMS)
        return torch.cat([forward(*part) for part in few], 1)
    out, launches = Convolution(x, *others).forward()
    for launch in launches:
        launch()
    return out


def backward(dout: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Gradients of the three tensors; those of weight and bias in float32.

    Sums over images are made of parts in a fixed order: two runs agree to the last bit.

    Args:
        dout: (K, B, L, D) gradient of the outputs.
        x: See :class:`Convolution`, like the others.
        others: The others.
    """
    if x.shape[0] > MOST_PROGRAMS:
        few = split_images((dout, x, *others), (1, 0), MOST_PROGRAMS)
        return join_images((backward(*part) for part in few), (0, None, None))
    convolution = Convolution(x, *others)
    dx, sums, launches = convolution.backward(dout.contiguous())
    for launch in launches:
        launch()
    taps = sums[0].new_empty(convolution.directions, convolution.taps + 1, x.shape[-1])
    for (_, *ks), parts in zip(convolution.ways, sums, strict=True):
        # Of a direction that is not there its kernel has filled nothing.
        for side, k in enumerate(ks):
            if k is not None:
                taps[k] = parts[:, side].sum(0)
    return dx.view(x.shape), taps[:, :-1].transpose(1, 2), taps[:, -1]

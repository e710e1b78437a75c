"""The selective scan on a GPU: what its Triton kernels are launched with; they are imported then.

Forward and backward keep nothing but the inputs. Sums over images and over blocks of channels are
made of parts in a fixed order, without atomic additions: two runs agree to the last bit.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels.triton_support import (
    DTYPES,
    MOST_PROGRAMS,
    Launch,
    ceil_div,
    join_images,
    parameter,
    register_limit,
    split_images,
)

#: Numbers of states that the kernels are written for.
STATES = (1, 4, 8, 16)

#: Channels per program, which is one warp: two in each lane, so that what all channels share is
#: loaded once for 64 of them. Four would not leave enough registers for several warps.
_BLOCK = 64
#: Steps per chunk of the backward: the states of a chunk are rebuilt in registers.
_STEPS = 8
#: Steps that one program of ``scan_steps`` arranges.
_TILE = 64
#: With fewer programs a large GPU has idle warp schedulers: directions then run side by side.
_FEW_PROGRAMS = 1024
#: Bytes of kept states up to which the backward takes directions together.
_SCRATCH = 2**28

_KERNELS = "rsmamba_kernels.selective_scan.triton_kernels:"

#: Nothing has to be exchanged between warps.
_WARP = {"num_warps": 1}
#: Left alone, NVIDIA's assembler takes 240 registers a thread for the adjoint: 8 warps would fit
#: where 12 do. Rows that cannot be loaded two channels at a time need more than this.
_REGISTERS = 168

#: Their orders travel in one 32-bit number.
_DIRECTIONS = 15
#: Elements of an image, which the kernels count in 32 bits: the kept states are twice as many.
_ELEMENTS = 2**30
_BYTES_PER_WORD = 8
_LOG2E = math.log2(math.e)


class Scan:
    """Checked inputs of all directions, and the launches they take.

    Args:
        u: (K, B, L, D) inputs; any strides, but for the last dimension, here and below.
        dt: (K, B, L, D) step sizes before bias and softplus.
        A: (K, D, N) decay rates.
        B: (K, B, L, N) input weights.
        C: (K, B, L, N) output weights.
        D: (K, D) skip weights, or None.
        dt_bias: (K, D) added to ``dt``, or None.
        softplus: Whether ``dt`` passes through softplus.
        orders: K orders, see :func:`rsmamba_kernels.order.path_index`.
        height: Rows of the grid.
        width: Columns of the grid.
        slot: Position of the class token, -1 without one.

    Raises:
        ValueError: If the kernels are not written for so many states, or see :func:`refuses`.
    """

    def __init__(
        self,
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
    ) -> None:
        if problem := refuses([u.shape, dt.shape, A.shape]):
            raise ValueError(f"u {tuple(u.shape)}: {problem}")
        self.u, self.dt, self.B, self.C = (_dense(t) for t in (u, dt, B, C))
        self.A, self.D, self.bias = A.float().contiguous(), parameter(D), parameter(dt_bias)
        self.softplus, self.height, self.width, self.slot = softplus, height, width, slot
        (self.directions, self.batch, self.length, self.channels) = u.shape
        self.states = A.shape[2]
        self.orders = sum(order << (2 * k) for k, order in enumerate(orders))
        self.blocks, self.chunks = ceil_div(self.channels, _BLOCK), ceil_div(self.length, _STEPS)
        self.words_B, self.words_C, self.pack = _words(self.B, self.C)
        if self.states not in STATES:
            raise ValueError(f"A {tuple(A.shape)}: the kernels take {STATES} states")

    def forward(self) -> tuple[Tensor, Launch]:
        """The output, (K, B, L, D) where the directions are still apart, and what fills it."""
        u = self.u
        apart = self.directions > 1 and self.batch * self.blocks < _FEW_PROGRAMS
        if apart:
            y = total = torch.empty(u.shape, dtype=torch.float32, device=u.device)
        else:
            y = total = torch.empty(u.shape[1:], dtype=u.dtype, device=u.device)
            if self.directions > 1 and u.dtype != torch.float32:
                total = torch.empty_like(y, dtype=torch.float32)
        arguments = dict(
            u=u, dt=self.dt, A=self.A, B=self.words_B, C=self.words_C, D=self.D, bias=self.bias,
            y=y, total=total, directions=1 if apart else self.directions,
            **_strides(u=u, dt=self.dt, B=self.words_B, C=self.words_C),
            **self._numbers("batch length channels orders width slot"),
            **self._compiled("SOFTPLUS N BLOCK PACK KIND"),
        )  # fmt: skip
        grid = (self.blocks, self.batch, self.directions if apart else 1)
        return y, Launch(_KERNELS + "scan_forward", grid, arguments, _WARP)

    def together(self) -> int:
        """How many directions the backward takes at once: their kept states take much memory."""
        kept = 4 * self.batch * self.chunks * self.states * self.channels
        return max(1, min(self.directions, _SCRATCH // kept))

    def backward(
        self, dy: Tensor, du: Tensor, ddt: Tensor, first: int, count: int
    ) -> tuple[dict[str, Tensor], list[Launch]]:
        """Parts of ``count`` directions' gradients that are sums, and what fills them.

        Args:
            dy: (B, L, D) cotangent, contiguous.
            du: (K, B, L, D) gradient, filled for these directions.
            ddt: (K, B, L, D) gradient, likewise.
            first: First of the directions.
            count: Their number.
        """
        images = (count, self.batch)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=dy.device)

        rows = empty(count, self.chunks, _STEPS, dtype=torch.int32)
        arranged = empty(*images, self.states, self.chunks, 2, _STEPS)
        kept = empty(*images, self.chunks, self.states, self.channels)
        parts = {
            "dA": empty(*images, self.states, self.channels),
            "sums": empty(*images, self.chunks, 2, self.channels),
            "dBC": empty(*images, self.blocks, self.length, 2, self.states),
        }
        steps = dict(
            B=self.B, C=self.C, rows=rows, arranged=arranged, first=first,
            **_strides(B=self.B, C=self.C),
            **self._numbers("batch length chunks orders height width slot"),
            N=self.states, STEPS=_STEPS, TILE=_TILE,
        )  # fmt: skip
        states = dict(
            u=self.u, dt=self.dt, A=self.A, B=self.words_B, bias=self.bias, rows=rows, kept=kept,
            first=first, **_strides(u=self.u, dt=self.dt, B=self.words_B),
            **self._numbers("batch channels chunks"),
            **self._compiled("SOFTPLUS N BLOCK PACK KIND"), STEPS=_STEPS,
        )  # fmt: skip
        adjoint = dict(
            dy=dy, u=self.u, dt=self.dt, rates=self.rates, D=self.D, bias=self.bias, rows=rows,
            arranged=arranged.view(torch.int64), kept=kept, carried=torch.empty_like(parts["dA"]),
            du=du, ddt=ddt, **parts, first=first, **_strides(u=self.u, dt=self.dt),
            **self._numbers("batch blocks length channels chunks"),
            **self._compiled("SOFTPLUS N BLOCK"), STEPS=_STEPS,
            STAGES=(2 * _STEPS).bit_length() - 1,
        )  # fmt: skip
        grid = (self.blocks, self.batch, count)
        tiles = ceil_div(self.chunks * _STEPS, _TILE)
        limit = register_limit(dy.device, _REGISTERS) if self.channels % 16 == 0 else {}
        return parts, [
            Launch(_KERNELS + "scan_steps", (tiles, self.batch, count), steps, _WARP),
            Launch(_KERNELS + "scan_states", grid, states, _WARP),
            Launch(_KERNELS + "scan_adjoint", grid, adjoint, _WARP | limit),
        ]

    @functools.cached_property
    def rates(self) -> Tensor:
        """(K, N, D) exponents of 2 for each step size."""
        return (self.A * _LOG2E).transpose(1, 2).contiguous()

    def _numbers(self, names: str) -> dict[str, int]:
        """Sizes and the path, as the kernels name them."""
        return {name: getattr(self, name) for name in names.split()}

    def _compiled(self, names: str) -> dict[str, Any]:
        """Arguments of these names that are known when a kernel is compiled."""
        values = dict(
            SOFTPLUS=self.softplus, N=self.states, BLOCK=_BLOCK, PACK=self.pack,
            KIND=DTYPES[self.B.dtype],
        )  # fmt: skip
        return {name: values[name] for name in names.split()}


def refuses(shapes: Sequence[Sequence[int]]) -> str | None:
    """Why the kernels cannot take such tensors, or None if they can.

    Args:
        shapes: Those of :class:`Scan`'s tensors, at least of the first three.
    """
    (directions, _, length, channels), (_, _, states) = shapes[0], shapes[2]
    if directions > _DIRECTIONS:
        return f"it takes {_DIRECTIONS} directions at most, not {directions}"
    if length * max(channels, states) >= _ELEMENTS:
        tokens = f"{length} tokens of {channels} channels"
        return f"it counts within an image in 32 bits, {tokens} are too many: cut images up"
    return None


#: Axes of the images in a scan's first tensors.
_IMAGES = (1, 1, None, 1, 1)


def forward(*inputs: Any) -> Tensor:
    """Sum over the directions of their scans, added in float32.

    Args:
        inputs: Those of :class:`Scan`.

    Returns:
        (B, L, D) in ``u.dtype``.
    """
    if inputs[0].shape[1] > MOST_PROGRAMS:
        return torch.cat([forward(*part) for part in split_images(inputs, _IMAGES, MOST_PROGRAMS)])
    scan = Scan(*inputs)
    y, launch = scan.forward()
    launch()
    return y if y.ndim == 3 else y.sum(0).to(scan.u.dtype)


def backward(dy: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of :func:`forward`'s tensors.

    Args:
        dy: (B, L, D) cotangent.
        inputs: Those of :class:`Scan`.

    Returns:
        Gradients of ``u``, ``dt``, ``B`` and ``C`` in the dtype of each, of ``A``, ``D`` and
        ``dt_bias`` in float32, also where ``D`` or ``dt_bias`` is None.
    """
    if dy.shape[0] > MOST_PROGRAMS:
        few = split_images((dy, *inputs), (0, *_IMAGES), MOST_PROGRAMS)
        return join_images((backward(*part) for part in few), (*_IMAGES, None, None))
    scan = Scan(*inputs)
    dy = dy.contiguous()
    du, ddt = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (scan.u, scan.dt))
    pieces: list[tuple[Tensor, ...]] = []
    for first in range(0, scan.directions, scan.together()):
        count = min(scan.together(), scan.directions - first)
        parts, launches = scan.backward(dy, du, ddt, first, count)
        for launch in launches:
            launch()
        pieces.append((parts["dA"].sum(1), parts["sums"].sum((1, 2)), parts["dBC"].sum(2)))
    dA, sums, dBC = (torch.cat(piece) for piece in zip(*pieces, strict=True))
    (dD, dbias), (dB, dC) = sums.unbind(1), dBC.unbind(3)
    dA = dA.transpose(1, 2).contiguous()
    return du, ddt, dA, dB.to(scan.B.dtype), dC.to(scan.C.dtype), dD, dbias


def _dense(tensor: Tensor) -> Tensor:
    """The tensor if its last dimension is contiguous and its rows are not too far apart to count.

    Else a copy of which this is true.
    """
    dense = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    near = tensor.shape[2] * tensor.stride(2) < _ELEMENTS
    return tensor if dense and near else tensor.contiguous()


def _strides(**tensors: Tensor) -> dict[str, int]:
    """Strides over directions, images and tokens, as the kernels name them."""
    return {
        f"{name}_{axis}": tensor.stride(i)
        for name, tensor in tensors.items()
        for i, axis in enumerate("kbl")
    }


def _words(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, int]:
    """B and C as 64-bit words and the numbers in a word, or as they are and 1.

    A program loads every number of them for itself: fewer, wider loads count.
    """
    pack = _BYTES_PER_WORD // B.element_size()
    if B.dtype != C.dtype or not all(_fills_words(t, pack) for t in (B, C)):
        return B, C, 1
    return B.view(torch.int64), C.view(torch.int64), pack


def _fills_words(tensor: Tensor, pack: int) -> bool:
    """Whether every row consists of whole, aligned words."""
    places = (tensor.shape[-1], tensor.storage_offset(), *tensor.stride()[:-1])
    aligned = all(place % pack == 0 for place in places) and tensor.stride(-1) == 1
    return aligned and tensor.data_ptr() % _BYTES_PER_WORD == 0

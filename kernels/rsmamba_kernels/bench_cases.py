"""What the benchmark times: operators on the shapes of RoMA-Base and Spatial-Mamba-Tiny."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rsmamba_kernels import (
    conv1d_silu,
    gate,
    selective_scan_multi,
    state_fusion,
    state_scan,
)


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        operator: Name in the registry.
        shape: For the reader.
        tensors: Inputs; those of a floating dtype require gradients.
        call: The public function; takes the tensors and ``backend``.
        exponentials: Exponentials and logarithms that a forward must compute.
        size: See :class:`rsmamba_kernels.dispatch.Request`.
    """

    operator: str
    shape: str
    tensors: list[Tensor]
    call: Callable[..., Tensor]
    exponentials: int = 0
    size: int = 0


def _leaf(*shape: int, like: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return (scale * torch.randn(shape, device=like.device) + shift).to(like.dtype).requires_grad_()


def _weight(*shape: int, like: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return _leaf(*shape, like=like.float(), scale=scale, shift=shift)


def scan_case(like: Tensor, k: int, b: int, length: int, d: int, n: int = 16) -> Case:
    """Selective scan in k directions over a square grid with a class token in the middle."""
    side = int((length - 1) ** 0.5)
    grid = (side, (length - 1) // side)
    orders = tuple(range(k))
    rows = [_leaf(k, b, length, w, like=like) for w in (d, d, n, n)]
    u, dt, B, C = rows
    A = (-torch.exp(_weight(k, d, n, like=like))).detach().requires_grad_()
    D, bias = _weight(k, d, like=like), _weight(k, d, like=like, shift=-3)

    def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
        *args, dt_bias = tensors
        return selective_scan_multi(
            *args, dt_bias=dt_bias, orders=orders, grid=grid, cls="middle", backend=backend
        )

    shape = f"K{k} B{b} L{length} D{d} N{n}"
    work = k * b * length * d
    return Case("selective_scan", shape, [u, dt, A, B, C, D, bias], call, work * (n + 2), n)


def convolution_case(like: Tensor, k: int, b: int, length: int, d: int) -> Case:
    """Causal convolution along k orders."""
    side = int((length - 1) ** 0.5)
    path = {"orders": tuple(range(k)), "grid": (side, (length - 1) // side), "cls": "middle"}
    tensors = [
        _leaf(b, length, d, like=like),
        _weight(k, d, 4, like=like),
        _weight(k, d, like=like),
    ]

    def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
        return conv1d_silu(*tensors, **path, backend=backend)  # type: ignore[arg-type]

    shape = f"K{k} B{b} L{length} D{d} W4"
    return Case("conv1d_silu", shape, tensors, call, k * b * length * d, 4)


def gate_case(like: Tensor, b: int, length: int, d: int) -> Case:
    """Gate whose z is one half of a wider row, as in a mixer."""
    z = torch.randn(b, length, 2 * d, device=like.device).to(like.dtype)[..., d:].requires_grad_()
    tensors = [_leaf(b, length, d, like=like), z]
    return Case("gate", f"B{b} L{length} D{d}", tensors, gate, b * length * d)


def state_case(like: Tensor, b: int, side: int, d: int) -> Case:
    """State scan."""
    x, dt, B = (_leaf(b, side, side, w, like=like) for w in (d, d, 1))
    A = (-torch.exp(_weight(d, like=like))).detach().requires_grad_()

    def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
        return state_scan(*tensors[:-1], dt_bias=tensors[-1], backend=backend)

    work = b * side * side * d
    bias = _weight(d, like=like, shift=-2)
    return Case("state_scan", f"B{b} {side}x{side}x{d}", [x, dt, A, B, bias], call, 3 * work)


def fusion_case(like: Tensor, b: int, side: int, d: int) -> Case:
    """State fusion with the output and skip weights."""
    h, x, C = (_leaf(b, side, side, w, like=like) for w in (d, d, 1))
    kernels = [_weight(d, 3, 3, like=like) for _ in range(3)]
    tensors = [h, x, C, _weight(d, like=like), *kernels, _weight(3, like=like)]
    return Case("state_fusion", f"B{b} {side}x{side}x{d}", tensors, state_fusion)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """RoMA-Base and the stages of Spatial-Mamba-Tiny at 224 pixels, one case after the other."""
    cuda = device == "cuda"
    like = torch.empty(0, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    b, d = (128, 768) if cuda else (4, 768)
    if quick:
        b, d = 1, 64
    yield scan_case(like, 1, b, 197, d)
    yield scan_case(like, 4, b, 197, d)
    yield convolution_case(like, 4, b, 197, d)
    yield gate_case(like, b, 197, d)
    for side, width in ((56, 128), (28, 256), (14, 512), (7, 1024))[: 1 if quick else 4]:
        yield state_case(like, b, side, width)
        yield fusion_case(like, b, side, width)

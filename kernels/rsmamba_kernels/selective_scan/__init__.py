"""Mamba's selective scan along rows or columns of a token grid, in one or several directions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels.backends import kernels
from rsmamba_kernels.checks import check_decay, check_directions, check_rank, check_tensors
from rsmamba_kernels.custom_op import Example, Operator, waves
from rsmamba_kernels.dispatch import REFERENCE, Backend
from rsmamba_kernels.order import ClassToken, Order, scan_path
from rsmamba_kernels.selective_scan import mamba_ssm
from rsmamba_kernels.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_multi"]


def _example(device: str) -> Example:
    """A column scan around a class token; its channels fill no whole vector."""
    rows, weights, states = (2, 1, 7, 9), (2, 9), (2, 1, 7, 16)
    u, dt, rate, *rest = waves(device, rows, rows, (2, 9, 16), states, states, weights, weights)
    return [u, dt, -torch.exp(rate), *rest], [True, [3, 0], 2, 3, 3]


_SCAN = Operator(
    "selective_scan",
    "u dt A B C D? dt_bias?",
    "bool softplus, int[] orders, SymInt height, SymInt width, SymInt slot",
    output=lambda u, *_: u.new_empty(u.shape[1:]),
    example=_example,
    size=lambda tensors: tensors[2].shape[-1],  # type: ignore[union-attr]
)
_SCAN.register(Backend(REFERENCE, selective_scan_reference))
_SCAN.register(kernels("cpu", __name__, (1, 4, 8, 16), "states"))
_SCAN.register(kernels("triton", __name__, (1, 4, 8, 16), "states"))
_SCAN.register(
    Backend("mamba_ssm", mamba_ssm.selective_scan_mamba_ssm, priority=-1, refuses=mamba_ssm.refuses)
)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = True,
    order: Order = 0,
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
    backend: str | None = None,
) -> Tensor:
    """Selective state-space scan (Gu & Dao 2023, https://arxiv.org/abs/2312.00752, section 3.2).

    With ``dt' = softplus(dt + dt_bias)`` and t running in scan order, per channel d and state n::

        h_t[n] = exp(dt'_t * A[d, n]) * h_(t-1)[n] + dt'_t * B_t[n] * u_t
        y_t    = sum_n C_t[n] * h_t[n] + D[d] * u_t

    Tokens are stored in raster order, before and after; ``order`` says in which order the state
    visits them, so that nothing has to be flipped or transposed outside.

    Args:
        u: (B, L, D) input.
        dt: (B, L, D) step sizes before bias and softplus.
        A: (D, N) state decay rates, negative (checked with ``RSMAMBA_KERNELS_DEBUG=1``).
        B: (B, L, N) input weights.
        C: (B, L, N) output weights.
        D: (D,) skip weights, or None.
        dt_bias: (D,) added to ``dt``, or None.
        softplus: Whether ``dt`` passes through softplus.
        order: 0 along rows, 1 rows reversed, 2 along columns, 3 columns reversed.
        grid: (H, W) of the tokens; needed for orders 2 and 3.
        cls: Slot of a class token among the H * W patches: ``"none"``, ``"middle"`` (slot
            ``H * W // 2``) or ``"first"``. Along columns it keeps its slot.
        backend: One of those that :func:`rsmamba_kernels.status` lists, or ``"auto"``; None asks
            ``RSMAMBA_KERNELS``, then decides alone.

    Returns:
        (B, L, D) in ``u.dtype``; 16-bit inputs are computed with a float32 state.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If a shape, device or memory layout is wrong, the order is unknown or L does not
            fit the grid.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    check_rank("selective_scan", "u", u, "(B, L, D)")
    check_rank("selective_scan", "A", A, "(D, N)")
    (batch, length, channels), states = u.shape, A.shape[1]
    check_tensors(
        "selective_scan",
        ("u", "dt", "B", "C"),
        ("D", "dt_bias"),
        u=(u, (batch, length, channels)),
        dt=(dt, (batch, length, channels)),
        A=(A, (channels, states)),
        B=(B, (batch, length, states)),
        C=(C, (batch, length, states)),
        D=(D, (channels,)),
        dt_bias=(dt_bias, (channels,)),
    )
    check_decay("selective_scan", A)
    path = scan_path("selective_scan", length, [order], grid, cls)
    tensors = [None if t is None else t.unsqueeze(0) for t in (u, dt, A, B, C, D, dt_bias)]
    return _SCAN(tensors, [bool(softplus), *path], backend)


def selective_scan_multi(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = True,
    orders: Sequence[int] = (0, 1, 2, 3),
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
    backend: str | None = None,
) -> Tensor:
    """Sum over K directions of :func:`selective_scan`, each with inputs and weights of its own.

    The directions are added up where they are computed: no direction's output, and no flipped or
    transposed sequence, is ever in memory. :func:`rsmamba_kernels.gate` applies the gate, once.

    Args:
        u: (K, B, L, D) inputs, as :func:`rsmamba_kernels.conv1d_silu` makes them from one sequence.
        dt: (K, B, L, D) step sizes before bias and softplus.
        A: (K, D, N) state decay rates, negative.
        B: (K, B, L, N) input weights.
        C: (K, B, L, N) output weights.
        D: (K, D) skip weights, or None.
        dt_bias: (K, D) added to ``dt``, or None.
        softplus: Whether ``dt`` passes through softplus.
        orders: Scan order of each direction.
        grid: (H, W) of the tokens; needed for orders 2 and 3.
        cls: Slot of a class token, see :func:`selective_scan`.
        backend: See :func:`selective_scan`.

    Returns:
        (B, L, D) in ``u.dtype``, rounded once.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If a shape, device or memory layout is wrong, an order is unknown or L does not
            fit the grid.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    check_rank("selective_scan_multi", "u", u, "(K, B, L, D)")
    check_rank("selective_scan_multi", "A", A, "(K, D, N)")
    check_directions("selective_scan_multi", "u", u, orders)
    (k, batch, length, channels), states = u.shape, A.shape[2]
    check_tensors(
        "selective_scan_multi",
        ("u", "dt", "B", "C"),
        ("D", "dt_bias"),
        u=(u, (k, batch, length, channels)),
        dt=(dt, (k, batch, length, channels)),
        A=(A, (k, channels, states)),
        B=(B, (k, batch, length, states)),
        C=(C, (k, batch, length, states)),
        D=(D, (k, channels)),
        dt_bias=(dt_bias, (k, channels)),
    )
    check_decay("selective_scan_multi", A)
    path = scan_path("selective_scan_multi", length, orders, grid, cls)
    options: list[Any] = [bool(softplus), *path]
    return _SCAN([u, dt, A, B, C, D, dt_bias], options, backend)

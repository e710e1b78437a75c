"""Mamba's selective scan along rows or columns of a token grid."""

from typing import Literal

from torch import Tensor

from rsmamba_kernels.cpu import refuses as cpu_refuses
from rsmamba_kernels.dispatch import Backend, call, register
from rsmamba_kernels.selective_scan.cpu import selective_scan_cpu
from rsmamba_kernels.selective_scan.reference import (
    ClassToken,
    scan_index,
    selective_scan_reference,
)

__all__ = ["ClassToken", "scan_index", "selective_scan"]

register("selective_scan", Backend("reference", selective_scan_reference))
register("selective_scan", Backend("cpu", selective_scan_cpu, priority=10, refuses=cpu_refuses))


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
    order: Literal[0, 1, 2, 3] = 0,
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
        A: (D, N) state decay rates, negative.
        B: (B, L, N) input weights.
        C: (B, L, N) output weights.
        D: (D,) skip weights, or None.
        dt_bias: (D,) added to ``dt``, or None.
        softplus: Whether ``dt`` passes through softplus.
        order: 0 along rows, 1 rows reversed, 2 along columns, 3 columns reversed.
        grid: (H, W) of the tokens; needed for orders 2 and 3.
        cls: Slot of a class token among the H * W patches: ``"none"``, ``"middle"`` (slot
            ``H * W // 2``) or ``"first"``. Along columns it keeps its slot.
        backend: ``"reference"``, ``"cpu"`` or ``"auto"``; None asks ``RSMAMBA_KERNELS``, then
            decides alone.

    Returns:
        (B, L, D) in ``u.dtype``; 16-bit inputs are computed with a float32 state.

    Raises:
        ValueError: If the order is unknown or L does not fit the grid.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    run = call("selective_scan", u, backend)
    return run(
        u, dt, A, B, C, D, dt_bias=dt_bias, softplus=softplus, order=order, grid=grid, cls=cls
    )

"""Spatial-Mamba's scan: one state per channel, and the states themselves are the output."""

from torch import Tensor

from rsmamba_kernels.cpu import refuses as cpu_refuses
from rsmamba_kernels.dispatch import Backend, call, register
from rsmamba_kernels.state_scan.cpu import state_scan_cpu
from rsmamba_kernels.state_scan.reference import state_scan_reference

__all__ = ["state_scan"]

register("state_scan", Backend("reference", state_scan_reference))
register("state_scan", Backend("cpu", state_scan_cpu, priority=10, refuses=cpu_refuses))


def state_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = True,
    backend: str | None = None,
) -> Tensor:
    """States of a selective scan in raster order (https://arxiv.org/abs/2410.15091, section 3).

    With ``dt' = softplus(dt + dt_bias)`` and t running along the rows, per channel d::

        h_t = exp(dt'_t * A[d]) * h_(t-1) + dt'_t * B_t * x_t

    Args:
        x: (B, H, W, D) input.
        dt: (B, H, W, D) step sizes before bias and softplus.
        A: (D,) state decay rates, negative.
        B: (B, H, W, 1) input weights.
        dt_bias: (D,) added to ``dt``, or None.
        softplus: Whether ``dt`` passes through softplus.
        backend: ``"reference"``, ``"auto"``, or None for ``RSMAMBA_KERNELS`` and then automatic.

    Returns:
        (B, H, W, D) states in ``x.dtype``; 16-bit inputs are computed with a float32 state.

    Raises:
        ValueError: If the shapes do not fit each other.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    # Broadcasting would turn a wrong shape into a wrong result.
    if x.ndim != 4 or dt.shape != x.shape or B.shape != (*x.shape[:3], 1):
        raise ValueError(
            f"state_scan: x {tuple(x.shape)}, dt {tuple(dt.shape)}, B {tuple(B.shape)}: "
            "expected (B, H, W, D) twice and (B, H, W, 1)"
        )
    if A.shape != x.shape[3:] or (dt_bias is not None and dt_bias.shape != A.shape):
        raise ValueError(f"state_scan: A and dt_bias must have shape ({x.shape[3]},)")
    run = call("state_scan", x, backend)
    return run(x, dt, A, B, dt_bias=dt_bias, softplus=softplus)

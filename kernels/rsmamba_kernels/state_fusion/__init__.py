"""Spatial-Mamba's structure-aware state fusion, with the output and skip weights of the scan."""

from typing import Literal

from torch import Tensor

from rsmamba_kernels.cpu import refuses as cpu_refuses
from rsmamba_kernels.dispatch import Backend, call, register
from rsmamba_kernels.state_fusion.cpu import state_fusion_cpu
from rsmamba_kernels.state_fusion.reference import state_fusion_reference

__all__ = ["state_fusion"]

register("state_fusion", Backend("reference", state_fusion_reference))
register("state_fusion", Backend("cpu", state_fusion_cpu, priority=10, refuses=cpu_refuses))


def state_fusion(
    h: Tensor,
    x: Tensor,
    C: Tensor,
    D: Tensor,
    k1: Tensor,
    k3: Tensor,
    k5: Tensor,
    alpha: Tensor,
    *,
    padding: Literal["replicate", "zeros"] = "replicate",
    backend: str | None = None,
) -> Tensor:
    """Fuse each state with its neighbours (https://arxiv.org/abs/2410.15091, section 4).

    Three dilations widen the neighbourhood to 11 x 11 pixels with 25 distinct taps::

        y = C * sum_i alpha[i] * depthwise_3x3(h, k_i, dilation=i-th of (1, 3, 5)) + D * x

    Args:
        h: (B, H, W, D) states, see :func:`rsmamba_kernels.state_scan`.
        x: (B, H, W, D) input of the scan.
        C: (B, H, W, 1) output weights.
        D: (D,) skip weights.
        k1: (D, 3, 3) taps at dilation 1 (rows, columns).
        k3: (D, 3, 3) taps at dilation 3.
        k5: (D, 3, 3) taps at dilation 5.
        alpha: (3,) share of each dilation.
        padding: How the map goes on beyond its border.
        backend: ``"reference"``, ``"auto"``, or None for ``RSMAMBA_KERNELS`` and then automatic.

    Returns:
        (B, H, W, D) in ``h.dtype``; 16-bit inputs are summed in float32.

    Raises:
        ValueError: If the padding is unknown or the shapes do not fit each other.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    if padding not in ("replicate", "zeros"):
        raise ValueError(f"state_fusion: padding={padding!r}: choose 'replicate' or 'zeros'")
    # Broadcasting would turn a wrong shape into a wrong result.
    if h.ndim != 4 or x.shape != h.shape or C.shape != (*h.shape[:3], 1):
        raise ValueError(
            f"state_fusion: h {tuple(h.shape)}, x {tuple(x.shape)}, C {tuple(C.shape)}: "
            "expected (B, H, W, D) twice and (B, H, W, 1)"
        )
    channels = h.shape[3]
    if D.shape != (channels,) or alpha.shape != (3,):
        raise ValueError(f"state_fusion: D must have shape ({channels},) and alpha (3,)")
    if any(kernel.shape != (channels, 3, 3) for kernel in (k1, k3, k5)):
        raise ValueError(f"state_fusion: k1, k3 and k5 must have shape ({channels}, 3, 3)")
    run = call("state_fusion", h, backend)
    return run(h, x, C, D, k1, k3, k5, alpha, padding=padding)

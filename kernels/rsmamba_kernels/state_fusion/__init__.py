"""Spatial-Mamba's structure-aware state fusion, with the output and skip weights of the scan."""

from typing import Literal

from torch import Tensor

from rsmamba_kernels.backends import kernels
from rsmamba_kernels.checks import check_rank, check_tensors
from rsmamba_kernels.custom_op import Example, Operator, waves
from rsmamba_kernels.dispatch import REFERENCE, Backend
from rsmamba_kernels.state_fusion.reference import state_fusion_reference

__all__ = ["state_fusion"]


def _example(device: str) -> Example:
    """A grid of 3 x 8 pixels, smaller and larger than the reach, with channels to spare."""
    shape, kernel = (1, 3, 8, 9), (9, 3, 3)
    tensors = waves(device, shape, shape, (1, 3, 8, 1), (9,), kernel, kernel, kernel, (3,))
    return list(tensors), [False]


_FUSION = Operator(
    "state_fusion",
    "h x C D k1 k3 k5 alpha",
    "bool zeros",
    output=lambda h, *_: h.new_empty(h.shape),
    example=_example,
)
_FUSION.register(Backend(REFERENCE, state_fusion_reference))
_FUSION.register(kernels("cpu", __name__))
_FUSION.register(kernels("triton", __name__))


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
        backend: See :func:`rsmamba_kernels.selective_scan`.

    Returns:
        (B, H, W, D) in ``h.dtype``; 16-bit inputs are summed in float32.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If the padding is unknown, or a shape, device or memory layout is wrong.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    if padding not in ("replicate", "zeros"):
        raise ValueError(f"state_fusion: padding={padding!r}: choose 'replicate' or 'zeros'")
    check_rank("state_fusion", "h", h, "(B, H, W, D)")
    shape, channels = tuple(h.shape), h.shape[3]
    if shape[1] == 0 or shape[2] == 0:
        raise ValueError(f"state_fusion: h has shape {shape}: an image needs rows and columns")
    check_tensors(
        "state_fusion",
        ("h", "x", "C"),
        h=(h, shape),
        x=(x, shape),
        C=(C, (*shape[:3], 1)),
        D=(D, (channels,)),
        k1=(k1, (channels, 3, 3)),
        k3=(k3, (channels, 3, 3)),
        k5=(k5, (channels, 3, 3)),
        alpha=(alpha, (3,)),
    )
    return _FUSION([h, x, C, D, k1, k3, k5, alpha], [padding == "zeros"], backend)

"""Spatial-Mamba's scan: one state per channel, and the states themselves are the output."""

import torch
from torch import Tensor

from rsmamba_kernels.backends import kernels
from rsmamba_kernels.checks import check_decay, check_rank, check_tensors
from rsmamba_kernels.custom_op import Example, Operator, waves
from rsmamba_kernels.dispatch import REFERENCE, Backend
from rsmamba_kernels.state_scan.reference import state_scan_reference

__all__ = ["state_scan"]


def _example(device: str) -> Example:
    """A grid of 2 x 4 pixels whose channels fill no whole vector."""
    shape = (1, 2, 4, 9)
    x, dt, rate, B, bias = waves(device, shape, shape, (9,), (1, 2, 4, 1), (9,))
    return [x, dt, -torch.exp(rate), B, bias], [True]


_SCAN = Operator(
    "state_scan",
    "x dt A B dt_bias?",
    "bool softplus",
    output=lambda x, *_: x.new_empty(x.shape),
    example=_example,
    keeps_output=True,
)
_SCAN.register(Backend(REFERENCE, state_scan_reference))
_SCAN.register(kernels("cpu", __name__))
_SCAN.register(kernels("triton", __name__))


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
        A: (D,) state decay rates, negative (checked with ``RSMAMBA_KERNELS_DEBUG=1``).
        B: (B, H, W, 1) input weights.
        dt_bias: (D,) added to ``dt``, or None.
        softplus: Whether ``dt`` passes through softplus.
        backend: See :func:`rsmamba_kernels.selective_scan`.

    Returns:
        (B, H, W, D) states in ``x.dtype``; 16-bit inputs are computed with a float32 state.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If a shape, device or memory layout is wrong.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    check_rank("state_scan", "x", x, "(B, H, W, D)")
    shape, channels = tuple(x.shape), x.shape[3]
    check_tensors(
        "state_scan",
        ("x", "dt", "B"),
        ("dt_bias",),
        x=(x, shape),
        dt=(dt, shape),
        A=(A, (channels,)),
        B=(B, (*shape[:3], 1)),
        dt_bias=(dt_bias, (channels,)),
    )
    check_decay("state_scan", A)
    return _SCAN([x, dt, A, B, dt_bias], [bool(softplus)], backend)

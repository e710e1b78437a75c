"""Mamba's short causal convolution, along several scan orders from one sequence."""

from collections.abc import Sequence

from torch import Tensor

from rsmamba_kernels.backends import kernels
from rsmamba_kernels.checks import check_directions, check_rank, check_tensors
from rsmamba_kernels.conv1d_silu import causal_conv1d
from rsmamba_kernels.conv1d_silu.reference import conv1d_silu_reference
from rsmamba_kernels.custom_op import Example, Operator, waves
from rsmamba_kernels.dispatch import REFERENCE, Backend
from rsmamba_kernels.order import ClassToken, scan_path

__all__ = ["conv1d_silu"]


def _example(device: str) -> Example:
    """Two directions around a class token, with channels that fill no whole vector."""
    return list(waves(device, (1, 7, 9), (2, 9, 4), (2, 9))), [[3, 0], 2, 3, 3]


_CONVOLUTION = Operator(
    "conv1d_silu",
    "x weight bias?",
    "int[] orders, SymInt height, SymInt width, SymInt slot",
    output=lambda x, weight, *_: x.new_empty((weight.shape[0], *x.shape)),
    example=_example,
    size=lambda tensors: tensors[1].shape[-1],  # type: ignore[union-attr]
)
_CONVOLUTION.register(Backend(REFERENCE, conv1d_silu_reference))
_CONVOLUTION.register(kernels("cpu", __name__, (2, 3, 4), "taps"))
_CONVOLUTION.register(kernels("triton", __name__))
_CONVOLUTION.register(
    Backend(
        "causal_conv1d",
        causal_conv1d.conv1d_silu_causal_conv1d,
        priority=-1,
        refuses=causal_conv1d.refuses,
    )
)


def conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    orders: Sequence[int] = (0,),
    grid: tuple[int, int] | None = None,
    cls: ClassToken = "none",
    backend: str | None = None,
) -> Tensor:
    """SiLU of K causal depthwise convolutions, each along its own order (Mamba, figure 3).

    With t running in the order of direction k, per channel d::

        out[k]_t = silu(bias[k, d] + sum_w weight[k, d, w] * x_(t - (W - 1) + w))

    Steps before the first count as zero. Tokens are in raster order, before and after.

    Args:
        x: (B, L, D) tokens; read once for all directions.
        weight: (K, D, W) taps, the last one for the current token.
        bias: (K, D), or None.
        orders: Scan order of each direction, see :func:`rsmamba_kernels.selective_scan`.
        grid: (H, W) of the tokens; needed for orders 2 and 3.
        cls: Slot of a class token, see :func:`rsmamba_kernels.selective_scan`.
        backend: See :func:`rsmamba_kernels.selective_scan`.

    Returns:
        (K, B, L, D) in ``x.dtype``.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If a shape, device or memory layout is wrong, an order is unknown or L does not
            fit the grid.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    check_rank("conv1d_silu", "x", x, "(B, L, D)")
    check_rank("conv1d_silu", "weight", weight, "(K, D, W)")
    check_directions("conv1d_silu", "weight", weight, orders)
    k, channels = len(orders), x.shape[2]
    if weight.shape[2] == 0:
        raise ValueError(f"conv1d_silu: weight has shape {tuple(weight.shape)}: it has no taps")
    check_tensors(
        "conv1d_silu",
        ("x",),
        ("bias",),
        x=(x, tuple(x.shape)),
        weight=(weight, (k, channels, weight.shape[2])),
        bias=(bias, (k, channels)),
    )
    path = scan_path("conv1d_silu", x.shape[1], orders, grid, cls)
    return _CONVOLUTION([x, weight, bias], path, backend)

"""The gate of a Mamba mixer."""

from torch import Tensor

from rsmamba_kernels.backends import kernels
from rsmamba_kernels.checks import check_rank, check_tensors
from rsmamba_kernels.custom_op import Example, Operator, waves
from rsmamba_kernels.dispatch import REFERENCE, Backend
from rsmamba_kernels.gate.reference import gate_reference

__all__ = ["gate"]


def _example(device: str) -> Example:
    """Rows that fill no whole vector."""
    return list(waves(device, (2, 3, 9), (2, 3, 9))), [0.25]


_GATE = Operator(
    "gate", "y z", "float scale", output=lambda y, *_: y.new_empty(y.shape), example=_example
)
_GATE.register(Backend(REFERENCE, gate_reference))
_GATE.register(kernels("triton", __name__))


def gate(y: Tensor, z: Tensor, *, scale: float = 1.0, backend: str | None = None) -> Tensor:
    """Gated output ``scale * y * silu(z)`` (Mamba, figure 3).

    Args:
        y: (B, L, D) outputs of the scan, or their sum over directions.
        z: (B, L, D) gate, often one half of a wider row.
        scale: Factor, 1 / K for a mean over K directions.
        backend: See :func:`rsmamba_kernels.selective_scan`.

    Returns:
        (B, L, D) in ``y.dtype``, computed in float32 at least.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If a shape, device or memory layout is wrong.
        BackendError: If the backend is unknown or cannot take these tensors.
    """
    check_rank("gate", "y", y, "(B, L, D)")
    shape = tuple(y.shape)
    check_tensors("gate", ("y", "z"), y=(y, shape), z=(z, shape))
    return _GATE([y, z], [float(scale)], backend)

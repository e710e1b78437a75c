"""Operators of rsmamba's state-space models, channels last; torch is all they need."""

from rsmamba_kernels.conv1d_silu import conv1d_silu
from rsmamba_kernels.dispatch import BackendError, OperatorStatus, status
from rsmamba_kernels.gate import gate
from rsmamba_kernels.selective_scan import selective_scan, selective_scan_multi
from rsmamba_kernels.state_fusion import state_fusion
from rsmamba_kernels.state_scan import state_scan

__all__ = [
    "BackendError",
    "OperatorStatus",
    "conv1d_silu",
    "gate",
    "selective_scan",
    "selective_scan_multi",
    "state_fusion",
    "state_scan",
    "status",
]

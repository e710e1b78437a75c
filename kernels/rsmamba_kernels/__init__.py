"""Operators of rsmamba's state-space models, channels last; torch is all they need."""

from rsmamba_kernels.dispatch import BackendError, OperatorStatus, status
from rsmamba_kernels.selective_scan import selective_scan
from rsmamba_kernels.state_fusion import state_fusion
from rsmamba_kernels.state_scan import state_scan

__all__ = [
    "BackendError",
    "OperatorStatus",
    "selective_scan",
    "state_fusion",
    "state_scan",
    "status",
]

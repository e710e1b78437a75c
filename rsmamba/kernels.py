"""The operators, under the package's own name: ``from rsmamba.kernels import selective_scan``."""

from rsmamba_kernels import *  # noqa: F403
from rsmamba_kernels import __all__ as __all__

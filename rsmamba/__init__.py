"""rsmamba: state-space vision backbones for geospatial analysis on TorchGeo.

Submodules load on first use, so that ``import rsmamba`` costs nothing and ``rsmamba.models``
needs torch and timm only.
"""

from rsmamba.lazy import lazy

__version__ = "0.1.0"

_SUBMODULES = (
    "cli",
    "data",
    "errors",
    "gis",
    "infer",
    "kernels",
    "models",
    "samples",
    "sensors",
    "spec",
    "tasks",
    "viz",
)

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(_SUBMODULES))

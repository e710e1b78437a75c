"""rsmamba: state-space vision backbones for geospatial analysis on TorchGeo.

Submodules load on first use, so that ``import rsmamba`` costs nothing and ``rsmamba.models``
needs torch and timm only.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = frozenset(
    {
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
    }
)


def __getattr__(name: str) -> ModuleType:
    """Import a submodule when it is first asked for (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion in a notebook."""
    return sorted({*globals(), *_SUBMODULES})

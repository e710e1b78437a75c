"""Data sets, data modules and the adaptive rotation.

Names load on first use: :class:`AdaptiveRotation` needs torch alone, while the data modules need
TorchGeo and rasterio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsmamba.data.labelled import LabelledScenes
    from rsmamba.data.labelled_datamodule import LabelledScenesDataModule
    from rsmamba.data.rotation import AdaptiveRotation, RotatedBatch
    from rsmamba.data.scenes import ScenePatches, ScenePatchesDataModule
    from rsmamba.data.ucmerced import UCMerced, UCMercedDataModule

__all__ = (
    "AdaptiveRotation",
    "LabelledScenes",
    "LabelledScenesDataModule",
    "RotatedBatch",
    "ScenePatches",
    "ScenePatchesDataModule",
    "UCMerced",
    "UCMercedDataModule",
)

_MODULES = {
    "AdaptiveRotation": "rotation",
    "LabelledScenes": "labelled",
    "LabelledScenesDataModule": "labelled_datamodule",
    "RotatedBatch": "rotation",
    "ScenePatches": "scenes",
    "ScenePatchesDataModule": "scenes",
    "UCMerced": "ucmerced",
    "UCMercedDataModule": "ucmerced",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name when it is first asked for (PEP 562)."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion in a notebook."""
    return sorted({*globals(), *__all__})

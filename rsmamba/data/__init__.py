"""Data sets, data modules and the adaptive rotation.

Names load on first use: :class:`AdaptiveRotation` needs torch alone, while the data modules need
TorchGeo and rasterio.
"""

from typing import TYPE_CHECKING

from rsmamba.lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AdaptiveRotation": "rotation",
        "LabelledScenes": "labelled",
        "LabelledScenesDataModule": "labelled_datamodule",
        "RotatedBatch": "rotation",
        "ScenePatches": "scenes",
        "ScenePatchesDataModule": "scenes",
        "UCMerced": "ucmerced",
        "UCMercedDataModule": "ucmerced",
    },
)

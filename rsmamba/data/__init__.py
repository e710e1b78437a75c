"""Data sets, data modules and the adaptive rotation.

Names load on first use: :class:`AdaptiveRotation` needs torch alone, while the data modules need
TorchGeo and rasterio.
"""

from typing import TYPE_CHECKING

from rsmamba.lazy import lazy

if TYPE_CHECKING:
    from rsmamba.data.aid import AID, AIDDataModule
    from rsmamba.data.classification import ClassificationDataModule
    from rsmamba.data.eurosat import EuroSAT, EuroSATDataModule, EuroSATRGB
    from rsmamba.data.image_folder import ImageFolder, ImageFolderDataModule
    from rsmamba.data.instances import COCOInstances
    from rsmamba.data.instances_datamodule import COCOInstancesDataModule
    from rsmamba.data.labelled import LabelledScenes
    from rsmamba.data.labelled_datamodule import LabelledScenesDataModule
    from rsmamba.data.levircd import LEVIRCD, LEVIRCDDataModule
    from rsmamba.data.millionaid import MillionAIDDataModule
    from rsmamba.data.oscd import OSCD, OSCDDataModule
    from rsmamba.data.resisc45 import RESISC45, RESISC45DataModule
    from rsmamba.data.rotation import AdaptiveRotation, RotatedBatch
    from rsmamba.data.scene_patches import ScenePatches
    from rsmamba.data.scene_patches_datamodule import ScenePatchesDataModule
    from rsmamba.data.semantic_folder import SemanticFolder
    from rsmamba.data.semantic_folder_datamodule import SemanticFolderDataModule
    from rsmamba.data.spacenet import SpaceNet1
    from rsmamba.data.spacenet_datamodule import SpaceNet1DataModule
    from rsmamba.data.ucmerced import UCMerced, UCMercedDataModule
    from rsmamba.data.vhr10 import VHR10, VHR10DataModule

__all__ = (
    "AID",
    "LEVIRCD",
    "OSCD",
    "RESISC45",
    "VHR10",
    "AIDDataModule",
    "AdaptiveRotation",
    "COCOInstances",
    "COCOInstancesDataModule",
    "ClassificationDataModule",
    "EuroSAT",
    "EuroSATDataModule",
    "EuroSATRGB",
    "ImageFolder",
    "ImageFolderDataModule",
    "LEVIRCDDataModule",
    "LabelledScenes",
    "LabelledScenesDataModule",
    "MillionAIDDataModule",
    "OSCDDataModule",
    "RESISC45DataModule",
    "RotatedBatch",
    "ScenePatches",
    "ScenePatchesDataModule",
    "SemanticFolder",
    "SemanticFolderDataModule",
    "SpaceNet1",
    "SpaceNet1DataModule",
    "UCMerced",
    "UCMercedDataModule",
    "VHR10DataModule",
)

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AdaptiveRotation": "rotation",
        "AID": "aid",
        "AIDDataModule": "aid",
        "ClassificationDataModule": "classification",
        "COCOInstances": "instances",
        "COCOInstancesDataModule": "instances_datamodule",
        "EuroSAT": "eurosat",
        "EuroSATDataModule": "eurosat",
        "EuroSATRGB": "eurosat",
        "ImageFolder": "image_folder",
        "ImageFolderDataModule": "image_folder",
        "LabelledScenes": "labelled",
        "LabelledScenesDataModule": "labelled_datamodule",
        "LEVIRCD": "levircd",
        "LEVIRCDDataModule": "levircd",
        "MillionAIDDataModule": "millionaid",
        "OSCD": "oscd",
        "OSCDDataModule": "oscd",
        "RESISC45": "resisc45",
        "RESISC45DataModule": "resisc45",
        "RotatedBatch": "rotation",
        "ScenePatches": "scene_patches",
        "ScenePatchesDataModule": "scene_patches_datamodule",
        "SemanticFolder": "semantic_folder",
        "SemanticFolderDataModule": "semantic_folder_datamodule",
        "SpaceNet1": "spacenet",
        "SpaceNet1DataModule": "spacenet_datamodule",
        "UCMerced": "ucmerced",
        "UCMercedDataModule": "ucmerced",
        "VHR10": "vhr10",
        "VHR10DataModule": "vhr10",
    },
)

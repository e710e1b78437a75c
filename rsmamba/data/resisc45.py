"""NWPU-RESISC45 with training-ratio splits, on TorchGeo's data set."""

from typing import ClassVar

from torchgeo.datamodules import RESISC45DataModule as TorchGeoRESISC45DataModule
from torchgeo.datasets import RESISC45 as TorchGeoRESISC45  # noqa: N811

from rsmamba.data.class_folders import ClassFolders
from rsmamba.data.classification import ClassificationDataModule

#: Folders of the classes, by index.
CLASSES = (
    "airplane",
    "airport",
    "baseball_diamond",
    "basketball_court",
    "beach",
    "bridge",
    "chaparral",
    "church",
    "circular_farmland",
    "cloud",
    "commercial_area",
    "dense_residential",
    "desert",
    "forest",
    "freeway",
    "golf_course",
    "ground_track_field",
    "harbor",
    "industrial_area",
    "intersection",
    "island",
    "lake",
    "meadow",
    "medium_residential",
    "mobile_home_park",
    "mountain",
    "overpass",
    "palace",
    "parking_lot",
    "railway",
    "railway_station",
    "rectangular_farmland",
    "river",
    "roundabout",
    "runway",
    "sea_ice",
    "ship",
    "snowberg",
    "sparse_residential",
    "stadium",
    "storage_tank",
    "tennis_court",
    "terrace",
    "thermal_power_station",
    "wetland",
)


class RESISC45(ClassFolders, TorchGeoRESISC45):
    """TorchGeo's NWPU-RESISC45, for any list of its images and any size.

    Without ``image_size`` samples equal TorchGeo's; the arguments are those of
    :class:`~rsmamba.data.class_folders.ClassFolders`.
    """

    images_dir = TorchGeoRESISC45.directory
    known_classes = CLASSES
    split_filenames: ClassVar[dict[str, str]] = {
        split: f"resisc45-{split}.txt" for split in ("train", "val", "test")
    }
    remedy = "set download=True"


class RESISC45DataModule(ClassificationDataModule):
    """NWPU-RESISC45 with a training-ratio split, with lists, or with TorchGeo's split files.

    ``protocol="ratio"``: ``train_ratio`` of each class may be trained on (validation is carved
    from it), the rest is the test set; papers use 0.1 and 0.2. ``protocol="files"``: as
    ``split_files`` list them, in RoMA's format or as plain names. ``protocol="torchgeo"``: the
    files ``resisc45-{train,val,test}.txt`` (arXiv 1911.06721).

    Images are 256 px at 0.2 to 30 m. Mean and deviation are TorchGeo's, of its training images.
    Predict runs over the test images.
    """

    dataset_type = RESISC45
    default_size = 256
    default_mean = TorchGeoRESISC45DataModule.mean.tolist()
    default_std = TorchGeoRESISC45DataModule.std.tolist()

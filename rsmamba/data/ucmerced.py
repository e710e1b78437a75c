"""UC Merced Land Use with training-ratio splits, on TorchGeo's data set."""

from typing import ClassVar

from torchgeo.datasets import UCMerced as TorchGeoUCMerced

from rsmamba.data.class_folders import ClassFolders
from rsmamba.data.classification import ClassificationDataModule

#: Folders of the classes, by index.
CLASSES = (
    "agricultural",
    "airplane",
    "baseballdiamond",
    "beach",
    "buildings",
    "chaparral",
    "denseresidential",
    "forest",
    "freeway",
    "golfcourse",
    "harbor",
    "intersection",
    "mediumresidential",
    "mobilehomepark",
    "overpass",
    "parkinglot",
    "river",
    "runway",
    "sparseresidential",
    "storagetanks",
    "tenniscourt",
)

#: Images that show the same ground (the first pair is one image under two names, the others
#: overlap by more than half): found by phase correlation of all pairs.
SAME_GROUND = (
    ("airplane01", "airplane02"),
    ("parkinglot24", "parkinglot36"),
    ("sparseresidential52", "sparseresidential55"),
    ("tenniscourt37", "tenniscourt44"),
)


class UCMerced(ClassFolders, TorchGeoUCMerced):
    """TorchGeo's UC Merced, for any list of its images and any size.

    With ``image_size=256`` samples equal TorchGeo's; the arguments are those of
    :class:`~rsmamba.data.class_folders.ClassFolders`.
    """

    images_dir = TorchGeoUCMerced.base_dir
    known_classes = CLASSES
    exact_size = 256
    remedy: ClassVar[str] = (
        "set download=True, or root='sample:ucmerced' for the small subset that is shipped"
    )


class UCMercedDataModule(ClassificationDataModule):
    """UC Merced with a training-ratio split, with lists, or with TorchGeo's split files.

    ``protocol="ratio"``: ``train_ratio`` of each class may be trained on (validation is carved
    from it), the rest is the test set; the split depends on ``split_seed`` and the file names
    alone. Images that show the same ground are kept on one side. ``protocol="files"``: as
    ``split_files`` list them, in RoMA's format or as plain names. ``protocol="torchgeo"``: the
    files ``uc_merced-{train,val,test}.txt`` (arXiv 1911.06721).

    Images are 256 px of one foot (0.3048 m). Predict runs over the test images.
    """

    dataset_type = UCMerced
    default_size = 256
    same_ground = SAME_GROUND
    ground = (0.3048, 256)

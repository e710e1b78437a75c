"""AID, the Aerial Image Dataset, with training-ratio splits."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from rsmamba.data.class_folders import ClassFolders
from rsmamba.data.classification import ClassificationDataModule
from rsmamba.data.torchgeo_aid import TorchGeoAID

#: Folders of the classes, by index.
CLASSES = (
    "Airport",
    "BareLand",
    "BaseballField",
    "Beach",
    "Bridge",
    "Center",
    "Church",
    "Commercial",
    "DenseResidential",
    "Desert",
    "Farmland",
    "Forest",
    "Industrial",
    "Meadow",
    "MediumResidential",
    "Mountain",
    "Park",
    "Parking",
    "Playground",
    "Pond",
    "Port",
    "RailwayStation",
    "Resort",
    "River",
    "School",
    "SparseResidential",
    "Square",
    "Stadium",
    "StorageTanks",
    "Viaduct",
)


class AID(ClassFolders, TorchGeoAID):
    """AID (:class:`~rsmamba.data.torchgeo_aid.TorchGeoAID`), for any list of its images and size.

    Without ``image_size`` samples equal those of the class in TorchGeo's manner; the arguments are
    those of :class:`~rsmamba.data.class_folders.ClassFolders`. The download is by hand, and no
    checksum of the archive is published.
    """

    images_dir = TorchGeoAID.directory
    known_classes = CLASSES
    remedy: ClassVar[str] = (
        "get AID.zip by hand from https://captain-whu.github.io/AID/ and put it into {root}, or "
        "unpack it there as AID/<Class>/<class>_<n>.jpg"
    )

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "val", "test"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split, **kwargs)


class AIDDataModule(ClassificationDataModule):
    """AID with a training-ratio split, with lists, or with split files in TorchGeo's manner.

    ``protocol="ratio"``: ``train_ratio`` of each class may be trained on (validation is carved
    from it), the rest is the test set; papers use 0.2 and 0.5. ``protocol="files"``: as
    ``split_files`` list them, in RoMA's format or as plain names. ``protocol="torchgeo"``: files
    ``aid-{train,val,test}.txt``, of which TorchGeo publishes none so far.

    Images are 600 px at 0.5 to 8 m, resized to 224 px as in the papers unless told otherwise.
    Predict runs over the test images.
    """

    dataset_type = AID
    default_size = 224

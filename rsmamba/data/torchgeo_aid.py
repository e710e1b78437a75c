"""AID as a data set of TorchGeo's: written to be sent there, and read through ``rsmamba.data.AID``.

It uses nothing of rsmamba, and follows ``torchgeo/datasets/resisc45.py``.
"""

import pathlib
from collections.abc import Callable
from typing import ClassVar, Literal

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torchgeo.datasets import DatasetNotFoundError, NonGeoClassificationDataset
from torchgeo.datasets.utils import Path, Sample, extract_archive


class TorchGeoAID(NonGeoClassificationDataset):
    """Aerial Image Dataset (AID).

    The `AID <https://captain-whu.github.io/AID/>`__ dataset is a dataset for aerial scene
    classification.

    Dataset features:

    * 10,000 images with 0.5-8 m per pixel resolution (600x600 px)
    * three spectral bands - RGB
    * 30 scene classes, 220 to 420 images per class
    * images extracted from Google Earth, of different sensors, seasons and countries, mainly China,
      the United States, England, France, Italy, Japan and Germany

    Dataset format:

    * images are three-channel jpgs

    Dataset classes (images):

    0. Airport (360)
    1. BareLand (310)
    2. BaseballField (220)
    3. Beach (400)
    4. Bridge (360)
    5. Center (260)
    6. Church (240)
    7. Commercial (350)
    8. DenseResidential (410)
    9. Desert (300)
    10. Farmland (370)
    11. Forest (250)
    12. Industrial (390)
    13. Meadow (280)
    14. MediumResidential (290)
    15. Mountain (340)
    16. Park (350)
    17. Parking (390)
    18. Playground (370)
    19. Pond (420)
    20. Port (380)
    21. RailwayStation (260)
    22. Resort (290)
    23. River (410)
    24. School (300)
    25. SparseResidential (300)
    26. Square (330)
    27. Stadium (290)
    28. StorageTanks (360)
    29. Viaduct (420)

    The dataset has no official train/val/test split: papers draw 20% or 50% of each class for
    training, at random. If ``aid-train.txt``, ``aid-val.txt`` and ``aid-test.txt`` are there, with
    a file name per line, *split* chooses one of them.

    The dataset is downloaded by hand from the page above, as ``AID.zip``, or unpacked as
    ``AID/<Class>/<class>_<n>.jpg``.

    If you use this dataset in your research, please cite the following paper:

    * https://doi.org/10.1109/TGRS.2017.2685945
    """

    filename = "AID.zip"
    directory = "AID"

    splits = ("train", "val", "test")
    split_filenames: ClassVar[dict[str, str]] = {
        "train": "aid-train.txt",
        "val": "aid-val.txt",
        "test": "aid-test.txt",
    }

    def __init__(
        self,
        root: Path = "data",
        split: Literal["train", "val", "test"] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Initialize a new AID dataset instance.

        Args:
            root: root directory where dataset can be found
            split: one of "train", "val", or "test", or None for all images
            transforms: a function/transform that takes input sample and its target as
                entry and returns a transformed version

        Raises:
            DatasetNotFoundError: If dataset or split file is not found.
        """
        assert split is None or split in self.splits  # noqa: S101
        self.root, self.split = pathlib.Path(root), split
        self._verify()

        names: set[str] | None = None
        if split is not None:
            names = set((self.root / self.split_filenames[split]).read_text().split())

        super().__init__(
            root=self.root / self.directory,
            transforms=transforms,
            is_valid_file=None if names is None else lambda path: pathlib.Path(path).name in names,
        )

    def _verify(self) -> None:
        """Verify the integrity of the dataset, extracting the archive if need be."""
        if self.split is not None and not (self.root / self.split_filenames[self.split]).exists():
            raise DatasetNotFoundError(self)
        if (self.root / self.directory).exists():
            return
        if not (self.root / self.filename).exists():
            raise DatasetNotFoundError(self)
        extract_archive(self.root / self.filename)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample from the dataset.

        Args:
            sample: a sample returned by :meth:`NonGeoClassificationDataset.__getitem__`
            show_titles: flag indicating whether to show titles above each panel
            suptitle: optional string to use as a suptitle

        Returns:
            a matplotlib Figure with the rendered sample
        """
        fig, ax = plt.subplots(figsize=(4, 4))
        ax.imshow(sample["image"].byte().permute(1, 2, 0))
        ax.axis("off")
        if show_titles:
            lines = [
                f"{key.capitalize()}: {self.classes[int(sample[key])]}"
                for key in ("label", "prediction")
                if key in sample
            ]
            ax.set_title("\n".join(lines))
        if suptitle is not None:
            fig.suptitle(suptitle)
        return fig

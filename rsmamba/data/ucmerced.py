"""UC Merced Land Use with training-ratio splits, on TorchGeo's data set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torchvision.transforms.functional as TF
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError
from torchgeo.datasets import UCMerced as TorchGeoUCMerced
from torchgeo.datasets.utils import Sample

from rsmamba.data.augment import ImageAugmentation
from rsmamba.data.datamodule import DataModule
from rsmamba.data.images import undecodable
from rsmamba.data.listing import IMAGE_SUFFIXES
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.splits import Manifest, stratified_split
from rsmamba.errors import ConfigError, DataNotFoundError, one_line
from rsmamba.samples import resolve

Protocol = Literal["ratio", "torchgeo"]

#: Images that show the same ground (the first pair is one image under two names, the others
#: overlap by more than half): found by phase correlation of all pairs.
SAME_GROUND = (
    ("airplane01", "airplane02"),
    ("parkinglot24", "parkinglot36"),
    ("sparseresidential52", "sparseresidential55"),
    ("tenniscourt37", "tenniscourt44"),
)


class UCMerced(TorchGeoUCMerced):
    """TorchGeo's UC Merced, for any list of images and any size.

    Samples are ``{"image": float32 (3, S, S) in 0..255, "label": int64 ()}``. With ``names=None``
    and ``image_size=256`` they equal TorchGeo's.

    Args:
        root: Folder that holds ``UCMerced_LandUse/Images``, or ``sample:ucmerced``.
        split: Which of TorchGeo's split files to read; ignored if ``names`` is given.
        names: File names (``airplane00.jpg``) to use instead of a split file.
        image_size: Side in pixels to which images are resized, once.
        transforms: Applied to each sample.
        download: Fetch the data if they are not there.
        checksum: Check the archive's SHA-256 after download.

    Raises:
        DataNotFoundError: If the images or the split file are not there.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "val", "test"] = "train",
        names: Sequence[str] | None = None,
        image_size: int = 256,
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        self.image_size = image_size
        folder = resolve(root)
        try:
            if names is None:
                super().__init__(folder, split, transforms, download, checksum)
                return
            self.root, self.download, self.checksum = folder, download, checksum
            self._verify()
            wanted = frozenset(names)
            # TorchGeo's constructor reads a split file; the one above it takes any selection.
            super(TorchGeoUCMerced, self).__init__(
                root=str(folder / self.base_dir),
                transforms=transforms,
                is_valid_file=lambda path: Path(path).name in wanted,
            )
        except DatasetNotFoundError as error:
            raise DataNotFoundError(
                f"no UC Merced images in {folder}: expected {self.base_dir}/<class>/<class>NN.tif "
                "there; set download=True, or root='sample:ucmerced' for a small subset"
            ) from error
        except DataNotFoundError:
            raise
        except FileNotFoundError as error:
            raise DataNotFoundError(
                f"UC Merced in {folder} is incomplete: {one_line(error)}"
            ) from error

    def _load_image(self, index: int) -> tuple[Tensor, Tensor]:
        """Image resized to ``image_size``, and label.

        Raises:
            ImageReadError: If the file cannot be decoded.
        """
        try:
            # Past TorchGeo's own resizing to 256: one interpolation is better than two.
            image, label = super(TorchGeoUCMerced, self)._load_image(index)
        except (OSError, SyntaxError) as error:
            raise undecodable(self.imgs[index][0], error) from error
        return TF.resize(image, [self.image_size, self.image_size], antialias=True), label


class UCMercedDataModule(DataModule):
    """UC Merced with a training-ratio split, or with TorchGeo's split files.

    ``protocol="ratio"``: ``train_ratio`` of each class may be trained on (validation is carved
    from it), the rest is the test set; the split depends on ``split_seed`` and the file names
    alone. Images that show the same ground are kept on one side. ``protocol="torchgeo"``: the
    files ``uc_merced-{train,val,test}.txt`` (arXiv 1911.06721).

    Batches are normalised on the device; training batches are flipped at random as well. Predict
    runs over the test images.

    Args:
        root: Folder that holds ``UCMerced_LandUse/Images``, or ``sample:ucmerced``.
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        protocol: Which split.
        train_ratio: Share of each class that is trained or validated on (ratio protocol).
        val_ratio: Share of the training images held back for validation; 0 for none.
        split_seed: Number of the split (ratio protocol).
        image_size: Side of the images in pixels.
        drop_last: Leave an incomplete last batch out of training, as TorchGeo does; a linear
            probe, which reads every image once, needs False.
        mean: Mean per band, in pixel units.
        std: Deviation per band, in pixel units.
        download: Fetch the data if they are not there.
        checksum: Check the archive's SHA-256 after download.

    Raises:
        ConfigError: If the protocol is unknown.
    """

    bands: tuple[str, ...] = ("red", "green", "blue")
    nodata: float | None = None

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        protocol: Protocol = "ratio",
        train_ratio: float = 0.5,
        val_ratio: float = 0.1,
        split_seed: int = 0,
        image_size: int = 256,
        drop_last: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        if protocol not in get_args(Protocol):
            raise ConfigError(f"protocol={protocol!r}: expected one of {get_args(Protocol)}")
        self.root = resolve(root)
        super().__init__(
            UCMerced,
            batch_size,
            num_workers,
            drop_last=drop_last,
            root=self.root,
            image_size=image_size,
            download=download,
            checksum=checksum,
        )
        self.protocol = protocol
        self.train_ratio, self.val_ratio, self.split_seed = train_ratio, val_ratio, split_seed
        self.image_size = image_size
        #: One foot, times the factor of the resizing from 256 px.
        self.gsd: float | None = 0.3048 * 256 / image_size
        self.set_normalisation(mean, std)
        self.train_aug = ImageAugmentation(self.mean, self.std)

    def _listing(self) -> dict[str, str]:
        """File name -> class of every image on disk."""
        images = self.root / UCMerced.base_dir
        found = {
            p.name: p.parent.name
            for p in images.glob("*/*")
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        }
        if not found:
            UCMerced(names=(), root=self.root)  # its message says what is missing
        return found

    def prepare_data(self) -> None:
        """Download and unpack, in one process only."""
        if self.kwargs["download"]:
            UCMerced(**self.kwargs)

    def setup(self, stage: str) -> None:
        """Build the splits that a stage needs.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            DataNotFoundError: If images or split files are missing.
            ConfigError: If the ratios leave a class empty.
        """
        self.classes = tuple(sorted(set(self._listing().values())))
        needed = {"fit": ("train", "val"), "validate": ("val",), "predict": ("test",)}
        split = self.split() if self.protocol == "ratio" else None
        options = {**self.kwargs, "download": False}
        for part in needed.get(stage, ("test",)):
            attribute = "predict_dataset" if stage == "predict" else f"{part}_dataset"
            if split is None:
                setattr(self, attribute, UCMerced(split=cast(Any, part), **options))
            elif split[part]:
                setattr(self, attribute, UCMerced(names=split[part], **options))

    def split(self) -> dict[str, list[str]]:
        """File names of the ratio split, by "train", "val" and "test".

        Raises:
            DataNotFoundError: If there are no images.
            ConfigError: If the ratios are out of range or leave a class empty.
        """
        listing = self._listing()
        # By stem, so that a copy in another format is split alike.
        names = {Path(name).stem: name for name in listing}
        split = stratified_split(
            {Path(name).stem: label for name, label in listing.items()},
            train_ratio=self.train_ratio,
            val_ratio=self.val_ratio,
            seed=self.split_seed,
            together=[[stem for stem in group if stem in names] for group in SAME_GROUND],
        )
        return {part: [names[stem] for stem in stems] for part, stems in split.items()}

    def manifest(self) -> Manifest:
        """Files of each split, with their classes.

        Raises:
            DataNotFoundError: If images or split files are missing.
        """
        options = {**self.kwargs, "download": False}
        split = self.split() if self.protocol == "ratio" else None
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for part in ("train", "val", "test"):
            if split is not None and not split[part]:
                files[part] = []
                continue
            names = None if split is None else split[part]
            data = UCMerced(split=part, names=names, **options)
            files[part] = [(Path(p), {"class": data.classes[label]}) for p, label in data.imgs]
        settings: dict[str, Any] = {"protocol": self.protocol}
        if self.protocol == "ratio":
            settings |= {
                "train_ratio": self.train_ratio,
                "val_ratio": self.val_ratio,
                "split_seed": self.split_seed,
            }
        return Manifest("UCMerced", self.root, settings, files)

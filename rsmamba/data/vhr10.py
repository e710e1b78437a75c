"""NWPU VHR-10 (ten classes of objects in overhead images) in TorchGeo's layout."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torchgeo.datasets
from torchgeo.datasets.utils import Sample, download_url

from rsmamba.data.archives import check_hash, extract
from rsmamba.data.instances import Annotated, COCOInstances, Flips
from rsmamba.data.instances_datamodule import InstancesDataModule, Splits
from rsmamba.data.listing import PHOTO_SUFFIXES, find_files
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.errors import ConfigError, DataNotFoundError, LabelError, one_line
from rsmamba.samples import resolve

#: TorchGeo's class, which knows where the files are and their checksums.
Stock = torchgeo.datasets.VHR10
#: Its folder, and those of images with objects and without.
FOLDER = "NWPU VHR-10 dataset"
POSITIVE, NEGATIVE = "positive image set", "negative image set"


class VHR10(COCOInstances):
    """NWPU VHR-10: 650 images with 3,775 objects of ten classes, and 150 images without any.

    Unlike :class:`torchgeo.datasets.VHR10`, which holds the masks of the whole set in memory, it
    draws them when a sample is asked for; it needs the archive only where the images are not
    unpacked. Labels are the set's own, 1 to 10.

    Args:
        root: Folder that holds ``NWPU VHR-10 dataset``, or its archive.
        negatives: Whether to append the images without objects.
        size: Longest side to which images, boxes and masks are resized; None to leave them.
        masks: Whether samples have masks.
        transforms: Applied to each sample.
        download: Fetch what is not there.
        checksum: Check the SHA-256 of archive and annotations when they are fetched or unpacked.
        convert: Convert images that are grey, CMYK or have alpha, which are refused otherwise.

    Raises:
        DataNotFoundError: If images or annotations are missing.
        ArchiveError: If a checksum is wrong, or the archive is damaged.
        LabelError: If the annotations are not those of the ten classes.
    """

    def __init__(
        self,
        root: str | Path = "data",
        negatives: bool = False,
        *,
        size: int | None = None,
        masks: bool = True,
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = True,
        convert: bool = False,
    ) -> None:
        self.root = resolve(root)
        folder = self.root / FOLDER
        file = folder / Stock.target_meta["filename"]
        if not (folder / POSITIVE).is_dir():
            self._unpack(download, checksum)
        if not file.is_file():
            if not download:
                raise DataNotFoundError(
                    f"no annotations {file}: set download=True, or fetch {Stock.target_meta['url']}"
                )
            _fetch(Stock.target_meta, folder, checksum)
        options = {"size": size, "masks": masks, "convert": convert, "transforms": transforms}
        super().__init__(folder / POSITIVE, file, **options)  # type: ignore[arg-type]
        given = tuple(name.replace("_", " ") for name in self.classes)
        if given != Stock.categories:
            raise LabelError(
                f"{file}: its categories are {', '.join(given[1:])}, not the ten of VHR-10; "
                "download it again"
            )
        self.classes, self.folder = Stock.categories, folder
        if negatives:
            found = find_files(folder / NEGATIVE, PHOTO_SUFFIXES)
            self.items = [*self.items, *(Annotated(path) for path in found)]

    def _unpack(self, download: bool, checksum: bool) -> None:
        """Unpack the archive, downloading it if that is asked for."""
        meta = Stock.image_meta
        archive = self.root / meta["filename"]
        if not archive.is_file():
            if not download:
                raise DataNotFoundError(
                    f"no VHR-10 in {self.root}: expected {FOLDER}/{POSITIVE}/*.jpg or "
                    f"{meta['filename']} there; set download=True, or fetch {meta['url']}"
                )
            _fetch(meta, self.root, False)  # checked below
        extract(archive, self.root, sha256=meta["sha256"] if checksum else None)
        if not (self.root / FOLDER / POSITIVE).is_dir():
            raise DataNotFoundError(f"{archive}: holds no folder {FOLDER}/{POSITIVE}")


def _fetch(meta: dict[str, str], folder: Path, checksum: bool) -> None:
    """Download a file of the set."""
    try:
        download_url(meta["url"], folder, meta["filename"])
    except (OSError, RuntimeError) as error:
        raise DataNotFoundError(
            f"cannot download {meta['url']} to {folder} ({one_line(error)}): fetch it by hand"
        ) from error
    if checksum:
        check_hash(folder / meta["filename"], "sha256", meta["sha256"])


class VHR10DataModule(InstancesDataModule):
    """NWPU VHR-10 with a seeded split.

    The set has no split of its own: ``test_ratio`` of the images are the test set, ``val_ratio``
    the validation set (TorchGeo's shares), by file name and ``split_seed`` alone. Images are
    resized so that their longest side is ``size``, then padded in the batch. ``classes`` has the
    background first: TorchGeo's tasks want ``num_classes`` 11. Predict runs over the test images.

    Args:
        root: Folder that holds ``NWPU VHR-10 dataset``, or its archive.
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        size: Longest side of the images in pixels; None to leave them as they are.
        masks: Whether samples have masks.
        negatives: Whether to add the 150 images without objects; they are split alike.
        val_ratio: Share of the images for validation; 0 for none.
        test_ratio: Share of the images for test.
        split_seed: Number of the split; also seed of mirroring and order.
        flips: "horizontal" mirrors half of the training images left to right, "both" also half of
            them top to bottom, "none" leaves them.
        colour_jitter: Vary contrast and brightness of training images by up to this much.
        mean: Mean per band, in pixel units.
        std: Deviation per band, in pixel units.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        download: Fetch the data if they are not there.
        checksum: Check the SHA-256 of what is fetched or unpacked.
        convert: Convert images that are grey, CMYK or have alpha, which are refused otherwise.

    Raises:
        ConfigError: If the shares leave nothing to train on.
    """

    classes = Stock.categories

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 4,
        num_workers: int = 0,
        size: int | None = 512,
        masks: bool = True,
        negatives: bool = False,
        val_ratio: float = 0.2,
        test_ratio: float = 0.2,
        split_seed: int = 0,
        flips: Flips = "both",
        colour_jitter: float = 0.1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        spec: str | Path | None = None,
        download: bool = False,
        checksum: bool = True,
        convert: bool = False,
    ) -> None:
        if not 0 <= val_ratio < 1 or not 0 < test_ratio < 1 or val_ratio + test_ratio >= 1:
            raise ConfigError(
                f"val_ratio={val_ratio} and test_ratio={test_ratio} leave nothing to train on, or "
                "nothing to judge by"
            )
        super().__init__(
            batch_size,
            num_workers,
            flips,
            colour_jitter,
            split_seed,
            mean,
            std,
            spec,
            negatives=negatives,
            size=size,
            masks=masks,
            download=download,
            checksum=checksum,
            convert=convert,
        )
        self.root = resolve(root)
        self.val_ratio, self.test_ratio, self.split_seed = val_ratio, test_ratio, split_seed

    def prepare_data(self) -> None:
        """Download and unpack, in one process only."""
        if self.kwargs["download"]:
            VHR10(self.root, **self.kwargs)

    def _open(self) -> Splits:
        data = VHR10(self.root, **{**self.kwargs, "download": False})
        rest, test = self.held_out(data, self.test_ratio)
        split: Splits = {"train": rest, "val": None, "test": test, "predict": test}
        if self.val_ratio:
            share = self.val_ratio / (1 - self.test_ratio)
            split["train"], split["val"] = self.held_out(rest, share)
        return split

    def settings(self) -> dict[str, Any]:
        """What determines the splits, for the manifest."""
        return {
            "val_ratio": self.val_ratio,
            "test_ratio": self.test_ratio,
            "split_seed": self.split_seed,
            "negatives": self.kwargs["negatives"],
        }

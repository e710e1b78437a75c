"""Data modules for objects with boxes and masks: what they share, and COCO's format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsmamba.data.augment import ImageAugmentation
from rsmamba.data.collate import PadCollate
from rsmamba.data.datamodule import DataModule
from rsmamba.data.instances import Annotated, COCOInstances, Flips
from rsmamba.data.listing import PHOTO_SUFFIXES, RASTER_SUFFIXES, common_root, find_files
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import ConfigError
from rsmamba.samples import resolve

#: Files of which the manifest gives hashes; reading more takes too long.
HASHED = 10_000
Splits = dict[str, COCOInstances | None]


class InstancesDataModule(DataModule):
    """What data modules for objects share; a subclass says what belongs to which split.

    Images of a batch are padded at the bottom and on the right to the largest of them, rounded up
    to a multiple of 32 px; boxes, labels and masks are lists of tensors, one for each image, as
    TorchGeo's tasks take them.

    Args:
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        flips: "horizontal" mirrors half of the training images left to right, "both" also half of
            them top to bottom, "none" leaves them.
        colour_jitter: Vary contrast and brightness of training images by up to this much.
        seed: Of the split, the mirroring and the order.
        mean: Mean per band, in pixel units.
        std: Deviation per band, in pixel units.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        **kwargs: Options of :class:`~rsmamba.data.instances.COCOInstances`.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        flips: Flips,
        colour_jitter: float,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        spec: str | Path | None,
        **kwargs: Any,
    ) -> None:
        size = kwargs.get("size")
        if size is not None and size < 1:
            raise ConfigError(f"size={size} must be positive, or null to leave images as they are")
        super().__init__(COCOInstances, batch_size, num_workers, seed=seed, **kwargs)
        self.flips, self.seed = flips, seed
        self.set_normalisation(mean, std, spec)
        self.train_aug = ImageAugmentation(self.mean, self.std, False, colour_jitter)
        self.collate_fn = PadCollate(self.mean)
        self._split: Splits | None = None

    def _open(self) -> Splits:
        """The data sets under "train", "val", "test" and "predict"; None where there is none."""
        raise NotImplementedError

    def splits(self) -> Splits:
        """The data sets under "train", "val", "test" and "predict"; None where there is none.

        Raises:
            RsmambaError: As the data set.
            ConfigError: If there are too few images to divide.
        """
        if self._split is None:
            self._split = self._open()
        return self._split

    def setup(self, stage: str) -> None:
        """Read the annotations and build the data sets.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: As :meth:`splits`.
            ConfigError: If there is nothing to test on, or too little for a batch.
        """
        split = self.splits()
        assert split["train"] is not None  # noqa: S101 - every data module trains
        self.classes = split["train"].classes
        if stage == "fit":
            self.train_dataset = self._sized(split["train"].random(self.flips, self.seed))
        if stage in ("fit", "validate"):
            self.val_dataset = split["val"]
        for part in ("test", "predict"):
            if stage == part:
                if split[part] is None:
                    raise ConfigError(f"nothing to {part} on: hold images back, or name a test set")
                setattr(self, f"{part}_dataset", split[part])

    def held_out(self, data: COCOInstances, share: float) -> tuple[COCOInstances, COCOInstances]:
        """A data set divided into (kept, held out), by file name and seed alone.

        Raises:
            ConfigError: If the share is out of range, or there are fewer than two images.
        """
        names = [item.path.relative_to(data.folder).as_posix() for item in data.items]
        held = take_share(dict.fromkeys(names, 1.0), share, self.seed)
        chosen: tuple[list[int], list[int]] = ([], [])
        for i, name in enumerate(names):
            chosen[name in held].append(i)
        return data.subset(chosen[0]), data.subset(chosen[1])

    def report(self) -> str | None:
        """Images and objects in each split, in one line.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        if self.kwargs.get("download"):  # which happens later
            return None
        split, lines = self.splits(), []
        for part in ("train", "val", "test"):
            data = split[part]
            if data is not None:
                objects = sum(len(item.boxes) for item in data.items)
                alike = part == "test" and data is split["val"]
                lines.append(
                    f"{part}: {'as val' if alike else f'{len(data)} images ({objects} objects)'}"
                )
        return "; ".join(lines)

    def settings(self) -> dict[str, Any]:
        """What determines the splits, for the manifest."""
        return {"seed": self.seed}

    def manifest(self) -> Manifest:
        """Images of each split; with hashes if there are at most 10,000.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        split = self.splits()
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for part in ("train", "val", "test"):
            data = split[part]
            seen = part == "test" and data is split["val"]
            items: list[Annotated] = [] if data is None or seen else data.items
            files[part] = [(item.path, {"objects": len(item.boxes)}) for item in items]
        everything = [path for entries in files.values() for path, _ in entries]
        train = split["train"]
        settings = self.settings() | {
            "classes": list(train.classes if train else ()),
            "dropped": dict(train.dropped) if train else {},
        }
        name = type(self).__name__.removesuffix("DataModule")
        hashed = len(everything) <= HASHED
        return Manifest(name, common_root(everything), settings, files, hashed)


class COCOInstancesDataModule(InstancesDataModule):
    """Object detection and instance segmentation from any annotations of COCO's format.

    Each image is resized so that its longest side is ``size``; boxes and masks with it. Images of
    a batch are padded at the bottom and on the right to the largest of them. ``classes`` has the
    background first: TorchGeo's tasks want ``num_classes`` with it.

    Test is the validation set where none is given. Predict runs over ``predict_images``, or over
    the test images.

    Args:
        root: Folder to which all others are relative.
        train_images: Folder of training images.
        train_annotations: Their annotations.
        val_images: Folder of validation images; None to hold ``val_ratio`` of the training images
            back instead.
        val_annotations: Their annotations.
        test_images: Folder of test images; None for those of validation.
        test_annotations: Their annotations.
        predict_images: Folder of images without annotations; None for those of the test.
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        size: Longest side of the images in pixels; None to leave them as they are.
        masks: Whether samples have masks; False for annotations with boxes only.
        keep_empty: Whether training images without objects are kept.
        flips: "horizontal" mirrors half of the training images left to right, "both" also half of
            them top to bottom, "none" leaves them.
        colour_jitter: Vary contrast and brightness of training images by up to this much.
        val_ratio: Share of the training images that is held back if there are no ``val_images``; 0
            for none.
        seed: Of the split, the mirroring and the order.
        convert: Whether grey and CMYK images and such with alpha are converted to red, green and
            blue rather than refused. COCO has a few grey ones.
        mean: Mean per band, in pixel units.
        std: Deviation per band, in pixel units.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.

    Raises:
        ConfigError: If options contradict each other.
    """

    def __init__(
        self,
        root: str | Path = "data",
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str | None = "val2017",
        val_annotations: str | None = "annotations/instances_val2017.json",
        test_images: str | None = None,
        test_annotations: str | None = None,
        predict_images: str | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        size: int | None = 800,
        masks: bool = True,
        keep_empty: bool = True,
        flips: Flips = "horizontal",
        colour_jitter: float = 0.1,
        val_ratio: float = 0.1,
        seed: int = 0,
        convert: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        spec: str | Path | None = None,
    ) -> None:
        self.folders = {
            "train": (train_images, train_annotations),
            "val": (val_images, val_annotations),
            "test": (test_images, test_annotations),
        }
        for part, (images, annotations) in self.folders.items():
            if (images is None) is not (annotations is None):
                raise ConfigError(f"give both {part}_images and {part}_annotations, or neither")
        if not 0 <= val_ratio < 1:
            raise ConfigError(f"val_ratio={val_ratio} must be in [0, 1)")
        super().__init__(
            batch_size,
            num_workers,
            flips,
            colour_jitter,
            seed,
            mean,
            std,
            spec,
            size=size,
            masks=masks,
            convert=convert,
        )
        self.root = resolve(root)
        self.keep_empty, self.val_ratio = keep_empty, val_ratio
        self.predict_images = predict_images

    def _open(self) -> Splits:
        split: Splits = {}
        for part, (images, annotations) in self.folders.items():
            split[part] = None
            if images is not None and annotations is not None:
                split[part] = COCOInstances(
                    self.root / images,
                    self.root / annotations,
                    keep_empty=self.keep_empty or part != "train",
                    **self.kwargs,
                )
        train = split["train"]
        assert train is not None  # noqa: S101 - it always has a folder
        if split["val"] is None and self.val_ratio:
            split["train"], split["val"] = self.held_out(train, self.val_ratio)
        if other := [p for p, data in split.items() if data and data.classes != train.classes]:
            raise ConfigError(
                f"{self.folders[other[0]][1]}: its categories are not those of "
                f"{self.folders['train'][1]}; make them alike"
            )
        if split["test"] is None:
            split["test"] = split["val"]
        split["predict"] = split["test"]
        if self.predict_images is not None:
            found = find_files(self.root / self.predict_images, PHOTO_SUFFIXES | RASTER_SUFFIXES)
            split["predict"] = train.of([Annotated(path) for path in found])
        return split

    def settings(self) -> dict[str, Any]:
        """What determines the splits, for the manifest."""
        folders = {part: list(pair) for part, pair in self.folders.items()}
        return {"folders": folders, "val_ratio": self.val_ratio, **super().settings()}

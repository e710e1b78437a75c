"""Data module for folders of images and masks, trained on as mmsegmentation does on ADE20K."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rsmamba.data.augment import SegmentationAugmentation
from rsmamba.data.collate import PadCollate
from rsmamba.data.datamodule import DataModule
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.semantic_folder import RandomCrop, SemanticFolder, names_of
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import ConfigError
from rsmamba.samples import resolve

Flips = Literal["none", "horizontal", "all"]
#: Files of which the manifest gives hashes; reading more takes too long.
HASHED = 10_000


class SemanticFolderDataModule(DataModule):
    """Semantic segmentation from folders of images and masks, ADE20K's layout by default.

    Training follows mmsegmentation's recipe for ADE20K: every image once in an epoch, at a random
    scale, in a random window in which no class has more than ``max_share``, mirrored half of the
    time; what its photometric distortion does is left to ``colour_jitter``. Validation, test and
    prediction take whole images, resized so that the short side is ``eval_size`` and padded in
    the batch to a multiple of 32 px, with 255 in the mask. The mask is resized alike (nearest),
    where mmsegmentation resizes its scores to the size of the mask: set ``eval_size`` to None to
    score at the original size.

    Test is the validation set where no ``test_images`` are given, as on ADE20K. Predict runs over
    ``predict_images``, or over the test images.

    Args:
        root: Folder to which all others are relative.
        classes: Names of the classes, or how many there are.
        train_images: Folder of training images.
        train_masks: Folder of their masks.
        val_images: Folder of validation images; None to hold ``val_ratio`` of the training
            images back instead.
        val_masks: Folder of their masks.
        test_images: Folder of test images; None for those of validation.
        test_masks: Folder of their masks.
        predict_images: Folder of images without masks; None for those of the test.
        reduce_zero_label: Whether 0 means unlabelled and classes start at 1, as in ADE20K.
        mask_suffix: What the name of a mask has more than that of its image, e.g. ``_mask``.
        batch_size: Windows in a training batch.
        eval_batch_size: Images in any other batch; more than one are padded to the largest.
        num_workers: Worker processes that load images.
        crop_size: Side of the training windows in pixels.
        scale: Least and greatest factor by which training images are resized.
        short_side: Size of the short side at factor 1; that of the image if None.
        max_share: Greatest share of one class in a training window; 1 to take any window.
        flips: "horizontal" mirrors left to right; "all" also turns by quarters and upside down,
            for images without an upright; "none" does neither.
        colour_jitter: Vary contrast and brightness of training windows by up to this much.
        eval_size: Size of the short side outside training; None for images as they are.
        val_ratio: Share of the training images that is held back if there is no ``val_images``;
            0 for none.
        seed: Of the split, the windows and the order.
        convert: Whether grey and CMYK images and such with alpha are converted to red, green and
            blue rather than refused. ADE20K has a few grey ones.
        mean: Mean per band, in pixel units.
        std: Deviation per band, in pixel units.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.

    Raises:
        ConfigError: If options contradict each other.
        LabelError: If there are no classes or too many.
    """

    def __init__(
        self,
        root: str | Path = "data",
        classes: Sequence[str] | int = 150,
        train_images: str = "images/training",
        train_masks: str = "annotations/training",
        val_images: str | None = "images/validation",
        val_masks: str | None = "annotations/validation",
        test_images: str | None = None,
        test_masks: str | None = None,
        predict_images: str | None = None,
        reduce_zero_label: bool = False,
        mask_suffix: str = "",
        batch_size: int = 16,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        crop_size: int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        short_side: int | None = 512,
        max_share: float = 0.75,
        flips: Flips = "horizontal",
        colour_jitter: float = 0.1,
        eval_size: int | None = 512,
        val_ratio: float = 0.1,
        seed: int = 0,
        convert: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        spec: str | Path | None = None,
    ) -> None:
        pairs = {"val": (val_images, val_masks), "test": (test_images, test_masks)}
        for part, (images, masks) in pairs.items():
            if (images is None) is not (masks is None):
                raise ConfigError(f"give both {part}_images and {part}_masks, or neither")
        if not 0 <= val_ratio < 1 or (eval_size is not None and eval_size < 1):
            raise ConfigError(f"val_ratio={val_ratio} must be in [0, 1), eval_size={eval_size} > 0")
        self.crop = RandomCrop(crop_size, scale, short_side, max_share, flips != "none")
        self.classes = names_of(classes)
        super().__init__(
            SemanticFolder,
            batch_size,
            num_workers,
            seed=seed,
            classes=self.classes,
            reduce_zero_label=reduce_zero_label,
            mask_suffix=mask_suffix,
            convert=convert,
        )
        self.root = resolve(root)
        self.folders: dict[str, tuple[str | None, str | None]] = {
            "train": (train_images, train_masks),
            **pairs,
            "predict": (predict_images, None),
        }
        self.val_batch_size = self.test_batch_size = self.predict_batch_size = eval_batch_size
        self.eval_size, self.val_ratio, self.seed = eval_size, val_ratio, seed
        self.set_normalisation(mean, std, spec)
        self.collate_fn = PadCollate(self.mean, windows=(crop_size,))
        self.train_aug = SegmentationAugmentation(
            self.mean, self.std, 0.0, colour_jitter, flips=flips == "all"
        )

    def _folder(self, part: str) -> SemanticFolder | None:
        """All images of a split's folders; None if it has none of its own."""
        images, masks = self.folders[part]
        if images is None:
            return None
        own = None if masks is None else self.root / masks
        return SemanticFolder(self.root / images, own, **self.kwargs)

    def splits(self) -> dict[str, SemanticFolder | None]:
        """Whole images under "train", "val" and "test"; None where a split has none.

        Raises:
            RsmambaError: As :class:`SemanticFolder`.
            ConfigError: If there are too few images to hold some back.
        """
        train, val, test = (self._folder(part) for part in ("train", "val", "test"))
        assert train is not None  # noqa: S101 - it always has folders
        if val is None and self.val_ratio:
            held = take_share(dict.fromkeys(train.names, 1.0), self.val_ratio, self.seed)
            val = train.subset(sorted(held))
            train = train.subset([name for name in train.names if name not in held])
        return {"train": train, "val": val, "test": val if test is None else test}

    def setup(self, stage: str) -> None:
        """Build the data sets.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: As :class:`SemanticFolder`.
            ConfigError: If there are too few images to hold some back, or none to test on.
        """
        split = self.splits()
        if stage == "fit":
            assert split["train"] is not None  # noqa: S101 - it always has folders
            self.train_dataset = self._sized(split["train"].random(self.crop, self.seed, self.mean))
        if stage in ("fit", "validate"):
            self.val_dataset = self._whole(split["val"])
        for part in ("test", "predict"):
            if stage == part:
                own = self._folder("predict") if part == "predict" else None
                data = self._whole(split["test"] if own is None else own)
                if data is None:
                    raise ConfigError(
                        f"nothing to {part} on: set {part}_images, val_images or val_ratio"
                    )
                setattr(self, f"{part}_dataset", data)

    def _whole(self, data: SemanticFolder | None) -> SemanticFolder | None:
        if data is not None:
            data.short_side = self.eval_size
        return data

    def report(self) -> str:
        """Images in each split, in one line.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        split = self.splits()
        counts = {part: f"{len(data)} images" for part, data in split.items() if data is not None}
        if "test" in counts and split["test"] is split["val"]:
            counts["test"] = "as val"
        return "; ".join(f"{part}: {count}" for part, count in counts.items())

    def manifest(self) -> Manifest:
        """Images and masks of each split; with hashes if there are at most 10,000.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        split = self.splits()
        if split["test"] is split["val"]:
            split["test"] = None
        for part, data in split.items():
            files[part] = []
            if data is not None:
                pairs = zip(data.images, data.masks, strict=True)
                names = [(image, mask.relative_to(self.root).as_posix()) for image, mask in pairs]
                files[part] = [(image, {"mask": mask}) for image, mask in names]
        settings = {
            "folders": {part: list(pair) for part, pair in self.folders.items()},
            "reduce_zero_label": self.kwargs["reduce_zero_label"],
            "val_ratio": self.val_ratio,
            "seed": self.seed,
            "classes": list(self.classes),
        }
        hashed = sum(map(len, files.values())) <= HASHED
        return Manifest("SemanticFolder", self.root, settings, files, hashed)

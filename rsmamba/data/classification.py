"""Data modules of scene classification: honest splits of images in class folders."""

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from rsmamba.data.augment import ImageAugmentation
from rsmamba.data.class_folders import ClassFolders, RandomView, collate
from rsmamba.data.datamodule import DataModule
from rsmamba.data.listing import some
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.options import one_of, positive, share
from rsmamba.data.split_files import Listing, duplicates, list_images, read_splits
from rsmamba.data.splits import Manifest, divide, stratified_split
from rsmamba.errors import ConfigError
from rsmamba.samples import resolve

_LOG = logging.getLogger(__name__)

Protocol = Literal["ratio", "files", "torchgeo"]
Flips = Literal["all", "horizontal", "none"]
Duplicates = Literal["manifest", "warn", "error", "never"]

#: Stage -> splits that it reads.
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
#: Files above which a manifest names no hashes, which would take hours to compute.
HASHED = 200_000


class ClassificationDataModule(DataModule):
    """A classification set with a training-ratio split, listed splits, or TorchGeo's.

    ``protocol="ratio"``, the papers' "TR = 50 %": ``train_ratio`` of each class may be trained on
    (validation is carved from it), the rest is the test set. The split depends on ``split_seed``
    and the file names alone, and is the same on every machine. Images that show the same ground
    stay on one side. ``protocol="files"``: the images that ``split_files`` list, see
    :func:`~rsmamba.data.split_files.read_splits`. ``protocol="torchgeo"``: the split files that
    TorchGeo reads.

    Batches are normalised on the device; training batches are flipped at random as well. Predict
    runs over the test images. A subclass names the data set and its facts.

    Args:
        root: Folder that holds the set or its archive, or a ``sample:`` path.
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        protocol: Which split.
        train_ratio: Share of each class that is trained or validated on (ratio).
        val_ratio: Share of the training images held back for validation; 0 for none. With split
            files, only if they list no validation images.
        split_seed: Number of the split (ratio), and of the order of training.
        stratified: Whether the ratios hold for each class (ratio), or for all images together.
        split_files: Lists under "train", "test" and perhaps "val" (files); paths are looked up
            from here, then from the root.
        image_size: Side of the images in pixels; None for what the set is normally used at.
        crop_scale: [least, greatest] share of the area of a random crop that is resized to
            ``image_size`` in training; None for the whole image.
        flips: Turn and flip training images ("all", as overhead images have no upright), mirror
            them ("horizontal"), or neither ("none").
        colour_jitter: Vary contrast and brightness of training images by up to this much.
        convert: Convert grey, CMYK and images with alpha to red, green and blue instead of refusing
            them.
        drop_last: Leave an incomplete last batch out of training, as TorchGeo does; a linear
            probe, which reads every image once, needs False.
        check_duplicates: Look for byte-identical images in two splits: "manifest" warns of them
            when a manifest is written, "warn" at setup as well, "error" refuses them, "never".
        mean: Mean per band, in pixel units; None for what the set normally takes.
        std: Deviation per band, in pixel units; None likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        download: Fetch the data if they are not there and the set can be fetched.
        checksum: Check the archive's SHA-256 before it is unpacked, where it is known.

    Raises:
        ConfigError: If options are unknown or contradict each other.
    """

    dataset_type: type[ClassFolders] = ClassFolders
    protocols: ClassVar[Any] = Protocol
    #: What stands for None in the options.
    default_size: ClassVar[int | None] = None
    default_mean: Sequence[float] = IMAGENET_MEAN
    default_std: Sequence[float] = IMAGENET_STD
    #: File names without suffix of images that show the same ground.
    same_ground: ClassVar[Sequence[Sequence[str]]] = ()
    #: Whether file names tell images apart without their folder: splits then depend on them alone.
    named_apart: ClassVar[bool] = True
    #: Metres to the pixel of the files, and their side in pixels.
    ground: ClassVar[tuple[float, int] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a class that adds no options describe those that it has."""
        super().__init_subclass__(**kwargs)
        base = ClassificationDataModule.__doc__
        if "__init__" not in vars(cls) and cls.__doc__ and "Args:" not in cls.__doc__ and base:
            cls.__doc__ += base[base.index("\n    Args:") :]

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        protocol: Protocol = "ratio",
        train_ratio: float = 0.5,
        val_ratio: float = 0.1,
        split_seed: int = 0,
        stratified: bool = True,
        split_files: Mapping[str, str | Path] | None = None,
        image_size: int | None = None,
        crop_scale: Sequence[float] | None = None,
        flips: Flips = "all",
        colour_jitter: float = 0.0,
        convert: bool = False,
        drop_last: bool = True,
        check_duplicates: Duplicates = "manifest",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        spec: str | Path | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        one_of("protocol", protocol, self.protocols)
        one_of("flips", flips, Flips)
        one_of("check_duplicates", check_duplicates, Duplicates)
        positive("image_size", image_size)
        share("val_ratio", val_ratio)
        self.root = resolve(root)
        self.image_size = image_size or self.default_size
        super().__init__(
            self.dataset_type,
            batch_size,
            num_workers,
            seed=split_seed,
            drop_last=drop_last,
            root=self.root,
            image_size=self.image_size,
            convert=convert,
            download=download,
            checksum=checksum,
        )
        self.collate_fn = collate
        self.protocol = protocol
        self.train_ratio, self.val_ratio, self.split_seed = train_ratio, val_ratio, split_seed
        self.stratified, self.check_duplicates = stratified, check_duplicates
        self.split_files = self._split_files(split_files)
        self.view = self._view(crop_scale, flips)
        if self.ground is not None:
            metres, side = self.ground
            self.gsd = metres * side / (self.image_size or side)
        self.set_normalisation(
            self.default_mean if mean is None else mean,
            self.default_std if std is None else std,
            spec,
        )
        self.train_aug = ImageAugmentation(self.mean, self.std, flips == "all", colour_jitter)
        self._checked = check_duplicates in ("manifest", "never")
        self._carved = False

    def _split_files(self, files: Mapping[str, str | Path] | None) -> dict[str, Path]:
        """The lists, where they are."""
        if (files is None) is (self.protocol == "files"):
            raise ConfigError(
                "protocol='files' and split_files go together: give both or neither "
                f"(protocol={self.protocol!r}, split_files={files})"
            )
        if files is None:
            return {}
        if not {"train", "test"} <= set(files) <= {"train", "val", "test"}:
            raise ConfigError(
                f"split_files has {', '.join(files) or 'nothing'}: expected a file each for train "
                "and test, and perhaps val"
            )
        found = {}
        for split in ("train", "val", "test"):
            if split in files:
                path = resolve(files[split])
                found[split] = path if path.exists() else self.root / path
        return found

    def _view(self, crop_scale: Sequence[float] | None, flips: Flips) -> RandomView | None:
        """What training images are drawn by, if by anything."""
        if crop_scale is None and flips != "horizontal":
            return None
        scale: tuple[float, float] | None = None
        if crop_scale is not None:
            if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
                raise ConfigError(f"crop_scale={crop_scale}: expected two shares, as [0.2, 1.0]")
            scale = (crop_scale[0], crop_scale[1])
        if self.image_size is None:
            raise ConfigError("crops and mirrored images need a common size: set image_size")
        return RandomView(scale, flip=flips == "horizontal", seed=self.split_seed)

    @cached_property
    def listing(self) -> Listing:
        """All images on disk, listed once.

        Raises:
            DataNotFoundError: If there are none.
            ArchiveError: If their archive cannot be unpacked.
            LabelError: If a folder is no class of the set.
        """
        known = self.dataset_type.known_classes
        listing = list_images(self._folder(), known=known)
        there = set(listing.labels.values())
        if missing := [name for i, name in enumerate(listing.classes) if i not in there]:
            _LOG.warning(
                "%s: no images of %d of the %d classes of %s (%s); the others keep their numbers",
                listing.folder,
                len(missing),
                len(listing.classes),
                self.dataset_type.__name__,
                some(missing, 3),
            )
        return listing

    def _folder(self) -> Path:
        """Folder of the class folders, once they are there."""
        return self.dataset_type(**self.kwargs, names=(), listing=Listing(self.root, (), {})).folder

    def prepare_data(self) -> None:
        """Fetch and unpack, in one process only.

        Raises:
            RsmambaError: As the data set.
        """
        self._folder()

    def setup(self, stage: str) -> None:
        """Build the splits that a stage needs.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            DataNotFoundError: If images or split files are missing.
            LabelError: If a folder is no class of the set, or a split file contradicts the folders.
            ConfigError: If the ratios leave a class empty, or an image is in two splits.
        """
        self.classes = self.listing.classes
        splits = self.split()
        if not self._checked:
            self._report_duplicates(refuse=self.check_duplicates == "error")
            self._checked = True
        for part in _STAGES[stage]:
            attribute = "predict_dataset" if stage == "predict" else f"{part}_dataset"
            # Without test images the validation images are tested on, as on ImageNet.
            names = splits[part] or (splits["val"] if part == "test" else [])
            if not names and part == "test":
                raise ConfigError(f"{self.root}: no images are left to test on; change the split")
            setattr(self, attribute, self._dataset(names, part) if names else None)

    def _dataset(self, names: Sequence[str], part: str) -> ClassFolders:
        """The data set of some images."""
        view = {"view": self.view} if part == "train" else self._evaluation()
        data = self.dataset_type(
            **{**self.kwargs, "download": False}, names=names, listing=self.listing, **view
        )
        data.compact = True
        return data

    def _evaluation(self) -> dict[str, Any]:
        """How images are fitted that are not trained on."""
        return {}

    def split(self) -> dict[str, list[str]]:
        """Images of each split, relative to the folder of the class folders.

        Raises:
            DataNotFoundError: If images or split files are missing.
            LabelError: If a split file contradicts the folders.
            ConfigError: If the ratios leave a class empty, or an image is in two splits.
        """
        return self._split

    @cached_property
    def _split(self) -> dict[str, list[str]]:
        if self.protocol == "ratio":
            return self._in_order(self._ratio_split())
        if self.protocol == "files":
            return self._in_order(self._listed_split())
        return self._in_order(self._stock_split())

    def _in_order(self, splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The splits in the order of the listing; disjoint, or an error."""
        owner: dict[str, str] = {}
        for part, names in splits.items():
            for name in names:
                if owner.setdefault(name, part) != part:
                    raise ConfigError(
                        f"{self.listing.folder / name} is in the {owner[name]} split and in the "
                        f"{part} split; take it out of one"
                    )
        ordered: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for name in self.listing.labels:
            if name in owner:
                ordered[owner[name]].append(name)
        return ordered

    def _ratio_split(self) -> dict[str, list[str]]:
        keys = self._keys()
        split = stratified_split(
            {key: self._stratum(name) for key, name in keys.items()},
            train_ratio=self.train_ratio,
            val_ratio=self.val_ratio,
            seed=self.split_seed,
            together=self.same_ground,
        )
        return {part: [keys[key] for key in part_keys] for part, part_keys in split.items()}

    def _listed_split(self) -> dict[str, list[str]]:
        splits = read_splits(self.split_files, self.listing)
        return splits if "val" in splits else self._carve(splits)

    def _stock_split(self) -> dict[str, list[str]]:
        data = self.dataset_type(**self.kwargs, names=(), listing=self.listing)
        if not hasattr(data, "split_filenames"):
            raise ConfigError(
                f"TorchGeo has no split of {self.dataset_type.__name__}: set protocol='ratio'"
            )
        return {part: data.split_names(part) for part in data.split_filenames}

    def _carve(self, splits: dict[str, list[str]]) -> dict[str, list[str]]:
        """Hold back ``val_ratio`` of the training images."""
        self._carved = True
        wanted = set(splits["train"])
        keys = {key: name for key, name in self._keys().items() if name in wanted}
        strata = {key: self._stratum(name) for key, name in keys.items()}
        val, train = divide(strata, self.val_ratio, self.split_seed, self.same_ground)
        return {**splits, "train": [keys[k] for k in train], "val": [keys[k] for k in val]}

    def _stratum(self, name: str) -> str:
        listing = self.listing
        return listing.classes[listing.labels[name]] if self.stratified else "(all)"

    def _keys(self) -> dict[str, str]:
        """What a split depends on -> image.

        Raises:
            ConfigError: If two images of a set whose names tell them apart go by one name.
        """
        keys: dict[str, str] = {}
        for name in self.listing.labels:
            # Without suffix, so that a copy in another format is split alike.
            key = PurePosixPath(name).stem if self.named_apart else name
            if keys.setdefault(key, name) != name:
                raise ConfigError(
                    f"{self.listing.folder}: {keys[key]} and {name} go by one name; remove one"
                )
        return keys

    def _files(self) -> dict[str, list[Path]]:
        folder = self.listing.folder
        return {part: [folder / n for n in names] for part, names in self.split().items()}

    def _report_duplicates(self, *, refuse: bool) -> None:
        """Warn of, or refuse, images that are byte for byte in two splits.

        Raises:
            ConfigError: If there are any and they are refused.
        """
        if not (found := duplicates(self._files())):
            return
        (a, in_a), (b, in_b) = found[0]
        text = (
            f"{len(found)} images are in two splits byte for byte, e.g. {a} ({in_a}) and {b} "
            f"({in_b}): remove one of each"
        )
        if refuse:
            raise ConfigError(text)
        warnings.warn(text, stacklevel=3)

    def report(self) -> str:
        """Images in each split, and in the smallest and the largest class, in one line.

        Raises:
            RsmambaError: As :meth:`split`.
        """
        parts = []
        for part, names in self.split().items():
            if names:
                counts = Counter(self.listing.labels[name] for name in names).values()
                parts.append(
                    f"{part}: {len(names)} images of {len(counts)} classes "
                    f"({min(counts)} to {max(counts)} each)"
                )
        return "; ".join(parts)

    def manifest(self) -> Manifest:
        """Files of each split, with their classes.

        Raises:
            RsmambaError: As :meth:`split`; ConfigError also for duplicates that are refused.
        """
        listing = self.listing
        splits = self.split()
        hashed = sum(map(len, splits.values())) <= HASHED
        if self.check_duplicates != "never" and hashed:
            self._report_duplicates(refuse=self.check_duplicates == "error")
        settings: dict[str, Any] = {"protocol": self.protocol}
        if self.protocol == "ratio":
            settings |= {"train_ratio": self.train_ratio, "stratified": self.stratified}
        if self.protocol == "files":
            settings["split_files"] = {part: str(p) for part, p in self.split_files.items()}
        if self.protocol == "ratio" or self._carved:
            settings |= {"val_ratio": self.val_ratio, "split_seed": self.split_seed}
        if unused := len(listing.labels) - sum(map(len, splits.values())):
            settings["images_in_no_split"] = unused
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {
            part: [
                (listing.folder / name, {"class": listing.classes[listing.labels[name]]})
                for name in names
            ]
            for part, names in splits.items()
        }
        return Manifest(self.dataset_type.__name__, self.root, settings, files, hashed=hashed)

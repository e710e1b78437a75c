"""Any images in one folder per class, such as ImageNet's."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from rsmamba.data.class_folders import CENTRE, ClassFolders
from rsmamba.data.classification import ClassificationDataModule, Duplicates, Flips
from rsmamba.data.split_files import Listing, list_images, read_lines
from rsmamba.errors import DataNotFoundError, LabelError
from rsmamba.samples import resolve

FolderProtocol = Literal["folders", "ratio", "files"]


class ImageFolder(ClassFolders):
    """Images in one folder per class, of any size and, on request, of any kind.

    The arguments are those of :class:`~rsmamba.data.class_folders.ClassFolders`; the class folders
    are in ``root`` itself.
    """

    interpolation = "bicubic"

    def __init__(self, root: str | Path = "data", split: None = None, **kwargs: Any) -> None:
        super().__init__(root, split, **kwargs)


class ImageFolderDataModule(ClassificationDataModule):
    """ImageNet-style folders: ``train/<class>/<image>`` and ``val/<class>/<image>``.

    ``protocol="folders"``: the folders ``train_folder``, ``val_folder`` and ``test_folder`` below
    the root; where there is no test folder the validation images are tested on, as is usual on
    ImageNet, and where there is no validation folder ``val_ratio`` of the training images are held
    back. ``protocol="ratio"`` and ``"files"``: the class folders are in the root, and are split as
    by :class:`~rsmamba.data.classification.ClassificationDataModule`.

    Training images are random crops, resized; a crop depends on the seed, the epoch and the image.
    Other images are resized so that ``image_size`` is 7/8 of the shorter side, and cropped in the
    middle, both bicubic. Predict runs over the test images.

    Args:
        root: Folder that holds the training and validation folders, or (ratio, files) the class
            folders, or a ``sample:`` path.
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        protocol: Which split.
        train_folder: Folder of the training images, below the root (folders).
        val_folder: Folder of the validation images, below the root (folders).
        test_folder: Folder of the test images, below the root (folders).
        classes: Class folders in the order of their index: a list, or a text file, looked up from
            here, then from the root, with a folder to the line, and perhaps its name in words after
            it (``n01440764 tench``); sorted by name if None.
        train_ratio: Share of each class that is trained or validated on (ratio).
        val_ratio: Share of the training images held back for validation; 0 for none. With folders
            or split files, only if they have no validation images.
        split_seed: Number of the split (ratio), and of the order and crops of training.
        stratified: Whether the ratios hold for each class (ratio), or for all images together.
        split_files: Lists under "train", "test" and perhaps "val" (files); paths are looked up
            from here, then from the root.
        image_size: Side of the images in pixels.
        crop_scale: [least, greatest] share of the area of a training crop; None for the whole
            image, squeezed into the square.
        flips: Mirror training images ("horizontal"), turn and flip them ("all", for overhead
            images), or neither ("none").
        colour_jitter: Vary contrast and brightness of training images by up to this much.
        convert: Convert grey, CMYK and images with alpha, of which ImageNet has some, instead of
            refusing them.
        drop_last: Leave an incomplete last batch out of training, as TorchGeo does; a linear
            probe, which reads every image once, needs False.
        check_duplicates: Look for byte-identical images in two splits: "manifest" warns of them
            when a manifest is written, "warn" at setup as well, "error" refuses them, "never".
        mean: Mean per band, in pixel units; ImageNet's if None.
        std: Deviation per band, in pixel units; ImageNet's if None.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.

    Raises:
        ConfigError: If options are unknown or contradict each other.
    """

    dataset_type = ImageFolder
    named_apart = False
    protocols: ClassVar[Any] = FolderProtocol

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        protocol: FolderProtocol = "folders",
        train_folder: str = "train",
        val_folder: str = "val",
        test_folder: str = "test",
        classes: Sequence[str] | str | Path | None = None,
        train_ratio: float = 0.5,
        val_ratio: float = 0.1,
        split_seed: int = 0,
        stratified: bool = True,
        split_files: Mapping[str, str | Path] | None = None,
        image_size: int = 224,
        crop_scale: Sequence[float] | None = (0.08, 1.0),
        flips: Flips = "horizontal",
        colour_jitter: float = 0.0,
        convert: bool = True,
        drop_last: bool = True,
        check_duplicates: Duplicates = "manifest",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        spec: str | Path | None = None,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            protocol=protocol,  # type: ignore[arg-type]
            train_ratio=train_ratio,
            val_ratio=val_ratio,
            split_seed=split_seed,
            stratified=stratified,
            split_files=split_files,
            image_size=image_size,
            crop_scale=crop_scale,
            flips=flips,
            colour_jitter=colour_jitter,
            convert=convert,
            drop_last=drop_last,
            check_duplicates=check_duplicates,
            mean=mean,
            std=std,
            spec=spec,
        )
        self.folders = {"train": train_folder, "val": val_folder, "test": test_folder}
        self._given = classes

    @cached_property
    def listing(self) -> Listing:
        """All images on disk, listed once; with their train or val folder in front (folders).

        Raises:
            DataNotFoundError: If there are none.
            LabelError: If the folders do not have the classes asked for, or not the same ones.
        """
        folders = [folder for folder, _ in self._given_classes] or None
        if self.protocol != "folders":
            return list_images(self._folder(), folders)
        place = self.root / self.folders["train"]
        if not place.is_dir():
            raise DataNotFoundError(
                f"no folder {place}: name it with train_folder, or set protocol='ratio' to split "
                "one folder of class folders"
            )
        first = list_images(place, folders)
        labels: dict[str, int] = {}
        for part in self._parts():
            place = self.root / self.folders[part]
            found = first if part == "train" else list_images(place)
            if odd := sorted(set(found.classes) - set(first.classes)):
                raise LabelError(
                    f"{place / odd[0]}: no class of that name in {first.folder}; move its images"
                )
            index = [first.classes.index(name) for name in found.classes]
            pairs = [(f"{self.folders[part]}/{n}", index[i]) for n, i in found.labels.items()]
            labels |= dict(sorted(pairs, key=lambda pair: pair[1]))
        return Listing(self.root, first.classes, labels)

    @cached_property
    def _given_classes(self) -> list[tuple[str, str]]:
        """Class folders that were asked for, with their names in words."""
        if self._given is None:
            return []
        if not isinstance(self._given, str | Path):
            return [(name, name) for name in self._given]
        path = resolve(self._given)
        lines = [line for _, line in read_lines(path if path.exists() else self.root / path)]
        pairs = [line.split("\t" if "\t" in line else None, maxsplit=1) for line in lines]
        return [(pair[0].strip(), pair[-1].strip()) for pair in pairs]

    def _parts(self) -> list[str]:
        """The splits that have a folder."""
        return [part for part, name in self.folders.items() if (self.root / name).is_dir()]

    def _stock_split(self) -> dict[str, list[str]]:
        """What is in the folders; validation carved from training where it has none."""
        splits = {
            part: [n for n in self.listing.labels if n.startswith(f"{self.folders[part]}/")]
            for part in self._parts()
        }
        return splits if "val" in splits else self._carve(splits)

    def _evaluation(self) -> dict[str, Any]:
        return {"centre": CENTRE}

    def setup(self, stage: str) -> None:
        """Build the splits that a stage needs.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: As in the base class.
            LabelError: If the folders do not have the classes asked for, or not the same ones.
        """
        super().setup(stage)
        self.classes = tuple(words for _, words in self._given_classes) or self.listing.classes

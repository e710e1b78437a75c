"""Data module for a user's own labelled scenes: split by place, augment, count."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rsmamba.data.areas import Area, Part, hold_out, inside, tiles, warn_of_overlap
from rsmamba.data.augment import SegmentationAugmentation, check_jitter
from rsmamba.data.datamodule import DataModule
from rsmamba.data.labelled import LabelledScenes
from rsmamba.data.listing import Paths, common_root
from rsmamba.data.options import positive, share
from rsmamba.data.sampling import Statistic, statistics
from rsmamba.data.scene_facts import common_factor, common_nodata, median_gsd
from rsmamba.data.splits import Manifest
from rsmamba.errors import ConfigError


class LabelledScenesDataModule(DataModule):
    """A user's own scenes with masks or polygons, split by place.

    Images that overlap ``test_area`` (by more than a shared border) are the test set, then those
    that overlap ``val_area`` the validation set. Without ``val_area``, ``val_fraction`` of the rest
    is held back by spatial blocks: neighbouring images stay together, and large
    images are divided. Training windows are random, validation and test windows a grid that holds
    every pixel once. Predict runs over the test images, or over all if there are none.

    Args:
        images: Folder, glob pattern, file or list of GeoTIFFs, or ``sample:`` path.
        labels: Mask rasters or vector layers, see :class:`LabelledScenes`.
        attribute: Column that holds the class of a polygon; one foreground class if None.
        classes: Label value -> class name (None to ignore), or the names alone.
        background: Name of class 0, for pixels outside all polygons; None leaves them unlabelled.
        patch_size: Side of the windows in pixels.
        batch_size: Windows in a batch.
        num_workers: Worker processes that read windows.
        length: Training windows in an epoch; as many as cover the training area once if None.
        test_area: [minx, miny, maxx, maxy] or vector file.
        val_area: Likewise.
        area_crs: CRS of areas given as numbers, x (longitude) first.
        val_fraction: Share of the remaining pixels to validate on if there is no ``val_area``; 0
            for none.
        split_seed: Seed of the blocks and of the training windows.
        block_size: Side of a block in pixels; chosen from the data if None.
        scale_jitter: Zoom training windows by up to this much, see
            :class:`~rsmamba.data.augment.SegmentationAugmentation`.
        colour_jitter: Vary contrast and brightness of training windows by up to this much.
        indexes: 1-based bands to read; all but alpha if None.
        bands: Their names; red, green, blue for three if None.
        scales: What the values of each stored type are multiplied with, such as ``{uint8: 1,
            uint16: 0.0255}``; None for images of one type, as they are.
        nodata: Stored value that means "no observation" in images that declare nothing of the kind.
        convert: Convert grey and CMYK JPEGs and PNGs to red, green and blue, not refuse them.
        mean: Mean per band in pixel units; "auto": of the training pixels that are valid.
        std: Deviation per band in pixel units; "auto": likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.

    ``bands``, ``mean``, ``std``, ``classes``, ``gsd`` and ``nodata`` are those of the data after
    :meth:`setup`.
    """

    def __init__(
        self,
        images: Paths,
        labels: Paths,
        attribute: str | None = None,
        classes: Mapping[Any, str | None] | Sequence[str] | None = None,
        background: str | None = "background",
        patch_size: int = 256,
        batch_size: int = 8,
        num_workers: int = 0,
        length: int | None = None,
        test_area: Area | None = None,
        val_area: Area | None = None,
        area_crs: str = "OGC:CRS84",
        val_fraction: float = 0.2,
        split_seed: int = 0,
        block_size: int | None = None,
        scale_jitter: float = 0.25,
        colour_jitter: float = 0.1,
        indexes: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        scales: dict[str, float] | None = None,
        nodata: float | None = None,
        convert: bool = False,
        mean: Statistic = "auto",
        std: Statistic = "auto",
        spec: str | Path | None = None,
        cache: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(
            LabelledScenes,
            batch_size,
            num_workers,
            images=images,
            labels=labels,
            attribute=attribute,
            classes=classes,
            background=background,
            patch_size=patch_size,
            indexes=indexes,
            bands=bands,
            scales=scales,
            nodata=nodata,
            convert=convert,
            cache=cache,
        )
        positive("length", length)
        positive("block_size", block_size)
        share("val_fraction", val_fraction)
        check_jitter(colour_jitter, scale_jitter)
        self.patch_size, self.length = patch_size, length
        self.test_area, self.val_area, self.area_crs = test_area, val_area, area_crs
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.block_size = block_size
        self.scale_jitter, self.colour_jitter = scale_jitter, colour_jitter
        self._mean, self._std, self.spec = mean, std, spec
        self.bands: tuple[str, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.gsd: float | None = None
        self.nodata: float | None = None
        self._scenes: LabelledScenes | None = None
        self._parts: dict[str, list[Part]] = {}

    @property
    def scenes(self) -> LabelledScenes:
        """All images with their labels, opened once.

        Raises:
            RsmambaError: As :class:`LabelledScenes`.
        """
        if self._scenes is None:
            self._scenes = LabelledScenes(**self.kwargs)
        return self._scenes

    def splits(self) -> dict[str, list[Part]]:
        """Parts of the images under "train", "val" and "test".

        Raises:
            DataNotFoundError: If an area overlaps no image.
            CRSError: If an area is given and an image has no CRS.
            ConfigError: If nothing is left to train on, or too little to divide.
        """
        if self._parts:
            return self._parts
        scenes = self.scenes.scenes
        test: set[int] = set()
        if self.test_area is not None:
            test = inside(scenes, self.test_area, self.area_crs, "test_area")
        rest = [i for i in range(len(scenes)) if i not in test]
        val: list[Part] = []
        train: list[Part] = [(i, scenes[i].whole) for i in rest]
        if not rest:
            raise ConfigError(f"test_area holds all {len(scenes)} images: none is left to train on")
        if self.val_area is not None:
            chosen = inside([scenes[i] for i in rest], self.val_area, self.area_crs, "val_area")
            val = [train[k] for k in sorted(chosen)]
            train = [part for k, part in enumerate(train) if k not in chosen]
        elif self.val_fraction:
            kept, held = hold_out(
                [scenes[i] for i in rest],
                self.val_fraction,
                self.split_seed,
                self.patch_size,
                self.block_size,
            )
            train = [(rest[k], region) for k, region in kept]
            val = [(rest[k], region) for k, region in held]
        if not train:
            raise ConfigError("val_area and test_area hold all images: none is left to train on")
        parts = {"train": train, "val": val, "test": [(i, scenes[i].whole) for i in sorted(test)]}
        warn_of_overlap(scenes, parts)
        self._parts = parts
        return parts

    def setup(self, stage: str) -> None:
        """Open images and labels, split them and build the data sets.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: As :class:`LabelledScenes` and :meth:`splits`.
            ConfigError: If the test stage has no test images, or an epoch is shorter than a batch.
        """
        parts = self.splits()
        if self.train_dataset is None:
            self._setup_train(parts)
        data, fill = self.scenes, self.mean
        if stage in ("fit", "validate") and parts["val"]:
            self.val_dataset = data.subset(parts["val"], fill=fill)
        if stage == "test":
            if not parts["test"]:
                raise ConfigError("there are no test images: set test_area")
            self.test_dataset = data.subset(parts["test"], fill=fill)
        if stage == "predict":
            everything = [(i, s.whole) for i, s in enumerate(data.scenes)]
            self.predict_dataset = data.subset(parts["test"] or everything, fill=fill)

    def _setup_train(self, parts: dict[str, list[Part]]) -> None:
        data, train = self.scenes, parts["train"]
        scenes = data.scenes
        self.bands, self.classes = data.bands, data.classes
        self.gsd, self.nodata = median_gsd(scenes), common_nodata(scenes)
        self.factor = common_factor(scenes)
        if self.spec is None:
            regions = [(scenes[i], region) for i, region in train]
            self.set_normalisation(*statistics(self._mean, self._std, regions))
        else:
            self.set_normalisation((), (), self.spec)
        self.train_aug = SegmentationAugmentation(
            self.mean, self.std, self.scale_jitter, self.colour_jitter
        )
        length = self.length or len(tiles(train, self.patch_size))
        self.train_dataset = self._sized(data.subset(train, length, self.split_seed, self.mean))

    def class_balance(self, split: Literal["train", "val", "test"] = "train") -> dict[str, float]:
        """Share of the pixels of each class, and of "(unlabelled)", in a split.

        Raises:
            RsmambaError: As :meth:`splits`.
            ConfigError: If the split is empty.
        """
        if not (parts := self.splits()[split]):
            raise ConfigError(f"the {split} split is empty")
        return self.scenes.subset(parts).class_balance()

    def report(self) -> str:
        """Images and share of the pixels of each class in each split, in one line.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        lines = []
        for split, parts in self.splits().items():
            if parts:
                balance = self.scenes.subset(parts).class_balance()
                shares = ", ".join(f"{name} {share:.1%}" for name, share in balance.items())
                lines.append(f"{split}: {len({i for i, _ in parts})} images ({shares})")
        return "; ".join(lines)

    def manifest(self) -> Manifest:
        """Files and windows of each split, and the files of the labels.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        scenes, labels = self.scenes.scenes, self.scenes.labels.files
        settings = {
            "test_area": _plain(self.test_area),
            "val_area": _plain(self.val_area),
            "area_crs": self.area_crs,
            "val_fraction": self.val_fraction,
            "split_seed": self.split_seed,
            "block_size": self.block_size,
            "classes": list(self.scenes.classes),
            "class_balance": {
                split: self.scenes.subset(parts).class_balance()
                for split, parts in self.splits().items()
                if parts
            },
        }
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {
            split: [
                (scenes[i].path, {"window": [r.col, r.row, r.width, r.height]}) for i, r in parts
            ]
            for split, parts in self.splits().items()
        }
        files["labels"] = [(file, {}) for file in labels]
        root = common_root([s.path for s in scenes] + labels)
        return Manifest("LabelledScenes", root, settings, files)


def _plain(area: Area | None) -> Any:
    """An area as a JSON value."""
    return str(area) if isinstance(area, str | Path) else area and list(area)

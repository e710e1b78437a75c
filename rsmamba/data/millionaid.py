"""Million-AID: a million aerial images of many sizes, for pretraining."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torchgeo.datasets import MillionAID

from rsmamba.data.archives import extract
from rsmamba.data.collection import SceneCollection
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.opening import Cache
from rsmamba.data.sampling import Statistic
from rsmamba.data.scene_patches import Weights, Windows
from rsmamba.data.scene_patches_datamodule import ScenePatchesDataModule
from rsmamba.data.splits import Manifest
from rsmamba.errors import ConfigError, DataNotFoundError
from rsmamba.samples import resolve

#: Where the data are described, and asked for (TorchGeo's documentation of the set).
HOMEPAGE = "https://captain-whu.github.io/DiRS/"


class MillionAIDDataModule(ScenePatchesDataModule):
    """Windows of Million-AID's images (Long et al. 2021, DOI 10.1109/JSTARS.2021.3070368).

    The classes are not used. ``root`` holds what TorchGeo's ``MillionAID`` reads, the folders
    ``train`` and ``test`` with JPEGs at any depth, or ``train.zip`` and ``test.zip``, which are
    unpacked once. There is nothing to download from without an account: get the archives from the
    places that https://captain-whu.github.io/DiRS/ names.

    The images are RGB JPEGs. Grey and CMYK ones, should there be any, are converted as TorchGeo's
    class converts them, unless ``convert`` is False, which makes them bad files. Everything else is
    as in :class:`ScenePatchesDataModule`.

    Args:
        root: Folder of the data, or ``sample:`` path.
        split: Which images to pretrain on: "train", "test" or "all"; no labels are read.
        size: Side of the samples in pixels.
        batch_size: Samples in a batch.
        num_workers: Worker processes that read windows.
        length: Training samples in an epoch; if None, as many as windows of ``size`` fit, or as
            there are images above 10,000.
        val_length: Validation, test and predict samples; as for ``length`` if None.
        val_fraction: Share of the images held back; 0 for none.
        seed: Seed of split and windows.
        windows: "random", or "grid" for windows that cover the images.
        stride: Distance of gridded windows in pixels; ``size`` if None.
        scale: Least and greatest share of the area that a random window takes.
        window: Side in pixels of the area that ``scale`` refers to in larger images; ``2 * size``
            if None.
        flips: Whether to flip and rotate training windows.
        weights: Draw images by their "area" or "equal"ly often; "auto" by area up to 10,000
            images, equally often beyond.
        convert: Convert grey and CMYK images; otherwise they are bad files.
        checksum: Check the MD5 of the archives before they are unpacked.
        mean: Mean per band in pixel units, by default ImageNet's; "auto": of 1000 images.
        std: Deviation per band in pixel units; likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        max_bad_files: Unreadable files to tolerate; they are named and counted in ``bad_files``.
        index: Parquet file that keeps the list of the images; by default in the user's cache
            folder.
        refresh: List the images anew.
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "test", "all"] = "all",
        size: int = 192,
        batch_size: int = 64,
        num_workers: int = 0,
        length: int | None = None,
        val_length: int | None = None,
        val_fraction: float = 0.01,
        seed: int = 0,
        windows: Windows = "random",
        stride: int | None = None,
        scale: tuple[float, float] = (0.2, 1.0),
        window: int | None = None,
        flips: bool = True,
        weights: Weights = "auto",
        convert: bool = True,
        checksum: bool = True,
        mean: Statistic = IMAGENET_MEAN,
        std: Statistic = IMAGENET_STD,
        spec: str | Path | None = None,
        max_bad_files: int = 0,
        index: str | Path | None = None,
        refresh: bool = False,
        cache: Cache = "auto",
    ) -> None:
        if split not in ("all", *MillionAID.splits):
            raise ConfigError(f"split={split!r}: Million-AID has train, test and all of both")
        super().__init__(
            root,
            size=size,
            batch_size=batch_size,
            num_workers=num_workers,
            length=length,
            val_length=val_length,
            val_fraction=val_fraction,
            seed=seed,
            windows=windows,
            stride=stride,
            scale=scale,
            window=window,
            flips=flips,
            weights=weights,
            indexes=(1, 2, 3),
            convert=convert,
            mean=mean,
            std=std,
            spec=spec,
            max_bad_files=max_bad_files,
            index=index,
            refresh=refresh,
            cache=cache,
        )
        self.split, self.checksum, self.folder = split, checksum, resolve(root)

    @property
    def parts(self) -> Sequence[str]:
        """Folders that the split is made of."""
        return MillionAID.splits if self.split == "all" else (self.split,)

    def find(self) -> SceneCollection:
        """The images of the split, unpacked if need be.

        Raises:
            DataNotFoundError: If neither folder nor archive is there, or the folder is empty.
            ArchiveError: If an archive is damaged, unsafe or another one.
            RsmambaError: As :meth:`ScenePatchesDataModule.splits`.
        """
        self.root = [self._part(self.folder, name) for name in self.parts]
        return super().find()

    def _part(self, folder: Path, name: str) -> Path:
        """Folder of the images of a part."""
        part, archive = folder / name, folder / MillionAID.filenames[name]
        if not part.is_dir() and archive.is_file():
            extract(archive, folder, md5=MillionAID.md5s[name] if self.checksum else None)
            if not part.is_dir():
                raise DataNotFoundError(
                    f"{archive}: holds no folder {name!r}; is it Million-AID's? unpack it so that "
                    f"its images lie in {part}"
                )
        if not part.is_dir():
            raise DataNotFoundError(
                f"{folder}: holds neither {name} nor {archive.name} of Million-AID: get the "
                f"archive as {HOMEPAGE} says and put it there"
                + (f", or set split={self._other(folder)}" if self._other(folder) else "")
            )
        return part

    def _other(self, folder: Path) -> str:
        """A part that is there."""
        return next((name for name in MillionAID.splits if (folder / name).is_dir()), "")

    def manifest(self) -> Manifest:
        """Files of each split; of more than 10,000 the hash of the list of the files instead.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        found = super().manifest()
        settings = {"split": self.split, **found.settings}
        return Manifest("MillionAID", found.root, settings, found.splits, found.hashed)

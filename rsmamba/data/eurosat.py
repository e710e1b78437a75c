"""EuroSAT, its GeoTIFFs of 13 bands and its RGB JPEGs, with training-ratio splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import rasterio
import torch
from rasterio.errors import RasterioError
from torch import Tensor
from torchgeo.datamodules.eurosat import MEAN, STD
from torchgeo.datasets import EuroSAT as TorchGeoEuroSAT
from torchgeo.datasets.utils import download_url

from rsmamba.data.class_folders import ClassFolders
from rsmamba.data.classification import ClassificationDataModule, Duplicates, Flips, Protocol
from rsmamba.data.images import quiet, undecodable
from rsmamba.data.options import distinct, one_of
from rsmamba.errors import BandMismatchError, ConfigError

Images = Literal["tif", "jpg"]

#: Folders of the classes, by index.
CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)


class EuroSAT(ClassFolders, TorchGeoEuroSAT):
    """TorchGeo's EuroSAT, for any list of its images and any size.

    Without ``image_size`` samples equal TorchGeo's. The arguments are those of
    :class:`~rsmamba.data.class_folders.ClassFolders` and the following.

    Args:
        root: Folder that holds ``ds/images/.../tif`` or the archive.
        split: As there.
        bands: Sentinel-2 bands to read, in this order; all 13 if None.
        **kwargs: As there.

    Raises:
        BandMismatchError: If a band is not one of the 13.
    """

    images_dir = TorchGeoEuroSAT.base_dir
    known_classes = CLASSES
    remedy: ClassVar[str] = (
        "set download=True; for the RGB images (2750/<Class>/*.jpg) set images='jpg'"
    )

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "val", "test"] | None = "train",
        bands: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.bands = check_bands(bands)
        self.indexes = [self.all_band_names.index(band) + 1 for band in self.bands]
        super().__init__(root, split, **kwargs)

    def _download(self) -> None:
        for name, digest in (
            (self.filename, self.sha256),
            *((name, self.split_sha256s[part]) for part, name in self.split_filenames.items()),
        ):
            download_url(self.url + name, self.data_root, sha256=digest if self.checksum else None)

    def read(self, path: str) -> Tensor:
        """Bands of one GeoTIFF, float32 (C, H, W)."""
        try:
            # A folder holds thousands of files, which GDAL would list for each that it opens.
            env = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")
            with quiet(), env, rasterio.open(path) as src:
                if src.count != len(self.all_band_names):
                    raise BandMismatchError(
                        f"{path}: has {src.count} bands, not EuroSAT's {len(self.all_band_names)}: "
                        "get the file again, or set images='jpg' for the RGB images"
                    )
                return torch.from_numpy(src.read(self.indexes, out_dtype=np.float32))
        except RasterioError as error:
            raise undecodable(path, error) from error


class EuroSATRGB(ClassFolders):
    """EuroSAT's RGB images, which TorchGeo does not read: ``2750/<Class>/<Class>_<n>.jpg``.

    The split files are TorchGeo's. The arguments are those of
    :class:`~rsmamba.data.class_folders.ClassFolders`.
    """

    images_dir = "2750"
    known_classes = CLASSES
    filename = "EuroSAT.zip"
    split_filenames = TorchGeoEuroSAT.split_filenames
    remedy: ClassVar[str] = (
        "get EuroSAT.zip (RGB) by way of https://github.com/phelber/EuroSAT and put it into {root};"
        " for the 13 bands set images='tif'"
    )


def check_bands(bands: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the bands asked for, all 13 if None.

    Raises:
        BandMismatchError: If one is not EuroSAT's, or there is none.
        ConfigError: If one is there twice.
    """
    known = TorchGeoEuroSAT.all_band_names
    if bands is None:
        return known
    if not bands or (odd := [band for band in bands if band not in known]):
        raise BandMismatchError(
            f"bands={list(bands)}: {odd[0] if bands else 'nothing'} is no band of EuroSAT; there "
            f"are {', '.join(known)}"
        )
    distinct("bands", bands)
    return tuple(bands)


class EuroSATDataModule(ClassificationDataModule):
    """EuroSAT with a training-ratio split, with lists, or with TorchGeo's split files.

    ``protocol="ratio"``: ``train_ratio`` of each class may be trained on (validation is carved
    from it), the rest is the test set. ``protocol="files"``: as ``split_files`` list them.
    ``protocol="torchgeo"``: the files ``eurosat-{train,val,test}.txt`` (arXiv 1911.06721).

    Images are 64 px of 10 m. Mean and deviation of the 13 bands are TorchGeo's; the RGB images
    take ImageNet's. Predict runs over the test images.

    Args:
        root: Folder that holds ``ds/images/remote_sensing/...``, or ``2750`` for the RGB images,
            or their archive.
        batch_size: Images in a batch.
        num_workers: Worker processes that load images.
        images: "tif" for the 13 bands of Sentinel-2, "jpg" for the RGB images.
        bands: Sentinel-2 bands to read, in this order ("B02", ...); all 13 if None.
        protocol: Which split.
        train_ratio: Share of each class that is trained or validated on (ratio).
        val_ratio: Share of the training images held back for validation; 0 for none. With split
            files, only if they list no validation images.
        split_seed: Number of the split (ratio), and of the order of training.
        stratified: Whether the ratios hold for each class (ratio), or for all images together.
        split_files: Lists under "train", "test" and perhaps "val" (files); paths are looked up
            from here, then from the root.
        image_size: Side of the images in pixels; None for 64.
        crop_scale: [least, greatest] share of the area of a random crop that is resized to
            ``image_size`` in training; None for the whole image.
        flips: Turn and flip training images ("all", as overhead images have no upright), mirror
            them ("horizontal"), or neither ("none").
        colour_jitter: Vary contrast and brightness of training images by up to this much.
        convert: Convert grey, CMYK and images with alpha to red, green and blue instead of refusing
            them ("jpg" only).
        drop_last: Leave an incomplete last batch out of training, as TorchGeo does; a linear
            probe, which reads every image once, needs False.
        check_duplicates: Look for byte-identical images in two splits: "manifest" warns of them
            when a manifest is written, "warn" at setup as well, "error" refuses them, "never".
        mean: Mean per band, in pixel units; None for the above.
        std: Deviation per band, in pixel units; None for the above.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        download: Fetch the data if they are not there ("tif" only).
        checksum: Check the archive's SHA-256 before it is unpacked ("tif" only).

    Raises:
        ConfigError: If options are unknown or contradict each other.
        BandMismatchError: If a band is not one of the 13.
    """

    default_size = 64
    ground = (10.0, 64)

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        images: Images = "tif",
        bands: Sequence[str] | None = None,
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
        one_of("images", images, Images)
        if images == "tif":
            if convert:
                raise ConfigError("convert=True is for images='jpg': leave it out")
            self.dataset_type = EuroSAT
            self.bands = check_bands(bands)
            self.default_mean = [MEAN[band] for band in self.bands]
            self.default_std = [STD[band] for band in self.bands]
        elif bands is None:
            self.dataset_type = EuroSATRGB
        else:
            raise ConfigError("images='jpg' are red, green and blue: leave bands out")
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            protocol=protocol,
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
            download=download,
            checksum=checksum,
        )
        if images == "tif":
            self.kwargs["bands"] = self.bands

"""Data module for pretraining on any images without labels."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsmamba.data.areas import check_places
from rsmamba.data.collection import SceneCollection
from rsmamba.data.datamodule import DataModule
from rsmamba.data.listing import Paths, VsiPath, common_root
from rsmamba.data.many_names import hold_back
from rsmamba.data.opening import BadFiles, Cache, Reading
from rsmamba.data.options import chosen_bands, distinct, positive, share
from rsmamba.data.sampling import Statistic, statistics
from rsmamba.data.scene_facts import band_names, common_factor, common_nodata, median_gsd
from rsmamba.data.scene_patches import ScenePatches, Weights, Windows, check_windows
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import ConfigError

_LOG = logging.getLogger(__name__)

#: Images of a large collection that "auto" mean and deviation are taken from.
MEASURED = 1000
#: Larger sets are listed in the manifest without the hashes of their files.
HASHED_BYTES = 20 * 2**30
#: What keeps the windows of the splits apart.
_STREAMS = {"train": 0, "val": 1, "test": 2, "predict": 3}


class ScenePatchesDataModule(DataModule):
    """Windows of unlabelled images, for pretraining.

    Windows, flips and the choice of images depend on ``seed`` alone, not on the number of
    workers; batches are normalised on the device. Whole files are held back; validation sees
    always the same windows of them, the test stage others, and predict others again (of all files
    where none are held back), none of them flipped.

    Args:
        root: Folder (any depth), glob pattern, file or list of GeoTIFF, JPEG and PNG images, of
            VRTs (by name or pattern), STAC items (a JSON file), URLs, GDAL's ``/vsi`` paths, or
            ``sample:`` path. More than 10,000 files are listed once and kept in an index.
        size: Side of the samples in pixels.
        batch_size: Samples in a batch.
        num_workers: Worker processes that read windows.
        length: Training samples in an epoch; if None, as many as windows of ``size`` fit, or as
            there are images in a large collection.
        val_length: Validation, test and predict samples; as for ``length`` if None.
        val_fraction: Share of the files (by their pixels, where these are known) held back; 0 for
            none.
        seed: Seed of split and windows.
        windows: "random", or "grid" for windows that cover the images, in another order in each
            epoch of training.
        stride: Distance of gridded windows in pixels; ``size`` if None.
        scale: Least and greatest share of the area that a random window takes.
        window: Side in pixels of the area that ``scale`` refers to in larger images; ``2 * size``
            if None.
        flips: Whether to flip and rotate training windows.
        weights: Draw images by their "area" or "equal"ly often; "auto" by area up to 10,000
            images, equally often beyond.
        indexes: 1-based bands to read; all but alpha if None. A file that lacks one is a bad file.
        bands: Their names; red, green, blue for three if None.
        scales: What the values of each stored type are multiplied with, such as ``{uint8: 1,
            uint16: 0.0255}``. Without it all images must store the same type.
        convert: Read grey JPEG and PNG as three equal bands and convert CMYK, which is a bad file
            otherwise.
        assets: Keys of the assets that make up one image per STAC item, in the order of its bands;
            if None, each asset that is an image is one.
        mean: Mean per band in pixel units; "auto": of the training files (1000 of a large
            collection).
        std: Deviation per band in pixel units; "auto": likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        nodata: Value that means "no observation" where all bands of an image have it that declares
            nothing of the kind: 0 for undeclared black borders.
        max_nodata: Windows with a larger share of invalid pixels are drawn again.
        max_bad_files: Unreadable files to tolerate; they are named and counted in ``bad_files``.
        index: Parquet file that keeps the list of the images; by default in the user's cache folder
            for more than 10,000.
        refresh: List the images anew.
        cache: Keep decoded images in memory; "auto" does so below 512 MiB.

    Raises:
        ConfigError: If options are out of range or contradict each other.

    ``bands``, ``mean``, ``std``, ``gsd`` and ``nodata`` are those of the data after :meth:`setup`;
    ``factor`` is that of ``scales`` if all images have the same one, else 1.
    """

    def __init__(
        self,
        root: Paths,
        size: int = 192,
        batch_size: int = 64,
        num_workers: int = 0,
        length: int | None = None,
        val_length: int | None = None,
        val_fraction: float = 0.05,
        seed: int = 0,
        windows: Windows = "random",
        stride: int | None = None,
        scale: tuple[float, float] = (0.2, 1.0),
        window: int | None = None,
        flips: bool = True,
        weights: Weights = "auto",
        indexes: Sequence[int] | None = None,
        bands: Sequence[str] | None = None,
        scales: dict[str, float] | None = None,
        convert: bool = False,
        assets: Sequence[str] | None = None,
        mean: Statistic = "auto",
        std: Statistic = "auto",
        spec: str | Path | None = None,
        nodata: float | None = None,
        max_nodata: float = 0.5,
        max_bad_files: int = 0,
        index: str | Path | None = None,
        refresh: bool = False,
        cache: Cache = "auto",
    ) -> None:
        options: dict[str, Any] = {
            "size": size,
            "windows": windows,
            "stride": stride,
            "scale": tuple(scale),
            "window": window,
            "weights": weights,
            "max_nodata": max_nodata,
        }
        check_windows(**options)
        positive("length", length)
        positive("val_length", val_length)
        share("val_fraction", val_fraction)
        chosen_bands("indexes", indexes)
        distinct("bands", bands)
        super().__init__(ScenePatches, batch_size, num_workers, seed=seed, **options)
        self.root, self.size, self.flips = root, size, flips
        self.length, self.val_length, self.val_fraction = length, val_length, val_fraction
        chosen = None if indexes is None else tuple(indexes)
        self.reading = Reading(chosen, scales, convert, nodata)
        self.assets, self.index, self.refresh, self.cache = assets, index, refresh, cache
        self._bands, self._mean, self._std, self.spec = bands, mean, std, spec
        self._bad = BadFiles(max_bad_files)
        self.bands: tuple[str, ...] = ()
        self._splits: dict[str, SceneCollection] | None = None

    @property
    def bad_files(self) -> dict[Path, str]:
        """Unreadable files that were met so far, those that workers met included, and why."""
        return self._bad.reasons

    def find(self) -> SceneCollection:
        """All images of ``root``.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        return SceneCollection.find(
            self.root,
            self.reading,
            self._bad,
            assets=self.assets,
            index=self.index,
            refresh=self.refresh,
            cache=self.cache,
        )

    def prepare_data(self) -> None:
        """List the images, so that other processes of a distributed run find the index.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        self.splits()

    def splits(self) -> dict[str, SceneCollection]:
        """Scenes of "train" and "val"; found once.

        Raises:
            DataNotFoundError: If there are no images.
            ImageReadError: If more files are unreadable than tolerated.
            BandMismatchError: If the images differ in bands or stored type.
            ConfigError: If a single file is to be divided, or ``index`` cannot be used.
        """
        if self._splits is None:
            images = self.find()
            if images.large and (self._by_area or self.kwargs["windows"] == "grid"):
                images.sizes()  # before it is divided: once for both parts
            held = self._held_back(images)
            self._splits = {
                "train": images.subset(np.flatnonzero(~held)),
                "val": images.subset(np.flatnonzero(held)),
            }
        return self._splits

    @property
    def _by_area(self) -> bool:
        return bool(self.kwargs["weights"] == "area")

    def _held_back(self, images: SceneCollection) -> Any:
        """Which images are not trained on (N,)."""
        if not self.val_fraction:
            return np.zeros(len(images), bool)
        if images.large:
            areas = images.sizes().astype(np.int64).prod(1) if self._by_area else None
            return hold_back(images.files.names, areas, self.val_fraction, self.seed)
        names = images.names()
        sizes = {n: float(s.whole.area) for n, s in zip(names, images, strict=True)}
        chosen = take_share(sizes, self.val_fraction, self.seed)
        return np.array([name in chosen for name in names])

    def setup(self, stage: str) -> None:
        """Find the images and build the data sets.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: As :meth:`splits`.
            BandMismatchError: If the statistics differ from the bands in number.
            ConfigError: If an epoch is shorter than a batch, or there is nothing to test on.
        """
        split = self.splits()
        if not self.bands:
            self._describe(split["train"])
        held = split["val"]
        if stage == "fit" and self.train_dataset is None:
            windows = self._windows("train", split["train"], self.length)
            self.train_dataset = self._sized(windows)
        if stage in ("fit", "validate") and held and self.val_dataset is None:
            self.val_dataset = self._windows("val", held, self.val_length)
        if stage == "test":
            if not held:
                raise ConfigError("there are no files to test on: set val_fraction above 0")
            self.test_dataset = self._windows("test", held, self.val_length)
        if stage == "predict":
            self.predict_dataset = self._windows("predict", held or split["train"], self.val_length)

    def _describe(self, train: SceneCollection) -> None:
        """Set what is known of the data."""
        examples = train.examples()
        check_places(examples)
        self.gsd, self.nodata = median_gsd(examples), common_nodata(examples)
        self.factor = common_factor(examples)
        self.bands = band_names(self._bands, examples)
        try:
            self._normalise(train)
        except BaseException:
            self.bands = ()
            raise

    def _normalise(self, train: SceneCollection) -> None:
        if self.spec is not None:
            self.set_normalisation((), (), self.spec)
            return
        measured = list(train.examples())
        if train.large and "auto" in (self._mean, self._std):
            _LOG.warning(
                "mean and deviation are those of %s of %s images; set them, or write them once "
                "with `rsmamba stats` and set spec",
                f"{min(MEASURED, len(train)):,}",
                f"{len(train):,}",
            )
            measured = train.spread(MEASURED)
        regions = [(scene, scene.whole) for scene in measured]
        self.set_normalisation(*statistics(self._mean, self._std, regions, self._bad.add))

    def _windows(self, split: str, images: SceneCollection, length: int | None) -> ScenePatches:
        train = split == "train"
        return ScenePatches(
            images,
            length=length,
            bands=self.bands,
            flips=self.flips and train,
            shuffle=train,
            seed=self.seed,
            stream=_STREAMS[split],
            **self.kwargs,
        )

    def manifest(self) -> Manifest:
        """Files of each split; of a large collection the hash of the list of its files instead.

        The files' own hashes are left out above 20 GiB, and of files on servers.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        split = self.splits()
        settings: dict[str, Any] = {"val_fraction": self.val_fraction, "seed": self.seed}
        first = split["train"]
        if first.large:
            index = first.files
            settings |= {
                "images": {name: len(part) for name, part in split.items()},
                "index": None if index.file is None else str(index.file),
                "index_sha256": index.sha256(),
            }
            return Manifest("ScenePatches", Path(index.base), settings, {}, hashed=False)
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {
            name: [(path, {}) for i in range(len(part)) for path in part.paths(i)]
            for name, part in split.items()
        }
        paths = [path for part in files.values() for path, _ in part]
        remote = any(isinstance(path, VsiPath) for path in paths)
        root = Path() if remote else common_root(paths)
        hashed = not remote and sum(path.stat().st_size for path in paths) <= HASHED_BYTES
        return Manifest("ScenePatches", root, settings, files, hashed=hashed)

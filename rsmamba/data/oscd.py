"""OSCD: Sentinel-2 pairs of 24 cities, scored scene by scene, on TorchGeo's data set."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from torchgeo import datasets
from torchgeo.datamodules.oscd import MEAN, STD
from torchgeo.datasets.utils import Sample

from rsmamba.data.archives import extract
from rsmamba.data.change import CLASSES, BandFiles, Pair
from rsmamba.data.change_datamodule import ChangeDataModule, Part
from rsmamba.data.listing import RASTER_SUFFIXES, some
from rsmamba.data.normalisation import rgb_positions
from rsmamba.data.options import distinct, one_of, share
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Statistic
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import (
    ArchiveError,
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    one_line,
)
from rsmamba.samples import resolve
from rsmamba.sensors import SENSORS, bands_of

_FOLDER = "Onera Satellite Change Detection dataset - {}"
_SENSOR = "sentinel-2"


class OSCD(datasets.OSCD):
    """TorchGeo's OSCD, whole scenes, whatever state the files are in.

    Samples are ``{"image": float32 (2, C, H, W) in reflectance times 10,000, "mask": int64
    (1, H, W)}``, 1 for change. They equal TorchGeo's where the files are as they should be. Beyond
    it: bands are found by their names, so that a missing file is an error and not the next band;
    labels of values 1 and 2 (``CITY-cm.tif``, taken first because it is never lossy) are read
    as well as ``cm.png`` (see :func:`~rsmamba.data.change.read_label`); images and label of unequal
    size are cut to what they have in common; scenes come in alphabetical order on every machine.

    Args:
        root: Folder that holds ``Onera Satellite Change Detection dataset - Images`` and ``- Train
            Labels`` or ``- Test Labels``, or their zip files.
        split: "train" (14 cities) or "test" (10 cities).
        bands: Bands in any number and order: own names (``B04``), common names (``red``).
        cities: Names of the cities to use; all of the split if None.
        transforms: Applied to each sample.
        download: Fetch the data if they are not there.
        checksum: Check the SHA-256 of the zip files before they are unpacked.

    Raises:
        DataNotFoundError: If images, a band or a label are not there.
        ArchiveError: If a zip file is damaged or another one.
        BandMismatchError: If Sentinel-2 has no such band, or a file holds several.
        GridMismatchError: If the sizes of a city's files have nothing to do with each other.
        ImageReadError: If a file is not a readable image.
        ConfigError: If split or city are unknown.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "test"] = "train",
        bands: Sequence[str] = datasets.OSCD.all_bands,
        cities: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        one_of("split", split, self.splits)
        self.root, self.split = resolve(root), split
        self.bands = own_names(bands)
        self.transforms, self.download, self.checksum = transforms, download, checksum
        self._verify()
        self.files = self._load_files()
        if cities is not None:
            there = {str(f["region"]): f for f in self.files}
            if unknown := sorted(set(cities) - set(there)):
                raise ConfigError(
                    f"cities: no {unknown[0]!r} in the {split} split, which has "
                    f"{', '.join(there) or 'none'}"
                )
            self.files = [there[city] for city in sorted(set(cities))]
        self.pairs = [self._pair(entry) for entry in self.files]

    def folder(self, what: str) -> Path:
        """Folder of "Images", "Train Labels" or "Test Labels"."""
        return Path(self.root) / _FOLDER.format(what)

    def _verify(self) -> None:
        """Unpack, after a download if that is asked for, what is not there.

        Raises:
            DataNotFoundError, ArchiveError: See the class.
        """
        needed = [self.folder("Images"), self.folder(f"{self.split.capitalize()} Labels")]
        missing = [folder for folder in needed if not folder.is_dir()]
        if not missing:
            return
        zips = {folder: folder.with_name(f"{folder.name}.zip") for folder in missing}
        if self.download and not all(path.is_file() for path in zips.values()):
            self._fetch()
        for folder, path in zips.items():
            if not path.is_file():
                raise DataNotFoundError(
                    f"no OSCD in {self.root}: expected the folder '{folder.name}' or its zip file "
                    "there; set download=True, or see https://rcdaudt.github.io/oscd/"
                )
            extract(path, path.parent, sha256=self.sha256s[path.name] if self.checksum else None)
            if not folder.is_dir():
                raise ArchiveError(f"{path}: holds no folder '{folder.name}'; download it again")

    def _fetch(self) -> None:
        """Download the three zip files.

        Raises:
            ArchiveError: If one is not what it should be, or cannot be had.
        """
        try:
            self._download()
        except RuntimeError as error:  # TorchGeo's for a wrong hash
            raise ArchiveError(f"{self.root}: {one_line(error)}; download it again") from error
        except OSError as error:
            raise DataNotFoundError(
                f"the download of OSCD to {self.root} failed ({one_line(error)}); try again, or "
                f"put its zip files there: {', '.join(self.urls)}"
            ) from error

    def _load_files(self) -> list[dict[str, Any]]:
        """TorchGeo's table of the cities, in alphabetical order."""
        labels = self.folder(f"{self.split.capitalize()} Labels")
        found = [self._city(folder) for folder in city_folders(labels)]
        if not found:
            raise DataNotFoundError(f"{labels}: holds no city; download the labels again")
        return found

    def _city(self, folder: Path) -> dict[str, Any]:
        images = self.folder("Images") / folder.name
        if not images.is_dir():
            raise DataNotFoundError(
                f"{images}: no images of this city, which {folder} labels; download them again"
            )
        dates = images / "dates.txt"
        lines = dates.read_text().split("\n") if dates.is_file() else []
        candidates = [folder / "cm" / name for name in (f"{folder.name}-cm.tif", "cm.png")]
        mask = next((path for path in candidates if path.is_file()), None)
        if mask is None:
            raise DataNotFoundError(
                f"{folder}: has no label; expected cm/cm.png or cm/{folder.name}-cm.tif"
            )
        return {
            "region": folder.name,
            "images1": self._bands(images / "imgs_1_rect"),
            "images2": self._bands(images / "imgs_2_rect"),
            "mask": str(mask),
            "dates": tuple(line.split()[-1] for line in lines if line.strip()),
        }

    def _bands(self, folder: Path) -> list[str]:
        """Files of the bands of one date."""
        there = {
            path.stem.split("_")[-1].upper(): str(path)
            for path in sorted(folder.glob("*"))
            if path.suffix.lower() in RASTER_SUFFIXES and not path.name.startswith(".")
        }
        if missing := [band for band in self.bands if band not in there]:
            raise DataNotFoundError(
                f"{folder}: no file of band {some(missing)}, expected {missing[0]}.tif; copy or "
                "download the images of this city again"
            )
        return [there[band] for band in self.bands]

    def _pair(self, entry: dict[str, Any]) -> Pair:
        before, after = (
            BandFiles.of(Path(paths[0]).parent, [Path(p) for p in paths])
            for paths in (entry["images1"], entry["images2"])
        )
        return Pair.open(entry["region"], before, after, Path(entry["mask"]))

    def __getitem__(self, index: int) -> Sample:
        """A whole scene.

        Raises:
            ImageReadError: If a file cannot be decoded.
            LabelError: If the label does not say what has changed.
        """
        sample = self.pairs[index].sample()
        return sample if self.transforms is None else self.transforms(sample)

    def plot(  # type: ignore[override]
        self, sample: Sample, show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Show both dates, the mask, and the prediction if there is one.

        Args:
            sample: A sample of this data set, possibly with "prediction" ([1,] H, W).
            show_titles: Whether to title the panels.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample],
            classes=CLASSES,
            rgb=rgb_positions(full_names(self.bands)),
            show_titles=show_titles,
            suptitle=suptitle,
        )


def own_names(bands: Sequence[str]) -> tuple[str, ...]:
    """Sentinel-2's names (``B04``) of bands, however they are called.

    Raises:
        BandMismatchError: If one is not a band of Sentinel-2.
        ConfigError: If there are none, one is there twice, or a single text is given.
    """
    if isinstance(bands, str) or not bands:
        raise ConfigError(f"bands={bands!r}: give a list of Sentinel-2's bands, [B04, B03, B02]")
    found = bands_of(tuple(bands), sensor=_SENSOR)
    known = SENSORS[_SENSOR].bands
    for name, band in zip(bands, found, strict=True):
        if band not in known:
            raise BandMismatchError(
                f"bands: {name} is not one of Sentinel-2's; OSCD has "
                f"{', '.join(b.name for b in known)}"
            )
    names = tuple(band.name for band in found)
    distinct("bands", names)
    return names


def full_names(bands: Sequence[str]) -> tuple[str, ...]:
    """Names that mean the same in any list: ``sentinel-2:B11`` is clear where ``B11`` is not."""
    return tuple(f"{_SENSOR}:{band}" for band in bands)


def city_folders(labels: Path) -> list[Path]:
    """The folders of the cities, in alphabetical order; none if there is no such folder."""
    return [p for p in sorted(labels.glob("*")) if p.is_dir() and p.name[0] not in "._"]


class OSCDDataModule(ChangeDataModule):
    """OSCD with validation by city and whole scenes scored.

    ``val_cities``, or ``val_fraction`` of the pixels of the 14 training cities, whole cities at a
    time, are held back for validation: no window of them is trained on. Training windows are
    random, in proportion to the cities' areas. Validation and test windows are a grid over each
    scene on which every pixel counts once
    (:class:`~rsmamba.data.change_datamodule.PairWindows`). Images are pairs (B, 2, C, S, S).
    Predict runs over the test scenes. TorchGeo instead scores one random crop of each scene.

    Scoring over several devices repeats a few windows to make their shares equal: publish figures
    of one device.

    Args:
        root: Folder that holds the images and labels, see :class:`OSCD`.
        bands: Bands of one date, in any number and order: own names (``B04``) or common ones
            (``red``). The attribute ``bands`` spells them out (``sentinel-2:B04``).
        patch_size: Side of the training windows in pixels.
        batch_size: Windows in a batch.
        num_workers: Worker processes that read windows.
        length: Training windows in an epoch; as many as cover the cities once if None.
        val_cities: Cities to validate on.
        val_fraction: Share of the training pixels to validate on if no cities are named; 0 for
            none.
        split_seed: Number of that choice.
        tile_size: Side of the validation and test windows; ``patch_size`` if None.
        halo: Margin of those windows that the network sees and that is not counted.
        scale_jitter: Zoom training windows by up to this much, see
            :class:`~rsmamba.data.augment.SegmentationAugmentation`.
        colour_jitter: Vary contrast and brightness of training windows by up to this much, alike
            on both dates.
        seed: Seed of the training windows.
        mean: Mean per band in pixel units; "auto": of both dates of the training cities; TorchGeo's
            if None.
        std: Deviation per band in pixel units; likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        cache: Keep decoded scenes in memory; "auto" does so below 512 MiB.
        download: Fetch the data if they are not there.
        checksum: Check the SHA-256 of the zip files before they are unpacked.

    Raises:
        ConfigError: If options contradict each other.
        BandMismatchError: If Sentinel-2 has no such band, or mean or std are not one per band.
    """

    def __init__(
        self,
        root: str | Path = "data",
        bands: Sequence[str] = OSCD.all_bands,
        patch_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 0,
        length: int | None = None,
        val_cities: Sequence[str] | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        tile_size: int | None = None,
        halo: int = 0,
        scale_jitter: float = 0.0,
        colour_jitter: float = 0.0,
        seed: int = 0,
        mean: Statistic | None = None,
        std: Statistic | None = None,
        spec: str | Path | None = None,
        cache: bool | Literal["auto"] = "auto",
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        own = own_names(bands)
        share("val_fraction", val_fraction)
        super().__init__(
            OSCD,
            bands=full_names(own),
            gsd=10.0,
            patch_size=patch_size,
            batch_size=batch_size,
            num_workers=num_workers,
            length=length,
            tile_size=tile_size,
            halo=halo,
            scale_jitter=scale_jitter,
            colour_jitter=colour_jitter,
            seed=seed,
            mean=[MEAN[band] for band in own] if mean is None else mean,
            std=[STD[band] for band in own] if std is None else std,
            spec=spec,
            cache=cache,
            root=root,
        )
        self.kwargs |= {"root": resolve(root), "bands": own}
        self.kwargs |= {"download": download, "checksum": checksum}
        self.val_cities = None if val_cities is None else tuple(val_cities)
        self.val_fraction, self.split_seed = val_fraction, split_seed

    @cached_property
    def scenes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of all cities that have labels, by the number that samples give.

        Raises:
            ConfigError: If a city has both training and test labels.
        """
        root = Path(self.kwargs["root"])
        train, test = (
            {p.name for p in city_folders(root / _FOLDER.format(f"{split} Labels"))}
            for split in ("Train", "Test")
        )
        if both := sorted(train & test):
            raise ConfigError(
                f"{root}: {some(both)} in both the training and the test labels; remove one, or "
                "the test is on what was trained on"
            )
        return tuple(sorted(train | test))

    def prepare_data(self) -> None:
        """Download and unpack, in one process only."""
        if self.kwargs["download"]:
            for split in ("train", "test"):
                OSCD(split=split, **self.kwargs)

    def open_pairs(self, part: Part) -> dict[Part, list[Pair]]:
        """Open the cities of a part; train and val come together.

        Raises:
            RsmambaError: As :class:`OSCD`.
            ConfigError: If a validation city is unknown, or none is left to train on.
        """
        options = {**self.kwargs, "download": False}
        if part == "test":
            return {"test": OSCD(split="test", **options).pairs}
        pairs = OSCD(split="train", **options).pairs
        names = [pair.name for pair in pairs]
        held: set[str] = set()
        if self.val_cities is not None:
            if unknown := sorted(set(self.val_cities) - set(names)):
                raise ConfigError(
                    f"val_cities: {unknown[0]!r} has no training labels; there are "
                    f"{', '.join(names)}"
                )
            held = set(self.val_cities)
        elif self.val_fraction:
            areas = {pair.name: float(pair.whole.area) for pair in pairs}
            held = take_share(areas, self.val_fraction, self.split_seed)
        if not set(names) - held:
            raise ConfigError(f"val_cities holds all of {', '.join(names)}: none is left to train")
        return {
            "train": [pair for pair in pairs if pair.name not in held],
            "val": [pair for pair in pairs if pair.name in held],
        }

    def report(self) -> str | None:
        """Cities of training and validation, with the share of their pixels that changed.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        if self.kwargs["download"]:  # which happens later
            return None
        described = []
        parts: tuple[Part, Part] = ("train", "val")
        for part in parts:
            shares = self.change_shares(part)
            cities = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            described.append(f"{part}: {cities or 'none'}")
        return f"share of changed pixels by city; {'; '.join(described)}"

    def manifest(self) -> Manifest:
        """Files of each split: the bands of both dates and the label.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        settings = {
            "bands": list(self.bands),
            "val_cities": self.val_cities and list(self.val_cities),
            "val_fraction": self.val_fraction,
            "split_seed": self.split_seed,
            "patch_size": self.patch_size,
            "tile_size": self.tile_size,
            "halo": self.halo,
        }
        return Manifest("OSCD", Path(self.kwargs["root"]), settings, self.split_files())

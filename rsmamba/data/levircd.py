"""LEVIR-CD: changed buildings in pairs of aerial images, on TorchGeo's data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from PIL import Image
from torchgeo import datasets
from torchgeo.datasets.utils import Sample

from rsmamba.data.archives import extract
from rsmamba.data.change import CLASSES, Pair
from rsmamba.data.change_datamodule import ChangeDataModule, Part
from rsmamba.data.images import Pixels, Scene, Valid, undecodable
from rsmamba.data.listing import some
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.photos import check_rgb, read_rgb
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Statistic
from rsmamba.data.splits import Manifest
from rsmamba.errors import ArchiveError, ConfigError, DataNotFoundError, one_line
from rsmamba.samples import resolve


@dataclass
class Photo(Scene):
    """An image of red, green and blue, decoded by :func:`~rsmamba.data.photos.read_rgb`.

    Attributes:
        convert: Whether others are converted rather than refused.
    """

    convert: bool = False

    @classmethod
    def of(cls, path: Path, convert: bool = False) -> "Photo":
        """Read the header.

        Raises:
            ImageReadError: If the file is not a readable image, or a single pixel.
            BandMismatchError: If it is not red, green and blue of 8 bits.
        """
        try:
            with Image.open(path) as image:
                check_rgb(path, image, convert=convert)
                width, height = image.size
        except (OSError, SyntaxError) as error:
            raise undecodable(path, error) from error
        return cls(path, height, width, (1, 2, 3), "uint8", convert=convert)

    def _read_photo(self) -> tuple[Pixels, Valid | None]:
        return read_rgb(self.path, convert=self.convert).numpy(), None


class LEVIRCD(datasets.LEVIRCD):
    """TorchGeo's LEVIR-CD, with images and labels matched by their names.

    Samples are ``{"image": float32 (2, 3, H, W) in 0..255, "mask": int64 (1, H, W)}``, 1 for
    change. They equal TorchGeo's where no file is missing: it pairs the files by their position,
    so that one missing file shifts all that follow.

    Args:
        root: Folder that holds ``A``, ``B`` and ``label``, or ``train.zip``, ``val.zip`` and
            ``test.zip``.
        split: "train" (445 pairs), "val" (64) or "test" (128).
        transforms: Applied to each sample.
        download: Fetch the data if they are not there.
        checksum: Check the MD5 of the zip files before they are unpacked.
        convert: Convert images that are grey or have alpha, which are refused otherwise.

    Raises:
        DataNotFoundError: If the folders, or a partner of a file, are not there.
        ArchiveError: If a zip file is damaged or another one.
        BandMismatchError: If an image is not red, green and blue of 8 bits.
        GridMismatchError: If image and label differ in size by more than a tenth.
        ImageReadError: If a file is not a readable image.
        ConfigError: If the split is unknown.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "val", "test"] = "train",
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = True,
        convert: bool = False,
    ) -> None:
        if split not in self.splits:
            raise ConfigError(f"split={split!r}: LEVIR-CD has {', '.join(self.splits)}")
        self.root = resolve(root)
        self.split = split  # type: ignore[assignment]  # TorchGeo's hint leaves "val" out
        self.transforms, self.checksum, self.convert = transforms, checksum, convert
        if not self._there():
            self._unpack(download)
        self.files = self._load_files(self.root, split)
        self.pairs = [self._pair(entry) for entry in self.files]

    def _there(self) -> bool:
        folder = Path(self.root) / self.directories[0]
        return next(folder.glob(f"{self.split}*.png"), None) is not None

    def _unpack(self, download: bool) -> None:
        """Fetch and unpack the split.

        Raises:
            DataNotFoundError, ArchiveError: See the class.
        """
        about = self.splits[self.split]
        path = Path(self.root) / about["filename"]
        if download and not path.is_file():
            try:
                self._download()
            except RuntimeError as error:  # TorchGeo's for a wrong hash
                raise ArchiveError(f"{path}: {one_line(error)}; download it again") from error
            except OSError as error:
                raise DataNotFoundError(
                    f"the download of LEVIR-CD to {self.root} failed ({one_line(error)}); try "
                    f"again, or put {path.name} there"
                ) from error
        elif path.is_file():
            extract(path, path.parent, md5=about["md5"] if self.checksum else None)
        if not self._there():
            raise DataNotFoundError(
                f"no {self.split} images of LEVIR-CD in {self.root}: expected "
                f"A/{self.split}_*.png, B/ and label/ there, or {path.name}; set download=True"
            )

    def _load_files(  # type: ignore[override]
        self, root: Path, split: Literal["train", "val", "test"]
    ) -> list[dict[str, str]]:
        """Files of each pair, by name."""
        folders = [Path(root) / name for name in self.directories]
        found = [{p.name for p in folder.glob(f"{split}*.png")} for folder in folders]
        names = sorted(set.union(*found))
        for folder, there in zip(folders, found, strict=True):
            if missing := [name for name in names if name not in there]:
                raise DataNotFoundError(
                    f"{folder}: lacks {some(missing)}, which the other folders hold; copy or "
                    "download it again, or remove its partners"
                )
        keys = ("image1", "image2", "mask")
        return [dict(zip(keys, (str(f / n) for f in folders), strict=True)) for n in names]

    def _pair(self, entry: dict[str, str]) -> Pair:
        before, after = (Photo.of(Path(entry[key]), self.convert) for key in ("image1", "image2"))
        return Pair.open(before.path.stem, before, after, Path(entry["mask"]))

    def __getitem__(self, index: int) -> Sample:
        """A whole pair.

        Raises:
            ImageReadError: If a file cannot be decoded.
            LabelError: If the label does not say what has changed.
        """
        sample = self.pairs[index].sample()
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show both dates, the mask, and the prediction if there is one.

        Args:
            sample: A sample of this data set, possibly with "prediction" ([1,] H, W).
            show_titles: Whether to title the panels.
            suptitle: Title of the figure.
        """
        return plot_samples([sample], classes=CLASSES, show_titles=show_titles, suptitle=suptitle)


class LEVIRCDDataModule(ChangeDataModule):
    """LEVIR-CD with its own split, whole images scored.

    Training windows are random. Validation and test windows are a grid over each image on which
    every pixel counts once (:class:`~rsmamba.data.change_datamodule.PairWindows`). Images are pairs
    (B, 2, 3, S, S). Predict runs over the test images. TorchGeo instead scores the central 256
    pixels, a sixteenth of each image.

    Scoring over several devices repeats a few windows to make their shares equal: publish figures
    of one device.

    Args:
        root: Folder that holds ``A``, ``B`` and ``label``, see :class:`LEVIRCD`.
        patch_size: Side of the training windows in pixels.
        batch_size: Windows in a batch.
        num_workers: Worker processes that read windows.
        length: Training windows in an epoch; as many as cover the images once if None.
        tile_size: Side of the validation and test windows; ``patch_size`` if None.
        halo: Margin of those windows that the network sees and that is not counted.
        scale_jitter: Zoom training windows by up to this much, see
            :class:`~rsmamba.data.augment.SegmentationAugmentation`.
        colour_jitter: Vary contrast and brightness of training windows by up to this much, alike
            on both dates.
        seed: Seed of the training windows.
        mean: Mean per band in pixel units; "auto": of both dates of the training images.
        std: Deviation per band in pixel units; "auto": likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        cache: Keep decoded images in memory (the whole set takes 4.4 GiB); "auto" does so for
            splits below 512 MiB.
        download: Fetch the data if they are not there.
        checksum: Check the MD5 of the zip files before they are unpacked.
        convert: Convert images that are grey or have alpha, which are refused otherwise.

    Raises:
        ConfigError: If options contradict each other.
        BandMismatchError: If mean or std are not one per band.
    """

    def __init__(
        self,
        root: str | Path = "data",
        patch_size: int = 256,
        batch_size: int = 8,
        num_workers: int = 0,
        length: int | None = None,
        tile_size: int | None = None,
        halo: int = 0,
        scale_jitter: float = 0.0,
        colour_jitter: float = 0.0,
        seed: int = 0,
        mean: Statistic = IMAGENET_MEAN,
        std: Statistic = IMAGENET_STD,
        spec: str | Path | None = None,
        cache: bool | Literal["auto"] = "auto",
        download: bool = False,
        checksum: bool = True,
        convert: bool = False,
    ) -> None:
        super().__init__(
            LEVIRCD,
            bands=("red", "green", "blue"),
            gsd=0.5,
            patch_size=patch_size,
            batch_size=batch_size,
            num_workers=num_workers,
            length=length,
            tile_size=tile_size,
            halo=halo,
            scale_jitter=scale_jitter,
            colour_jitter=colour_jitter,
            seed=seed,
            mean=mean,
            std=std,
            spec=spec,
            cache=cache,
            root=resolve(root),
            download=download,
            checksum=checksum,
            convert=convert,
        )

    def prepare_data(self) -> None:
        """Download and unpack, in one process only."""
        if self.kwargs["download"]:
            for split in LEVIRCD.splits:
                LEVIRCD(split=split, **self.kwargs)  # type: ignore[arg-type]

    def open_pairs(self, part: Part) -> dict[Part, list[Pair]]:
        """Open the pairs of a split.

        Raises:
            RsmambaError: As :class:`LEVIRCD`.
        """
        options: dict[str, Any] = {**self.kwargs, "download": False}
        return {part: LEVIRCD(split=part, **options).pairs}

    def report(self) -> str | None:
        """Pairs in each split that is there, in one line.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        if self.kwargs["download"]:  # which happens later
            return None
        # Of each pair three files.
        counts = {part: len(files) // 3 for part, files in self.split_files().items()}
        return "; ".join(f"{part}: {count} pairs" for part, count in counts.items() if count)

    def manifest(self) -> Manifest:
        """Files of each split.

        Raises:
            RsmambaError: As :meth:`setup`.
        """
        settings: dict[str, Sequence[float] | float] = {
            "patch_size": self.patch_size,
            "tile_size": self.tile_size,
            "halo": self.halo,
        }
        return Manifest("LEVIRCD", Path(self.kwargs["root"]), settings, self.split_files())

"""Images in one folder per class: what rsmamba adds to TorchGeo's classification sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import NonGeoClassificationDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.archives import extract
from rsmamba.data.normalisation import rgb_positions
from rsmamba.data.options import positive
from rsmamba.data.photos import Interpolation, read_rgb, resize
from rsmamba.data.plots import plot_samples
from rsmamba.data.split_files import Listing, list_images, read_lines
from rsmamba.errors import ArchiveError, ConfigError, DataNotFoundError, one_line
from rsmamba.samples import resolve

#: Share of the shorter side that evaluation at 224 px keeps, as on ImageNet: 224 of 256.
CENTRE = 224 / 256


@dataclass(frozen=True)
class RandomView:
    """A random part of each training image, the same for a seed, an epoch and an image.

    Attributes:
        scale: Least and greatest share of the area that is kept; None for the whole image.
        ratio: Least and greatest ratio of width to height of what is kept.
        flip: Whether to mirror every other one.
        seed: Of the order and of the parts.
    """

    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    seed: int = 0

    def draw(self, index: int, length: int) -> tuple[int, np.random.Generator]:
        """The image of an index that goes on from epoch to epoch, and its choices."""
        epoch, place = divmod(index, length)
        item = int(_order(length, self.seed, epoch)[place])
        return item, np.random.default_rng((self.seed, epoch, item))

    def crop(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """A part of an image (C, H, W); all of it in the rare case that no try fits."""
        if self.scale is None:
            return image
        height, width = image.shape[-2:]
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = np.exp(rng.uniform(*np.log(self.ratio)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return image[:, top : top + h, left : left + w]
        return image


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, as :class:`~rsmamba.data.sampling.EpochSampler` draws it."""
    return np.random.default_rng((seed, epoch)).permutation(length)


class ClassFolders(NonGeoClassificationDataset):
    """A classification set of TorchGeo's, for any list of its images and any size.

    Comes before TorchGeo's class among the bases of a set. Samples are ``{"image": float32
    (C, H, W) in pixel units, "label": int64 ()}``, in TorchGeo's order.

    Args:
        root: Folder that holds ``images_dir``, or the archive, or a ``sample:`` path.
        split: Which of the set's split files to read; None for all images.
        names: Images to use instead, see :meth:`Listing.find`.
        image_size: Side in pixels to which images are resized; None for TorchGeo's, or their own.
        transforms: Applied to each sample.
        download: Fetch the data if they are not there and the set can be fetched.
        checksum: Check the archive's SHA-256 before it is unpacked, where it is known.
        centre: Share of the shorter side to keep around the middle; None squeezes all of the image
            into the square.
        view: Take a random part of each image instead. The set then counts its samples over all
            epochs (``endless``).
        convert: Convert grey, CMYK and images with alpha instead of refusing them.
        listing: The images of the folder, if they have been listed already.

    Raises:
        DataNotFoundError: If the images, the split file or one of its images are not there.
        ArchiveError: If the archive is damaged, unsafe or another one.
        LabelError: If a folder is no class of the set.
    """

    #: Folder of the class folders, below the root.
    images_dir: ClassVar[str] = "."
    #: Class folders by index, for a set that has the same ones everywhere; None for any.
    known_classes: ClassVar[Sequence[str] | None] = None
    bands: Any = ("red", "green", "blue")
    # TorchGeo's classes set these, where a set has them, and differ in how they declare them.
    root: Any
    filename: str
    sha256: Any
    split_filenames: ClassVar[dict[str, str]]
    interpolation: Interpolation = "bilinear"
    #: Size to which TorchGeo resizes, in floating point, if it does: that of images by default.
    exact_size: int | None = None
    #: What to do where there are no images; {root} is the folder.
    remedy: ClassVar[str] = "check the path"

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "val", "test"] | None = "train",
        names: Sequence[str] | None = None,
        image_size: int | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = True,
        *,
        centre: float | None = None,
        view: RandomView | None = None,
        convert: bool = False,
        listing: Listing | None = None,
    ) -> None:
        positive("image_size", image_size)
        self.image_size = image_size or self.exact_size
        if (centre is not None or view is not None) and self.image_size is None:
            raise ConfigError("a crop needs the size that it is resized to: set image_size")
        self.data_root = self.root = resolve(root)
        self.download, self.checksum = download, checksum
        self.centre, self.view, self.convert = centre, view, convert
        self.endless = view is not None
        #: Whether batches are fetched in the stored type, for :func:`collate` to convert.
        self.compact = False
        self._verify()
        self.listing = listing or list_images(self.folder, known=self.known_classes)
        if names is None:
            self.chosen = list(self.listing.labels) if split is None else self.split_names(split)
        else:
            self.chosen = [self._known(name, "names") for name in names]
        super(NonGeoClassificationDataset, self).__init__(root=str(self.folder))
        self.tg_transforms = transforms

    @property
    def folder(self) -> Path:
        """Folder of the class folders."""
        return Path(self.data_root) / self.images_dir

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Class names and their indices, as listed."""
        classes = list(self.listing.classes)
        return classes, {name: i for i, name in enumerate(classes)}

    def make_dataset(self, directory: str | Path, **_: Any) -> list[tuple[str, int]]:
        """Files and their classes, as chosen."""
        place = f"{self.listing.folder}/"
        labels = self.listing.labels
        order = {name: i for i, name in enumerate(labels)} if self.chosen else {}
        return [(place + name, labels[name]) for name in sorted(self.chosen, key=order.__getitem__)]

    def split_names(self, split: str) -> list[str]:
        """Images of one of the set's split files.

        Raises:
            DataNotFoundError: If the file, or one of its images, is not there.
            ConfigError: If the set has no such split.
        """
        known = getattr(self, "split_filenames", {})
        if split not in known:
            raise ConfigError(
                f"{type(self).__name__} has no split {split!r}: expected one of {', '.join(known)}"
                " or None for all images"
            )
        path = Path(self.data_root) / known[split]
        return [self._known(name, place) for place, name in read_lines(path)]

    def _known(self, name: str, source: str) -> str:
        if (found := self.listing.find(name)) is None:
            raise DataNotFoundError(
                f"{source} lists {name}, which is not in {self.folder}; complete the images, or "
                "choose others"
            )
        return found

    def _verify(self) -> None:
        """Unpack the archive, fetched first if need be, unless the images are there.

        Raises:
            DataNotFoundError: If there is nothing to unpack, or it cannot be fetched.
            ArchiveError: If the archive is damaged, unsafe or another one.
        """
        if self.folder.is_dir():
            return
        root, filename = Path(self.data_root), getattr(self, "filename", None)
        archive = root / (filename or "")
        if not archive.is_file():
            # TorchGeo's sets that can be fetched know how.
            if not self.download or not hasattr(self, "_download"):
                raise DataNotFoundError(
                    f"no {type(self).__name__} images in {root}: expected {self.images_dir}/"
                    f"<class>/<image>; {self.remedy.format(root=root)}"
                )
            self._fetch(archive)
        extract(archive, root, sha256=getattr(self, "sha256", None) if self.checksum else None)
        if not self.folder.is_dir():
            raise ArchiveError(f"{archive} does not hold {self.images_dir}: is it another set?")

    def _fetch(self, archive: Path) -> None:
        try:
            self._download()
        except RuntimeError as error:
            raise ArchiveError(
                f"{archive}: {one_line(error)} Remove it and download again, or set checksum=False"
            ) from error
        except OSError as error:
            raise DataNotFoundError(
                f"{archive} cannot be downloaded ({one_line(error)}): check the connection, or put "
                "it there by hand"
            ) from error

    def read(self, path: str) -> Tensor:
        """Decode one file in its stored type (C, H, W).

        Raises:
            DataNotFoundError: If it is gone.
            ImageReadError: If it cannot be decoded.
            BandMismatchError: If it has not the set's bands.
        """
        return read_rgb(path, convert=self.convert)

    def pixels(self, index: int) -> tuple[Tensor, int]:
        """Image (C, H, W) as it is loaded, in any type and memory layout, and label."""
        if self.view is None:
            path, label = self.samples[index]
            return self._fit(self.read(path)), label
        item, rng = self.view.draw(index, len(self))
        path, label = self.samples[item]
        size = self.image_size or 0
        image = resize(self.view.crop(self.read(path), rng), size, size, self.interpolation)
        return (image.flip(-1) if self.view.flip and rng.random() < 0.5 else image), label

    def _fit(self, image: Tensor) -> Tensor:
        """Resize, or resize and crop the middle."""
        size = self.image_size
        if size is None:
            return image
        if self.centre is None:
            exact = size == self.exact_size and image.shape[-2:] != (size, size)
            return resize(image.float() if exact else image, size, size, self.interpolation)
        height, width = image.shape[-2:]
        short = round(size / self.centre)
        least = min(height, width)
        # torchvision cuts off the fraction as well.
        height, width = int(short * height / least), int(short * width / least)
        image = resize(image, height, width, self.interpolation)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return image[:, top : top + size, left : left + size]

    def _load_image(self, index: int) -> tuple[Tensor, Tensor]:
        """Image float32 (C, H, W) and label int64 ()."""
        image, label = self.pixels(index)
        return torch.empty(image.shape).copy_(image), torch.tensor(label)

    def __getitem__(self, index: int) -> Sample:
        """One sample."""
        image, label = self._load_image(index)
        sample: Sample = {"image": image, "label": label}
        return sample if self.tg_transforms is None else self.tg_transforms(sample)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of a batch; in their stored type if they are to be converted together."""
        if not self.compact or self.tg_transforms is not None:
            return [self[i] for i in indices]
        loaded = [self.pixels(i) for i in indices]
        return [{"image": image, "label": torch.tensor(label)} for image, label in loaded]

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show a sample with its class, and the predicted one if it has "prediction".

        Args:
            sample: One sample.
            show_titles: Whether to name the classes.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample],
            classes=self.classes,
            rgb=rgb_positions(self.bands),
            show_titles=show_titles,
            suptitle=suptitle,
        )


def collate(samples: Sequence[Sample]) -> Sample:
    """Collate images of any type into float32, in one pass over them.

    Args:
        samples: "image" (C, H, W) and "label" () each.

    Returns:
        "image" (B, C, H, W) float32 and "label" (B,) int64.

    Raises:
        ConfigError: If the images differ in size.
    """
    images = [sample["image"] for sample in samples]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        a, b = sorted(shapes)[:2]
        raise ConfigError(
            f"images of {a[2]} x {a[1]} and {b[2]} x {b[1]} px in one batch: set image_size"
        )
    batch = _room(len(images), *images[0].shape)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image)
    return {"image": batch, "label": torch.stack([sample["label"] for sample in samples])}


def _room(*shape: int) -> Tensor:
    """Uninitialised float32, where the main process can read it."""
    if torch.utils.data.get_worker_info() is None:
        # NumPy asks the system for huge pages, which halves the time of writing to fresh memory.
        return torch.from_numpy(np.empty(shape, np.float32))
    size = int(np.prod(shape)) * 4
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload]

"""SpaceNet 1 (buildings of Rio de Janeiro) on TorchGeo's data set: nodata, area splits, repairs."""

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, Literal, cast, get_args

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import SpaceNet1 as TorchGeoSpaceNet1
from torchgeo.datasets.errors import DependencyNotFoundError
from torchgeo.datasets.utils import Sample, which

from rsmamba.data.archives import extract
from rsmamba.data.areas import require_georeferencing
from rsmamba.data.collate import pad_sample
from rsmamba.data.geojson import read_outlines
from rsmamba.data.images import IGNORE, Pixels, Region, Scene, clip, grid
from rsmamba.data.listing import some
from rsmamba.data.normalisation import rgb_positions
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Lottery
from rsmamba.errors import ConfigError, DataNotFoundError, LabelError, one_line
from rsmamba.samples import resolve

Product = Literal["3band", "8band"]

#: Names of the bands; WorldView-2's, in the order of its numbering.
BANDS: dict[str, tuple[str, ...]] = {
    "3band": ("red", "green", "blue"),
    "8band": ("coastal", "blue", "green", "yellow", "red", "rededge", "nir", "nir09"),
}
CLASSES = ("background", "building")
#: Draws for one random window before giving up on finding an observed pixel.
MAX_DRAWS = 100


class Tile(Scene):
    """A tile of SpaceNet 1: nothing was observed where all bands are 0, which no tag declares."""

    @classmethod
    def header(cls, path: Path, count: int) -> "Tile":
        """Read the header of a tile.

        Args:
            path: GeoTIFF.
            count: Its bands, none of which is alpha, whatever GDAL makes of a fourth one.

        Raises:
            ImageReadError: If the file is not a readable image.
            BandMismatchError: If it has fewer bands.
        """
        tile = cast(Tile, cls.open(path, range(1, count + 1)))
        tile.masked = True
        return tile

    def _masks(self, src: rasterio.DatasetReader, window: Any, pixels: Pixels) -> Any:
        return (pixels != 0).any(0)[None]

    @property
    def key(self) -> str:
        """What image and labels have in common: the file name without its product."""
        return key(self.path)

    def blank(self) -> bool:
        """Whether nothing was observed in the whole tile.

        Raises:
            ImageReadError: If the file cannot be decoded.
        """
        middle = Region(self.height // 2, 0, 1, self.width)
        # One row tells of most tiles that they are not.
        return not any(self.read(region)[0].any() for region in (middle, self.whole))


def key(path: str | Path) -> str:
    """``AOI_1_RIO_img7`` of ``3band_AOI_1_RIO_img7.tif`` and ``Geo_AOI_1_RIO_img7.geojson``."""
    return re.sub(r"^(3band|8band|Geo)_", "", Path(path).stem)


class SpaceNet1(TorchGeoSpaceNet1):
    """TorchGeo's SpaceNet 1 with its pixels as they are, and without its defects.

    Samples are ``{"image": float32 (C, H, W), "mask": int64 (H, W)}``: background 0, building 1,
    and 255 where nothing was observed (all bands 0; the image has ``fill`` there), which counts in
    no loss and no score. Nothing is resampled, so sizes differ by a pixel from tile to tile. The
    split "test" has no masks.

    Differs from :class:`torchgeo.datasets.SpaceNet1` in this: archives that lie in the folder are
    unpacked and then found, the ones that the product needs only; their checksums count; an
    image without labels is an error; no folders are made for data that are not there. Tiles
    without a single observed pixel are left out, see ``blank``.

    Args:
        root: Folder that holds ``SN1_buildings/{train,test}/{3band,8band,geojson}``, or the
            archives of these folders in ``SN1_buildings/{train,test}``.
        split: "train", or "test" for the tiles without labels.
        image: "3band" (pansharpened, 0.5 m) or "8band" (2 m).
        transforms: Applied to each sample.
        download: Fetch the archives if they are not there; needs the AWS command line.
        checksum: Check the archives' MD5 before they are unpacked.

    Attributes:
        tiles: The tiles in use.
        blank: Files of the tiles left out because nothing was observed in them.

    Raises:
        ConfigError: If split or image are unknown.
        DataNotFoundError: If there are no tiles, or the download fails.
        ArchiveError: If an archive's checksum is wrong, or it is damaged.
        LabelError: If a tile of the training split has no labels.
        CRSError: If a tile says not where it is.
        ImageReadError: If a tile cannot be read.
        BandMismatchError: If a tile has too few bands.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: Literal["train", "test"] = "train",
        image: Product = "3band",
        transforms: Callable[[Sample], Sample] | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        if image not in get_args(Product) or split not in ("train", "test"):
            raise ConfigError(
                f"image={image!r}, split={split!r}: expected 3band or 8band, train or test"
            )
        super().__init__(
            resolve(root),
            split,
            image=image,
            transforms=transforms,
            download=download,
            checksum=checksum,
        )
        self.bands = BANDS[image]
        # GDAL would list the folder anew for each tile, in search of files beside it.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            opened = [Tile.header(Path(path), len(self.bands)) for path in self.images]
            empty = {tile.path for tile in opened if tile.blank()}
        require_georeferencing(opened, "building outlines")
        self.blank = sorted(empty)
        self.tiles = [tile for tile in opened if tile.path not in empty]
        if not self.tiles:
            raise DataNotFoundError(
                f"all {len(opened)} tiles in {opened[0].path.parent} are black: unpack them again"
            )
        labels = {key(path): Path(path) for path in self.masks}
        # TorchGeo's lists stay in step with the indices.
        self.images = [str(tile.path) for tile in self.tiles]
        self.masks = [str(labels[tile.key]) for tile in self.tiles] if split == "train" else []
        self.fill: Tensor | None = None
        self._show(None, None, 0)

    def _show(self, patch_size: int | None, length: int | None, seed: int) -> None:
        """Choose what the indices stand for."""
        self.patch_size, self.lottery = patch_size, None
        self.windows = [
            (i, window)
            for i, tile in enumerate(self.tiles)
            for window in ([tile.whole] if patch_size is None else grid(tile.whole, patch_size))
        ]
        if length is not None:
            areas = [float(tile.whole.area) for tile in self.tiles]
            self.lottery = Lottery(areas, length, seed)

    def subset(
        self,
        keys: Sequence[str],
        patch_size: int | None = None,
        length: int | None = None,
        seed: int = 0,
        fill: Tensor | None = None,
    ) -> "SpaceNet1":
        """The same data, restricted to some tiles, whole or in windows.

        Args:
            keys: Names of tiles without product and suffix, such as ``AOI_1_RIO_img7``.
            patch_size: Side of square windows in pixels; whole tiles if None.
            length: Random windows in an epoch; if None, all tiles or a grid that holds every pixel
                once.
            seed: Seed of the random windows.
            fill: Value per band (C,) for pixels that were not observed and for padding; 0 if None.
        """
        view = copy.copy(self)
        wanted = frozenset(keys)
        chosen = [i for i, tile in enumerate(self.tiles) if tile.key in wanted]
        view.tiles = [self.tiles[i] for i in chosen]
        view.images = [self.images[i] for i in chosen]
        view.masks = [self.masks[i] for i in chosen] if self.masks else []
        view.fill = fill
        view._show(patch_size, length, seed)
        return view

    @property
    def endless(self) -> bool:
        """Whether indices beyond ``len()`` are new windows."""
        return self.lottery is not None

    def __len__(self) -> int:
        """Tiles, or windows in an epoch."""
        return self.lottery.length if self.lottery is not None else len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        """The tile or window of an index.

        Raises:
            ImageReadError: If the tile cannot be decoded.
            LabelError: If its labels cannot be read, or lie elsewhere.
            CRSError: If the CRS of its labels is unknown.
        """
        if self.lottery is None:
            sample = self._read(*self.windows[index])
        else:
            sample = self._draw(self.lottery, index)
        return sample if self.transforms is None else self.transforms(sample)

    def _draw(self, lottery: Lottery, index: int) -> Sample:
        assert self.patch_size is not None  # noqa: S101 - random windows have a size
        item, rng = lottery.draw(index)
        for _ in range(MAX_DRAWS):
            whole = self.tiles[item].whole
            row = int(rng.integers(max(1, whole.height - self.patch_size + 1)))
            col = int(rng.integers(max(1, whole.width - self.patch_size + 1)))
            sample = self._read(item, Region(row, col, self.patch_size, self.patch_size))
            if (sample["mask"] != IGNORE).any():
                return sample
            item = lottery.again(rng)
        raise LabelError(
            f"{self.tiles[item].path}: no observed pixel in {MAX_DRAWS} random windows; raise "
            "patch_size"
        )

    def _read(self, item: int, window: Region) -> Sample:
        """A window, padded where it leaves the tile."""
        tile = self.tiles[item]
        region = clip(window, tile.whole)
        pixels, valid = tile.read(region)
        image = torch.from_numpy(pixels.astype(np.float32))
        if valid is not None and self.fill is not None:
            image = torch.where(torch.from_numpy(valid), image, self.fill[:, None, None])
        sample = {"image": image}
        if self.split == "train":
            mask = torch.from_numpy(read_outlines(Path(self.masks[item]), tile, region))
            sample["mask"] = mask.long()
            if valid is not None:
                sample["mask"][torch.from_numpy(~valid)] = IGNORE
        return pad_sample(sample, window.height, window.width, self.fill)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show image and mask, and the prediction if there is one.

        Args:
            sample: A sample of this data set, possibly with "prediction" (H, W).
            show_titles: Whether to title the panels.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample],
            classes=CLASSES,
            rgb=rgb_positions(self.bands),
            show_titles=show_titles,
            suptitle=suptitle,
        )

    def _verify(self) -> None:
        """List the files; unpack or download the archives if there are none."""
        folder = Path(self.root) / self.dataset_id / self.split
        if not self._list(folder):
            self._fetch(folder)
            if not self._list(folder):
                raise DataNotFoundError(
                    f"the archives in {folder} held no {self.image}/*.tif: download them again"
                )
        if self.split != "train":
            return
        images, labels = {key(p) for p in self.images}, {key(p) for p in self.masks}
        if missing := sorted(images - labels):
            raise LabelError(
                f"{folder / self.mask}: no labels for {some(missing)}; expected "
                f"Geo_{missing[0]}.geojson (an empty file if there are no buildings), unpack the "
                "archive of the labels again"
            )
        if spare := sorted(labels - images):
            warnings.warn(
                f"{folder / self.image}: {len(spare)} labelled tiles are missing, e.g. {spare[0]}",
                stacklevel=4,
            )
            self.masks = [p for p in self.masks if key(p) in images]

    def _list(self, folder: Path) -> bool:
        """Find images and masks, in the order of their numbers; whether there are images."""
        kinds = ((self.image, self.image_glob), (self.mask, self.mask_glob))
        self.images, self.masks = (
            sorted(
                (str(p) for p in (folder / product).glob(pattern) if not p.name.startswith(".")),
                key=lambda p: (self._image_id(p), p),
            )
            for product, pattern in kinds
        )
        return bool(self.images)

    def _fetch(self, folder: Path) -> None:
        """Unpack the archives that the product needs, downloading them if that is asked for."""
        aoi = self.aois[0]
        for name, md5 in zip(
            self.tarballs[self.split][aoi], self.md5s[self.split][aoi], strict=True
        ):
            if self.image not in name and self.mask not in name:
                continue
            archive = folder / Path(name).name
            if not archive.exists():
                if not self.download:
                    raise DataNotFoundError(
                        f"no SpaceNet 1 in {self.root}: expected {folder / self.image}/*.tif or "
                        f"{archive}; set download=True, or fetch it with `aws s3 cp "
                        f"--no-sign-request {self._url(name)} {archive}`"
                    )
                self._download(name, archive)
            extract(archive, folder, md5=md5 if self.checksum else None)

    def _url(self, name: str) -> str:
        return self.url.format(dataset_id=self.dataset_id, tarball=name)

    def _download(self, name: str, archive: Path) -> None:
        try:
            aws = which("aws")
            archive.parent.mkdir(parents=True, exist_ok=True)
            aws("s3", "cp", "--no-sign-request", self._url(name), str(archive))
        except (DependencyNotFoundError, CalledProcessError) as error:
            raise DataNotFoundError(
                f"cannot download {self._url(name)} ({one_line(error)}): install the AWS command "
                f"line, or put the archive at {archive}"
            ) from error

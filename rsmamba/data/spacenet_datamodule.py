"""Data module for SpaceNet 1: split by place, so that neighbouring tiles do not leak."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import shapely
from pyproj import CRS, Transformer

from rsmamba.data.areas import WORLD, footprint
from rsmamba.data.augment import SegmentationAugmentation, check_jitter
from rsmamba.data.collate import PadCollate
from rsmamba.data.datamodule import DataModule
from rsmamba.data.listing import some
from rsmamba.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from rsmamba.data.sampling import statistics
from rsmamba.data.scene_facts import median_gsd
from rsmamba.data.spacenet import BANDS, CLASSES, Product, SpaceNet1, Tile, key
from rsmamba.data.splits import Manifest, take_share
from rsmamba.errors import ConfigError, DataNotFoundError
from rsmamba.samples import resolve

Splits = dict[str, list[str]]

#: Sides of blocks on the ground that are tried, in metres, and how many blocks are enough.
BLOCK_SIZES = (4096.0, 2048.0, 1024.0, 512.0, 256.0)
ENOUGH_BLOCKS = 50


class SpaceNet1DataModule(DataModule):
    """SpaceNet 1 split by place, scored tile by tile.

    The labelled tiles are gathered in square blocks on the ground (a tile belongs to the block of
    its centre) and whole blocks are drawn for test, validation and training: what lies inside a
    block stays together. Along the borders of blocks tiles of different splits adjoin, and
    neighbours share a strip (of 3.6 px, 1 % of a tile, where measured); ``buffer=True`` leaves
    the tiles out that touch another split. The default shares are the 5000 and 1940 tiles of the
    literature (SatMAE, arXiv 2207.08051), of which no lists are known.

    Tiles are used whole and in their own resolution: a batch is padded at the bottom and on the
    right to a multiple of 32 px, with 255 in the mask, rather than resized. mF1 as the papers
    report it (mmsegmentation's mFscore) is ``AverageF1Score`` of the task, with ``ignore_index``
    255. Predict runs over SpaceNet's own unlabelled tiles if they are there, else over our test
    tiles.

    Args:
        root: Folder that holds ``SN1_buildings``, see :class:`~rsmamba.data.spacenet.SpaceNet1`.
        image: "3band" (red, green, blue, 0.5 m) or "8band" (WorldView-2, 2 m).
        batch_size: Tiles or windows in a batch.
        num_workers: Worker processes that load them.
        patch_size: Side of random training windows in pixels; whole tiles if None.
        length: Training windows in an epoch; as many as cover the training tiles once if None.
        eval_patch_size: Side of the windows for validation, test and prediction, a grid that holds
            every pixel once; whole tiles if None.
        train_ratio: Share of the labelled tiles that may be trained on, validation included.
        val_ratio: Share of those that is held back for validation; 0 for none.
        split_seed: Seed of the split and of the training windows.
        block_size: Side of a block in metres; if None, the largest power of two from 4096 down to
            256 that gives 50 blocks, else 256.
        buffer: Leave out the training tiles that touch validation or test tiles, and the
            validation tiles that touch test tiles.
        split_files: Text files with one tile to a line (a file name, or ``AOI_1_RIO_img7``), by
            "train", "val" (optional) and "test"; instead of the ratios.
        scale_jitter: Zoom training windows by up to this much, see
            :class:`~rsmamba.data.augment.SegmentationAugmentation`.
        colour_jitter: Vary contrast and brightness of training windows by up to this much.
        mean: Mean per band in pixel units; "auto": of the observed training pixels. None is
            ImageNet's for three bands and "auto" for eight.
        std: Deviation per band in pixel units; likewise.
        spec: Checkpoint, ModelSpec or output of ``rsmamba stats`` whose mean and deviation are
            used instead.
        download: Fetch the data if they are not there.
        checksum: Check the archives' MD5 before they are unpacked.

    ``mean``, ``std`` and ``gsd`` are those of the data after :meth:`setup`.
    """

    classes = CLASSES
    nodata = 0.0

    def __init__(
        self,
        root: str | Path = "data",
        image: Product = "3band",
        batch_size: int = 16,
        num_workers: int = 0,
        patch_size: int | None = None,
        length: int | None = None,
        eval_patch_size: int | None = None,
        train_ratio: float = 5000 / 6940,
        val_ratio: float = 0.1,
        split_seed: int = 0,
        block_size: float | None = None,
        buffer: bool = False,
        split_files: Mapping[str, str | Path] | None = None,
        scale_jitter: float = 0.25,
        colour_jitter: float = 0.1,
        mean: Sequence[float] | Literal["auto"] | None = None,
        std: Sequence[float] | Literal["auto"] | None = None,
        spec: str | Path | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        if image not in BANDS:
            raise ConfigError(f"image={image!r}: expected one of {', '.join(BANDS)}")
        if not 0 < train_ratio < 1 or not 0 <= val_ratio < 1:
            raise ConfigError(
                f"train_ratio={train_ratio} must lie between 0 and 1, val_ratio={val_ratio} in "
                "[0, 1)"
            )
        if split_files is not None and not {"train", "test"} <= set(split_files) <= set(_SPLITS):
            raise ConfigError(
                f"split_files names {', '.join(split_files)}: expected train, test and perhaps val"
            )
        sizes = (patch_size, eval_patch_size, length, block_size)
        if any(size is not None and size <= 0 for size in sizes) or (length and not patch_size):
            raise ConfigError(
                f"patch_size={patch_size}, eval_patch_size={eval_patch_size}, length={length} and "
                f"block_size={block_size} must be positive, and length needs a patch_size"
            )
        self.root = resolve(root)
        check_jitter(colour_jitter, scale_jitter)
        super().__init__(
            SpaceNet1,
            batch_size,
            num_workers,
            seed=split_seed,
            root=self.root,
            image=image,
            download=download,
            checksum=checksum,
        )
        self.patch_size, self.length, self.eval_patch_size = patch_size, length, eval_patch_size
        self.train_ratio, self.val_ratio, self.split_seed = train_ratio, val_ratio, split_seed
        self.block_size, self.buffer, self.split_files = block_size, buffer, split_files
        self.scale_jitter, self.colour_jitter = scale_jitter, colour_jitter
        self.bands = BANDS[image]
        self._mean = _default(image, mean, IMAGENET_MEAN)
        self._std = _default(image, std, IMAGENET_STD)
        self.spec = spec
        self._labelled: SpaceNet1 | None = None
        self._split: Splits | None = None

    @property
    def labelled(self) -> SpaceNet1:
        """All labelled tiles, opened once.

        Raises:
            RsmambaError: As :class:`~rsmamba.data.spacenet.SpaceNet1`.
        """
        if self._labelled is None:
            self._labelled = SpaceNet1(**{**self.kwargs, "download": False})
        return self._labelled

    def splits(self) -> Splits:
        """Names of the tiles under "train", "val" and "test".

        Raises:
            RsmambaError: As :class:`~rsmamba.data.spacenet.SpaceNet1`.
            DataNotFoundError: If a split file is missing or names a tile that is not there.
            ConfigError: If the tiles lie in too few blocks, a split file names a tile twice, or
                nothing is left of a split that was asked for.
        """
        if self._split is None:
            data = self.labelled
            if self.split_files is not None:
                split = _read_splits(self.split_files, data)
            else:
                ratios = (self.train_ratio, self.val_ratio)
                split = area_split(data.tiles, *ratios, self.split_seed, self.block_size)
            whole = {part: len(names) for part, names in split.items()}
            if self.buffer:
                near = adjoining(data.tiles, split)
                split = {part: [k for k in names if k not in near] for part, names in split.items()}
            self._check(split, whole)
            self._split = split
        return self._split

    def _check(self, split: Splits, whole: Mapping[str, int]) -> None:
        """Refuse a split that was asked for and is empty.

        Args:
            split: Names of the tiles.
            whole: How many there were before the buffer was left out.

        Raises:
            ConfigError: If there is one.
        """
        files = self.split_files
        for part, names in split.items():
            if names or (part == "val" and ("val" not in files if files else not self.val_ratio)):
                continue
            if files:
                remedy = f"name other tiles in {resolve(files[part])}"
            else:
                share = "raise val_ratio" if part == "val" else "change train_ratio"
                remedy = f"{share}, lower block_size, or set another split_seed"
            if whole[part]:
                raise ConfigError(
                    f"buffer=True leaves none of the {whole[part]} {part} tiles, as all touch "
                    f"another split: set buffer=False, or {remedy}"
                )
            raise ConfigError(f"no {part} tile among the {len(self.labelled.tiles)}: {remedy}")

    def setup(self, stage: str) -> None:
        """Open the tiles, split them and build the data sets.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            RsmambaError: As :class:`~rsmamba.data.spacenet.SpaceNet1` and :meth:`splits`.
        """
        split, data = self.splits(), self.labelled
        train = data.subset(split["train"])
        if self.train_dataset is None:
            self._set_statistics(train.tiles)
        if stage == "fit":
            length = None
            if self.patch_size is not None:
                length = self.length or len(data.subset(split["train"], self.patch_size))
            self.train_dataset = self._sized(
                data.subset(split["train"], self.patch_size, length, self.split_seed, self.mean)
            )
        if stage in ("fit", "validate") and split["val"]:
            self.val_dataset = self._whole(data, split["val"])
        if stage == "test":
            self.test_dataset = self._whole(data, split["test"])
        if stage == "predict":
            self.predict_dataset = self._whole(data, split["test"])
            folder = self.root / SpaceNet1.dataset_id / "test" / self.kwargs["image"]
            if any(folder.glob(SpaceNet1.image_glob)):
                own = SpaceNet1(split="test", **{**self.kwargs, "download": False})
                self.predict_dataset = self._whole(own, [tile.key for tile in own.tiles])

    def _whole(self, data: SpaceNet1, names: Sequence[str]) -> SpaceNet1:
        return data.subset(names, self.eval_patch_size, fill=self.mean)

    def _set_statistics(self, train: Sequence[Tile]) -> None:
        if self.spec is None:
            regions = [(tile, tile.whole) for tile in train]
            self.set_normalisation(*statistics(self._mean, self._std, regions))
        else:
            self.set_normalisation((), (), self.spec)
        self.gsd = median_gsd(train)
        self.collate_fn = PadCollate(self.mean, windows=(self.patch_size, self.eval_patch_size))
        self.train_aug = SegmentationAugmentation(
            self.mean, self.std, self.scale_jitter, self.colour_jitter
        )

    def report(self) -> str | None:
        """Tiles in each split, and those in none, in one line.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        if self.kwargs["download"]:  # which happens later
            return None
        counts = {part: len(names) for part, names in self.splits().items()}
        counts["left out beside another split" if self.split_files is None else "left out"] = len(
            self.labelled.tiles
        ) - sum(counts.values())
        counts["nothing observed"] = len(self.labelled.blank)
        return "; ".join(f"{part}: {count} tiles" for part, count in counts.items() if count)

    def manifest(self) -> Manifest:
        """Files of each split, of their labels, and those left out.

        Raises:
            RsmambaError: As :meth:`splits`.
        """
        split, data = self.splits(), self.labelled
        files: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        used: set[Path] = set()
        for part, names in split.items():
            view = data.subset(names)
            files[part] = [
                (tile.path, {"labels": Path(mask).name})
                for tile, mask in zip(view.tiles, view.masks, strict=True)
            ]
            used |= {tile.path for tile in view.tiles}
        files["nothing observed"] = [(path, {}) for path in data.blank]
        files["left out"] = [(t.path, {}) for t in data.tiles if t.path not in used]
        files["labels"] = [(Path(mask), {}) for mask in data.masks]
        settings = {
            "image": self.kwargs["image"],
            "train_ratio": self.train_ratio,
            "val_ratio": self.val_ratio,
            "split_seed": self.split_seed,
            "block_size": self.block_size,
            "buffer": self.buffer,
            "split_files": {k: str(v) for k, v in (self.split_files or {}).items()},
            "adjoining": len(adjoining(data.tiles, split)),
        }
        return Manifest("SpaceNet1", self.root, settings, files)


_SPLITS = ("train", "val", "test")


def _default(
    image: Product,
    given: Sequence[float] | Literal["auto"] | None,
    imagenet: Sequence[float],
) -> Sequence[float] | Literal["auto"]:
    if given is not None:
        return given
    return imagenet if image == "3band" else "auto"


def blocks(tiles: Sequence[Tile], block_size: float | None = None) -> dict[str, list[str]]:
    """Tiles by the cell of a grid on the ground that holds their centre.

    The grid lies in equal-area coordinates with its origin at 0: it depends on no other tile, and
    is the same for three and eight bands but for tiles whose centre lies on a border.

    Args:
        tiles: Georeferenced tiles.
        block_size: Side of a cell in metres; see :class:`SpaceNet1DataModule` for None.

    Returns:
        Names of the tiles by cell.
    """
    transformers: dict[CRS | None, Transformer] = {}
    centres = []
    for tile in tiles:
        assert tile.transform is not None  # noqa: S101 - the data set asks for georeferencing
        if tile.crs not in transformers:
            transformers[tile.crs] = Transformer.from_crs(tile.crs, WORLD, always_xy=True)
        middle = tile.transform @ (tile.width / 2, tile.height / 2)
        centres.append(transformers[tile.crs].transform(*middle))
    cells: dict[str, list[str]] = {}
    for size in (block_size,) if block_size else BLOCK_SIZES:
        cells = defaultdict(list)
        for tile, (x, y) in zip(tiles, centres, strict=True):
            cells[f"{math.floor(x / size)}:{math.floor(y / size)}"].append(tile.key)
        if len(cells) >= ENOUGH_BLOCKS:
            break
    return dict(cells)


def area_split(
    tiles: Sequence[Tile],
    train_ratio: float,
    val_ratio: float,
    seed: int,
    block_size: float | None = None,
) -> Splits:
    """Divide tiles by blocks on the ground; see :class:`SpaceNet1DataModule`.

    Raises:
        ConfigError: If there are fewer blocks than splits.
    """
    cells = blocks(tiles, block_size)
    sizes = {cell: float(len(names)) for cell, names in cells.items()}
    test = take_share(sizes, 1 - train_ratio, seed) if len(sizes) > 1 else set(sizes)
    rest = {cell: size for cell, size in sizes.items() if cell not in test}
    if len(rest) < 1 + (val_ratio > 0):
        raise ConfigError(
            f"the {len(tiles)} tiles lie in {len(cells)} blocks, too few to divide: lower "
            "block_size (metres) or val_ratio, or give split_files"
        )
    val = take_share(rest, val_ratio, seed) if val_ratio else set()
    parts: Splits = {part: [] for part in _SPLITS}
    for cell, names in cells.items():
        parts["test" if cell in test else "val" if cell in val else "train"] += names
    return {part: sorted(names) for part, names in parts.items()}


def adjoining(tiles: Sequence[Tile], split: Splits) -> set[str]:
    """Training tiles that touch validation or test tiles, and validation tiles that touch test."""
    # The first CRS for all: neighbours need one plane, whichever it is.
    outlines = gpd.GeoSeries([footprint(t) for t in tiles], crs=None).values
    for crs in {tile.crs for tile in tiles} - {tiles[0].crs}:
        other = np.array([tile.crs == crs for tile in tiles])
        outlines[other] = gpd.GeoSeries(outlines[other], crs=crs).to_crs(tiles[0].crs).values
    place = {name: i for i, part in enumerate(_SPLITS) for name in split.get(part, ())}
    order = np.array([place.get(tile.key, -1) for tile in tiles])
    a, b = shapely.STRtree(outlines).query(outlines, "intersects")
    # A tile gives way to those of a later split, which are few and judge it.
    gives_way = (order[a] >= 0) & (order[a] < order[b])
    return {tiles[i].key for i in a[gives_way]}


def _read_splits(files: Mapping[str, str | Path], data: SpaceNet1) -> Splits:
    """Names of the tiles that the files list."""
    known = {tile.key for tile in data.tiles}
    empty = {key(path) for path in data.blank}
    split: Splits = {part: [] for part in _SPLITS}
    owner: dict[str, str] = {}
    for part, file in files.items():
        path = resolve(file)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataNotFoundError(f"{path}: not a readable split file; check its path") from error
        names = [_plain(line) for line in lines if line.strip()]
        if unknown := [name for name in names if name not in known | empty]:
            raise DataNotFoundError(
                f"{path}: names {some(unknown)}, which no labelled tile in {data.root} is called"
            )
        for name in names:
            if name in owner:
                raise ConfigError(
                    f"{path}: {name} is also in the {owner[name]} split; name each tile once"
                )
            owner[name] = part
        split[part] = sorted(name for name in names if name in known)
    return split


def _plain(line: str) -> str:
    """A tile's name from a line: without folder, product and the suffix of a file."""
    name = line.strip().replace("\\", "/").rsplit("/", 1)[-1]
    return key(name) if name.endswith((".tif", ".geojson")) else key(f"{name}.tif")

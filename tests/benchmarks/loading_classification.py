"""Time the loading of classification sets beside TorchGeo's data modules.

    python tests/benchmarks/loading_classification.py --root ../shared/data

Both loaders yield the same training batches, float32 of one size, and take turns in one process:
compare figures of one run. Loaders only: augmentation is on the device, and left out. TorchGeo has
no AID; it is given the class that is written in its manner, resized as its UC Merced is.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torchvision.transforms.functional as TF
from loaders import compare
from PIL import Image
from torchgeo.datamodules import EuroSATDataModule as StockEuroSAT
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datamodules import UCMercedDataModule as StockUCMerced
from torchgeo.datasets import EuroSAT as TorchGeoEuroSAT
from torchgeo.datasets import UCMerced as TorchGeoUCMerced

from rsmamba.data.aid import AIDDataModule
from rsmamba.data.eurosat import EuroSATDataModule
from rsmamba.data.torchgeo_aid import TorchGeoAID
from rsmamba.data.ucmerced import UCMercedDataModule
from rsmamba.samples import resolve

SIDE = 600  # of AID's images; the developers' copy is smaller, and enlarged for this
AID_SIZE = 224

Case = tuple[str, Callable[..., Any], Callable[..., Any]]


class StockAID(TorchGeoAID):
    """AID resized as TorchGeo resizes UC Merced."""

    def _load_image(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super()._load_image(index)
        return TF.resize(image, [AID_SIZE, AID_SIZE], antialias=True), label


def aid(source: Path, out: Path, count: int) -> Path:
    """Some of AID's images at their published size, with split files."""
    paths = sorted(source.glob("AID/*/*.jpg"))
    paths = paths[:: max(1, len(paths) // count)]
    for path in paths:
        target = out / "AID" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(target, quality=90)
    write_splits(out / "aid-{}.txt", [(p.parent.name, p.name) for p in paths])
    return out


def tiffs(source: Path, out: Path, count: int) -> Path:
    """Some of UC Merced's images as TIFF, which is what is published, with split files."""
    paths = sorted((source / TorchGeoUCMerced.base_dir).glob("*/*.jpg"))
    paths = paths[:: max(1, len(paths) // count)]
    for path in paths:
        target = out / TorchGeoUCMerced.base_dir / path.parent.name / f"{path.stem}.tif"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.save(target)
    write_splits(out / "uc_merced-{}.txt", [(p.parent.name, f"{p.stem}.tif") for p in paths])
    return out


def eurosat(out: Path, count: int) -> Path:
    """Made-up images of EuroSAT's 13 bands in its layout."""
    rng = np.random.default_rng(0)
    names = [f"Forest_{i}" for i in range(count)]
    folder = out / TorchGeoEuroSAT.base_dir / "Forest"
    folder.mkdir(parents=True)
    grid = rasterio.transform.from_origin(5e5, 5e6, 10, 10)
    kind = {"driver": "GTiff", "dtype": "uint16", "count": 13, "width": 64, "height": 64}
    for name in names:
        path = folder / f"{name}.tif"
        with rasterio.open(path, "w", **kind, crs="EPSG:32632", transform=grid) as file:
            file.write(rng.integers(0, 4000, (13, 64, 64), np.uint16))
    write_splits(out / "eurosat-{}.txt", [("Forest", f"{name}.jpg") for name in names])
    return out


def write_splits(pattern: Path, images: Sequence[tuple[str, str]]) -> None:
    """One image of each class for validation, one for testing, the others for training."""
    seen: Counter[str] = Counter()
    lists: dict[str, list[str]] = {"val": [], "test": [], "train": []}
    for label, name in images:
        lists[list(lists)[min(seen[label], 2)]].append(name)
        seen[label] += 1
    for part, names in lists.items():
        Path(str(pattern).format(part)).write_text("\n".join(names) + "\n")


def cases(shared: Path, scratch: Path, count: int) -> Iterator[Case]:
    """Name, TorchGeo's data module and ours of each set that is there."""
    roots = {"JPEG of 128 px, shipped": resolve("sample:ucmerced")}
    if (shared / "ucmerced").is_dir():
        roots["JPEG"] = shared / "ucmerced"
        roots["TIFF, as published"] = tiffs(roots["JPEG"], scratch / "ucmerced", count)
    for kind, root in roots.items():
        yield (
            f"UC Merced, {kind}",
            partial(StockUCMerced, root=root),
            partial(UCMercedDataModule, root, protocol="torchgeo"),
        )
    if (shared / "aid").is_dir():
        root = aid(shared / "aid", scratch / "aid", count)
        yield (
            f"AID {SIDE} -> {AID_SIZE} px",
            partial(NonGeoDataModule, StockAID, root=root),
            partial(AIDDataModule, root, protocol="torchgeo", image_size=AID_SIZE),
        )
    root = eurosat(scratch / "eurosat", count)
    yield (
        "EuroSAT, 13 bands",
        partial(StockEuroSAT, root=root),
        partial(EuroSATDataModule, root, protocol="torchgeo"),
    )


def main() -> int:
    """Time each set with each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder with ucmerced/ and aid/; samples if none")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--count", type=int, default=512, help="images of sets that are made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp())
    print(f"batch {args.batch}, one thread a process, {args.repeats} epochs each; ms per image")
    try:
        for name, stock, ours in cases(args.root or Path("none"), scratch, args.count):
            for workers in args.workers:
                options = {"batch_size": args.batch, "num_workers": workers}
                modules = {"torchgeo": stock(**options), "rsmamba": ours(**options)}
                compare(f"{name}, {workers} workers", modules, args.repeats)
    finally:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())

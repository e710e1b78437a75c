"""Time the loading of pairs, scenes and objects beside TorchGeo's data modules.

    python tests/benchmarks/loading_scenes.py --root ../shared/data

Training batches, augmentation included (TorchGeo crops some sets in it), in turn in one process:
compare figures of one run. "from files" switches off rsmamba's cache of decoded scenes, which sets
below 512 MiB are kept in. TorchGeo has no data module for own scenes; it is given its raster data
sets, intersected, with its sampler of random patches.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from loaders import compare
from torch.utils.data import DataLoader
from torchgeo.datamodules import LEVIRCDDataModule as StockLEVIRCD
from torchgeo.datamodules import OSCDDataModule as StockOSCD
from torchgeo.datamodules import SpaceNet1DataModule as StockSpaceNet1
from torchgeo.datamodules import VHR10DataModule as StockVHR10
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import RandomPatchSampler

from rsmamba.data import (
    LabelledScenesDataModule,
    LEVIRCDDataModule,
    OSCDDataModule,
    SpaceNet1DataModule,
    VHR10DataModule,
)

BANDS = ("B04", "B03", "B02")


class Images(RasterDataset):
    """The chips of the developers' building set."""

    filename_glob = "*.tif"


class Masks(RasterDataset):
    """Their masks."""

    filename_glob = "*.mask.tif"
    is_image = False


class StockScenes:
    """Random patches of images and masks by TorchGeo's own parts."""

    def __init__(self, root: Path, batch_size: int, length: int) -> None:
        self.root, self.batch_size, self.length = root, batch_size, length

    def setup(self, stage: str) -> None:
        """Open both layers."""
        self.data = Images(self.root / "chips") & Masks(self.root / "binarymasks")

    def train_dataloader(self) -> Any:
        """Random patches of 192 px."""
        sampler = RandomPatchSampler(self.data, size=192, length=self.length)
        return DataLoader(
            self.data, batch_size=self.batch_size, sampler=sampler, collate_fn=stack_samples
        )

    def train_aug(self, batch: Any) -> Any:
        """None: what ours does on the batch is not counted here."""
        return batch


def main() -> int:
    """Time each set that is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with oscd/, spacenet1/ ..."
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    root: Path = args.root
    stock = {"download": False, "checksum": False}
    batch = {"batch_size": 2}
    for name, bands in (("RGB", BANDS), ("13 bands", StockOSCD().bands)):
        for kind, cache in (("in memory", True), ("from files", False)):
            modules = {
                "torchgeo": StockOSCD(
                    root=root / "oscd", patch_size=96, bands=bands, **batch, **stock
                ),
                "rsmamba": OSCDDataModule(
                    root / "oscd", bands=bands, length=16, val_fraction=0.3, cache=cache, **batch
                ),
            }
            compare(f"OSCD {name}, 96 px, {kind}", modules, args.repeats, augment=True)
    for kind, cache in (("in memory", True), ("from files", False)):
        modules = {
            "torchgeo": StockLEVIRCD(
                root=root / "levircd_samples", patch_size=128, **batch, **stock
            ),
            "rsmamba": LEVIRCDDataModule(
                root / "levircd_samples", patch_size=128, length=16, cache=cache, **batch
            ),
        }
        compare(f"LEVIR-CD 128 px of 256, {kind}", modules, args.repeats, augment=True)
    modules = {
        "torchgeo": StockSpaceNet1(root=root / "spacenet1", image="3band", **batch, **stock),
        "rsmamba": SpaceNet1DataModule(root=root / "spacenet1", **batch),
    }
    compare("SpaceNet 1, whole tiles", modules, args.repeats, augment=True)
    modules = {
        "torchgeo": StockVHR10(root=root / "vhr10", patch_size=512, **batch, **stock),
        "rsmamba": VHR10DataModule(root=root / "vhr10", size=512, **batch),
    }
    compare("VHR-10, 512 px", modules, args.repeats, augment=True, limit=20)
    folder = root / "hotosm_buildings"
    for kind, cache in (("in memory", True), ("from files", False)):
        modules = {
            "torchgeo": StockScenes(folder, 2, 64),
            "rsmamba": LabelledScenesDataModule(
                folder / "chips",
                folder / "binarymasks",
                classes={0: "background", 1: "building", 255: "building"},
                patch_size=192,
                length=64,
                cache=cache,
                **batch,
            ),
        }
        compare(f"own scenes, 192 px of 256, {kind}", modules, args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())

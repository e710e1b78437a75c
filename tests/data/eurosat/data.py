"""Fake EuroSAT: TorchGeo's 13-band layout and that of the RGB images, a few of a few classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from torchgeo.datasets import EuroSAT

CLASSES = ("AnnualCrop", "Forest", "SeaLake")


def make(root: Path, per_class: int = 20, size: int = 16, classes: Sequence[str] = CLASSES) -> Path:
    """Write GeoTIFFs of 13 bands, JPEGs and split files below a folder, and return it.

    Band i of the GeoTIFFs holds 100 * i and a little noise.
    """
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    grid = rasterio.transform.from_origin(5e5, 5e6, 10, 10)
    kind = {"driver": "GTiff", "dtype": "uint16", "count": 13, "width": size, "height": size}
    for label in classes:
        bands, rgb = root / EuroSAT.base_dir / label, root / "2750" / label
        bands.mkdir(parents=True)
        rgb.mkdir(parents=True)
        for i in range(1, per_class + 1):
            name = f"{label}_{i}"
            with rasterio.open(
                bands / f"{name}.tif", "w", **kind, crs="EPSG:32632", transform=grid
            ) as file:
                noise = rng.integers(0, 20, (13, size, size), np.uint16)
                file.write(noise + 100 * np.arange(1, 14, dtype=np.uint16)[:, None, None])
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(rgb / f"{name}.jpg")
            part = "train" if i <= 0.6 * per_class else "val" if i <= 0.8 * per_class else "test"
            splits[part].append(f"{name}.jpg")
    for part, names in splits.items():
        (root / f"eurosat-{part}.txt").write_text("\n".join(names) + "\n")
    return root

"""Fake OSCD: its folders, small cities of different sizes, a square of each that changed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin
from torchgeo.datasets import OSCD

FOLDER = "Onera Satellite Change Detection dataset - {}"
#: Rows and columns.
TRAIN = {"aguasclaras": (47, 53), "beirut": (40, 36), "mumbai": (70, 54), "nantes": (25, 70)}
TEST = {"dubai": (34, 56), "milano": (20, 23)}


def make(
    root: Path,
    train: Mapping[str, tuple[int, int]] | None = None,
    test: Mapping[str, tuple[int, int]] | None = None,
) -> Path:
    """Write images of 13 bands and labels in both codings below a folder, and return it.

    What changed is 1500 brighter on the second date, in all bands.
    """
    rng = np.random.default_rng(0)
    splits = {"Train": TRAIN if train is None else train, "Test": TEST if test is None else test}
    for split, cities in splits.items():
        for city, size in cities.items():
            changed = np.zeros(size, np.uint8)
            changed[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 2] = 1
            images = root / FOLDER.format("Images") / city
            for date in (1, 2):
                folder = images / f"imgs_{date}_rect"
                folder.mkdir(parents=True)
                for k, band in enumerate(OSCD.all_bands):
                    noise = rng.normal(1000 + 10 * k, 100, size)
                    write_band(folder / f"{band}.tif", noise + 1500.0 * changed * (date - 1))
            (images / "dates.txt").write_text("date_1: 20160101\ndate_2: 20180101\n")
            labels = root / FOLDER.format(f"{split} Labels") / city / "cm"
            labels.mkdir(parents=True)
            write_band(labels / f"{city}-cm.tif", changed + 1, "uint8")
            Image.fromarray(255 * changed).save(labels / "cm.png")
    return root


def write_band(path: Path, values: np.ndarray, dtype: str = "uint16") -> None:
    """Write one band (H, W), or several (C, H, W), as GeoTIFF."""
    bands = values[None] if values.ndim == 2 else values
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=bands.shape[1],
        width=bands.shape[2],
        count=len(bands),
        dtype=dtype,
        crs=CRS.from_epsg(4326),
        transform=from_origin(10, 50, 1e-4, 1e-4),
    ) as out:
        out.write(bands.astype(dtype))

"""Fake NWPU-RESISC45: TorchGeo's layout, a few random images of a few classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("airplane", "airport", "sea_ice")


def make(root: Path, per_class: int = 20, size: int = 32, classes: Sequence[str] = CLASSES) -> Path:
    """Write images and split files (60 / 20 / 20) below a folder, and return it."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label in classes:
        folder = root / "NWPU-RESISC45" / label
        folder.mkdir(parents=True)
        for i in range(1, per_class + 1):
            name = f"{label}_{i:03d}.jpg"
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            part = "train" if i <= 0.6 * per_class else "val" if i <= 0.8 * per_class else "test"
            splits[part].append(name)
    for part, names in splits.items():
        (root / f"resisc45-{part}.txt").write_text("\n".join(names) + "\n")
    return root

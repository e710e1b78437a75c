"""Fake ImageNet: train/<class>/ and val/<class>/, JPEGs of various sizes, some grey and CMYK."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")
MODES = ("RGB", "RGB", "L", "CMYK")


def make(root: Path, per_class: int = 8) -> Path:
    """Write images below a folder, half as many for validation, and return it."""
    rng = np.random.default_rng(0)
    for part, count in (("train", per_class), ("val", per_class // 2)):
        for label in CLASSES:
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(30, 60, 2)
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                image = Image.fromarray(pixels).convert(MODES[i % len(MODES)])
                image.save(folder / f"{label}_{i}.JPEG")
    return root

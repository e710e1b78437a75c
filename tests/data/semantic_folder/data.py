"""Fake ADE20K: its folders, and images whose colour tells the class of every pixel."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 4
#: Grey level of a class (unlabelled first), so that image and mask can be compared.
LEVEL = 50


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Values 0 (unlabelled) and 1 to 4 (classes) in cells of 8 px."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, CLASSES + 1, (-(-height // 8), -(-width // 8)), np.uint8)
    return np.kron(cells, np.ones((8, 8), np.uint8))[:height, :width]


def write(root: Path, part: str, name: str, values: np.ndarray) -> None:
    """Image and mask of one scene."""
    image = root / "images" / part / f"{name}.jpg"
    mask = root / "annotations" / part / f"{name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.repeat((values * LEVEL)[..., None], 3, 2)
    Image.fromarray(pixels).save(image, quality=100, subsampling=0)
    Image.fromarray(values).save(mask)


def make(root: Path, train: int = 6, val: int = 3) -> Path:
    """Write images of different sizes and their masks below a folder, and return it."""
    for i in range(train):
        write(root, "training", f"ADE_train_{i:08d}", scene(48 + 8 * (i % 3), 64, i))
    for i in range(val):
        write(root, "validation", f"ADE_val_{i:08d}", scene(48, 64 + 16 * i, 100 + i))
    return root

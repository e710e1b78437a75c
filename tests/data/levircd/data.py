"""Fake LEVIR-CD: TorchGeo's folders, a few small pairs with a square that changed."""

from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"train": 4, "val": 2, "test": 3}


def make(root: Path, size: int = 48) -> Path:
    """Write pairs and labels below a folder, and return it.

    What changed is dark at first and bright then.
    """
    rng = np.random.default_rng(0)
    for name in ("A", "B", "label"):
        (root / name).mkdir(parents=True)
    for split, count in SPLITS.items():
        for i in range(1, count + 1):
            changed = np.zeros((size, size), bool)
            changed[4 * i : 4 * i + size // 4, size // 3 : size // 2] = True
            for name, tone in (("A", 40), ("B", 220)):
                pixels = rng.integers(90, 130, (size, size, 3), np.uint8)
                pixels[changed] = tone
                Image.fromarray(pixels).save(root / name / f"{split}_{i}.png")
            Image.fromarray(np.uint8(255) * changed).save(root / "label" / f"{split}_{i}.png")
    return root

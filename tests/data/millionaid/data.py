"""Fake Million-AID: a few JPEGs in its folders, and its archives."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

#: Folders of the classes, of two and of three levels.
CLASSES = ("unutilized_land/desert", "agriculture_land/arable_land/dry_field")


def make(root: Path, count: int = 3, test: int = 4) -> Path:
    """Write ``train`` with some images per class, and ``test`` with images alone.

    Args:
        root: Folder to write to.
        count: Images per class.
        test: Images of the test folder.
    """
    rng = np.random.default_rng(0)
    names = [f"train/{c}/P{i}{k}.jpg" for i, c in enumerate(CLASSES) for k in range(count)]
    for name in names + [f"test/P9{k}.jpg" for k in range(test)]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(40, 90, 2)
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize((int(width), int(height))).save(path)
    return root


def archive(root: Path) -> dict[str, str]:
    """Replace the folders by ``train.zip`` and ``test.zip``; return their MD5."""
    found = {}
    for name in ("train", "test"):
        file = Path(shutil.make_archive(str(root / name), "zip", root, name))
        shutil.rmtree(root / name)
        found[name] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return found

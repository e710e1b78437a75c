"""Fake NWPU VHR-10: TorchGeo's folders, coloured rectangles as objects."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "NWPU VHR-10 dataset"
NAMES = (
    "airplane",
    "ship",
    "storage_tank",
    "baseball_diamond",
    "tennis_court",
    "basketball_court",
    "ground_track_field",
    "harbor",
    "bridge",
    "vehicle",
)


def make(root: Path, positive: int = 10, negative: int = 5) -> Path:
    """Write images, annotations and an empty archive below a folder, and return it."""
    rng = np.random.default_rng(0)
    images, objects = [], []
    for kind, count in (("positive", positive), ("negative", negative)):
        folder = root / FOLDER / f"{kind} image set"
        folder.mkdir(parents=True)
        for i in range(count):
            height, width = int(rng.integers(48, 64)), int(rng.integers(56, 80))
            pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
            name = f"{i + 1:03d}.jpg"
            Image.fromarray(pixels).save(folder / name)
            if kind == "negative":
                continue
            images.append({"id": i, "file_name": name, "height": height, "width": width})
            for k in range(1 + i % 3):
                left, top, w, h = 4 + 12 * k, 6 + 5 * k, 10, 14
                ring = [left, top, left + w, top, left + w, top + h, left, top + h]
                objects.append(
                    {
                        "id": len(objects),
                        "image_id": i,
                        "category_id": 1 + (i + k) % 10,
                        "bbox": [float(left), float(top), float(w), float(h)],
                        "area": float(w * h),
                        "segmentation": [ring],
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / FOLDER / "annotations.json").write_text(json.dumps(content))
    (root / f"{FOLDER}.zip").touch()
    return root


def pack(source: Path, root: Path) -> str:
    """Write the archive of the images as it is published, and return its SHA-256."""
    root.mkdir()
    path = root / f"{FOLDER}.zip"
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted((source / FOLDER).rglob("*.jpg")):
            out.write(file, file.relative_to(source))
    return hashlib.sha256(path.read_bytes()).hexdigest()

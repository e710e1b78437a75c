"""Fake annotations of COCO's format: rectangles, triangles, run lengths and every oddity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

#: Ids with gaps, not in order: labels must be 1, 2, 3 by id all the same.
CATEGORIES = [{"id": 17, "name": "ship"}, {"id": 3, "name": "plane"}, {"id": 90, "name": "tank"}]
CLASSES = ("background", "plane", "ship", "tank")
HEIGHT, WIDTH = 40, 60


def box(left: int, top: int, width: int, height: int) -> dict[str, Any]:
    """An object that fills its box."""
    right, bottom = left + width, top + height
    ring = [left, top, right, top, right, bottom, left, bottom]
    return {"bbox": [left, top, width, height], "segmentation": [ring]}


def runs(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    """Run lengths of a mask, column by column."""
    if compressed:
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": packed["size"], "counts": packed["counts"].decode()}
    flat = np.concatenate(([0], mask.T.reshape(-1), [0]))
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()
    return {"size": list(mask.shape), "counts": counts}


def blob() -> np.ndarray:
    """A mask with a hole."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 20:50] = True
    mask[15:20, 25:35] = False
    return mask


def objects(part: int) -> list[dict[str, Any]]:
    """What is in the images: image, category and place of each object."""
    several = box(4, 4, 10, 6)
    several["bbox"] = [4, 4, 30, 6]
    several["segmentation"] += [[24, 4, 34, 4, 34, 10, 24, 10]]
    run = [
        {"bbox": [20, 10, 30, 20], "segmentation": runs(blob(), packed)} for packed in (False, True)
    ]
    triangle = {"bbox": [30, 20, 10, 10], "segmentation": [[30, 20, 40, 20, 30, 30]]}
    return [
        {"image_id": part, "category_id": 3, **box(4, 6, 12, 8)},
        {"image_id": part, "category_id": 17, **triangle},
        {"image_id": part + 1, "category_id": 90, **several},
        {"image_id": part + 1, "category_id": 3, **run[0]},
        {"image_id": part + 1, "category_id": 3, **run[1]},
        # Left out: a crowd, no area, a line, outside. Cut: reaches out.
        {"image_id": part, "category_id": 3, "iscrowd": 1, **run[0]},
        {"image_id": part, "category_id": 3, **box(9, 9, 0, 5)},
        {"image_id": part, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 6]]},
        {"image_id": part, "category_id": 3, **box(WIDTH + 5, 3, 5, 5)},
        {"image_id": part + 3, "category_id": 17, **box(-6, 30, 12, 20)},
    ]


def write(root: Path, name: str, count: int, found: list[dict[str, Any]], offset: int = 0) -> None:
    """Images and annotations of one split; image ``offset + i`` is ``i.jpg``."""
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(offset)
    images = []
    for i in range(count):
        height = HEIGHT if i != 2 else HEIGHT + 20  # one of another shape, without objects
        pixels = rng.integers(0, 255, (height, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        images.append({"id": offset + i, "file_name": f"{i}.jpg", "height": height, "width": WIDTH})
    numbered = [{"id": i, "iscrowd": 0, **entry} for i, entry in enumerate(found)]
    content = {"images": images, "annotations": numbered, "categories": CATEGORIES}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def make(root: Path) -> Path:
    """Write COCO's folders, with 6 images for training and 4 for validation, and return theirs."""
    write(root, "train2017", 6, objects(0))
    write(root, "val2017", 4, objects(500), 500)
    return root

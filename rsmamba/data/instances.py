"""Objects with boxes and masks in COCO's format: https://cocodataset.org/#format-data."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from matplotlib.figure import Figure
from PIL import Image
from rasterio.features import rasterize
from rasterio.transform import Affine
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from rsmamba.data.collate import flip
from rsmamba.data.listing import some
from rsmamba.data.photos import decode_rgb
from rsmamba.data.plots import plot_samples
from rsmamba.data.sampling import Lottery
from rsmamba.errors import DataNotFoundError, GridMismatchError, LabelError, one_line
from rsmamba.samples import resolve

Flips = Literal["none", "horizontal", "both"]

#: Polygons as rings [x, y, x, y, ...] in pixels, or run lengths with their size.
Outline = list[npt.NDArray[np.float32]] | dict[str, Any]
BACKGROUND = "background"


@dataclass
class Annotated:
    """An image and its objects.

    Attributes:
        path: The image file.
        height: Rows, as the annotations say; None where they say nothing.
        width: Columns.
        boxes: Left, top, right and bottom of each object in pixels.
        labels: Class of each object, from 1.
        outlines: Where each object is; empty without masks.
    """

    path: Path
    height: int | None = None
    width: int | None = None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    outlines: list[Outline] = field(default_factory=list)


class COCOInstances(NonGeoDataset):
    """Images with objects, as annotated in a file of COCO's format.

    Samples are ``{"image": float32 (3, H, W) in 0..255, "bbox_xyxy": float32 (N, 4), "label":
    int64 (N,), "mask": uint8 (N, H, W)}``, boxes in pixels. Labels count from 1 in the order of the
    category ids; 0 is the background, of which TorchGeo's tasks count one class. An image without
    objects has N = 0. Masks are drawn when a sample is asked for, from polygons or run lengths.

    Objects marked ``iscrowd``, of no area or outside their image are left out, boxes that reach
    out are cut; ``dropped`` counts them all.

    Args:
        images: Folder of the images.
        annotations: Annotations of COCO's format.
        size: Longest side to which images, boxes and masks are resized; None to leave them.
        masks: Whether samples have masks.
        keep_empty: Whether images without objects are kept.
        convert: Whether grey and CMYK images and such with alpha are converted to red, green and
            blue rather than refused. COCO has a few grey ones.
        transforms: Applied to each sample.

    Attributes:
        folder: Folder to which the names of the images are relative.
        items: The images with their objects.
        classes: Names by label, the background first.
        dropped: How many objects were left out or cut, by reason.

    Raises:
        DataNotFoundError: If the file, the folder or an image is missing.
        LabelError: If the file is not of COCO's format or contradicts itself.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        size: int | None = None,
        masks: bool = True,
        keep_empty: bool = True,
        convert: bool = False,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self.size, self.masks, self.convert, self.transforms = size, masks, convert, transforms
        self.folder = resolve(images)
        self.items, self.classes, self.dropped = read_coco(
            resolve(annotations), self.folder, masks=masks
        )
        if not keep_empty:
            self.items = [item for item in self.items if item.boxes]
        self.flips: Flips = "none"
        self.lottery: Lottery | None = None

    def subset(self, indices: Sequence[int]) -> "COCOInstances":
        """The same data, restricted to some images by their position in ``items``."""
        return self.of([self.items[i] for i in indices])

    def of(self, items: Sequence[Annotated]) -> "COCOInstances":
        """The same options for other images."""
        view = copy.copy(self)
        view.items = list(items)
        return view

    def random(self, flips: Flips, seed: int) -> "COCOInstances":
        """The same images, each once in an epoch, mirrored at random.

        Index ``i`` always gives the same sample; indices go on from epoch to epoch.

        Args:
            flips: "horizontal" mirrors half of them left to right, "both" also half of them top
                to bottom.
            seed: Seed of order and mirroring.
        """
        view = copy.copy(self)
        view.flips = flips
        view.lottery = Lottery([1.0] * len(self), len(self), seed)
        return view

    @property
    def endless(self) -> bool:
        """Whether indices beyond ``len()`` are new samples."""
        return self.lottery is not None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """The sample of an index.

        Raises:
            ImageReadError: If the image cannot be decoded.
            BandMismatchError: If it is not red, green and blue.
            GridMismatchError: If its size is not that of the annotations.
            LabelError: If run lengths are broken.
        """
        if self.lottery is None:
            sample = self._read(self.items[index])
        else:
            position, rng = self.lottery.draw(index)
            across, down = rng.random(2) < 0.5
            sample = flip(
                self._read(self.items[position]),
                across=bool(across) and self.flips != "none",
                down=bool(down) and self.flips == "both",
            )
        return sample if self.transforms is None else self.transforms(sample)

    def _read(self, item: Annotated) -> Sample:
        pixels = decode_rgb(item.path, convert=self.convert)
        height, width = pixels.shape[:2]
        if item.height is not None and (height, width) != (item.height, item.width):
            raise GridMismatchError(
                f"{item.path}: {height} x {width} px, but its annotations are for "
                f"{item.height} x {item.width}; use the images that were annotated"
            )
        if self.size is not None and self.size != max(height, width):
            factor = self.size / max(height, width)
            height, width = (max(1, round(side * factor)) for side in (height, width))
            resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.array(resized)
        x, y = width / (item.width or width), height / (item.height or height)
        boxes = np.array(item.boxes, np.float32).reshape(-1, 4)
        boxes *= np.array([x, y, x, y], np.float32)
        sample = {
            "image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float(),
            "bbox_xyxy": torch.from_numpy(boxes),
            "label": torch.tensor(item.labels, dtype=torch.int64),
        }
        if self.masks:
            drawn = np.zeros((len(item.outlines), height, width), np.uint8)
            with rasterio.Env():  # once, not for each object
                for mask, outline in zip(drawn, item.outlines, strict=True):
                    _draw(mask, outline, (x, y), item.path)
            sample["mask"] = torch.from_numpy(drawn)
        return sample

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show the image with boxes and masks, and those predicted if there are any.

        Args:
            sample: A sample of this data set, possibly with "prediction_bbox_xyxy",
                "prediction_label", "prediction_score" and "prediction_mask".
            show_titles: Whether to title the panels.
            suptitle: Title of the figure.
        """
        return plot_samples(
            [sample], classes=self.classes, show_titles=show_titles, suptitle=suptitle
        )


def _draw(
    mask: npt.NDArray[np.uint8],
    outline: Outline,
    scale: tuple[float, float],
    path: Path,
) -> None:
    """Set the pixels of an object to 1: those whose centre lies in one of its rings."""
    height, width = mask.shape
    if isinstance(outline, dict):
        try:
            full = Image.fromarray(_decode(outline))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise LabelError(
                f"{path}: the run lengths of one of its masks are broken ({one_line(error)}); "
                "export the annotations again"
            ) from error
        mask[:] = np.asarray(full.resize((width, height), Image.Resampling.NEAREST))
        return
    rings = [ring.reshape(-1, 2) * scale for ring in outline]
    # Only the rectangle around the rings: a large image may hold a thousand small objects.
    corners = np.concatenate(rings)
    left, top = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int)
    if right > left and bottom > top:
        window = np.zeros((bottom - top, right - left), np.uint8)
        # Each ring is a part of its own, never a hole; COCO leaves it open.
        closed = (np.concatenate((ring, ring[:1])).tolist() for ring in rings)
        polygons = ({"type": "Polygon", "coordinates": [ring]} for ring in closed)
        rasterize(polygons, out=window, transform=Affine.translation(left, top))
        mask[top:bottom, left:right] = window


def _decode(outline: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Run lengths, as a list or in COCO's compressed form, as a mask (H, W)."""
    height, width = outline["size"]
    counts = outline["counts"]
    runs = _decompress(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"they do not make up {height} x {width} px")
    values = np.arange(len(runs)) % 2
    return np.repeat(values, runs).astype(np.uint8).reshape(width, height).T


def _decompress(text: str) -> npt.NDArray[np.int64]:
    """Run lengths from COCO's strings: https://github.com/cocodataset/cocoapi, maskApi.c.

    Each number is a series of digits of five bits, the lowest first, whose sixth bit says that
    another follows; the fifth bit of the last is the sign. From the fourth number on, they are
    differences to the last but one.
    """
    digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 0x20) == 0) + 1
    starts = np.concatenate(([0], ends[:-1]))
    if not len(ends) or ends[-1] != len(digits):
        raise ValueError("they are cut short")
    lengths = ends - starts
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 0x1F) << 5 * place, starts)
    negative = (digits[ends - 1] & 0x10) != 0
    values -= np.where(negative, np.int64(1) << 5 * lengths, 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def read_coco(
    annotations: Path, images: Path, *, masks: bool = True
) -> tuple[list[Annotated], tuple[str, ...], Counter[str]]:
    """Read a file of COCO's format; see :class:`COCOInstances`.

    Returns:
        The images with their objects, names by label with the background first, and how many
        objects were left out or cut, by reason.

    Raises:
        DataNotFoundError: If the file, the folder or an image is missing.
        LabelError: If the file is not of COCO's format or contradicts itself.
    """
    content = _load(annotations)
    try:
        return _parse(content, annotations, images, masks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise LabelError(
            f"{annotations}: an entry is not as COCO's format has it ({what}); export it again"
        ) from error


def _load(path: Path) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataNotFoundError(f"no annotations {path}: check the path") from error
    except (OSError, ValueError) as error:
        raise LabelError(
            f"{path}: not readable as JSON ({one_line(error)}); copy or download it again"
        ) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(p), list) for p in parts):
        raise LabelError(
            f"{path}: is not of COCO's format, which has lists of images, annotations and "
            "categories; export it so"
        )
    return content


def _parse(
    content: Any, file: Path, folder: Path, masks: bool
) -> tuple[list[Annotated], tuple[str, ...], Counter[str]]:
    categories = {c["id"]: str(c["name"]) for c in content["categories"]}
    _unique(file, "category", [c["id"] for c in content["categories"]])
    _unique(file, "image", [i["id"] for i in content["images"]])
    _unique(file, "file name", [i["file_name"] for i in content["images"]])
    labels = {key: i for i, key in enumerate(sorted(categories), 1)}
    items = {
        i["id"]: Annotated(folder / i["file_name"], int(i["height"]), int(i["width"]))
        for i in content["images"]
    }
    if missing := [str(item.path) for item in items.values() if not item.path.is_file()]:
        raise DataNotFoundError(
            f"{file}: lists {len(missing)} images that are not there, e.g. {some(missing, 2)}; "
            "check the folder of the images"
        )
    if not items:
        raise LabelError(f"{file}: lists no images")
    dropped: Counter[str] = Counter()
    for entry in content["annotations"]:
        name = f"{file}: annotation {entry.get('id')}"
        if entry["category_id"] not in categories:
            raise LabelError(
                f"{name} has the category {entry['category_id']}, which is not among the "
                f"categories {some(list(map(str, categories)), 10)}; correct either"
            )
        if entry["image_id"] not in items:
            raise LabelError(
                f"{name} is of image {entry['image_id']}, which is not among the images; add it "
                "or remove the annotation"
            )
        item = items[entry["image_id"]]
        _add(item, entry, labels[entry["category_id"]], name, masks, dropped)
    names = (BACKGROUND, *(categories[key] for key in labels))
    return list(items.values()), names, dropped


def _add(
    item: Annotated,
    entry: Mapping[str, Any],
    label: int,
    name: str,
    masks: bool,
    dropped: Counter[str],
) -> None:
    """Give an object to its image, or count why not."""
    if entry.get("iscrowd"):
        dropped["crowd"] += 1
        return
    left, top, width, height = map(float, entry["bbox"])
    if not np.isfinite((left, top, width, height)).all():
        raise LabelError(f"{name} has a box {entry['bbox']}, which is no rectangle; correct it")
    if width <= 0 or height <= 0:
        dropped["no area"] += 1
        return
    right, bottom = left + width, top + height
    assert item.width is not None  # noqa: S101 - the format demands sizes
    assert item.height is not None  # noqa: S101
    box = (max(left, 0.0), max(top, 0.0), min(right, item.width), min(bottom, item.height))
    if box[2] <= box[0] or box[3] <= box[1]:
        dropped["outside"] += 1
        return
    if masks:
        outline = _outline(entry.get("segmentation"), name, item)
        if not outline:
            dropped["no area"] += 1
            return
        item.outlines.append(outline)
    if box != (left, top, right, bottom):
        dropped["cut"] += 1
    item.boxes.append(box)
    item.labels.append(label)


def _outline(segmentation: Any, name: str, item: Annotated) -> Outline:
    """Rings of three points at least, or run lengths of the image's size."""
    if not segmentation:
        raise LabelError(f"{name} has no segmentation: set masks=False to read boxes only")
    if not isinstance(segmentation, dict):
        if any(len(ring) % 2 for ring in segmentation):
            raise LabelError(f"{name} has a ring with x but no y; export it again")
        return [np.array(ring, np.float32) for ring in segmentation if len(ring) >= 6]
    if list(segmentation["size"]) != [item.height, item.width]:
        raise LabelError(
            f"{name} has a mask of {' x '.join(map(str, segmentation['size']))} px, its image "
            f"{item.path.name} {item.height} x {item.width}; export it again"
        )
    return segmentation


def _unique(file: Path, what: str, ids: Sequence[Any]) -> None:
    if repeated := [str(key) for key, count in Counter(ids).items() if count > 1]:
        raise LabelError(
            f"{file}: {what} {some(repeated)} is listed more than once; number them anew"
        )

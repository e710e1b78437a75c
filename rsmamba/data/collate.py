"""Batches of images that differ in size: padded at the bottom and on the right, never resized."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import default_collate
from torchgeo.datamodules.utils import collate_fn_detection
from torchgeo.datasets.utils import Sample

from rsmamba.data.images import IGNORE


def pad_sample(sample: Sample, height: int, width: int, fill: Tensor | None = None) -> Sample:
    """A sample padded to a size at the bottom and on the right.

    Args:
        sample: "image" (C, H, W); perhaps "mask", (H, W) of classes, which is padded with 255, or
            (N, H, W) of objects, with 0; anything else, boxes too, stays as it is.
        height: Rows wanted, at least H.
        width: Columns wanted, at least W.
        fill: Value per band (C,) of the padding; 0 if None.
    """
    image = sample["image"]
    below, right = height - image.shape[-2], width - image.shape[-1]
    if not below and not right:
        return sample
    padded = image.new_zeros(len(image), height, width)
    if fill is not None:
        padded += fill.to(padded)[:, None, None]
    padded[:, : image.shape[-2], : image.shape[-1]] = image
    result = {**sample, "image": padded}
    if "mask" in sample:
        outside = 0 if sample["mask"].ndim == 3 else IGNORE
        result["mask"] = pad(sample["mask"], (0, right, 0, below), value=outside)
    return result


class PadCollate:
    """Collate samples of different sizes into one tensor of images.

    All are padded to the largest height and width of the batch, rounded up. Samples with
    "bbox_xyxy" are collated as TorchGeo does for detection: lists of boxes, labels and masks.

    Args:
        fill: Value per band (C,) of the padding, normally the mean, which is 0 once normalised.
        multiple: Height and width of a batch are multiples of this,
        windows: unless all are square windows of one of these sides, which were chosen so.
    """

    def __init__(
        self, fill: Tensor | None = None, multiple: int = 32, windows: Sequence[int | None] = ()
    ) -> None:
        self.fill, self.multiple, self.windows = fill, multiple, tuple(windows)

    def __call__(self, samples: Sequence[Sample]) -> Any:
        """One batch."""
        height, width = (max(s["image"].shape[axis] for s in samples) for axis in (-2, -1))
        if height != width or height not in self.windows:
            height, width = (-(-side // self.multiple) * self.multiple for side in (height, width))
        padded = [pad_sample(s, height, width, self.fill) for s in samples]
        if "bbox_xyxy" in padded[0]:
            return collate_fn_detection(padded)
        return cast(dict[str, Tensor], default_collate(padded))


def flip(sample: Sample, *, across: bool = False, down: bool = False) -> Sample:
    """A sample mirrored left to right (``across``) and top to bottom (``down``), boxes as well."""
    axes = [axis for axis, wanted in ((-1, across), (-2, down)) if wanted]
    if not axes:
        return sample
    result = {k: v.flip(axes) if k in ("image", "mask") else v for k, v in sample.items()}
    if "bbox_xyxy" in sample:
        height, width = sample["image"].shape[-2:]
        left, top, right, bottom = sample["bbox_xyxy"].unbind(1)
        if across:
            left, right = width - right, width - left
        if down:
            top, bottom = height - bottom, height - top
        result["bbox_xyxy"] = torch.stack((left, top, right, bottom), 1)
    return result

"""Augmentation of whole batches on their device: images of one or two dates, and masks."""

from typing import Any

import kornia.augmentation as K
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from rsmamba.data.images import IGNORE
from rsmamba.data.options import share


class Normalise(nn.Module):
    """``(image - mean) / std`` per band, for images (B, C, H, W) and (B, T, C, H, W) alike.

    Args:
        mean: Mean per band (C,), in pixel units.
        std: Deviation per band (C,), in pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.float().view(-1, 1, 1), persistent=False)

    def forward(self, batch: Sample) -> Sample:
        """Normalise "image"; everything else passes."""
        image = batch["image"]
        if self.mean.device != image.device:
            self.to(image.device)
        return {**batch, "image": (image - self.mean) / self.std}


class ImageAugmentation(nn.Module):
    """Normalise a batch of images with one label each, then turn, flip and tint it.

    Args:
        mean: Mean per band (C,).
        std: Deviation per band (C,).
        flips: Whether to flip and turn by quarters: overhead images have no upright.
        colour_jitter: Scale and shift of the normalised values within -c to c, below 1; 0 for
            none.

    Raises:
        ConfigError: If the jitter is out of range.
    """

    def __init__(
        self, mean: Tensor, std: Tensor, flips: bool = True, colour_jitter: float = 0.0
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.steps = _steps(flips, 0.0, colour_jitter, ["input"])

    def forward(self, batch: Sample) -> Sample:
        """Augment "image" (B, C, H, W)."""
        batch = self.normalise(batch)
        return {**batch, "image": self.steps(batch["image"])} if self.steps else batch


class SegmentationAugmentation(nn.Module):
    """Normalise a batch, then flip, turn, zoom and tint it, image and mask alike.

    Runs on the batch's device with kornia. Images of several dates (B, T, C, H, W) are moved as
    one. Zooming out leaves a border: the image is filled with the mean, the mask with 255
    (kornia alone would fill it with class 0).

    Args:
        mean: Mean per band (C,).
        std: Deviation per band (C,).
        scale_jitter: Zoom by a factor within 1 / (1 + s) to 1 + s, 1 at most; 0 for none.
        colour_jitter: Scale and shift of the normalised values within -c to c, below 1; 0 for
            none.
        flips: Whether to flip and turn by quarters.

    Raises:
        ConfigError: If a jitter is out of range.
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        scale_jitter: float = 0.25,
        colour_jitter: float = 0.1,
        flips: bool = True,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.steps = _steps(flips, scale_jitter, colour_jitter, ["input", "mask"])

    def forward(self, batch: Sample) -> Sample:
        """Augment "image" (B, [T,] C, H, W) and "mask" (B, [1,] H, W) of a batch."""
        batch = self.normalise(batch)
        if self.steps is None:
            return batch
        image, mask = batch["image"], batch["mask"]
        size = image.shape[-2:]
        # Zeros are what kornia fills a mask with: let them stand for "ignore" meanwhile.
        inverted = (IGNORE - mask).view(len(mask), 1, *size).float()
        moved, turned = self.steps(image.flatten(1, -3), inverted)
        restored = IGNORE - turned.round().to(mask.dtype).view(*mask.shape[:-2], *turned.shape[-2:])
        moved = moved.view(*image.shape[:-2], *moved.shape[-2:])
        return {**batch, "image": moved, "mask": restored}


def check_jitter(colour_jitter: float, scale_jitter: float = 0.0) -> None:
    """Refuse jitter out of range, for data modules that build their augmentation later.

    Raises:
        ConfigError: If ``colour_jitter`` is outside [0, 1), or ``scale_jitter`` outside [0, 1].
    """
    share("colour_jitter", colour_jitter)
    share("scale_jitter", scale_jitter, whole=True)


def _steps(
    flips: bool, scale_jitter: float, colour_jitter: float, keys: list[str]
) -> K.AugmentationSequential | None:
    """The steps asked for; None for none."""
    check_jitter(colour_jitter, scale_jitter)
    steps: list[Any] = []
    if flips:
        steps += [
            K.RandomHorizontalFlip(p=0.5),
            K.RandomVerticalFlip(p=0.5),
            K.RandomRotation90(times=(0, 3), p=1.0),
        ]
    if scale_jitter > 0:
        zoom = (1 / (1 + scale_jitter), 1 + scale_jitter)
        steps.append(K.RandomAffine(degrees=0, scale=zoom, p=1.0))
    if colour_jitter > 0:
        factor = (1 - colour_jitter, 1 + colour_jitter)
        # On normalised values of any number of bands, which must not be clipped to 0..1.
        steps.append(K.RandomContrast(contrast=factor, clip_output=False, p=1.0))
        steps.append(K.RandomBrightness(brightness=factor, clip_output=False, p=1.0))
    return K.AugmentationSequential(*steps, data_keys=keys) if steps else None


def unnormalise(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixel units of a normalised image (..., C, H, W)."""
    return image * std.to(image).view(-1, 1, 1) + mean.to(image).view(-1, 1, 1)

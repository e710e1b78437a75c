"""Decoding the photographs of benchmark sets, JPEG, PNG and byte TIFF, as three bands."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import decode_image, read_file

from rsmamba.data.images import undecodable
from rsmamba.data.listing import PHOTO_SUFFIXES
from rsmamba.errors import BandMismatchError, DataNotFoundError, ImageReadError

Interpolation = Literal["bilinear", "bicubic"]

#: Pillow's modes that are red, green and blue, plainly or by a palette.
_COLOUR = frozenset({"RGB", "P"})
_KINDS = {
    "1": "one-bit grey",
    "L": "grey",
    "LA": "grey with alpha",
    "RGBA": "colour with alpha",
    "PA": "colour with alpha",
    "CMYK": "CMYK (printing inks)",
    "YCbCr": "YCbCr",
    "LAB": "CIE Lab",
}


def read_rgb(path: str | Path, *, convert: bool = False) -> Tensor:
    """Decode an image as red, green and blue.

    JPEG and PNG are decoded by torchvision, which takes two thirds of Pillow's time for the same
    values (both use libjpeg-turbo); whatever it does not give as three bands of bytes is Pillow's.

    Args:
        path: JPEG, PNG or TIFF of 8 bits.
        convert: Whether grey (as three equal bands), CMYK and images with alpha (dropped) are
            converted; otherwise they are refused, because a set that promises red, green and blue
            seldom means them.

    Returns:
        (3, H, W) uint8, interleaved in memory as in the file (channels last).

    Raises:
        DataNotFoundError: If there is no such file.
        ImageReadError: If it cannot be decoded, or is a single pixel.
        BandMismatchError: If it is not red, green and blue of 8 bits.
    """
    if Path(path).suffix.lower() in PHOTO_SUFFIXES:
        try:
            pixels: Tensor = decode_image(read_file(str(path)))
        except RuntimeError:
            pass  # Pillow says in which way it is damaged, or reads what is named wrongly
        else:
            if len(pixels) == 3 and pixels.dtype == torch.uint8 and max(pixels.shape[1:]) > 1:
                return pixels
    return torch.from_numpy(decode_rgb(path, convert=convert)).permute(2, 0, 1)


def decode_rgb(path: str | Path, *, convert: bool = False) -> "np.ndarray":
    """Like :func:`read_rgb`, with Pillow, as (H, W, 3)."""
    try:
        with Image.open(path) as image:
            check_rgb(path, image, convert=convert)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataNotFoundError(f"no image {path}: check the path, or list the folder anew") from (
            error
        )
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise undecodable(path, error) from error


def check_rgb(path: str | Path, image: Image.Image, *, convert: bool = False) -> None:
    """Refuse an opened image that is not red, green and blue; see :func:`read_rgb`."""
    if max(image.size) < 2:
        raise ImageReadError(f"{path}: has a single pixel; copy or download it again, or remove it")
    if (image.mode not in _KINDS and image.mode not in _COLOUR) or _deep(image):
        raise BandMismatchError(
            f"{path}: stores more than 8 bits per band, not red, green and blue of 8: rescale it "
            "to bytes, or read it as a scene (ScenePatches, LabelledScenes)"
        )
    if image.mode in _KINDS and not convert:
        raise BandMismatchError(
            f"{path}: is {_KINDS[image.mode]}, not red, green and blue: convert the file, or set "
            "convert=True to convert such images on reading"
        )


def _deep(image: Image.Image) -> bool:
    """Whether Pillow would drop half of each value: it opens colour of 16 bits as "RGB"."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def resize(
    image: Tensor, height: int, width: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Resize with an antialiasing filter.

    Bytes stay bytes: interpolated and rounded in integers, three to four times as fast as in
    floating point, and about one grey level from its result at most.

    Args:
        image: (C, H, W) uint8 or floating point.
        height: Rows of the result.
        width: Columns of the result.
        interpolation: Which polynomial.

    Returns:
        (C, height, width) of the same type.
    """
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode=interpolation, antialias=True)[0]

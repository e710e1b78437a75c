"""Decoding the photographs of benchmark sets: JPEG, PNG and byte TIFF as three bands."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rsmamba.data.images import undecodable
from rsmamba.errors import BandMismatchError, ImageReadError

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

    Args:
        path: JPEG, PNG or TIFF of 8 bits.
        convert: Whether grey (as three equal bands), CMYK and images with alpha (dropped) are
            converted; otherwise they are refused, because a set that promises red, green and blue
            seldom means them.

    Returns:
        (3, H, W) uint8, contiguous.

    Raises:
        DataNotFoundError: If there is no such file.
        ImageReadError: If it cannot be decoded, or is a single pixel.
        BandMismatchError: If it is not red, green and blue of 8 bits.
    """
    return torch.from_numpy(decode_rgb(path, convert=convert)).permute(2, 0, 1).contiguous()


def decode_rgb(path: str | Path, *, convert: bool = False) -> "np.ndarray":
    """Like :func:`read_rgb`, as (H, W, 3)."""
    try:
        with Image.open(path) as image:
            check_rgb(path, image, convert=convert)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise undecodable(path, error) from error


def check_rgb(path: str | Path, image: Image.Image, *, convert: bool = False) -> None:
    """Refuse an opened image that is not red, green and blue; see :func:`read_rgb`."""
    if max(image.size) < 2:
        raise ImageReadError(f"{path}: has a single pixel; copy or download it again, or remove it")
    if image.mode in _COLOUR:
        return
    if image.mode not in _KINDS:
        raise BandMismatchError(
            f"{path}: stores more than 8 bits per band (mode {image.mode}), not red, green and "
            "blue of 8: rescale it to bytes, or read it as a scene (ScenePatches, LabelledScenes)"
        )
    if not convert:
        raise BandMismatchError(
            f"{path}: is {_KINDS[image.mode]}, not red, green and blue: convert the file, or set "
            "convert=True to convert such images on reading"
        )

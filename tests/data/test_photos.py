"""Photographs: what counts as red, green and blue, and what is refused by name."""

import io

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch.nn.functional import interpolate

from rsmamba.data.images import quiet
from rsmamba.data.photos import decode_rgb, read_rgb, resize
from rsmamba.errors import BandMismatchError, DataNotFoundError, ImageReadError


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(
        np.kron(rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((5, 5, 1), np.uint8))
    )


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "tif"])
def test_values_are_those_of_pillow(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    pixels = read_rgb(path)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 30, 40)
    assert np.array_equal(pixels.permute(1, 2, 0), np.array(Image.open(path)))


def test_a_wrong_suffix_and_a_palette_do_no_harm(tmp_path, picture):
    picture.save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.jpg")
    assert np.array_equal(read_rgb(tmp_path / "a.jpg").permute(1, 2, 0), np.array(picture))
    coloured = picture.convert("P")
    coloured.save(tmp_path / "p.png")
    expected = np.array(coloured.convert("RGB"))
    assert np.array_equal(read_rgb(tmp_path / "p.png").permute(1, 2, 0), expected)


ODD = {
    "L": ("jpg", "is grey"),
    "CMYK": ("jpg", "CMYK"),
    "RGBA": ("png", "alpha"),
    "LA": ("png", "grey with alpha"),
    "1": ("png", "one-bit"),
}


@pytest.mark.parametrize("mode", ODD)
def test_grey_inks_and_alpha_are_refused_or_converted(tmp_path, picture, mode):
    suffix, what = ODD[mode]
    path = tmp_path / f"odd.{suffix}"
    picture.convert(mode).save(path)
    with pytest.raises(BandMismatchError, match=rf"odd\.{suffix}.*{what}.*convert=True") as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)
    pixels = read_rgb(path, convert=True)
    assert pixels.shape == (3, 30, 40)
    assert np.array_equal(pixels.permute(1, 2, 0), np.array(Image.open(path).convert("RGB")))
    if mode in ("L", "LA"):
        assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_sixteen_bits_are_refused_even_where_pillow_drops_half_of_them(tmp_path, bands, suffix):
    path = tmp_path / f"deep.{suffix}"
    driver = {"tif": "GTiff", "png": "PNG"}[suffix]
    values = np.full((bands, 8, 8), 40_000, np.uint16)
    with (
        quiet(),
        rasterio.open(path, "w", driver, 8, 8, bands, dtype="uint16", photometric="RGB")
        if bands == 3 and suffix == "tif"
        else rasterio.open(path, "w", driver, 8, 8, bands, dtype="uint16") as file,
    ):
        file.write(values)
    for convert in (False, True):
        with pytest.raises(BandMismatchError, match=rf"deep\.{suffix}.*8 bits.*ScenePatches"):
            read_rgb(path, convert=convert)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
def test_a_truncated_file_is_named_with_the_remedy(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, {"jpg": "JPEG", "png": "PNG", "tif": "TIFF"}[suffix])
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    with pytest.raises(
        ImageReadError, match=rf"cut\.{suffix}: cannot be decoded.*download it again"
    ):
        read_rgb(path)


def test_a_single_pixel_and_a_missing_file_are_named(tmp_path, picture):
    for suffix in ("png", "jpg", "tif"):
        picture.resize((1, 1)).save(tmp_path / f"dot.{suffix}")
        with pytest.raises(ImageReadError, match=rf"dot\.{suffix}: has a single pixel"):
            read_rgb(tmp_path / f"dot.{suffix}")
    for read in (read_rgb, decode_rgb):
        with pytest.raises(DataNotFoundError, match=r"none\.jpg"):
            read(tmp_path / "none.jpg")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(13, 21), (70, 90), (30, 55)])
def test_bytes_are_resized_to_within_a_grey_level_of_floating_point(tmp_path, interpolation, size):
    smooth = np.random.default_rng(0).integers(40, 216, (4, 6, 3), np.uint8)
    picture = Image.fromarray(smooth).resize((40, 30), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.png")
    pixels = read_rgb(tmp_path / "a.png")
    small = resize(pixels, *size, interpolation)
    assert small.dtype == torch.uint8
    exact = interpolate(pixels[None].float(), size, mode=interpolation, antialias=True)[0]
    assert (small - exact.clamp(0, 255)).abs().max() <= 1.1
    torch.testing.assert_close(resize(pixels.float(), *size, interpolation), exact)
    assert resize(pixels, 30, 40) is pixels

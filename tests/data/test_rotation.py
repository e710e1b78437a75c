"""Adaptive rotation: the right window, a true rotation, an untouched target."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from rsmamba.data.rotation import (
    NEIGHBOURS,
    AdaptiveRotation,
    local_binary_pattern,
    patch_information,
)
from rsmamba.errors import ConfigError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def planted(height, width, top, left, side, batch=1):
    """Flat images with a square of noise."""
    images = torch.full((batch, 3, height, width), 50.0)
    images[:, :, top : top + side, left : left + side] = torch.rand(batch, 3, side, side) * 200
    return images


def naive_entropy(grey, p, margin):
    """Entropy per patch by loops over pixels."""
    height, width = grey.shape
    out = np.zeros((height // p, width // p))
    for i in range(height // p):
        for j in range(width // p):
            counts = {}
            for y in range(i * p, i * p + p):
                for x in range(j * p, j * p + p):
                    code = 0
                    for bit, (dy, dx) in enumerate(NEIGHBOURS):
                        yy = min(max(y + dy, 0), height - 1)
                        xx = min(max(x + dx, 0), width - 1)
                        code += (grey[yy, xx] >= grey[y, x] + margin) << bit
                    counts[code] = counts.get(code, 0) + 1
            shares = np.array(list(counts.values())) / p**2
            out[i, j] = -(shares * np.log2(shares)).sum()
    return out


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_information_is_the_entropy_of_the_patterns_in_each_patch(tolerance):
    images = torch.randint(0, 6, (2, 1, 19, 26)).float()
    found = patch_information(images, 8, tolerance)
    assert found.shape == (2, 2, 3)
    for image, scores in zip(images[:, 0], found, strict=True):
        margin = tolerance * image.std(correction=0).item()
        expected = naive_entropy(image.numpy(), 8, np.float32(margin))
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_flat_ground_has_no_information_and_noise_has_much():
    flat = patch_information(torch.full((1, 3, 32, 32), 7.0), 16)
    assert flat.abs().max() < 1e-5
    assert patch_information(torch.rand(1, 3, 32, 32), 16).min() > 5


def test_pattern_bits_stand_for_the_neighbours_in_order():
    grey = torch.zeros(1, 3, 3)
    grey[0, 1, 1] = 1.0
    for bit, (row, col) in enumerate(NEIGHBOURS):
        one = grey.clone()
        one[0, 1 + row, 1 + col] = 2.0
        assert local_binary_pattern(one)[0, 1, 1] == 1 << bit


@pytest.mark.parametrize("side", [96, 64, 32])
@pytest.mark.parametrize(("row", "col"), [(0, 5), (4, 1), (5, 0)])
def test_the_planted_square_is_found_at_its_row_and_column(side, row, col):
    images = planted(192, 208, row * 16, col * 16, side)
    mask = AdaptiveRotation(windows=(side,))(images).mask[0]
    expected = torch.zeros(12, 13, dtype=torch.bool)
    expected[row : row + side // 16, col : col + side // 16] = True
    assert torch.equal(mask, expected)


def test_faint_noise_attracts_only_without_tolerance():
    images = torch.full((1, 3, 192, 192), 50.0) + torch.rand(1, 3, 192, 192)
    bars = (torch.arange(64) // 4 % 2) * 200.0
    images[:, :, 128:, 128:] = bars * bars[:, None] / 200  # bold, but of few patterns
    assert AdaptiveRotation(windows=(64,))(images).mask[0, 8:, 8:].all()
    assert not AdaptiveRotation(windows=(64,), tolerance=0)(images).mask[0, 8:, 8:].any()


def test_the_largest_window_that_stands_out_is_taken_and_the_smallest_if_none_does():
    assert AdaptiveRotation()(planted(192, 192, 16, 32, 32)).mask.sum() == 36
    assert AdaptiveRotation()(torch.full((1, 3, 192, 192), 5.0)).mask.sum() == 4


def test_windows_follow_image_and_patch_size():
    tokens = AdaptiveRotation().window_tokens
    assert tokens(192, 192) == (6, 4, 2)
    assert tokens(96, 96) == (4, 2)
    assert tokens(64, 300) == (2,)
    assert tokens(40, 40) == (1,)  # none fits: one patch of two
    assert tokens(16, 16) == (1,)
    assert AdaptiveRotation(patch_size=14).window_tokens(224, 224) == (7, 5, 2)
    with pytest.raises(ConfigError, match="smaller than a patch"):
        tokens(15, 200)
    with pytest.raises(ConfigError, match="windows"):
        AdaptiveRotation(windows=())


@pytest.mark.parametrize(
    ("size", "patch"), [((192, 192), 16), ((100, 131), 16), ((96, 96), 8), ((40, 24), 16)]
)
def test_pixels_outside_the_window_and_the_target_are_untouched(size, patch):
    images = torch.rand(5, 4, *size)
    before = images.clone()
    out = AdaptiveRotation(patch_size=patch)(images)
    assert torch.equal(out.target, before)
    assert torch.equal(images, before)
    window = torch.zeros(5, *size, dtype=torch.bool)
    rows, cols = size[0] // patch, size[1] // patch
    window[:, : rows * patch, : cols * patch] = out.mask.repeat_interleave(
        patch, 1
    ).repeat_interleave(patch, 2)
    assert out.mask.shape == (5, rows, cols)
    assert torch.equal(
        out.image[~window[:, None].expand_as(images)], before[~window[:, None].expand_as(images)]
    )
    changed = (out.image != before).any(1)
    assert changed[window].float().mean() > 0.9


def test_content_turns_counter_clockwise_by_the_angle():
    images = torch.zeros(1, 1, 96, 96)
    yy, xx = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    # The best window is the central one; a blob to the right of its centre moves up.
    images[0, 0] = 200 * torch.exp(-((yy - 47.5) ** 2 + (xx - 63.5) ** 2) / 8)
    images[0, 0, 16:80, 16:80] += torch.rand(64, 64) * 20
    rotate = AdaptiveRotation(windows=(64,), max_angle=45)
    out = rotate(images)
    assert out.mask[0, 1:5, 1:5].all()
    peak = (out.image[0, 0] > 110).nonzero().float().mean(0)
    angle = math.radians(out.angle.item())
    expected = torch.tensor([47.5 - 16 * math.sin(angle), 47.5 + 16 * math.cos(angle)])
    assert abs(out.angle.item()) > 5
    assert (peak - expected).abs().max() < 0.75


def test_no_angle_means_no_change():
    images = torch.rand(3, 3, 96, 128)
    out = AdaptiveRotation(max_angle=0)(images)
    torch.testing.assert_close(out.image, images, atol=1e-4, rtol=0)


def test_corners_are_filled_with_the_surroundings_not_with_zeros():
    images = torch.full((4, 3, 128, 128), 100.0)
    images[:, :, :64, :64] += torch.rand(4, 3, 64, 64) * 50  # at the border: mirrored there
    out = AdaptiveRotation()(images)
    assert (out.angle.abs() > 1).all()
    assert out.image.min() > 99.9


def test_angles_are_spread_over_the_range_and_seeded():
    images = torch.rand(64, 1, 32, 32)
    rotate = AdaptiveRotation(max_angle=30)
    one = rotate(images, torch.Generator().manual_seed(5))
    two = rotate(images, torch.Generator().manual_seed(5))
    other = rotate(images, torch.Generator().manual_seed(6))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.angle, two.angle)
    assert not torch.equal(one.angle, other.angle)
    assert one.angle.abs().max() <= 30
    assert one.angle.min() < -20
    assert one.angle.max() > 20


def test_one_image_gives_the_same_alone_as_in_a_batch():
    images = torch.cat([planted(96, 96, 32, 16, 64), torch.rand(2, 3, 96, 96) * 9])
    batch = AdaptiveRotation(max_angle=0)(images).mask
    for i in range(3):
        assert torch.equal(AdaptiveRotation(max_angle=0)(images[i : i + 1]).mask[0], batch[i])


def test_needs_torch_alone():
    code = (
        "import sys, rsmamba.data.rotation, rsmamba.data as d; d.AdaptiveRotation();"
        "print([m for m in ('torchgeo', 'rasterio', 'kornia', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_half_precision_keeps_its_type():
    out = AdaptiveRotation()(torch.rand(2, 3, 64, 64).bfloat16())
    assert out.image.dtype == torch.bfloat16
    assert out.image.isfinite().all()

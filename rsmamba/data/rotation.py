"""Adaptive rotation: turn the part of an image that holds most information.

RoMA (arXiv 2503.10392, section 3.2) rotates one window of each pretraining image and tells the
model the angle, so that sparse objects are seen in all directions. Patches are scored by their
local binary patterns (Ojala et al. 2002). Differences from the published code, which scores
scrambled patches and rotates the target as well, are deliberate: rows and columns keep their
order, the score is an entropy, and the target is the image as it was. Needs torch only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rsmamba.errors import ConfigError

#: Neighbours of a pixel as (row, column), clockwise from the top left: bits 0 to 7 of its code.
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


class RotatedBatch(NamedTuple):
    """What :class:`AdaptiveRotation` returns.

    Attributes:
        image: (B, C, H, W), rotated inside the window of each image, untouched outside.
        target: (B, C, H, W), the unrotated input.
        mask: (B, H // p, W // p) bool, the tokens of the window.
        angle: (B,) degrees, counter-clockwise as seen on the screen.
    """

    image: Tensor
    target: Tensor
    mask: Tensor
    angle: Tensor


def local_binary_pattern(grey: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Codes of the 3 x 3 local binary pattern.

    Bit k is set where neighbour k is at least as bright as the pixel plus the margin; beyond the
    border the outermost pixels are repeated.

    Args:
        grey: (B, H, W).
        margin: In the units of grey, broadcast against it.

    Returns:
        (B, H, W) uint8.
    """
    height, width = grey.shape[1:]
    threshold = grey + margin
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    code = torch.zeros(grey.shape, dtype=torch.uint8, device=grey.device)
    for bit, (row, col) in enumerate(NEIGHBOURS):
        neighbour = padded[:, 1 + row : 1 + row + height, 1 + col : 1 + col + width]
        code.add_((neighbour >= threshold).view(torch.uint8), alpha=1 << bit)
    return code


def patch_information(images: Tensor, patch_size: int, tolerance: float = 0.0) -> Tensor:
    """Entropy in bits of the local binary patterns in each patch.

    0 for a patch of one pattern (flat ground), up to 8 for 256 equally frequent ones. The grey
    value is the mean of the bands; rows and columns beyond the last whole patch do not count.

    Args:
        images: (B, C, H, W).
        patch_size: Side p of a patch in pixels.
        tolerance: Brightness that a neighbour must add to count, as a share of the standard
            deviation of the image's grey values.

    Returns:
        (B, H // p, W // p) float32.
    """
    p = patch_size
    batch, _, height, width = images.shape
    rows, cols = height // p, width // p
    grey = images.mean(1, dtype=torch.float32)
    # A norm of differences, because Tensor.std is eight times as slow on the CPU.
    contrast = torch.linalg.vector_norm(
        grey - grey.mean((1, 2), keepdim=True), dim=(1, 2), keepdim=True
    ) / math.sqrt(height * width)
    code = local_binary_pattern(grey, tolerance * contrast)[:, : rows * p, : cols * p]
    by_patch = code.reshape(batch, rows, p, cols, p).transpose(2, 3).reshape(-1, p * p)
    bins = torch.arange(len(by_patch), device=images.device, dtype=torch.int32)[:, None] * 256
    counts = torch.bincount((by_patch + bins).flatten(), minlength=len(by_patch) * 256)
    # entropy = log n - sum(c log c) / n, with c log c from a table: counts are small integers
    n = p * p
    table = torch.arange(n + 1, device=images.device, dtype=torch.float32)
    table = torch.xlogy(table, table) / (n * math.log(2))
    entropy = table[n] - table.index_select(0, counts).view(-1, 256).sum(1)
    return entropy.view(batch, rows, cols)


class AdaptiveRotation:
    """Rotates the most informative window of each image by a random angle.

    For each window size the best place is the one, in steps of a patch, with the greatest sum of
    patch scores. Of the sizes, an image takes the largest whose best window scores higher on
    average than the whole image, and the smallest if none does: as much context as possible, as
    long as the window stands out (the paper's intent; its code always took 96 px). The content
    is sampled bilinearly from the whole image, so that the window's corners are
    filled with what lies around it, mirrored at the border of the image.

    Args:
        patch_size: Side of a patch in pixels.
        windows: Sides of the windows in pixels. They are rounded to whole patches; those larger
            than 2/3 of the image are dropped, and if none is left, the largest that fits is used.
        max_angle: Angles are uniform between minus and plus this many degrees.
        tolerance: Share of the image's contrast below which brightness differences are noise. The
            pattern itself knows no amplitude: with 0, the noise of sand or open water scores
            above an aeroplane.

    Raises:
        ConfigError: If a size is not positive.
    """

    def __init__(
        self,
        patch_size: int = 16,
        windows: Sequence[int] = (96, 64, 32),
        max_angle: float = 45.0,
        tolerance: float = 0.2,
    ) -> None:
        if patch_size < 1 or not windows or min(windows) < 1:
            raise ConfigError(
                f"patch_size={patch_size} and windows={tuple(windows)} must be positive"
            )
        self.patch_size = patch_size
        self.windows = tuple(windows)
        self.max_angle = max_angle
        self.tolerance = tolerance

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> RotatedBatch:
        """Rotate a batch.

        Args:
            images: (B, C, H, W) float, in any units.
            generator: Source of the angles; torch's own if None. Its device may differ.

        Raises:
            ConfigError: If the image is smaller than a patch.
        """
        batch, _, height, width = images.shape
        sizes = self.window_tokens(height, width)
        score = patch_information(images, self.patch_size, self.tolerance)
        choice, top, left = self._choose(score, sizes)
        device = images.device if generator is None else generator.device
        angle = torch.rand(batch, generator=generator, device=device).to(images.device)
        angle = (2 * angle - 1) * self.max_angle

        rotated = images.clone()
        rows = torch.arange(score.shape[1], device=images.device)
        cols = torch.arange(score.shape[2], device=images.device)
        side = torch.tensor(sizes, device=images.device)[choice]
        in_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
        in_cols = (cols >= left[:, None]) & (cols < (left + side)[:, None])
        for k, tokens in enumerate(sizes):
            members = torch.nonzero(choice == k)[:, 0]
            if len(members):
                corner = torch.stack((top[members], left[members]), 1) * self.patch_size
                self._rotate(images, rotated, members, corner, tokens, angle[members])
        return RotatedBatch(rotated, images, in_rows[:, :, None] & in_cols[:, None], angle)

    def window_tokens(self, height: int, width: int) -> tuple[int, ...]:
        """Sides of the windows for an image size, in tokens, largest first.

        Raises:
            ConfigError: If the image is smaller than a patch.
        """
        p = self.patch_size
        if min(height, width) < p:
            raise ConfigError(f"an image of {height} x {width} px is smaller than a patch ({p})")
        rounded = {max(1, round(w / p)) for w in self.windows}
        limit = max(1, min(height, width) * 2 // (3 * p))
        return tuple(sorted((t for t in rounded if t <= limit), reverse=True)) or (limit,)

    @staticmethod
    def _choose(score: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Index into sizes, and first row and column of the window in tokens, each (B,)."""
        batch = len(score)
        average = score.mean((1, 2))
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for tokens in sizes:
            means = F.avg_pool2d(score[:, None], tokens, stride=1)[:, 0]
            best, place = means.flatten(1).max(1)
            found.append((best, place // means.shape[2], place % means.shape[2]))
        # 1e-4 bits: equal scores must not count as better for the rounding of their sum.
        better = torch.stack([best > average + 1e-4 for best, _, _ in found])
        better[-1] = True
        choice = better.int().argmax(0)
        each = torch.arange(batch, device=score.device)
        top = torch.stack([row for _, row, _ in found])[choice, each]
        left = torch.stack([col for _, _, col in found])[choice, each]
        return choice, top, left

    def _rotate(
        self,
        images: Tensor,
        rotated: Tensor,
        members: Tensor,
        corner: Tensor,
        tokens: int,
        angle: Tensor,
    ) -> None:
        """Write the rotated windows of one size into ``rotated``."""
        height, width = images.shape[2:]
        side = tokens * self.patch_size
        steps = torch.arange(side, device=images.device)
        offset = steps + 0.5 - side / 2
        sine, cosine = (f(torch.deg2rad(angle))[:, None, None] for f in (torch.sin, torch.cos))
        y, x = offset[:, None], offset[None, :]
        # Where a pixel's content comes from: its place turned back, clockwise on the screen.
        source_x = cosine * x - sine * y + (corner[:, 1, None, None] + side / 2)
        source_y = sine * x + cosine * y + (corner[:, 0, None, None] + side / 2)
        field = torch.stack((source_x / width * 2 - 1, source_y / height * 2 - 1), -1)
        window = F.grid_sample(
            images[members].float(),
            field,
            mode="bilinear",
            padding_mode="reflection",
            align_corners=False,
        )
        row = (corner[:, 0, None] + steps)[:, :, None]
        col = (corner[:, 1, None] + steps)[:, None, :]
        rotated[members[:, None, None], :, row, col] = window.permute(0, 2, 3, 1).to(images.dtype)

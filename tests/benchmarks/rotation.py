"""Time the adaptive rotation beside a per-image loop over scikit-image.

    python tests/benchmarks/rotation.py            # batch 64, 192 px, one thread

Both score 16 px patches by the entropy of their local binary patterns, choose a window of 96, 64
or 32 px and turn its content by the same angle with bilinear interpolation, crop included. They
run in turn in one process: compare figures of one run. scikit-image takes the diagonal neighbours
at distance 1, between pixels, so its scores differ a little and ties fall otherwise; where both
take the same window, the content is the same. It is no dependency of rsmamba; install it to run
this (`pip install scikit-image`).
"""

import argparse
import os
import statistics
import sys
import time

import numpy as np
import torch

from rsmamba.data.rotation import AdaptiveRotation

PATCH, WINDOWS = 16, (96, 64, 32)


def loop(images: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """What the published code sets out to do, image by image, with scikit-image."""
    from skimage.feature import local_binary_pattern
    from skimage.transform import AffineTransform, warp

    rotated, chosen = images.copy(), []
    for image, out, angle in zip(images, rotated, angles, strict=True):
        grey = image.mean(0)
        code = local_binary_pattern(np.round(grey).astype(np.uint8), 8, 1).astype(np.int64)
        rows = code.shape[0] // PATCH
        score = np.empty((rows, rows))
        for r in range(rows):
            for c in range(rows):
                patch = code[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
                share = np.bincount(patch.ravel(), minlength=256) / PATCH**2
                share = share[share > 0]
                score[r, c] = -(share * np.log2(share)).sum()
        side, row, col = window(score)
        chosen.append((side, row, col))
        size, top, left = side * PATCH, row * PATCH, col * PATCH
        centre = np.array([left + size / 2 - 0.5, top + size / 2 - 0.5])
        turn = (
            AffineTransform(translation=-centre)
            + AffineTransform(rotation=np.deg2rad(angle))
            + AffineTransform(translation=centre)
        )
        # Only the window is computed: its pixels, sampled from the whole image.
        shift = AffineTransform(translation=(left, top))
        for band, target in zip(image, out, strict=True):
            target[top : top + size, left : left + size] = warp(
                band, shift + turn, output_shape=(size, size), order=1, mode="symmetric"
            )
    return rotated, chosen


def window(score: np.ndarray) -> tuple[int, int, int]:
    """Largest window whose mean beats the image's; tokens: side, row, column."""
    total = np.pad(score.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    for i, pixels in enumerate(WINDOWS):
        s = pixels // PATCH
        mean = (total[s:, s:] - total[:-s, s:] - total[s:, :-s] + total[:-s, :-s]) / s**2
        row, col = np.unravel_index(mean.argmax(), mean.shape)
        if mean[row, col] > score.mean() + 1e-4 or i == len(WINDOWS) - 1:
            return s, int(row), int(col)
    raise AssertionError("unreachable: the last window is always taken")


def main() -> int:
    """Check that both do the same, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    try:
        import skimage
    except ImportError:
        print("scikit-image is needed for the comparison: pip install scikit-image")
        return 2
    torch.set_num_threads(args.threads)
    images = pictures(args.batch, args.size)
    ours = AdaptiveRotation(PATCH, WINDOWS, tolerance=0.0)
    angles = turned(ours, images).angle.numpy()
    theirs, chosen = loop(images.numpy(), angles)
    result = turned(ours, images)
    same = [
        (int(m.any(1).sum()), *np.argwhere(m.numpy())[0]) == c
        for m, c in zip(result.mask, chosen, strict=True)
    ]
    inside = np.abs(result.image.numpy() - theirs).mean((1, 2, 3))[same]
    print(
        f"same window in {np.mean(same):.0%} of {args.batch} images; mean difference there "
        f"{inside.mean():.2f} grey levels"
    )
    times: dict[str, list[float]] = {"scikit-image loop": [], "rsmamba": []}
    for _ in range(args.repeats):
        for name, run in (
            ("scikit-image loop", lambda: loop(images.numpy(), angles)),
            ("rsmamba", lambda: turned(ours, images)),
        ):
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    for name, ms in times.items():
        print(f"{name:<18} min {min(ms):8.1f} ms   median {statistics.median(ms):8.1f} ms")
    ratios = [min(t) for t in times.values()], [statistics.median(t) for t in times.values()]
    print(
        f"ratio {ratios[0][0] / ratios[0][1]:.1f} of minima, {ratios[1][0] / ratios[1][1]:.1f} of "
        f"medians; batch {args.batch}, {args.size} px, {args.threads} thread(s), load "
        f"{os.getloadavg()[0]:.1f}, scikit-image {skimage.__version__}, torch {torch.__version__}"
    )
    return 0


def pictures(batch: int, size: int) -> torch.Tensor:
    """Flat bytes with a textured square somewhere: (B, 3, size, size) float32."""
    rng = np.random.default_rng(0)
    out = np.full((batch, 3, size, size), 90, np.float32) + rng.integers(0, 3, (batch, 1, 1, 1))
    for image in out:
        side = int(rng.choice([32, 64, 96]))
        row, col = PATCH * rng.integers(0, (size - side) // PATCH + 1, 2)
        image[:, row : row + side, col : col + side] = rng.integers(0, 256, (3, side, side))
    return torch.from_numpy(out)


def turned(rotation: AdaptiveRotation, images: torch.Tensor):
    """One batch, always by the same angles."""
    return rotation(images, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    sys.exit(main())

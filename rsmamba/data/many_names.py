"""Millions of names in Arrow's form: hashed and divided without a Python object for each."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rsmamba.errors import ConfigError

#: Names that are worked on at a time.
CHUNK = 1 << 16
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def hold_back(
    names: pa.LargeStringArray, sizes: npt.NDArray[Any] | None, share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose images in seeded order until their sizes come nearest to a share of the total.

    :func:`~rsmamba.data.splits.take_share` for millions of names: the same rule, with another order
    (its SHA-256 of each name takes ten times as long). The order is that of the 64-bit FNV-1a hash
    of seed and name, the same on every machine.

    Args:
        names: Names relative to the folder that holds all.
        sizes: Size of each image (N,); None if all count the same.
        share: In (0, 1).
        seed: Number of the order.

    Returns:
        Which images are chosen (N,), at least one, and at least one not.

    Raises:
        ConfigError: If the share is out of range or there are fewer than two images.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"a fraction of {share} leaves nothing to train on or nothing to judge by"
        )
    if len(names) < 2:
        raise ConfigError("one image cannot be divided; add more, or set the fraction to 0")
    key = hashes(names, f"{seed}:")
    # The last bytes of a name reach the high bits of that hash only by a mixing (MurmurHash3's).
    key = (key ^ key >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    order = np.argsort(key ^ key >> np.uint64(33), kind="stable")
    weights = np.ones(len(names)) if sizes is None else sizes[order].astype(np.float64)
    before = np.cumsum(weights) - weights
    fits = before + weights / 2 <= share * weights.sum()
    count = len(names) if fits[1:-1].all() else 1 + int(np.argmin(fits[1:-1]))
    chosen = np.zeros(len(names), bool)
    chosen[order[: min(count, len(names) - 1)]] = True
    return chosen


def hashes(names: pa.LargeStringArray, prefix: str = "") -> npt.NDArray[np.uint64]:
    """64-bit FNV-1a of prefix and name (http://www.isthe.com/chongo/tech/comp/fnv/), for each."""
    start = _FNV_START
    for byte in prefix.encode():
        start = (start ^ byte) * _FNV_PRIME % 2**64
    prime, found = np.uint64(_FNV_PRIME), np.empty(len(names), np.uint64)
    for first in range(0, len(names), CHUNK):
        offsets, data = _buffers(names.slice(first, CHUNK))
        lengths, offsets = np.diff(offsets), offsets[:-1]
        hashed = np.full(len(lengths), start, np.uint64)
        for place in range(int(lengths.max(initial=0))):  # byte by byte, all names at once
            longer = np.flatnonzero(lengths > place)
            hashed[longer] = (hashed[longer] ^ data[offsets[longer] + place]) * prime
        found[first : first + CHUNK] = hashed
    return found


def names_sha256(names: pa.LargeStringArray) -> str:
    """SHA-256 of the names in their order, each with its length."""
    hashed = hashlib.sha256()
    for start in range(0, len(names), CHUNK):
        offsets, data = _buffers(names.slice(start, CHUNK))
        hashed.update(np.diff(offsets).astype("<u4").tobytes())
        hashed.update(data[offsets[0] : offsets[-1]].tobytes())
    return hashed.hexdigest()


def _buffers(names: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Offsets and bytes of strings."""
    _, offsets, data = names.buffers()
    start = names.offset
    return (
        np.frombuffer(offsets, np.int64)[start : start + len(names) + 1],
        np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8),
    )

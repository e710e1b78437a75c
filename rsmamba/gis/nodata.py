"""Which values of a raster were observed: one rule for training, statistics and maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def observed(
    values: NDArray[Any], masks: NDArray[np.bool_] | None, nodata: Sequence[float | None]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is known of each value, and of each pixel.

    A pixel is valid if any of its bands was observed, as GDAL's dataset mask has it. In a valid
    pixel a band may still be missing: it has the declared nodata value, or is not finite. One
    exception: a declared nodata of 0 beside data of other bands is a dark value.

    Args:
        values: (C, H, W) stored values.
        masks: (C or 1, H, W) GDAL's masks of the bands; None if the file declares none.
        nodata: Declared nodata value per band; None for none.

    Returns:
        (C, H, W) which values were observed, and (H, W) which pixels are valid.
    """
    known: NDArray[np.bool_] = np.ones(values.shape, bool)
    if values.dtype.kind == "f":
        np.logical_and(known, np.isfinite(values), out=known)
    if masks is not None:
        known &= masks
    valid: NDArray[np.bool_] = np.logical_or.reduce(known, axis=0)
    for band, value in enumerate(nodata):
        if value == 0:
            known[band] |= valid & (values[band] == 0)
    return known, valid
